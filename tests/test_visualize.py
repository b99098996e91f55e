"""utils/visualize.py: what a reader sees in the figures, and that saving them is safe."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from utils import visualize

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

# A missing glyph and a failed layout are UserWarnings, a division by zero is a RuntimeWarning: none may pass. That
# libraries deprecate parts of each other is not the reader's concern.
pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning", "default::DeprecationWarning")


def drawn(plot: Callable[..., Figure], *arguments: object) -> Figure:
    """Return a figure without its file: to write that takes longer than to make the figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visualize, "save_figure", lambda figure, path: None)
        return plot(*arguments, Path("not-written.png"))


def make_history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "validation_loss": 2.5 / epoch,
            "validation_accuracy": 0.9 - 0.5 / epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def make_grid(predicted: list[int], actual: list[int], confidence: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return random images, probabilities that give each its predicted class with that confidence, and labels."""
    images = np.random.default_rng(0).integers(0, 256, (len(predicted), 32, 32, 3), dtype=np.uint8)
    probabilities = np.full((len(predicted), 10), (1 - confidence) / 9)
    probabilities[range(len(predicted)), predicted] = confidence
    return images, probabilities, np.array(actual)


def texts(figure: Figure) -> list[Text]:
    """Return the texts that a reader sees."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


# ---- training curves


@pytest.mark.parametrize("epochs", [1, 3, 8, 40, 200])
def test_epoch_axis_has_whole_numbers_starting_at_1(epochs: int) -> None:
    for axes in drawn(visualize.plot_curves, make_history(epochs), 1, "CIFAR-10").axes:
        labels = [int(label.get_text()) for label in axes.get_xticklabels()]
        assert labels == sorted(set(labels)) == list(axes.get_xticks())
        assert labels[0] == 1 and labels[-1] <= epochs
        assert min(epochs, 3) <= len(labels) <= 10
        assert axes.get_xlim()[0] <= 1 and axes.get_xlim()[1] >= epochs


def test_curves_show_every_epoch_the_accuracy_in_percent_and_mark_the_best() -> None:
    figure = drawn(visualize.plot_curves, make_history(3), 2, "CIFAR-10: ConvNet")
    panels = [{line.get_label(): line for line in axes.get_lines()} for axes in figure.axes]
    loss, accuracy = ({label: list(line.get_ydata()) for label, line in lines.items()} for lines in panels)
    assert loss["Training"] == pytest.approx([2, 1, 2 / 3])
    assert loss["Validation"] == pytest.approx([2.5, 1.25, 2.5 / 3])
    assert accuracy["Training"] == pytest.approx([50, 75, 83.333], abs=0.01)
    assert accuracy["Validation"] == pytest.approx([40, 65, 73.333], abs=0.01)
    assert (loss["Best epoch: 2"], accuracy["Best epoch: 2"]) == ([1.25], [65])  # of validation
    for lines in panels:
        assert list(lines["Training"].get_xdata()) == list(lines["Validation"].get_xdata()) == [1, 2, 3]
        assert list(lines["Best epoch: 2"].get_xdata()) == [2]
        assert [line.get_linestyle() for line in lines.values() if list(line.get_xdata()) == [2, 2]] == ["--"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Training", "Validation", "Best epoch: 2"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss", "Accuracy (%)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["Epoch", "Epoch"]
    assert figure.get_suptitle() == "CIFAR-10: ConvNet"


def test_a_loss_that_diverged_does_not_stop_the_drawing(tmp_path: Path) -> None:
    history = make_history(5)
    history[2]["train_loss"], history[3]["train_loss"] = float("nan"), float("inf")
    history[4]["validation_loss"] = 1e30
    visualize.plot_curves(history, 5, "CIFAR-10", tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").std() > 0


# ---- prediction grid


def test_grid_names_classes_and_confidence_and_tells_wrong_from_right_in_more_than_colour() -> None:
    grid = make_grid([1, 3, 0, 9, 8, 7, 6, 5, 4, 2], [1, 4, 0, 9, 8, 7, 6, 5, 4, 3], 0.734)
    figure = drawn(visualize.plot_predictions, *grid, CLASSES, "CIFAR-10")
    assert len(figure.axes) == 10
    assert figure.axes[0].get_title() == "Predicted: automobile\nActual: automobile"
    assert figure.axes[1].get_title() == "Predicted: cat\nActual: deer"
    assert figure.axes[9].get_title() == "Predicted: bird\nActual: cat"
    assert all("73 % confident" in axes.get_xlabel() for axes in figure.axes)
    for axes, image in zip(figure.axes, grid[0], strict=True):
        assert np.array_equal(axes.images[0].get_array(), image)
        assert axes.images[0].get_interpolation() == "nearest"
    right, wrong = figure.axes[:2]
    assert right.get_xlabel().startswith("✓") and wrong.get_xlabel().startswith("✗")
    assert right.xaxis.label.get_fontweight() == "normal" and wrong.xaxis.label.get_fontweight() == "bold"
    for side in ("top", "bottom", "left", "right"):
        assert wrong.spines[side].get_linewidth() >= 2 * right.spines[side].get_linewidth() > 0
        assert wrong.spines[side].get_edgecolor() != right.spines[side].get_edgecolor()


@pytest.mark.parametrize("count", [0, 3])
def test_fewer_than_ten_images_leave_cells_empty(count: int) -> None:
    """A network without mistakes has none to show, which is told."""
    figure = drawn(visualize.plot_predictions, *make_grid([1] * count, [1] * count, 0.5), CLASSES, "CIFAR-10")
    assert [len(axes.images) for axes in figure.axes] == [1] * count + [0] * (10 - count)
    assert [axes.axison for axes in figure.axes] == [True] * count + [False] * (10 - count)
    assert ("No such image" in [text.get_text() for text in texts(figure)]) == (count == 0)


# ---- confusion matrix


def test_confusion_matrix_shows_counts_and_accuracies() -> None:
    confusion = np.array([[1500, 500, 0], [0, 0, 0], [1, 0, 2]])
    axes = drawn(visualize.plot_confusion, confusion, ["cat", "deer", "dog"], "CIFAR-10").axes[0]
    assert np.allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [1 / 3, 0, 2 / 3]])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for actual, predicted in np.ndindex(3, 3):
        assert shown[(predicted, actual)] == f"{confusion[actual, predicted]:,}"
    beside = [text for (x, y), text in sorted(shown.items(), key=lambda item: item[0][1]) if x > 2]
    assert beside == ["Accuracy", "75.0 % of 2,000", "–", "66.7 % of 3"]
    assert axes.get_xlabel() == "Predicted" and axes.get_ylabel() == "Actual"
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "deer", "dog"]


