"""The measured evidence behind answers.md: small networks on CIFAR-10, each comparison over three seeds.

python -m utils.experiments                        measure and draw everything into figures/
python -m utils.experiments --only learning-rate   one of them

All on the CPU in float32, on images that are not augmented. Lines are means over the seeds, bands their standard
deviation; of two means whose difference is not larger than both deviations together, neither is called better.
Learning rates are chosen by training or validation numbers. Only `representations` sees test images, after training.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn
from torch.nn.functional import cross_entropy, gelu
from torch.optim import SGD, Adam, Optimizer, RMSprop
from torch.utils.data import DataLoader, RandomSampler

from utils.command_line import OneLineParser, folder_path, number, run_command
from utils.data import ImageDataset, LabelledImages, batches, load_dataset, normalize, one_in
from utils.errors import InputError, RunError
from utils.files import output_folder, retry_while_held, write_json
from utils.model import MLP, build_model
from utils.optimizer import make_optimizer
from utils.report import versions
from utils.schedule import EpochPlan, one_cycle, seed_epoch
from utils.training import evaluate, train_one_epoch
from utils.visualize import COLORS, PAGE_WIDTH, epoch_ticks, house_style, new_figure, save_figure

HERE = Path(__file__).resolve().parent.parent
SEEDS = 3  # of each comparison: --seed and the two after it
GUESSING = math.log(10)  # the cross-entropy of ten equal probabilities
PERCENT = PercentFormatter(1, decimals=0, symbol=" %")


# What the experiments share: images, training, statistics, curves


@dataclass(frozen=True)
class Study:
    """The images, the seeds, and the share of the images, epochs and draws to measure with: the tests take less."""

    data: LabelledImages
    seeds: list[int]
    share: float = 1.0

    def scaled(self, count: int) -> int:
        return max(2, round(self.share * count))

    @cached_property
    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        in_validation = one_in(10, self.data.train_labels)
        return (~in_validation).nonzero().flatten(), in_validation.nonzero().flatten()

    def training_images(self, count: int, seed: int) -> ImageDataset:
        """Return `count` (scaled) of the training images, chosen by the seed."""
        order = torch.randperm(len(self.split[0]), generator=torch.Generator().manual_seed(seed))
        chosen = self.split[0][order[: self.scaled(count)]]
        return ImageDataset(self.data.train_images[chosen], self.data.train_labels[chosen])

    def validation_loader(self) -> DataLoader:
        chosen = self.split[1][: self.scaled(2000)]
        return in_order(ImageDataset(self.data.train_images[chosen], self.data.train_labels[chosen]))

    def test_loader(self) -> DataLoader:
        count = self.scaled(10_000)
        return in_order(ImageDataset(self.data.test_images[:count], self.data.test_labels[:count]))

    def repeat(self, run: Callable[..., dict], *arguments: object) -> dict:
        """Call `run(*arguments, seed)` with each seed; summarize what it returns, and the last value of each curve."""
        runs = [run(*arguments, seed) for seed in self.seeds]
        for values in runs:
            values |= {f"final_{name}": values[name][-1] for name in values if isinstance(values[name], list)}
        return {name: summarize([values[name] for values in runs]) for name in runs[0]}

    def search_rate(
        self, run: Callable[..., dict], what: object, rates: list[float], target: str, best: Callable
    ) -> dict:
        """Call `run(what, rate, seed)` at each rate; the best rate is that of the best mean `target`, none diverged."""
        measured = {rate: self.repeat(run, what, rate) for rate in rates}
        targets = {rate: values[target]["mean"] for rate, values in measured.items()}
        best_rate = best((rate for rate in rates if targets[rate] is not None), key=targets.get)
        by_name = {f"{rate:g}": values for rate, values in measured.items()}
        return {"best_rate": best_rate, "at_best_rate": measured[best_rate], "rates": by_name}


def summarize(values: list) -> dict:
    """Return mean and standard deviation (n - 1) over the seeds, of numbers or of curves; None where a run diverged."""
    array = np.array(values, dtype=float)  # None becomes NaN
    mean, std = (np.where(np.isnan(over), None, over).tolist() for over in (array.mean(0), array.std(0, ddof=1)))
    return {"mean": mean, "std": std, "n": len(values), "per_seed": values}


def best_of(results: dict[str, dict], quantity: str, best: Callable) -> str:
    """Name the result whose mean `quantity` is best, and those that differ from it by no more than the spread."""
    summaries = {name: result[quantity] for name, result in results.items()}
    top = best(summaries.values(), key=lambda summary: summary["mean"])
    return join(name for name, s in summaries.items() if abs(s["mean"] - top["mean"]) <= s["std"] + top["std"])


def join(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def in_order(images: ImageDataset) -> DataLoader:
    return batches(images, 500)


def shuffled(
    images: ImageDataset, batch_size: int, batches: int | None = None, replacement: bool = False
) -> DataLoader:
    """Serve random batches: as many as hold each image once, or `batches`."""
    count = len(images) if batches is None else batches * batch_size
    sampler = RandomSampler(images, replacement=replacement, num_samples=count)
    return batches(images, batch_size, sampler)


def sgd(model: nn.Module, momentum: float = 0.0) -> Optimizer:
    return SGD(model.parameters(), momentum=momentum)  # train_one_epoch sets the rate


def momentum_sgd(model: nn.Module) -> Optimizer:
    return sgd(model, momentum=0.9)


def constant(rate: float, epoch: int, epochs: int, steps: int) -> list[float]:
    return [rate] * steps


def train(
    build: Callable[[], nn.Module],
    optimizer_for: Callable[[nn.Module], Optimizer],
    loader: DataLoader,
    rate: float,
    epochs: int,
    seed: int,
    schedule: Callable[[float, int, int, int], list[float]] = constant,
    **watched: DataLoader,
) -> tuple[nn.Module, dict[str, list]]:
    """Train a network from the seed. Return it and its curves: a value for each epoch, None from where it diverged on.

    train_loss is that of the images as they are met, unless a loader `train` is among `watched`:
    these loaders are evaluated after each epoch. `seconds` count the training alone, from its start.
    """
    names = [f"{split}_{quantity}" for split in watched for quantity in ("loss", "accuracy")]
    curves: dict[str, list] = {name: [None] * epochs for name in ("train_loss", *names, "seconds")}
    torch.manual_seed(seed)
    model, seconds = build(), 0.0
    optimizer = optimizer_for(model)
    for epoch in range(1, epochs + 1):
        seed_epoch(seed, epoch)
        started = time.perf_counter()
        try:
            rates = schedule(rate, epoch, epochs, len(loader))
            losses = train_one_epoch(model, loader, optimizer, EpochPlan(epoch, torch.empty(0), 32, 0, 0, rates))
            seconds += time.perf_counter() - started
            row = {"train_loss": losses.mean().item(), "seconds": seconds}
            for split, images in watched.items():
                evaluation = evaluate(model, images)
                row |= {f"{split}_loss": evaluation.loss, f"{split}_accuracy": evaluation.accuracy}
        except RunError:  # NaN or infinite: here a result, which the None in the curves record
            break
        for name, value in row.items():
            curves[name][epoch - 1] = value
    return model, curves


def draw_curve(axes: Axes, x: Iterable[float], curve: dict, label: str, **style: object) -> None:
    """Draw the mean of a summarized curve with its deviation as a band; where a run diverged there is a gap."""
    mean, std = np.array(curve["mean"], dtype=float), np.array(curve["std"], dtype=float)
    line = axes.plot(x, mean, label=label, **style)[0]
    axes.fill_between(x, mean - std, mean + std, color=line.get_color(), alpha=0.2, linewidth=0)


def as_curve(results: dict[str, dict], quantity: str) -> dict:
    """Turn one summarized number of each result into a curve."""
    return {key: [result[quantity][key] for result in results.values()] for key in ("mean", "std")}


def from_one(curve: dict) -> range:
    """Return the numbers of the epochs or layers of a curve."""
    return range(1, len(curve["mean"]) + 1)


def legend_below(figure: Figure, axes: Axes, columns: int, title: str | None = None) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns, title=title)


# 1. Representations (question 1)

# How to build each network from some training images, and the peak of its learning rate: the better by validation
# accuracy of two that were tried; for the ConvNet, that of main.py.
NETWORKS = {
    "linear classifier": (lambda some_images: MLP(()), 0.003),
    "MLP": (lambda some_images: MLP((256,)), 0.01),
    "ConvNet": (lambda some_images: build_model("convnet", 10, 0.5, some_images), 0.2),
}
EPOCHS = {1000: 15, 5000: 5, 20_000: 3}  # for each number of training images


def measure_representations(study: Study) -> dict:
    def run(name: str, count: int, seed: int) -> dict:
        build, rate = NETWORKS[name]
        images, epochs = study.training_images(count, seed), study.scaled(EPOCHS[count])
        some_images = normalize(images.images[:1000])
        optimizer_for = partial(make_optimizer, weight_decay=5e-4)
        model, _ = train(
            partial(build, some_images), optimizer_for, shuffled(images, 100), rate, epochs, seed, one_cycle
        )
        return {"test_accuracy": evaluate(model, study.test_loader()).accuracy}

    networks = {
        name: {"images": {f"{study.scaled(count)}": study.repeat(run, name, count) for count in EPOCHS}}
        for name in NETWORKS
    }
    for network in networks.values():
        few, *_, many = (result["test_accuracy"]["per_seed"] for result in network["images"].values())
        network |= {"at_most_images": summarize(many), "gain": summarize(np.subtract(many, few).tolist())}
    accuracies = [f"{name} {percent(network['at_most_images']['mean'])}" for name, network in networks.items()]
    helped = best_of(networks, "gain", max)
    finding = f"{join(accuracies)} with {study.scaled(max(EPOCHS)):,} images; more images help {helped} most"
    return {"networks": networks, "finding": finding}


def draw_representations(result: dict) -> Figure:
    figure, [[axes]] = new_figure(PAGE_WIDTH, 4.6)
    for name, network in result["networks"].items():
        counts = [int(count) for count in network["images"]]
        draw_curve(axes, counts, as_curve(network["images"], "test_accuracy"), name, marker="o")
    axes.set(xscale="log", xlabel="Training images (log scale)", ylabel="Test accuracy")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(PERCENT)
    axes.legend()
    return figure


# 2. Activations (question 4)

DEEP = (128,) * 6
ACTIVATIONS = {"identity": lambda z: z, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "ReLU": torch.relu, "GELU": gelu}


def measure_activations(study: Study) -> dict:
    def run(name: str, rate: float, seed: int) -> dict:
        loader = shuffled(study.training_images(2000, seed), 50)
        return train(lambda: MLP(DEEP, activation=ACTIVATIONS[name]), sgd, loader, rate, study.scaled(8), seed)[1]

    result = {
        name: study.search_rate(run, name, [1e-3, 1e-2, 0.1], "final_train_loss", min)
        | study.repeat(measure_gradient_norms, study, name)
        for name in ACTIVATIONS
    }
    lowest = best_of({name: values["at_best_rate"] for name, values in result.items()}, "final_train_loss", min)
    weakest = min(result, key=lambda name: result[name]["gradient_factor"]["mean"])
    factor = result[weakest]["gradient_factor"]["mean"]
    finding = f"{weakest} lets {percent(factor)} of the gradient through a layer; lowest training loss: {lowest}"
    return {"activations": result, "finding": finding}


def measure_gradient_norms(study: Study, name: str, seed: int) -> dict:
    """Return the norm of the gradient of each layer's weights before training.

    `gradient_factor` is by what it is multiplied from a layer to the one below: the geometric mean over equal layers.
    """
    torch.manual_seed(seed)
    model = MLP(DEEP, activation=ACTIVATIONS[name])
    images, labels = next(iter(shuffled(study.training_images(2000, seed), 500)))
    cross_entropy(model(images), labels).backward()
    norms = [layer.weight.grad.norm().item() for layer in model.layers]
    second, last_hidden = norms[1], norms[-2]  # the first and the last of those with 128 x 128 weights
    return {"gradient_norms": norms, "gradient_factor": (second / last_hidden) ** (1 / (len(DEEP) - 2))}


def draw_activations(result: dict) -> Figure:
    figure, [[loss, gradient]] = new_figure(PAGE_WIDTH, 4.6, columns=2)
    for name, values in result["activations"].items():
        curve, norms = values["at_best_rate"]["train_loss"], values["gradient_norms"]
        draw_curve(loss, from_one(curve), curve, f"{name} (rate {values['best_rate']:g})")
        draw_curve(gradient, from_one(norms), norms, name, marker="o")
    loss.set(
        title="Each at its best rate", xlabel="Epoch", ylabel="Training loss", xticks=epoch_ticks(len(curve["mean"]))
    )
    gradient.set(title="Before training", xlabel="Layer (1 = next to the input)", ylabel="Norm of the gradient")
    gradient.set_yscale("log")
    legend_below(figure, loss, 3)
    return figure


# 3. Under- and overfitting (question 6)


def measure_overfitting(study: Study) -> dict:
    networks = {"2 hidden units": (2,), "16 hidden units": (16,), "512-256-128": (512, 256, 128)}
    result = {name: study.repeat(fit, study, hidden, 0.0, sgd) for name, hidden in networks.items()}
    lowest = min(values["lowest_validation_loss"]["mean"] for values in result.values())
    for values in result.values():
        values["verdict"] = judge(values, lowest)
    turns = [
        f"{name} turns at epoch {values['turning_epoch']['mean']:.0f}, then rises by {percent(values['rise']['mean'])}"
        for name, values in result.items()
        if values["verdict"] == "overfits"
    ]
    finding = f"the validation loss of {join(turns)}" if turns else "no validation loss turns"
    return {"networks": result, "finding": finding}


def fit(study: Study, hidden: tuple[int, ...], dropout: float, optimizer_for: Callable, seed: int) -> dict:
    """Train on so few images that a large network learns them by heart; return the curves and where they turn.

    `rise` is the share by which the validation loss is higher at the end than at its lowest, in `turning_epoch`.
    """
    images = study.training_images(2000, seed)
    watched = {"train": in_order(images), "validation": study.validation_loader()}
    build = partial(MLP, hidden, dropout=dropout)
    _, curves = train(build, optimizer_for, shuffled(images, 50), 0.01, study.scaled(25), seed, **watched)
    losses = curves["validation_loss"]
    lowest = min(losses)
    rise = losses[-1] / lowest - 1
    return curves | {"lowest_validation_loss": lowest, "turning_epoch": losses.index(lowest) + 1, "rise": rise}


def judge(values: dict, lowest: float) -> str:
    """Read the verdict off the curves; `lowest` is the lowest validation loss that any of the networks reached."""
    if values["rise"]["mean"] - values["rise"]["std"] > 0.05:
        return "overfits"  # the validation loss has turned, and risen by more than 5 %
    if values["final_train_loss"]["mean"] > lowest:
        return "underfits"  # worse on images that it was trained on than another on images that it never saw
    return "about right"


def draw_fits(results: dict[str, dict], titles: list[str]) -> Figure:
    """Draw training and validation loss of each network in a panel of its own, with the epoch of the turn."""
    figure, [panels] = new_figure(PAGE_WIDTH, 3.9, columns=len(results))
    for axes in panels[1:]:
        axes.sharey(panels[0])
    for axes, values, title in zip(panels, results.values(), titles, strict=True):
        training, validation = values["train_loss"], values["validation_loss"]
        draw_curve(axes, from_one(training), training, "Training", color=COLORS["blue"])
        draw_curve(axes, from_one(validation), validation, "Validation", color=COLORS["vermilion"], linestyle="--")
        axes.axvline(values["turning_epoch"]["mean"], color="black", linestyle=":", label="Lowest validation loss")
        axes.set(title=title, xlabel="Epoch", ylabel="Loss", xticks=epoch_ticks(len(training["mean"])))
    legend_below(figure, axes, 3)
    return figure


def draw_overfitting(result: dict) -> Figure:
    return draw_fits(result["networks"], [f"{name}:\n{v['verdict']}" for name, v in result["networks"].items()])


# 4. Learning rate (question 7)

RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1, 3, 10]
STRETCH = 10  # steps of which a curve shows the mean


def measure_learning_rate(study: Study) -> dict:
    def run(optimizer_for: Callable, rate: float, seed: int) -> dict:
        loader = shuffled(study.training_images(5000, seed), 64, batches=STRETCH)
        return train(lambda: MLP((128, 64)), optimizer_for, loader, rate, study.scaled(30), seed)[1]

    result = study.search_rate(run, sgd, RATES, "final_train_loss", min)
    finals = {rate: result["rates"][f"{rate:g}"]["final_train_loss"] for rate in RATES}
    usable = [rate for rate in RATES if (finals[rate]["mean"] or math.inf) <= 1.1 * finals[result["best_rate"]]["mean"]]
    failing = [rate for rate in RATES if rate > result["best_rate"] and fails(finals[rate])]
    highest = max(rate for rate in RATES if not failing or rate < failing[0])
    above = [loss for rate in RATES if rate > highest for loss in finals[rate]["per_seed"]]
    outcomes = {
        "runs": len(above),
        "diverged": above.count(None),
        "no_better_than_guessing": sum(loss is not None and loss >= GUESSING for loss in above),
    }
    finding = (
        f"rates {usable[0]:g} to {usable[-1]:g} work; above {highest:g}, {outcomes['diverged']} of {len(above)} runs "
        f"diverge and {outcomes['no_better_than_guessing']} learn nothing"
    )
    return result | {
        "usable_range": [usable[0], usable[-1]],
        "highest_rate_that_learns": highest,
        "above_it": outcomes,
        "finding": finding,
    }


def fails(final_loss: dict) -> bool:
    """Tell whether with any seed the loss diverged, or ended no better than guessing."""
    return any(loss is None or loss >= GUESSING for loss in final_loss["per_seed"])


def draw_learning_rate(result: dict) -> Figure:
    figure, [[course, end]] = new_figure(PAGE_WIDTH, 4.8, columns=2)
    best, highest = result["best_rate"], result["highest_rate_that_learns"]
    for rate in sorted({RATES[0], RATES[2], best, highest, *[rate for rate in RATES if rate > highest][:1]}):
        curve = result["rates"][f"{rate:g}"]["train_loss"]
        ends = [STRETCH * (losses.index(None) + 1) for losses in curve["per_seed"] if None in losses]
        if ends:
            label = f"{rate:g} ({len(ends)} of {curve['n']} diverge)"
            course.plot(ends, [3.9] * len(ends), linestyle="", marker="X", markersize=11, label=label)
        else:
            draw_curve(course, [STRETCH * stretch for stretch in from_one(curve)], curve, f"{rate:g}")
    draw_curve(end, RATES, as_curve(result["rates"], "final_train_loss"), "Final loss", marker="o")
    shade(end, *result["usable_range"], COLORS["green"], "Within 10 % of the best")
    if highest < RATES[-1]:
        shade(end, 2 * highest, RATES[-1], COLORS["vermilion"], "Not every run learns")
    course.set(title="While training", xlabel="Step", ylabel="Training loss", ylim=(None, 4))
    end.set(title="At the end", xlabel="Learning rate (log scale)", ylabel="Training loss", xscale="log")
    legend_below(figure, course, 5, title="Learning rate, on the left")
    return figure


def shade(axes: Axes, low: float, high: float, color: str, text: str) -> None:
    """Shade the rates from `low` to `high`, with a text along the middle."""
    axes.axvspan(low, high, color=color, alpha=0.2, linewidth=0)
    middle = math.sqrt(low * high)
    axes.text(middle, 0.97, text, rotation=90, ha="center", va="top", transform=axes.get_xaxis_transform())


# 5. Dropout (question 8)


def measure_dropout(study: Study) -> dict:
    result = {f"{p:g}": study.repeat(fit, study, (256, 256), p, momentum_sgd) for p in (0, 0.2, 0.5)}
    loss = best_of(result, "final_validation_loss", min)
    accuracy = best_of(result, "final_validation_accuracy", max)
    finding = f"validation loss is lowest with p = {loss}, validation accuracy highest with p = {accuracy}"
    return {"p": result, "finding": finding}


def draw_dropout(result: dict) -> Figure:
    accuracies = as_curve(result["p"], "final_validation_accuracy")
    shares = [f"{100 * mean:.1f} ± {100 * std:.1f} %" for mean, std in zip(*accuracies.values(), strict=True)]
    return draw_fits(result["p"], [f"p = {p}:\n{share} right" for p, share in zip(result["p"], shares, strict=True)])


# 6. Batch size (question 10)


def measure_batch_size(study: Study) -> dict:
    count, common = study.scaled(1000), study.scaled(3)
    plan = {  # of each batch size: the rates to choose from, and the epochs (large batches get more, as they are fast)
        1: ([0.001, 0.003, 0.01], 3),
        32: ([0.01, 0.03, 0.1], 12),
        256: ([0.03, 0.1, 0.3], 20),
        count: ([0.03, 0.1, 0.3], 20),
    }

    def run(batch_size: int, rate: float, seed: int) -> dict:
        images, epochs = study.training_images(1000, seed), study.scaled(plan[batch_size][1])
        loader = shuffled(images, min(batch_size, count))
        curves = train(lambda: MLP((32,)), sgd, loader, rate, epochs, seed, train=in_order(images))[1]
        seconds = curves["seconds"][common - 1]
        return curves | {"loss_after_same_images": curves["train_loss"][common - 1], "seconds_for_same_images": seconds}

    result = {
        f"{size}": study.search_rate(run, size, rates, "final_train_loss", min) for size, (rates, _) in plan.items()
    }
    at_best = {size: values["at_best_rate"] for size, values in result.items()}
    noise = study.repeat(measure_gradient_variance, study)
    lowest = best_of(at_best, "loss_after_same_images", min)
    law = f"the gradient's variance goes with the power {noise['power']['mean']:.2f} of B"
    finding = f"after {common * count:,} images the loss is lowest with batches of {lowest}; {law}"
    return {
        "images": count,
        "same_images": common * count,
        "batch_sizes": result,
        "gradient": noise,
        "finding": finding,
    }


def measure_gradient_variance(study: Study, seed: int) -> dict:
    """Return the variance of the gradient, summed over the parameters, of batches drawn with replacement.

    `one_over_b` is what it should be: the variance over all single images, divided by the batch size. `power` is the
    slope of the measured variance in the log-log plot.
    """
    torch.manual_seed(seed)
    model = MLP((32,))
    images = study.training_images(1000, seed)
    [full_batch] = shuffled(images, len(images))
    mean = gradient(model, full_batch)

    def variance(loader: DataLoader) -> float:
        return float(np.mean([(gradient(model, batch) - mean).square().sum().item() for batch in loader]))

    sizes = [1, 4, 16, 64, 256, 1024]
    measured = [variance(shuffled(images, size, study.scaled(100), replacement=True)) for size in sizes]
    of_single_images = variance(shuffled(images, 1))
    power, _ = np.polyfit(np.log(sizes), np.log(measured), 1)
    expected = [of_single_images / size for size in sizes]
    return {"sizes": sizes, "variance": measured, "one_over_b": expected, "power": float(power)}


def gradient(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return the gradient of the loss with respect to all parameters, as one vector."""
    images, labels = batch
    gradients = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    return torch.cat([tensor.flatten() for tensor in gradients])


