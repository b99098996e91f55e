"""Question 4: activation functions in networks of 2, 6 and 12 hidden layers, before and after a short training."""

from collections.abc import Callable
from functools import partial

from utils.answers.study import Study, as_curve, differences, draw_curve, fully_connected, mark_guessing, train
from utils.visualize import PAGE_WIDTH, new_figure

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

DEPTHS = (2, 6, 12)  # hidden layers
WIDTH = 128  # units in each
IMAGES, EPOCHS = 2000, 8

# Initial weights: He et al. (2015) make up for the half of each signal that ReLU stops; Glorot and Bengio (2010) suit a
# slope of 1 at zero; four times Glorot's suit the sigmoid's slope of 1/4 (Bengio 2012, arXiv:1206.5533).
he: Callable = partial(nn.init.kaiming_normal_, nonlinearity="relu")
glorot: Callable = nn.init.xavier_normal_
four_times_glorot: Callable = partial(nn.init.xavier_normal_, gain=4)

# Each function, its initial weights, and the learning rate to begin the search with.
ACTIVATIONS: dict[str, tuple[nn.Module, Callable, float]] = {
    "identity": (nn.Identity(), glorot, 0.03),
    "sigmoid": (nn.Sigmoid(), four_times_glorot, 1.0),
    "tanh": (nn.Tanh(), glorot, 0.1),
    "ReLU": (nn.ReLU(), he, 0.03),
    "GELU": (nn.GELU(), he, 0.03),
    "sigmoid, ReLU's weights": (nn.Sigmoid(), he, 1.0),
}


def build(name: str, depth: int) -> nn.Sequential:
    function, initialize, _ = ACTIVATIONS[name]
    model = fully_connected((WIDTH,) * depth, function)
    for layer in linear_layers(model)[:-1]:
        initialize(layer.weight)
    return model


def linear_layers(model: nn.Sequential) -> list[nn.Linear]:
    return [layer for layer in model if isinstance(layer, nn.Linear)]


def measure(study: Study) -> dict:
    result = {name: {f"{depth}": measure_network(study, name, depth) for depth in DEPTHS} for name in ACTIVATIONS}
    gelu, relu = (result[name] for name in ("GELU", "ReLU"))
    target = "final_train_loss"
    pairs = {
        depth: differences(gelu[depth]["best"][target][target], relu[depth]["best"][target][target]) for depth in relu
    }
    return {"activations": result, "gelu_minus_relu": pairs}


def measure_network(study: Study, name: str, depth: int) -> dict:
    def run(rate: float, seed: int) -> dict:
        images, epochs = study.training(IMAGES, seed), study.scaled(EPOCHS)
        sgd = partial(torch.optim.SGD, lr=rate)
        return train(partial(build, name, depth), sgd, images, 50, epochs, seed, train=images)[1]

    found = study.search(run, [ACTIVATIONS[name][2]], final_train_loss=min)
    return found | study.repeat(measure_error_signals, study, name, depth)


def measure_error_signals(study: Study, name: str, depth: int, seed: int) -> dict:
    """Return the size of the error signal in each layer before training: the root of its mean square over examples.

    The error signal of an example is the gradient of its own loss with respect to the pre-activations of a layer.
    `share` is what the first hidden layer gets of the last one's.
    """
    torch.manual_seed(seed)
    model = build(name, depth)
    pre_activations: list[torch.Tensor] = []
    for layer in linear_layers(model):
        layer.register_forward_hook(lambda layer, inputs, output: pre_activations.append(output))
    pixels, labels = study.training(500, seed)
    loss = cross_entropy(model(pixels), labels, reduction="sum")  # an example acts on no other example's loss
    sizes = [signals.square().sum(dim=1).mean().sqrt().item() for signals in torch.autograd.grad(loss, pre_activations)]
    return {"error_signals": sizes, "share": sizes[0] / sizes[-2]}  # sizes[-1] is that of the output layer


def draw(result: dict) -> Figure:
    figure, [[signal, loss]] = new_figure(PAGE_WIDTH, 4.8, columns=2)
    for name, by_depth in result["activations"].items():
        draw_curve(signal, DEPTHS, as_curve(by_depth.values(), "share"), name, marker="o")
        best = [values["best"]["final_train_loss"] for values in by_depth.values()]
        draw_curve(loss, DEPTHS, as_curve(best, "final_train_loss"), None, marker="o")
    mark_guessing(loss)
    signal.set(title="Before training", ylabel="Error signal: first / last hidden layer", yscale="log")
    loss.set(title=f"After {EPOCHS} epochs", ylabel="Training loss")
    for axes in (signal, loss):
        axes.set(xlabel="Hidden layers", xticks=DEPTHS)
    figure.legend(loc="outside lower center", ncols=3)
    return figure
