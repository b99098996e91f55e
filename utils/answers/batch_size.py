"""Question 10: how many images a training takes with batches of 1, 32, 256 and all images."""

from functools import partial

from utils.answers.study import Study, draw_curve, fully_connected, train
from utils.visualize import PAGE_WIDTH, new_figure

import torch
from matplotlib.figure import Figure

SEEDS = 5
IMAGES = 1024
TARGET = 1.5  # the training loss below which it has to stay
PLAN = {  # of each batch size: steps between two looks at the loss, looks, and the learning rate to begin with
    1: (128, 80, 0.003),
    32: (4, 120, 0.03),
    256: (1, 120, 0.1),
    IMAGES: (1, 80, 0.1),
}
build = partial(fully_connected, (32,))


def measure(study: Study) -> dict:
    study = study.with_seeds(SEEDS)

    def run(size: int, rate: float, seed: int) -> dict:
        images, (steps, looks, _) = study.training(IMAGES, seed), PLAN[size]
        size = min(size, len(images[1]))
        sgd, looks = partial(torch.optim.SGD, lr=rate), study.scaled(looks)
        curves = train(build, sgd, images, size, looks, seed, steps, train=images)[1]
        return curves | {"images_to_target": stays_below(curves["train_loss"], steps * size)}

    result = {}
    for size, (_, _, rate) in PLAN.items():
        result[f"{size}"] = study.search(partial(run, size), [rate], images_to_target=min)
    return {"batch_sizes": result}


def stays_below(losses: list[float | None], images_per_look: int) -> int | None:
    """Return after how many images the loss is below TARGET for good; None if it is not at the end."""
    above = [look for look, loss in enumerate(losses, start=1) if loss is None or loss > TARGET]
    last = above[-1] if above else 0
    return None if last == len(losses) else (last + 1) * images_per_look


def draw(result: dict) -> Figure:
    figure, [[axes]] = new_figure(PAGE_WIDTH, 4.4)
    for size, values in result["batch_sizes"].items():
        curve = values["best"]["images_to_target"]["train_loss"]
        draw_curve(axes, PLAN[int(size)][0] * int(size), curve, size)
    axes.axhline(TARGET, color="black", linestyle=":", linewidth=1)
    axes.set(xlabel="Images seen (log scale)", ylabel="Training loss", xscale="log")
    axes.legend(title="Batch size")
    return figure
