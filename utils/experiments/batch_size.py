"""Question 10: how many images and seconds a training takes with batches of 1, 32, 256 and all images."""

from functools import partial

from utils.experiments.study import Batches, Study, best_of, draw_curve, legend_below, sgd, train
from utils.model import MLP
from utils.visualize import PAGE_WIDTH, new_figure

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import cross_entropy

SEEDS = 5
IMAGES = 1000
TARGET = 1.5  # the training loss to reach
STRETCH = 100  # images, after which the loss is measured, or one batch if that is larger
PLAN = {  # of each batch size: how many stretches to train, and the learning rates to begin the search with
    1: (40, [0.001, 0.003, 0.01]),
    32: (80, [0.03, 0.1, 0.3]),
    256: (60, [0.03, 0.1, 0.3]),
    IMAGES: (60, [0.03, 0.1, 0.3]),
}


def measure(study: Study) -> dict:
    study = study.with_seeds(SEEDS)

    def run(size: int, rate: float, seed: int) -> dict:
        images, stretches = study.training(IMAGES, seed), study.scaled(PLAN[size][0])
        batches = Batches(images, min(size, study.scaled(IMAGES)), max(1, study.scaled(STRETCH) // size))
        curves = train(partial(MLP, (32,)), sgd, batches, rate, stretches, seed, train=images)[1]
        curves["steps"] = [len(batches) * stretch for stretch in range(1, stretches + 1)]
        curves["images"] = [steps * batches.batch_size for steps in curves["steps"]]
        return curves | reach_target(curves)

    result = {
        f"{size}": study.search(partial(run, size), rates, images_to_target=min) for size, (_, rates) in PLAN.items()
    }
    best = {size: at_best_rate(values) for size, values in result.items()}
    fewest, fastest = (best_of(best, quantity, min) for quantity in ("images_to_target", "seconds_to_target"))
    finding = f"batches of {fewest} reach a loss of {TARGET} with the fewest images, batches of {fastest} soonest"
    return {"batch_sizes": result, "gradient": study.repeat(measure_gradient_variance, study), "finding": finding}


def reach_target(curves: dict[str, list]) -> dict:
    """Return after how many steps, images and seconds the loss has reached TARGET; None if it has not."""
    reached = [loss is not None and loss <= TARGET for loss in curves["train_loss"]]
    first = reached.index(True) if True in reached else None
    units = ("steps", "images", "seconds")
    return {f"{unit}_to_target": None if first is None else curves[unit][first] for unit in units}


def at_best_rate(values: dict) -> dict:
    return values["best_by"]["images_to_target"]


def measure_gradient_variance(study: Study, seed: int) -> dict:
    """Return the variance of the gradient, summed over the parameters, of batches drawn with replacement.

    `one_over_b` is what it should be: the variance over all single images, divided by the batch size. `power` is the
    slope of the measured variance in the log-log plot.
    """
    torch.manual_seed(seed)
    model = MLP((32,))
    images, labels = (torch.cat(parts) for parts in zip(*study.training(IMAGES, seed), strict=True))
    mean = gradient(model, images, labels)

    def variance(batches: list[torch.Tensor]) -> float:
        return float(np.mean([(gradient(model, images[i], labels[i]) - mean).square().sum().item() for i in batches]))

    sizes = [1, 4, 16, 64, 256, 1024]
    measured = [variance(list(torch.randint(len(labels), (study.scaled(100), size)))) for size in sizes]
    of_single_images = variance(list(torch.arange(len(labels)).split(1)))
    power, _ = np.polyfit(np.log(sizes), np.log(measured), 1)
    expected = [of_single_images / size for size in sizes]
    return {"sizes": sizes, "variance": measured, "one_over_b": expected, "power": float(power)}


def gradient(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the loss with respect to all parameters, as one vector."""
    gradients = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    return torch.cat([tensor.flatten() for tensor in gradients])


def draw(result: dict) -> Figure:
    figure, [[by_images, by_seconds, noise]] = new_figure(PAGE_WIDTH, 4.2, columns=3)
    for size, values in result["batch_sizes"].items():
        best = at_best_rate(values)
        for axes, quantity in ((by_images, "images"), (by_seconds, "seconds")):
            draw_curve(axes, best[quantity]["mean"], best["train_loss"], size)
    for axes, unit in ((by_images, "Images seen"), (by_seconds, "Seconds")):
        axes.axhline(TARGET, color="black", linestyle=":", linewidth=1)
        axes.set(
            title=f"By {unit.split()[0].lower()}", xlabel=f"{unit} (log scale)", ylabel="Training loss", xscale="log"
        )
    sizes, expected = result["gradient"]["sizes"]["mean"], result["gradient"]["one_over_b"]["mean"]
    noise.plot(sizes, expected, color="black", linestyle="--", label="1/B line")
    draw_curve(noise, sizes, result["gradient"]["variance"], "Measured", linestyle="", marker="o")
    noise.set(title="Noise", xlabel="Batch size B (log)", ylabel="Gradient variance (log)", xscale="log", yscale="log")
    noise.legend()
    legend_below(figure, by_images, 4, title="Batch size")
    return figure