def draw_batch_size(result: dict) -> Figure:
    figure, [[by_images, by_seconds, noise]] = new_figure(PAGE_WIDTH, 4.2, columns=3)
    for size, values in result["batch_sizes"].items():
        loss, seconds = values["at_best_rate"]["train_loss"], values["at_best_rate"]["seconds"]["mean"]
        label = f"all {result['images']:,}" if int(size) == result["images"] else size
        draw_curve(by_images, [result["images"] * epoch for epoch in from_one(loss)], loss, label)
        draw_curve(by_seconds, seconds, loss, label)
    sizes, expected = result["gradient"]["sizes"]["mean"], result["gradient"]["one_over_b"]["mean"]
    noise.plot(sizes, expected, color="black", linestyle="--", label="1/B line")
    draw_curve(noise, sizes, result["gradient"]["variance"], "Measured", linestyle="", marker="o")
    by_images.set(title="By images", xlabel="Images seen (log scale)", ylabel="Training loss", xscale="log")
    by_seconds.set(title="By time", xlabel="Seconds (log scale)", ylabel="Training loss", xscale="log")
    noise.set(title="Noise", xlabel="Batch size B (log)", ylabel="Gradient variance (log)", xscale="log", yscale="log")
    noise.legend()
    legend_below(figure, by_images, 4, title="Batch size")
    return figure


