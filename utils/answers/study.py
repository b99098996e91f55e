"""What the measurements share: images, a training loop, the search for the best value, means and deviations."""

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from utils.data import LabelledImages, normalize

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

GUESSING = math.log(10)  # the cross-entropy of ten equal probabilities
GRID = [float(f"{digit}e{exponent}") for exponent in range(-7, 4) for digit in (1, 3)]  # two values in each decade
PERCENT = PercentFormatter(1, decimals=0, symbol=" %")

Images = tuple[torch.Tensor, torch.Tensor]  # normalized (n, 3, 32, 32), and the labels (n,)


@dataclass(frozen=True)
class Study:
    """The images and seeds to measure with, and the share of images and epochs: the tests take less."""

    data: LabelledImages
    seeds: tuple[int, ...] = (0, 1, 2)
    share: float = 1.0
    most_values: int = 12  # that a search may try

    def scaled(self, count: int) -> int:
        return max(2, round(self.share * count))

    def with_seeds(self, count: int) -> "Study":
        return replace(self, seeds=tuple(range(count)))

    @cached_property
    def order(self) -> torch.Tensor:
        """Return the training images' indices, shuffled once; the first tenth is for validation."""
        return torch.randperm(len(self.data.training[1]), generator=torch.Generator().manual_seed(0))

    def training(self, count: int, seed: int) -> Images:
        """Return `count` (scaled) images that are not for validation, chosen by the seed."""
        candidates = self.order[len(self.order) // 10 :]
        chosen = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))[: self.scaled(count)]
        return select(self.data.training, candidates[chosen])

    @cached_property
    def validation(self) -> Images:
        return select(self.data.training, self.order[: len(self.order) // 10][: self.scaled(5000)])

    @cached_property
    def test(self) -> Images:
        return select(self.data.test, torch.arange(self.scaled(10_000)))

    def repeat(self, run: Callable[..., dict], *arguments: object) -> dict:
        """Call `run(*arguments, seed)` with each seed and summarize the numbers and curves that it returns."""
        runs = [run(*arguments, seed) for seed in self.seeds]
        return {name: summarize([values[name] for values in runs]) for name in runs[0]}

    def search(
        self, run: Callable[[float, int], dict], start: list[float], keep: Container[float] = (), **targets: Callable
    ) -> dict:
        """Call `run(value, seed)` with values of GRID until, for each target, the best has worse ones on both sides.

        Each target names a number that `run` returns, and how to choose: min or max. Curves are dropped but for those
        of the best value and of the values in `keep`.
        """
        tried: dict[float, dict] = {}
        ahead = start
        while ahead and len(tried) < self.most_values:
            tried |= {value: self.repeat(run, value) for value in ahead}
            best = {target: best_value(tried, target, better) for target, better in targets.items()}
            ahead = sorted({near for value in best.values() for near in neighbours(value)} - tried.keys())
        kept = {v: {name: s for name, s in tried[v].items() if v in keep or "per_seed" in s} for v in sorted(tried)}
        numbers = {f"{value:g}": result for value, result in kept.items()}
        return {"best": {target: {"value": best[target], **tried[best[target]]} for target in best}, "tried": numbers}


def select(images: Images, chosen: torch.Tensor) -> Images:
    pixels, labels = images
    return normalize(pixels[chosen]).contiguous(), labels[chosen]


def best_value(tried: dict[float, dict], target: str, better: Callable) -> float:
    """Return the value with the best mean; one at which a run failed has none."""
    means = {value: result[target]["mean"] for value, result in tried.items() if result[target]["mean"] is not None}
    return better(means or tried, key=means.get)


def neighbours(value: float) -> list[float]:
    place = GRID.index(value)
    return GRID[max(0, place - 1) : place + 2]


def summarize(values: list) -> dict:
    """Return mean and standard deviation (n - 1) over the seeds, of numbers or of curves; None where a run diverged."""
    array = np.array(values, dtype=float)  # None becomes NaN
    mean, std = (np.where(np.isnan(over), None, over).tolist() for over in (array.mean(0), array.std(0, ddof=1)))
    return {"mean": mean, "std": std} | ({} if array.ndim > 1 else {"per_seed": values})


def differences(one: dict, other: dict) -> dict:
    """Summarize the differences of two results seed by seed: with the same seed, both saw the same images."""
    return summarize([a - b for a, b in zip(one["per_seed"], other["per_seed"], strict=True)])


def fully_connected(hidden: Iterable[int], activation: nn.Module | None = None, dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers on the flattened image, with initial weights after He et al. (2015)."""
    sizes = [3 * 32 * 32, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), activation or nn.ReLU(), nn.Dropout(dropout)]
        nn.init.kaiming_normal_(layers[-3].weight, nonlinearity="relu")
        nn.init.zeros_(layers[-3].bias)
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 10))


def train(
    build: Callable[[], nn.Module],
    make_optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    images: Images,
    batch_size: int,
    epochs: int,
    seed: int,
    steps: int | None = None,  # of an epoch, if it is not to show each image once
    **watched: Images,
) -> tuple[nn.Module, dict[str, list]]:
    """Train a network; return it and the loss and accuracy of the `watched` images after each epoch.

    From where the loss is not finite the curves are None. `final_...` is the last value of each.
    """
    torch.manual_seed(seed)
    model = build()
    optimizer = make_optimizer(model.parameters())
    batches = shuffled(images, batch_size)
    names = [f"{name}_{quantity}" for name in watched for quantity in ("loss", "accuracy")]
    curves: dict[str, list] = {name: [None] * epochs for name in names}
    for epoch in range(epochs):
        model.train()
        for pixels, labels in islice(batches, steps or math.ceil(len(images[1]) / batch_size)):
            loss = cross_entropy(model(pixels), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        numbers = [number for some in watched.values() for number in evaluate(model, some)]
        if not all(map(math.isfinite, numbers)):
            break
        for name, number in zip(names, numbers, strict=True):
            curves[name][epoch] = number
    return model, curves | {f"final_{name}": curve[-1] for name, curve in curves.items()}


def shuffled(images: Images, batch_size: int) -> Iterator[Images]:
    """Yield batches without end: each image once, in random order, then all again."""
    pixels, labels = images
    while True:
        for chosen in torch.randperm(len(labels)).split(batch_size):
            yield pixels[chosen], labels[chosen]


@torch.inference_mode()
def evaluate(model: nn.Module, images: Images) -> tuple[float, float]:
    """Return loss and accuracy in evaluation mode."""
    model.eval()
    logits, labels = torch.cat([model(some) for some in images[0].split(500)]), images[1]
    return cross_entropy(logits, labels).item(), (logits.argmax(dim=1) == labels).float().mean().item()


def mark_guessing(axes: Axes) -> None:
    axes.axhline(GUESSING, color="black", linestyle=":", linewidth=1)
    axes.annotate("guessing", (0.98, GUESSING), xycoords=("axes fraction", "data"), ha="right", va="bottom")


def draw_curve(axes: Axes, x: Iterable[float] | int, curve: dict, label: str | None, **style: object) -> None:
    """Draw the mean of a summarized curve with its deviation as a band; where a run diverged there is a gap.

    x: of each point, or the distance between two of them, the first included.
    """
    mean, std = np.array(curve["mean"], dtype=float), np.array(curve["std"], dtype=float)
    x = x * np.arange(1, len(mean) + 1) if isinstance(x, int) else list(x)
    line = axes.plot(x, mean, label=label, **style)[0]
    axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)


def as_curve(results: Iterable[dict], quantity: str) -> dict:
    """Turn one summarized number of each result into a curve."""
    summaries = [result[quantity] for result in results]
    return {key: [summary[key] for summary in summaries] for key in ("mean", "std")}
