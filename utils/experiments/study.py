"""What the experiments share: images, training, the search for the best value, statistics, curves."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from utils.data import LabelledImages, normalize, one_in
from utils.errors import RunError
from utils.model import build_model
from utils.optimizer import make_optimizer
from utils.schedule import EpochPlan, seed_epoch
from utils.training import evaluate, train_one_epoch

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn
from torch.optim import SGD, Optimizer

GUESSING = math.log(10)  # the cross-entropy of ten equal probabilities
GRID = [float(f"{digit}e{exponent}") for exponent in range(-7, 4) for digit in (1, 3)]  # two values in each decade
PERCENT = PercentFormatter(1, decimals=0, symbol=" %")

Chunks = list[tuple[torch.Tensor, torch.Tensor]]  # chunks of normalized images (n, 3, 32, 32) and labels (n,)


class Batches:
    """Serves normalized images in random batches: `count` of them, or as many as hold each image once."""

    def __init__(self, images: Chunks, batch_size: int, count: int | None = None) -> None:
        self.images, self.labels = (torch.cat(parts) for parts in zip(*images, strict=True))
        self.batch_size = batch_size
        self.count = count

    def __len__(self) -> int:
        return self.count or math.ceil(len(self.labels) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        passes = math.ceil(self.count * self.batch_size / len(self.labels)) if self.count else 1
        order = torch.cat([torch.randperm(len(self.labels)) for _ in range(passes)])
        for chosen in order.split(self.batch_size)[: len(self)]:
            yield self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Study:
    """The images, the seeds, and the share of the images, epochs and draws to measure with: the tests take less."""

    data: LabelledImages
    seeds: tuple[int, ...]
    share: float = 1.0
    further: int = 6  # values that a search may try beyond the first ones

    def scaled(self, count: int) -> int:
        return max(2, round(self.share * count))

    def with_seeds(self, count: int) -> "Study":
        """Return a study with `count` seeds, from the first one on."""
        return replace(self, seeds=tuple(range(self.seeds[0], self.seeds[0] + count)))

    @cached_property
    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the indices of the images for training, and of those for validation."""
        in_validation = one_in(10, self.data.train_labels)
        return (~in_validation).nonzero().flatten(), in_validation.nonzero().flatten()

    def training(self, count: int, seed: int) -> Chunks:
        """Return `count` (scaled) of the training images, chosen by the seed."""
        order = torch.randperm(len(self.split[0]), generator=torch.Generator().manual_seed(seed))
        chosen = self.split[0][order[: self.scaled(count)]]
        return prepare(self.data.train_images[chosen], self.data.train_labels[chosen])

    @cached_property
    def validation(self) -> Chunks:
        chosen = self.split[1][: self.scaled(5000)]
        return prepare(self.data.train_images[chosen], self.data.train_labels[chosen])

    @cached_property
    def test(self) -> Chunks:
        count = self.scaled(10_000)
        return prepare(self.data.test_images[:count], self.data.test_labels[:count])

    def repeat(self, run: Callable[..., dict], *arguments: object) -> dict:
        """Call `run(*arguments, seed)` with each seed and summarize the numbers and curves that it returns."""
        runs = [run(*arguments, seed) for seed in self.seeds]
        return {name: summarize([values[name] for values in runs]) for name in runs[0]}

    def search(self, run: Callable[[float, int], dict], first: list[float], **targets: Callable) -> dict:
        """Call `run(value, seed)` with the values of `first`, a part of GRID, and then with values beyond its ends.

        Each target names a number that `run` returns, and how to choose: min or max. The search goes on until, for each
        target, the value with the best mean has worse ones on both sides. If it ends before that, `edge` of the best
        value says so: "lowest" or "highest" of all that were tried. Raises RunError if none gives one. The curves are
        kept of the best value alone, to keep the record small.
        """
        tried: dict[float, dict] = {}
        ahead = list(first)
        while ahead:
            tried |= {value: self.repeat(run, value) for value in ahead}
            choices = {target: choose(tried, target, better) for target, better in targets.items()}
            ends = {"lowest": GRID.index(min(tried)) - 1, "highest": GRID.index(max(tried)) + 1}
            edges = sorted({choice["edge"] for choice in choices.values() if choice["edge"]})
            given_up = len(tried) >= len(first) + self.further
            ahead = [] if given_up else [GRID[ends[edge]] for edge in edges if 0 <= ends[edge] < len(GRID)]
        for target, choice in choices.items():
            if choice[target]["mean"] is None:
                raise RunError(f"no value from {min(tried):g} to {max(tried):g} gives a {target}")
        return {"best_by": choices, "tried": {f"{value:g}": without_curves(tried[value]) for value in sorted(tried)}}


def without_curves(result: dict[str, dict]) -> dict[str, dict]:
    return {name: summary for name, summary in result.items() if not isinstance(summary["mean"], list)}


def prepare(images: torch.Tensor, labels: torch.Tensor) -> Chunks:
    """Normalize the images once, in chunks: small networks would spend most of their time on it."""
    chunks = zip(images.split(500), labels.split(500), strict=True)
    return [(normalize(some).contiguous(), their_labels) for some, their_labels in chunks]