# 7. Optimizers (question 11)

OPTIMIZERS = {
    "SGD": sgd,
    "SGD with momentum": momentum_sgd,
    "RMSprop": lambda model: RMSprop(model.parameters()),
    "Adam": lambda model: Adam(model.parameters()),
}


def measure_optimizers(study: Study) -> dict:
    validation = study.validation_loader()

    def run(name: str, rate: float, seed: int) -> dict:
        loader = shuffled(study.training_images(2000, seed), 50)
        model, curves = train(lambda: MLP((128, 64)), OPTIMIZERS[name], loader, rate, study.scaled(5), seed)
        try:
            accuracy = None if curves["train_loss"][-1] is None else evaluate(model, validation).accuracy
        except RunError:  # diverged in the very last step
            accuracy = None
        return curves | {"validation_accuracy": accuracy}

    rates, target = RATES[:9], "validation_accuracy"
    result = {name: study.search_rate(run, name, rates, target, max) for name in OPTIMIZERS}
    at_best = {name: values["at_best_rate"] for name, values in result.items()}
    for name, values in result.items():
        good = at_best[name][target]["mean"] - 0.03
        values["rates_within_3_points"] = [r for r in rates if (values["rates"][f"{r:g}"][target]["mean"] or 0) > good]
    fast = best_of(at_best, "final_train_loss", min)
    finding = f"best validation accuracy: {best_of(at_best, target, max)}; lowest training loss: {fast}"
    return {"optimizers": result, "finding": finding}


