"""Question 4: activation functions in networks of 2, 6 and 12 hidden layers, before and after a short training."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from utils.experiments.study import (
    GUESSING,
    Batches,
    Study,
    as_curve,
    best_of,
    draw_curve,
    join,
    legend_below,
    percent,
    sgd,
    train,
)
from utils.model import MLP
from utils.visualize import PAGE_WIDTH, new_figure

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy, gelu

DEPTHS = (2, 6, 12)  # hidden layers
WIDTH = 128  # units in each
IMAGES, EPOCHS = 2000, 8


def he(weight: torch.Tensor) -> None:
    """He et al. (2015): makes up for the half of each signal that ReLU stops."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def glorot(weight: torch.Tensor) -> None:
    """Glorot and Bengio (2010): for functions with the slope 1 at zero."""
    nn.init.xavier_normal_(weight)


def four_times_glorot(weight: torch.Tensor) -> None:
    """Bengio (2012, arXiv:1206.5533): for the sigmoid, which has the slope 1/4 at zero."""
    nn.init.xavier_normal_(weight, gain=4)


class Activation(NamedTuple):
    """A function, the weights that suit it, and the learning rates to begin the search with."""

    function: Callable[[torch.Tensor], torch.Tensor]
    initialize: Callable[[torch.Tensor], None]
    rates: list[float]


ACTIVATIONS = {
    "identity": Activation(lambda z: z, glorot, [0.003, 0.01, 0.03]),
    "sigmoid": Activation(torch.sigmoid, four_times_glorot, [0.3, 1, 3]),
    "tanh": Activation(torch.tanh, glorot, [0.03, 0.1, 0.3]),
    "ReLU": Activation(torch.relu, he, [0.01, 0.03, 0.1]),
    "GELU": Activation(gelu, he, [0.01, 0.03, 0.1]),
    "sigmoid, ReLU's weights": Activation(torch.sigmoid, he, [0.3, 1, 3]),
}


def build(name: str, depth: int) -> MLP:
    model = MLP((WIDTH,) * depth, activation=ACTIVATIONS[name].function)
    for layer in model.layers[:-1]:
        ACTIVATIONS[name].initialize(layer.weight)
    return model


def measure(study: Study) -> dict:
    result = {name: {f"{depth}": measure_network(study, name, depth) for depth in DEPTHS} for name in ACTIVATIONS}
    deepest = {name: by_depth[f"{DEPTHS[-1]}"] for name, by_depth in result.items()}
    left = join(f"{percent(deepest[name]['share']['mean'])} with {name}" for name in ("sigmoid", "ReLU"))
    lowest = best_of({name: at_best_rate(values) for name, values in deepest.items()}, "final_train_loss", min)
    finding = f"through {DEPTHS[-1]} layers, {left} are left of the error signal; lowest loss: {lowest}"
    return {"activations": result, "finding": finding}


def measure_network(study: Study, name: str, depth: int) -> dict:
    def run(rate: float, seed: int) -> dict:
        images = study.training(IMAGES, seed)
        batches, epochs = Batches(images, 50), study.scaled(EPOCHS)
        return train(partial(build, name, depth), sgd, batches, rate, epochs, seed, train=images)[1]

    found = study.search(run, ACTIVATIONS[name].rates, final_train_loss=min)
    return found | study.repeat(measure_error_signals, study, name, depth)


def at_best_rate(values: dict) -> dict:
    return values["best_by"]["final_train_loss"]


def measure_error_signals(study: Study, name: str, depth: int, seed: int) -> dict:
    """Return the size of the error signal in each layer before training: the root of its mean square over examples.

    The error signal of an example is the gradient of its own loss with respect to the pre-activations of a layer.
    `share` is what the first hidden layer gets of the last one's, `factor` what passes one layer: a geometric mean.
    """
    torch.manual_seed(seed)
    model = build(name, depth)
    pre_activations: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda layer, inputs, output: pre_activations.append(output))
    images, labels = (torch.cat(parts) for parts in zip(*study.training(500, seed), strict=True))
    loss = cross_entropy(model(images), labels, reduction="sum")  # an example acts on no other example's loss
    sizes = [signals.square().sum(dim=1).mean().sqrt().item() for signals in torch.autograd.grad(loss, pre_activations)]
    share = sizes[0] / sizes[-2]  # sizes[-1] is that of the output layer
    return {"error_signals": sizes, "share": share, "factor": share ** (1 / (depth - 1))}


def draw(result: dict) -> Figure:
    figure, [[signal, loss]] = new_figure(PAGE_WIDTH, 4.8, columns=2)
    for name, by_depth in result["activations"].items():
        draw_curve(signal, DEPTHS, as_curve(by_depth.values(), "share"), name, marker="o")
        losses = as_curve([at_best_rate(values) for values in by_depth.values()], "final_train_loss")
        draw_curve(loss, DEPTHS, losses, name, marker="o")
    loss.axhline(GUESSING, color="black", linestyle=":", linewidth=1)
    loss.text(DEPTHS[0], GUESSING - 0.02, "guessing", va="top")
    signal.set(title="Before training", ylabel="Error signal: first / last hidden layer", yscale="log")
    loss.set(title=f"After {EPOCHS} epochs, each at its best rate", ylabel="Training loss")
    for axes in (signal, loss):
        axes.set(xlabel="Hidden layers", xticks=DEPTHS)
    legend_below(figure, signal, 3)
    return figure
