"""Figures in one style: training curves, prediction grid, confusion matrix.

Takes plain numbers and arrays. Every figure is an object that is saved to a file; no window is ever opened.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from utils.files import write_or_warn

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Colours that colour-blind readers can tell apart: Okabe and Ito, "Color Universal Design", 2008
# (https://jfly.uni-koeln.de/color/).
COLORS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}
# Line styles change along with the colours, so that lines differ in a black-and-white print too.
LINE_STYLES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 3))]
# A README shows a figure about 800 pixels wide; 11 points in a figure 8 inches wide are then 15 pixels high.
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "legend.fontsize": 11,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "axes.prop_cycle": matplotlib.cycler(color=COLORS.values(), linestyle=LINE_STYLES),
    "savefig.dpi": 150,
    "figure.constrained_layout.h_pad": 0.08,  # inches around each panel
    "figure.constrained_layout.w_pad": 0.08,
    "svg.hashsalt": "fixed",  # otherwise the ids inside an SVG differ from one drawing to the next
}
PAGE_WIDTH = 8  # inches


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the style to what is drawn inside the `with` block, whatever the reader's own matplotlib settings are.

    Needed around every drawing call: matplotlib fixes fonts and line widths when it creates an artist. As a decorator,
    `@house_style()` covers a whole function.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


@house_style()
def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Return an empty figure of width x height inches and its panels, an array of Axes of shape (rows, columns)."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


@house_style()
def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG, by the suffix of `path`; the same figure gives the same bytes."""
    file_format = path.suffix.removeprefix(".")
    metadata = {"png": {"Software": None}, "svg": {"Creator": None, "Date": None}}[file_format]
    content = BytesIO()
    figure.savefig(content, format=file_format, metadata=metadata)
    write_or_warn(path, content.getvalue())


def epoch_ticks(last_epoch: int) -> list[int]:
    """Return about eight round whole numbers from 1 to last_epoch, 1 always among them."""
    ticks = MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]).tick_values(1, last_epoch)
    return [1, *(int(tick) for tick in ticks if 1 < tick <= last_epoch)]


@house_style()
def plot_curves(history: list[dict[str, float]], best_epoch: int, title: str, path: Path) -> Figure:
    """Draw loss and accuracy over the epochs, save the figure and return it.

    history: one entry per epoch, with the keys epoch (from 1), train_loss, train_accuracy, validation_loss and
    validation_accuracy; accuracies are fractions from 0 to 1. best_epoch: the epoch to mark, one of the history.
    """
    best = {entry["epoch"]: entry for entry in history}[best_epoch]
    figure, panels = new_figure(PAGE_WIDTH, 4.2, columns=2)
    for axes, quantity, unit, scale in zip(panels[0], ("loss", "accuracy"), ("", " (%)"), (1, 100), strict=True):
        draw_curves(axes, history, quantity, scale)
        mark_epoch(axes, best_epoch, scale * best[f"validation_{quantity}"])
        axes.set(title=f"Training and validation {quantity}", ylabel=f"{quantity.capitalize()}{unit}")
    figure.suptitle(title, wrap=True)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    save_figure(figure, path)
    return figure