def draw_optimizers(result: dict) -> Figure:
    figure, [[course, end]] = new_figure(PAGE_WIDTH, 4.6, columns=2)
    for name, values in result["optimizers"].items():
        curve = values["at_best_rate"]["train_loss"]
        draw_curve(course, from_one(curve), curve, f"{name} (best rate {values['best_rate']:g})")
        accuracies = as_curve(values["rates"], "validation_accuracy")
        draw_curve(end, [float(rate) for rate in values["rates"]], accuracies, name, marker="o")
    course.set(title="At its best rate", xlabel="Epoch", ylabel="Training loss", xticks=epoch_ticks(len(curve["mean"])))
    end.set(title="At every rate", xlabel="Learning rate (log scale)", ylabel="Validation accuracy", xscale="log")
    end.yaxis.set_major_formatter(PERCENT)
    legend_below(figure, course, 2)
    return figure


# All of them

EXPERIMENTS: dict[str, tuple[Callable[[Study], dict], Callable[[dict], Figure]]] = {
    "representations": (measure_representations, draw_representations),
    "activations": (measure_activations, draw_activations),
    "overfitting": (measure_overfitting, draw_overfitting),
    "learning-rate": (measure_learning_rate, draw_learning_rate),
    "dropout": (measure_dropout, draw_dropout),
    "batch-size": (measure_batch_size, draw_batch_size),
    "optimizers": (measure_optimizers, draw_optimizers),
}


