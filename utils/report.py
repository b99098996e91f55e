"""What a run tells: the lines it prints and the figures and numbers it writes."""

import os
import platform
import shlex
import sys
import webbrowser
from pathlib import Path

import matplotlib
import numpy
import torch
from torch import nn

from utils.data import ImageData, Loaders
from utils.files import warn_if_held, write_json
from utils.training import Evaluation, Progress
from utils.visualize import plot_confusion, plot_curves, plot_predictions


def describe_run(data: ImageData, loaders: Loaders, model: nn.Module, device: torch.device, precision: str) -> dict:
    """Return the facts of metrics.json that are known before the first epoch."""
    return {
        "dataset": data.name,
        "title": f"{data.title}, {type(model).__name__}",  # above every figure
        "images": {split: len(loader.dataset) for split, loader in loaders._asdict().items()},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of everything that has a say in the numbers."""
    modules = (torch, numpy, matplotlib)
    return {"python": platform.python_version()} | {module.__name__: module.__version__ for module in modules}


def describe_test(test: Evaluation, class_names: tuple[str, ...]) -> dict:
    """Return the facts of metrics.json that the test pass adds; the accuracy of a class without images is None."""
    confusion = test.confusion_matrix().tolist()
    accuracies = [row[label] / sum(row) if any(row) else None for label, row in enumerate(confusion)]
    return {
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "class_accuracy": dict(zip(class_names, accuracies, strict=True)),
    }


def print_header(run: dict, arguments: list[str], folder: Path) -> None:
    """Print what is trained on what, with which options, and the head of the table of epochs."""
    images = ", ".join(f"{count:,} {split}" for split, count in run["images"].items())
    print(f"run      {run['title']} with {run['parameters']:,} parameters")
    print(f"images   {images}")
    print(f"device   {run['device']}, {run['precision']}, {run['threads']} threads")
    print(f"options  {shlex.join(arguments) or 'all at their defaults'}")
    print(f"output   {folder}\n")
    print("epoch      rate  train loss  accuracy  validation loss  accuracy  seconds", flush=True)


def print_epoch(progress: Progress) -> None:
    """Print the last finished epoch as a line of the table."""
    row = progress.history[-1]
    print(
        f"{row['epoch']:5d}  {row['learning_rate']:8.4g}  {row['train_loss']:10.4f}  {row['train_accuracy']:8.2%}"
        f"  {row['validation_loss']:15.4f}  {row['validation_accuracy']:8.2%}  {row['seconds']:7.1f}"
        f"{'  best, saved' if progress.best_epoch == row['epoch'] else ''}",
        flush=True,
    )


def print_test(result: dict, image_count: int, best_epoch: int) -> None:
    """Print a test result, as `describe_test` gives it."""
    print(f"\ntest     accuracy {result['test_accuracy']:.2%}, loss {result['test_loss']:.4f}", end="")
    print(f" ({image_count:,} images, weights of epoch {best_epoch})")
    for name, accuracy in result["class_accuracy"].items():
        print(f"         {name:12s} {'no images' if accuracy is None else f'{accuracy:7.2%}'}")


def save_progress(folder: Path, run: dict, progress: Progress, seconds: float, test: dict | None = None) -> None:
    """Write metrics.json and curves.png for the epochs finished so far; before the test pass, its numbers are null."""
    metrics = {
        **run,
        "options": progress.options,
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        **(test or dict.fromkeys(("test_loss", "test_accuracy", "class_accuracy"))),
        "seconds": {"training": sum(row["seconds"] for row in progress.history), "total": seconds},
    }
    with warn_if_held(folder / "metrics.json"):
        write_json(folder / "metrics.json", metrics)
    plot_curves(progress.history, progress.best_epoch, run["title"], folder / "curves.png")


def save_test_figures(
    folder: Path, run: dict, images: torch.Tensor, test: Evaluation, class_names: tuple[str, ...]
) -> None:
    """Draw predictions.png, for the first test images (n, 32, 32, 3) uint8, and confusion.png."""
    probabilities = test.logits[: len(images)].softmax(dim=1).numpy()
    labels = test.labels[: len(images)].numpy()
    title = f"{run['title']}: {100 * test.accuracy:.1f} % of {len(test.labels):,} test images right"
    plot_predictions(images.numpy(), probabilities, labels, class_names, title, folder / "predictions.png")
    plot_confusion(test.confusion_matrix().numpy(), class_names, title, folder / "confusion.png")


def print_files(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    print("\nfiles    " + "\n         ".join(str(path) for path in files))


def show_figures(folder: Path) -> None:
    """Open the figures in the viewer or browser of the desktop, if there is a desktop."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        print("--show: there is no display here; open the figures listed above elsewhere", file=sys.stderr)
        return
    for path in sorted(folder.glob("*.png")):
        webbrowser.open(path.as_uri())