def choose(tried: dict[float, dict], target: str, better: Callable) -> dict:
    """Return what was measured at the best value, with that value, and at which edge of those tried it lies, if any."""
    worst = math.inf if better is min else -math.inf
    means = {value: worst if tried[value][target]["mean"] is None else tried[value][target]["mean"] for value in tried}
    best = better(sorted(tried), key=means.get)
    edge = {min(tried): "lowest", max(tried): "highest"}.get(best)
    return {"value": best, "edge": edge, **tried[best]}


def find_edges(numbers: object, path: str = "") -> list[str]:
    """Name the searches in the numbers of an experiment whose best value is the lowest or highest of those tried."""
    if not isinstance(numbers, dict):
        return []
    if "edge" in numbers:
        return [f"{path.strip('/')} ({numbers['edge']})"] if numbers["edge"] else []
    return [edge for key, value in numbers.items() for edge in find_edges(value, f"{path}/{key}")]


def summarize(values: list) -> dict:
    """Return mean and standard deviation (n - 1) over the seeds, of numbers or of curves; None where a run diverged."""
    array = np.array(values, dtype=float)  # None becomes NaN
    mean, std = (np.where(np.isnan(over), None, over).tolist() for over in (array.mean(0), array.std(0, ddof=1)))
    return {"mean": mean, "std": std, "n": len(values), "per_seed": values}


def best_of(results: dict[str, dict], quantity: str, better: Callable) -> str:
    """Name the result whose mean `quantity` is best, and those that differ from it by no more than the spread."""
    summaries = {name: result[quantity] for name, result in results.items()}
    top = better(summaries.values(), key=lambda summary: summary["mean"])
    return join(name for name, s in summaries.items() if abs(s["mean"] - top["mean"]) <= s["std"] + top["std"])


def join(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share > 0.01 else 2}f} %"


def sgd(model: nn.Module, momentum: float = 0.0) -> Optimizer:
    return SGD(model.parameters(), lr=0.0, momentum=momentum)  # `train` sets the rate


def optimizer_of_main(model: nn.Module) -> Optimizer:
    return make_optimizer(model, weight_decay=5e-4)


def build_convnet(images: Chunks) -> nn.Module:
    """Return the ConvNet of main.py with half of its filters, so that it trains in seconds."""
    return build_model("convnet", 10, 0.5, torch.cat([some for some, _ in images])[:1000])


def train(
    build: Callable[[], nn.Module],
    optimizer_for: Callable[[nn.Module], Optimizer],
    batches: Batches,
    rate: float,
    epochs: int,
    seed: int,
    falling: bool = False,
    **watched: Chunks,
) -> tuple[nn.Module, dict[str, list]]:
    """Train a network from the seed, at a constant learning rate or one that falls linearly to zero.

    Returns it and its curves: loss and accuracy of the `watched` images, in evaluation mode, after each epoch, None
    from where it diverged on, and the last value of each as `final_...`. `seconds` count the training alone.
    """
    names = [f"{name}_{quantity}" for name in watched for quantity in ("loss", "accuracy")]
    curves: dict[str, list] = {name: [None] * epochs for name in (*names, "seconds")}
    torch.manual_seed(seed)
    model, seconds, steps = build(), 0.0, len(batches)
    optimizer = optimizer_for(model)
    for epoch in range(epochs):
        seed_epoch(seed, epoch + 1)
        progress = [(epoch * steps + step) / (epochs * steps) for step in range(steps)]
        rates = [rate * (1 - done) if falling else rate for done in progress]
        started = time.perf_counter()
        try:
            plan = EpochPlan(epoch + 1, torch.empty(0), 32, 0, batches.batch_size, rates)
            train_one_epoch(model, batches, optimizer, plan)
            seconds += time.perf_counter() - started
            measured = {name: evaluate(model, images) for name, images in watched.items()}
        except RunError:  # NaN or infinite: here a result, which the None in the curves record
            break
        curves["seconds"][epoch] = seconds
        for name, evaluation in measured.items():
            curves[f"{name}_loss"][epoch], curves[f"{name}_accuracy"][epoch] = evaluation.loss, evaluation.accuracy
    finals = {f"final_{name}": curve[-1] for name, curve in curves.items() if name != "seconds"}
    return model, curves | finals


def accuracy(model: nn.Module, images: Chunks) -> float:
    return evaluate(model, images).accuracy


def draw_curve(axes: Axes, x: Iterable[float], curve: dict, label: str, **style: object) -> None:
    """Draw the mean of a summarized curve with its deviation as a band; where a run diverged there is a gap."""
    mean, std = np.array(curve["mean"], dtype=float), np.array(curve["std"], dtype=float)
    line = axes.plot(x, mean, label=label, **style)[0]
    axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)


def as_curve(results: Iterable[dict], quantity: str) -> dict:
    """Turn one summarized number of each result into a curve."""
    summaries = [result[quantity] for result in results]
    return {key: [summary[key] for summary in summaries] for key in ("mean", "std")}


def from_one(curve: dict) -> range:
    """Return the numbers of the epochs or layers of a curve."""
    return range(1, len(curve["mean"]) + 1)


def legend_below(figure: Figure, axes: Axes, columns: int, title: str | None = None) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, title=title)