def draw_curves(axes: Axes, history: list[dict[str, float]], quantity: str, scale: float) -> None:
    """Draw train_<quantity> and validation_<quantity>, times scale, over the epochs."""
    epochs = [int(entry["epoch"]) for entry in history]
    train = [scale * entry[f"train_{quantity}"] for entry in history]
    validation = [scale * entry[f"validation_{quantity}"] for entry in history]
    every = max(1, len(epochs) // 15)  # in a long run, a marker on each epoch would hide the line
    train_line, validation_line = axes.plot(epochs, train, "o-", epochs, validation, "s-", markevery=every)
    train_line.set(label="Training", color=COLORS["blue"])
    validation_line.set(label="Validation", color=COLORS["vermilion"], markerfacecolor="white")
    axes.set(xlabel="Epoch", xticks=epoch_ticks(epochs[-1]), xlim=(1 - 0.04 * epochs[-1], 1.04 * epochs[-1]))


def mark_epoch(axes: Axes, epoch: int, value: float) -> None:
    """Draw a dashed line at the best epoch and a ring around its value."""
    axes.axvline(epoch, color="black", linestyle="--", linewidth=1.2, zorder=1)
    (ring,) = axes.plot([epoch], [value], "o--", color="black", linewidth=1.2, label=f"Best epoch: {epoch}")
    ring.set(markersize=13, markerfacecolor="none")


@house_style()
def plot_predictions(
    images: np.ndarray,
    probabilities: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    title: str,
    path: Path,
) -> Figure:
    """Draw a 2 x 5 grid of images with predicted and actual class and the confidence, save and return it.

    images: (n, height, width, 3) uint8, of which the first 10 are shown. probabilities: (n, classes). labels: (n,), the
    actual classes.
    """
    figure, cells = new_figure(PAGE_WIDTH, 4.8, rows=2, columns=5)
    figure.suptitle(title, wrap=True)
    for axes in cells.flat[len(images) :]:
        axes.set_axis_off()
    if len(images) == 0:
        figure.text(0.5, 0.5, "No such image", fontsize=15, ha="center")
    for axes, image, probability, label in zip(cells.flat, images, probabilities, labels, strict=False):
        predicted = int(np.argmax(probability))
        axes.imshow(image, interpolation="nearest")
        axes.set_title(f"Predicted: {class_names[predicted]}\nActual: {class_names[int(label)]}", fontsize=9.5)
        mark_prediction(axes, predicted == label, float(probability[predicted]))
    save_figure(figure, path)
    return figure


def mark_prediction(axes: Axes, right: bool, confidence: float) -> None:
    """Tell right from wrong by colour, and for those who do not see the colour by mark, weight and frame too."""
    color, mark, weight, frame = (
        (COLORS["blue"], "✓", "normal", 1.5) if right else (COLORS["vermilion"], "✗", "bold", 4)
    )
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(f"{mark} {100 * confidence:.0f} % confident", color=color, fontweight=weight, fontsize=10)
    axes.spines[:].set(visible=True, color=color, linewidth=frame)


@house_style()
def plot_confusion(confusion: np.ndarray, class_names: Sequence[str], title: str, path: Path) -> Figure:
    """Draw the confusion matrix with each class's accuracy beside its row, save and return it.

    confusion: (classes, classes), the number of images; row = actual class, column = predicted class.
    """
    classes = range(len(class_names))
    totals = confusion.sum(axis=1)
    shares = confusion / np.maximum(totals, 1)[:, None]  # a class without images has a row of zeros, not of NaN
    figure, panels = new_figure(PAGE_WIDTH, 6.8)
    axes = panels[0, 0]
    # The square root brings out the few per cent beside the diagonal, which are what one looks for. From a shade of
    # 0.72 on, white is easier to read than black.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    for row, column in np.ndindex(*confusion.shape):
        color = "white" if image.norm(shares[row, column]) > 0.72 else "black"
        axes.text(column, row, f"{confusion[row, column]:,}", color=color, fontsize=10, ha="center", va="center")
    axes.text(len(classes) - 0.35, -0.75, "Accuracy", va="center", fontweight="bold")
    for row in classes:
        accuracy = f"{100 * shares[row, row]:.1f} % of {totals[row]:,}" if totals[row] else "–"
        axes.text(len(classes) - 0.35, row, accuracy, va="center")
    axes.set_xticks(classes, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(classes, class_names)
    axes.set(title="Number of images; darker = larger share of the row", xlabel="Predicted", ylabel="Actual")
    axes.grid(False)
    figure.suptitle(title, wrap=True)
    save_figure(figure, path)
    return figure