def test_counts_can_be_read_on_every_shade() -> None:
    """Contrast of at least 4.5, the recommendation for text in WCAG 2.1, section 1.4.3."""
    confusion = np.zeros((21, 21), dtype=int)
    confusion[:, 0] = np.arange(0, 105, 5)  # shares of 0, 5, ... 100 %
    confusion[:, 1] = 100 - confusion[:, 0]
    axes = drawn(visualize.plot_confusion, confusion, list(range(21)), "CIFAR-10").axes[0]
    cells = axes.images[0].to_rgba(axes.images[0].get_array())
    for text in axes.texts:
        if text.get_position() in np.ndindex(2, 21):
            column, row = text.get_position()
            light, dark = sorted([luminance(cells[row, column, :3]), luminance(to_rgb(text.get_color()))], reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"count {text.get_text()}"


def luminance(color: np.ndarray) -> float:
    """Return the relative luminance of WCAG 2.1 of a colour with three values from 0 to 1."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in color]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


# ---- all figures: one of each kind, with the longest texts that the project has


TITLE = "CIFAR-10: title of a usual length"
EXAMPLES = {
    "curves": (visualize.plot_curves, make_history(12), 9, TITLE),
    "predictions": (visualize.plot_predictions, *make_grid([1] * 10, [1, 0] * 5, 1.0), CLASSES, TITLE),
    "confusion": (visualize.plot_confusion, np.diag([1000] * 10), CLASSES, TITLE),
}


def assert_texts_stand_apart(figure: Figure) -> None:
    figure.draw_without_rendering()  # places the texts for the figure's own resolution, not for that of the file
    upright = [text for text in texts(figure) if text.get_rotation() in (0, 90)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in upright]
    for number, (text, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{text!r} is cut off"
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{text!r} is cut off"
        for other, other_box in boxes[:number]:
            assert not box.overlaps(other_box), f"{text!r} overlaps {other!r}"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_figure_can_be_read_whatever_the_settings_of_the_reader(tmp_path: Path, name: str) -> None:
    plot, *content = EXAMPLES[name]
    figure = plot(*content, tmp_path / "first.png")
    pixels = imread(tmp_path / "first.png")
    assert pixels.shape[1] == round(figure.get_figwidth() * 150) > 1150 and pixels.shape[0] > 500
    assert pixels[..., :3].std() > 0.05
    assert pixels[0, 0].tolist() == [1, 1, 1, 1], "the background is not opaque white"
    pixels_per_point = 800 / (72 * figure.get_figwidth())  # in a README, which shows it 800 pixels wide
    assert min(text.get_fontsize() for text in texts(figure)) * pixels_per_point >= 12.5
    assert_texts_stand_apart(figure)
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black", "savefig.dpi": 30, "lines.linewidth": 9}):
        plot(*content, tmp_path / "second.png")
        assert matplotlib.rcParams["font.size"] == 25, "drawing changed the reader's settings"
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


def test_an_svg_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        visualize.plot_curves(make_history(3), 3, "CIFAR-10", tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "first.svg").read_bytes()


def test_a_failure_while_saving_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    path.write_text("the figure of the last run", encoding="utf-8")
    figure = Figure()
    figure.text(0.5, 0.5, r"$\frac{$")  # not valid math: fails in the middle of the drawing
    with pytest.raises(ValueError):
        visualize.save_figure(figure, path)
    assert path.read_text(encoding="utf-8") == "the figure of the last run"
    assert list(tmp_path.iterdir()) == [path]


def test_no_window_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only pyplot opens windows; here, to import it is an error."""
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    fresh = runpy.run_path(visualize.__file__)
    fresh["plot_confusion"](np.eye(2, dtype=int), ["cat", "dog"], "CIFAR-10", tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").exists()


def test_lines_differ_in_colour_and_in_line_style() -> None:
    with visualize.house_style():
        figure, panels = visualize.new_figure(8, 4, rows=2, columns=3)
        lines = [panels[1, 2].plot([0, 1], [number, 1])[0] for number in range(7)]
    assert panels.shape == (2, 3)
    assert len({line.get_color() for line in lines}) == 7
    assert [line.get_linestyle() for line in lines[:4]] == ["-", "--", "-.", ":"]
    assert {line.get_linewidth() for line in lines} == {visualize.STYLE["lines.linewidth"]}