def main(arguments: list[str]) -> None:
    options = parse_options(arguments)
    data = load_dataset("cifar10", options.data_dir)
    study = Study(data, list(range(options.seed, options.seed + SEEDS)))
    run_experiments(study, options.out_dir, options.only)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=folder_path, default=HERE / "data", help="where CIFAR-10 is, or will be downloaded to")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="the first of three seeds")
    add("--out-dir", type=folder_path, default=HERE / "figures", help="for the figures and experiments.json")
    add("--only", choices=list(EXPERIMENTS), help="measure this one anew, keep the numbers of the others")
    return parser.parse_args(arguments)


def run_experiments(study: Study, folder: Path, only: str | None = None) -> None:
    """Measure all experiments, or `only` one of them, then draw them into the folder and write experiments.json there.

    What has been measured is kept in experiments.unfinished.json, from which an interrupted run goes on.
    Raises InputError if the folder holds numbers of another data set or of other seeds.
    """
    with output_folder(folder):
        measure_and_draw(study, folder, only)


def measure_and_draw(study: Study, folder: Path, only: str | None) -> None:
    complete, unfinished = folder / "experiments.json", folder / "experiments.unfinished.json"
    run = describe_study(study)
    record = read_record(complete if only else unfinished, run)
    measured = record["experiments"]
    names = [only] if only else list(EXPERIMENTS)
    hardware = f"{run['hardware']['cpu']}, {run['hardware']['threads']} threads"
    print(f"{study.data.title}, seeds {study.seeds}, {hardware}", flush=True)
    for name in names:
        if name in measured and not only:
            print(f"{name:16s} kept from the interrupted run", flush=True)
            continue
        # Where the others were measured with other versions or hardware, this one names its own.
        measured[name] = measure_experiment(name, study) | {
            fact: run[fact] for fact in run if run[fact] != record[fact]
        }
        if not only:
            write_json(unfinished, record)
        print(f"{name:16s} {measured[name]['seconds']:6.1f} s   {measured[name]['finding']}", flush=True)
    for name in names:
        draw_experiment(name, measured[name], study.data.title, folder / f"experiment-{name}.png")
    record["experiments"] = {name: measured[name] for name in EXPERIMENTS if name in measured}
    write_json(complete, record)
    if not only:
        retry_while_held(unfinished.unlink)


