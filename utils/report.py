"""What a run tells: the lines it prints, and metrics.json."""

import os
import platform
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from utils.checkpoint import Progress
from utils.data import LabelledImages, Splits
from utils.evaluation import Evaluation
from utils.files import say, to_json, warn, write_or_warn
from utils.recipe import Recipe

import matplotlib
import numpy
import torch
from torch import nn


@dataclass(frozen=True)
class Run:
    """What is known of a run before its first epoch."""

    folder: Path  # of all its files
    title: str  # above every figure
    class_names: tuple[str, ...]
    facts: dict  # for metrics.json


def describe_run(
    folder: Path, data: LabelledImages, images: Splits, model: nn.Module, precision: str, recipe: Recipe
) -> Run:
    title, device = f"{data.title}, {recipe.model}", images.test.pixels.device
    facts = {
        "dataset": data.name,
        "title": title,
        "images": {split: len(dataset) for split, dataset in images._asdict().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": versions(),
    }
    return Run(folder, title, data.class_names, facts)


def versions() -> dict[str, str]:
    """Return the versions of everything that has a say in the numbers."""
    modules = (torch, numpy, matplotlib)
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def print_header(run: Run, progress: Progress, recipes: list[Recipe], epochs: Sequence[int]) -> None:
    """Print what is trained on what, by which recipe, and the head of the table of epochs, if there will be any."""
    facts, recipe = run.facts, progress.recipe
    counts = ", ".join(f"{count:,} {split.replace('_', ' ')}" for split, count in facts["images"].items())
    named = next(named for named in recipes if named.model == recipe.model)
    changes = ", ".join(["recipe " + recipe.model, *recipe.options(named)])
    say(f"run      {run.title} with {facts['parameters']:,} parameters")
    say(f"images   {counts}")
    say(f"device   {facts['device']}, {facts['precision']}, threads: {facts['threads']}")
    say(f"choices  {changes}")
    say(f"output   {run.folder}{f' (an earlier run, after epoch {len(progress.history)})' if progress.history else ''}")
    if epochs:
        say("\nepoch      rate  train loss  accuracy  validation loss  accuracy  seconds")


def print_epoch(progress: Progress) -> None:
    """Print the last finished epoch as a line of the table."""
    row = progress.history[-1]
    say(
        f"{row['epoch']:5d}  {row['learning_rate']:8.4g}  {row['train_loss']:10.4f}  {row['train_accuracy']:8.2%}"
        f"  {row['validation_loss']:15.4f}  {row['validation_accuracy']:8.2%}  {row['seconds']:7.1f}"
        f"{'  best' if progress.best_epoch == row['epoch'] else ''}"
    )


def print_test(run: Run, test: Evaluation, best_epoch: int) -> None:
    views = f", {test.views} views of each" if test.views > 1 else ""
    say(
        f"\ntest     accuracy {test.accuracy:.2%}, mean confidence {test.confidence:.2%}, loss {test.loss:.4f} "
        f"({len(test.labels):,} images{views}, weights of epoch {best_epoch})"
    )
    if test.views > 1:
        say(f"         accuracy {test.plain_accuracy:.2%} on the images as they are")
    for name, accuracy in test.class_accuracies(run.class_names).items():
        say(f"         {name:12s} {'no images' if accuracy is None else f'{accuracy:7.2%}'}")


def save_metrics(run: Run, progress: Progress, test: Evaluation | None = None) -> None:
    """Write metrics.json for the epochs finished so far; before the test pass, its numbers are null."""
    metrics = {
        **run.facts,
        "recipe": asdict(progress.recipe),
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "test_loss": test and test.loss,
        "test_accuracy": test and test.accuracy,
        "test_confidence": test and test.confidence,
        "test_views": test and test.views,
        "test_plain_accuracy": test and test.plain_accuracy,
        "class_accuracy": test and test.class_accuracies(run.class_names),
        "seconds": {
            "training": sum(row["seconds"] for row in progress.history),
            "total": progress.total_seconds(),
        },
    }
    write_or_warn(run.folder / "metrics.json", to_json(metrics))


def print_files(run: Run, show: bool) -> None:
    """List the files of a run, and open the figures among them if they are to be shown."""
    files = sorted(path for path in run.folder.iterdir() if not path.name.startswith("."))
    say("\nfiles    " + "\n         ".join(str(path) for path in files))
    if show:
        show_figures(run.folder)


def show_figures(folder: Path) -> None:
    """Open the figures in the viewer or browser of the desktop, if there is a desktop."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        warn("--show: there is no display here; open the figures listed above elsewhere")
        return
    for path in sorted(folder.glob("*.png")):
        webbrowser.open(path.as_uri())
