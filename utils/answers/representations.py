"""Question 1: pixels, hand-made features and learned features, with few and with many training images."""

import math
from collections.abc import Callable
from functools import partial

from utils.answers.study import PERCENT, Images, Study, as_curve, draw_curve, evaluate, fully_connected, train
from utils.visualize import PAGE_WIDTH, new_figure

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn.functional import avg_pool2d, one_hot, pad
from torch.optim import Adam

COUNTS = (200, 2000, 20_000)  # training images
STEPS = 400  # of training a network, whatever the number of images
BATCH_SIZE = 64
STRENGTHS = {200: [0.3], 2000: [0.1], 20_000: [0.003]}  # of the ridge, to begin the search with
DIRECTIONS = 9  # of the gradient, from 0 to 180 degrees
CELL = 4  # pixels on each side of the square of which a histogram is made


def convolutional() -> nn.Sequential:
    """Return a small ConvNet, all of which is trained: three times convolution, batch normalization, ReLU, pooling."""
    layers: list[nn.Module] = []
    for n_in, n_out in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(n_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 4 * 4, 10))


# How to build each network, and the learning rate to begin the search with.
NETWORKS = {
    "linear classifier on pixels": (partial(fully_connected, ()), 1e-4),
    "MLP": (partial(fully_connected, (256,)), 1e-4),
    "ConvNet": (convolutional, 3e-3),
}


def measure(study: Study) -> dict:
    """Measure the test accuracy of each method with each number of images; all choices are made in validation."""
    held_out = [(oriented_gradients(some[0]), some[1]) for some in (study.validation, study.test)]
    methods = {"hand-made features": {f"{n}": measure_hand_made(study, n, *held_out) for n in COUNTS}}
    return {"methods": methods | {name: {f"{n}": measure_network(study, name, n) for n in COUNTS} for name in NETWORKS}}


def measure_network(study: Study, name: str, count: int) -> dict:
    build, start = NETWORKS[name]
    held_out = {"validation": study.validation, "test": study.test}

    def run(rate: float, seed: int) -> dict:
        images, adam = study.training(count, seed), partial(Adam, lr=rate)
        model, _ = train(build, adam, images, BATCH_SIZE, 1, seed, study.scaled(STEPS))
        # The test images are looked at here, but only the validation images choose the rate.
        accuracies = {name: evaluate(model, some)[1] for name, some in held_out.items()}
        return {f"{name}_accuracy": accuracy for name, accuracy in accuracies.items()}

    return study.search(run, [start], validation_accuracy=max)


def measure_hand_made(study: Study, count: int, validation: Images, test: Images) -> dict:
    chosen = {seed: study.training(count, seed) for seed in study.seeds}
    features = {seed: (oriented_gradients(pixels), labels) for seed, (pixels, labels) in chosen.items()}

    def run(strength: float, seed: int) -> dict:
        classify = ridge_regression(*features[seed], strength)
        shares = [(classify(some) == right).float().mean().item() for some, right in (validation, test)]
        return dict(zip(("validation_accuracy", "test_accuracy"), shares, strict=True))

    return study.search(run, STRENGTHS[count], validation_accuracy=max)


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


def ridge_regression(features: torch.Tensor, labels: torch.Tensor, strength: float) -> Callable:
    """Fit the ten class indicators (squared error + strength * squared weights); return what classifies features."""
    targets, mean = one_hot(labels, 10).float(), features.mean(dim=0)
    centred = features - mean
    covariance = centred.T @ centred / len(labels) + strength * torch.eye(features.shape[1])
    weights = torch.linalg.solve(covariance, centred.T @ (targets - targets.mean(dim=0)) / len(labels))
    return lambda some: ((some - mean) @ weights + targets.mean(dim=0)).argmax(dim=1)


def draw(result: dict) -> Figure:
    figure, [[axes]] = new_figure(PAGE_WIDTH, 4.6)
    for name, by_count in result["methods"].items():
        best = [values["best"]["validation_accuracy"] for values in by_count.values()]
        draw_curve(axes, COUNTS, as_curve(best, "test_accuracy"), name, marker="o")
    axes.set(xscale="log", xlabel="Training images (log scale)", ylabel="Test accuracy")
    axes.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend()
    return figure
