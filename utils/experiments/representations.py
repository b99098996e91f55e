"""Question 1: pixels, hand-made features and learned features, with few and with many training images."""

import math
from collections.abc import Callable
from functools import partial

from utils.experiments.study import (
    PERCENT,
    Batches,
    Chunks,
    Study,
    accuracy,
    as_curve,
    best_of,
    build_convnet,
    draw_curve,
    optimizer_of_main,
    summarize,
    train,
)
from utils.model import MLP
from utils.visualize import PAGE_WIDTH, new_figure

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import avg_pool2d, one_hot, pad

COUNTS = (200, 2000, 20_000)  # training images
STEPS = 300  # of training a network, whatever the number of images
BATCH_SIZE = 64
STRENGTHS = [0.03, 0.1, 0.3]  # of the ridge, to begin the search with
DIRECTIONS = 9  # of the gradient, from 0 to 180 degrees
CELL = 4  # pixels on each side of the square of which a histogram is made
# How to build each network from its training images, and the learning rates to begin the search with.
NETWORKS: dict[str, tuple[Callable[[Chunks], nn.Module], list[float]]] = {
    "linear classifier on pixels": (lambda images: MLP(()), [3e-4, 1e-3, 3e-3]),
    "MLP": (lambda images: MLP((256,)), [3e-3, 1e-2, 3e-2]),
    "ConvNet": (build_convnet, [0.3, 1, 3]),
}
Features = tuple[torch.Tensor, torch.Tensor]  # (n, d) and the labels (n,)


def measure(study: Study) -> dict:
    """Measure the test accuracy of each method with each number of images; all choices are made in validation."""
    validation, test = oriented_gradients_of(study.validation), oriented_gradients_of(study.test)
    methods = {"hand-made features": {n: measure_hand_made(study, n, validation, test) for n in COUNTS}}
    methods |= {name: {n: measure_network(study, name, n) for n in COUNTS} for name in NETWORKS}
    result = {}
    for name, by_count in methods.items():
        few, many = (by_count[count]["test_accuracy"]["per_seed"] for count in (COUNTS[0], COUNTS[-1]))
        gain = summarize([after - before for before, after in zip(few, many, strict=True)])
        result[name] = {"images": {f"{study.scaled(n)}": values for n, values in by_count.items()}, "gain": gain}
    best = [
        f"with {study.scaled(count):,}: {best_with(result, study.scaled(count))}" for count in (COUNTS[0], COUNTS[-1])
    ]
    return {"methods": result, "finding": f"best test accuracy by training images, {'; '.join(best)}"}


def best_with(methods: dict[str, dict], count: int) -> str:
    return best_of({name: method["images"][f"{count}"] for name, method in methods.items()}, "test_accuracy", max)


def measure_network(study: Study, name: str, count: int) -> dict:
    build, rates = NETWORKS[name]
    models: dict[tuple[float, int], nn.Module] = {}

    def run(rate: float, seed: int) -> dict:
        images = study.training(count, seed)
        batches = Batches(images, study.scaled(BATCH_SIZE), study.scaled(STEPS))
        models[rate, seed], curves = train(
            partial(build, images), optimizer_of_main, batches, rate, 1, seed, falling=True, validation=study.validation
        )
        return {"validation_accuracy": curves["final_validation_accuracy"]}

    def test(rate: float, seed: int) -> dict:
        return {"test_accuracy": accuracy(models[rate, seed], study.test)}

    found = study.search(run, rates, validation_accuracy=max)
    return found | study.repeat(test, found["best_by"]["validation_accuracy"]["value"])


def measure_hand_made(study: Study, count: int, validation: Features, test: Features) -> dict:
    statistics = {seed: covariances(*oriented_gradients_of(study.training(count, seed))) for seed in study.seeds}

    def run(strength: float, seed: int) -> dict:
        return {"validation_accuracy": ridge_accuracy(statistics[seed], strength, *validation)}

    def run_test(strength: float, seed: int) -> dict:
        return {"test_accuracy": ridge_accuracy(statistics[seed], strength, *test)}

    found = study.search(run, STRENGTHS, validation_accuracy=max)
    return found | study.repeat(run_test, found["best_by"]["validation_accuracy"]["value"])


def oriented_gradients(images: torch.Tensor) -> torch.Tensor:
    """Return histograms of oriented gradients (Dalal and Triggs 2005) of images (n, 3, 32, 32): (n, 1764).

    In each cell of 4 x 4 pixels the lengths of the gradients are added up by direction; each block of 2 x 2 cells is
    then brought to length 1, so that brightness and contrast do not count.
    """
    grey = pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    angle = torch.atan2(down, across) % math.pi  # an edge from dark to bright counts as one from bright to dark
    direction = (angle / math.pi * DIRECTIONS).long().clamp(max=DIRECTIONS - 1)
    lengths = torch.zeros(len(images), DIRECTIONS, *images.shape[2:])
    lengths.scatter_(1, direction, torch.hypot(across, down))
    cells = avg_pool2d(lengths, CELL)  # (n, 9, 8, 8)
    blocks = cells.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).flatten(3)  # (n, 7, 7, 36)
    return (blocks / (blocks.norm(dim=3, keepdim=True) + 0.01)).flatten(1)


def oriented_gradients_of(images: Chunks) -> Features:
    return torch.cat([oriented_gradients(some) for some, _ in images]), torch.cat([labels for _, labels in images])


def covariances(features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the means of features (n, d) and of the ten class indicators, and the covariances (d, d) and (d, 10)."""
    targets = one_hot(labels, 10).float()
    centred = features - features.mean(dim=0)
    within, between = centred.T @ centred / len(labels), centred.T @ (targets - targets.mean(dim=0)) / len(labels)
    return features.mean(dim=0), targets.mean(dim=0), within, between


def ridge_accuracy(
    statistics: tuple[torch.Tensor, ...], strength: float, features: torch.Tensor, labels: torch.Tensor
) -> float:
    """Return the accuracy of ridge regression on the class indicators: squared error + strength * squared weights."""
    mean_features, mean_targets, within, between = statistics
    weights = torch.linalg.solve(within + strength * torch.eye(len(within)), between)
    scores = (features - mean_features) @ weights + mean_targets
    return (scores.argmax(dim=1) == labels).float().mean().item()


def draw(result: dict) -> Figure:
    figure, [[axes]] = new_figure(PAGE_WIDTH, 4.6)
    for name, method in result["methods"].items():
        counts = [int(count) for count in method["images"]]
        draw_curve(axes, counts, as_curve(method["images"].values(), "test_accuracy"), name, marker="o")
    axes.set(xscale="log", xlabel="Training images (log scale)", ylabel="Test accuracy")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend()
    return figure