def describe_study(study: Study) -> dict:
    """Return what experiments.json records besides the numbers."""
    return {
        "dataset": study.data.name,
        "seeds": study.seeds,
        "versions": versions(),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "precision": "float32",
        "device": "cpu",
    }


def cpu_name() -> str:
    """Return the processor's name, which on Linux only /proc tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_record(path: Path, run: dict) -> dict:
    """Read the numbers of an earlier run; where there are none, begin a record with what is known of this `run`.

    Raises InputError if the file is damaged, or of another data set or of other seeds.
    """
    if not path.exists():
        return {**run, "experiments": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier = {fact: record[fact] for fact in run}
        record["experiments"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--out-dir: {path} is damaged: delete it") from None
    different = [
        f"{fact} {earlier[fact]}, not {run[fact]}" for fact in ("dataset", "seeds") if earlier[fact] != run[fact]
    ]
    if different:
        raise InputError(f"--out-dir: {path} is of {'; '.join(different)}: delete it or choose another --out-dir")
    return record


def measure_experiment(name: str, study: Study) -> dict:
    started = time.perf_counter()
    measure, _ = EXPERIMENTS[name]
    numbers = measure(study)
    seconds = time.perf_counter() - started
    return numbers | {"seconds": seconds}


@house_style()
def draw_experiment(name: str, numbers: dict, dataset: str, path: Path) -> None:
    _, draw = EXPERIMENTS[name]
    figure = draw(numbers)
    figure.suptitle(f"{dataset}: {numbers['finding']}", wrap=True)
    save_figure(figure, path)


if __name__ == "__main__":
    goes_on = "finished experiments are kept; the same command goes on from there"
    sys.exit(run_command(main, sys.argv[1:], goes_on))
