"""utils/visualize.py: what a reader sees in the figures, and that saving them is safe."""

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from utils import visualize

import matplotlib
import numpy as np
import pytest
from helpers import MINUTE, PROJECT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    """A missing glyph and a failed layout are UserWarnings, a division by zero is a RuntimeWarning: none may pass.

    Libraries deprecating parts of each other is not the reader's concern.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        warnings.simplefilter("default", DeprecationWarning)
        yield


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """To write the file takes longer than to make the figure."""
    monkeypatch.setattr(visualize, "save_figure", lambda figure, path: None)


def make_history(epochs: int) -> list[dict[str, float]]:
    return [
        {
            "epoch": epoch,
            "learning_rate": 0.1,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.5 / epoch,
            "validation_loss": 2.5 / epoch,
            "validation_accuracy": 0.9 - 0.5 / epoch,
            "seconds": 1.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def make_predictions(predicted: list[int], confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return random images and probabilities that give each image its predicted class with that confidence."""
    images = np.random.default_rng(0).integers(0, 256, (len(predicted), 32, 32, 3), dtype=np.uint8)
    probabilities = np.full((len(predicted), 10), (1 - confidence) / 9)
    probabilities[range(len(predicted)), predicted] = confidence
    return images, probabilities


def draw_example(name: str, path: Path) -> Figure:
    """Draw one figure of each kind, with the longest texts that the project has."""
    title = "CIFAR-10: title of a usual length"
    if name == "curves":
        return visualize.plot_curves(make_history(12), 9, title, path)
    if name == "predictions":
        images, probabilities = make_predictions([1] * 10, 1.0)
        return visualize.plot_predictions(images, probabilities, np.array([1, 0] * 5), CLASSES, title, path)
    return visualize.plot_confusion(np.diag([1000] * 10), CLASSES, title, path)


def texts(figure: Figure) -> list[Text]:
    """Return the texts that a reader sees."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def smallest_text(figure: Figure) -> float:
    """Return the height of the smallest letters in pixels, when a README shows the figure 800 pixels wide."""
    pixels_per_point = 800 / (72 * figure.get_figwidth())
    return min(text.get_fontsize() for text in texts(figure)) * pixels_per_point


def assert_texts_stand_apart(figure: Figure) -> None:
    figure.draw_without_rendering()  # places the texts for the figure's own resolution, not for that of the file
    upright = [text for text in texts(figure) if text.get_rotation() in (0, 90)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in upright]
    for number, (text, box) in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, f"{text!r} is cut off"
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, f"{text!r} is cut off"
        for other, other_box in boxes[:number]:
            assert not box.overlaps(other_box), f"{text!r} overlaps {other!r}"


KINDS = ["curves", "predictions", "confusion"]


@pytest.fixture(scope="module", params=KINDS)
def example(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Figure, Path]:
    """A figure of each kind in turn, and the PNG file that it was saved to."""
    path = tmp_path_factory.mktemp("example") / "figure.png"
    return draw_example(request.param, path), path


# ---- training curves


@pytest.mark.parametrize("epochs", [1, 3, 8, 40, 200])
@pytest.mark.usefixtures("unsaved")
def test_epoch_axis_has_whole_numbers_starting_at_1(tmp_path: Path, epochs: int) -> None:
    figure = visualize.plot_curves(make_history(epochs), 1, "CIFAR-10", tmp_path / "curves.png")
    for axes in figure.axes:
        labels = [int(label.get_text()) for label in axes.get_xticklabels()]
        assert labels == sorted(set(labels)) == list(axes.get_xticks())
        assert labels[0] == 1 and labels[-1] <= epochs
        assert min(epochs, 3) <= len(labels) <= 10
        assert axes.get_xlim()[0] <= 1 and axes.get_xlim()[1] >= epochs


@pytest.mark.usefixtures("unsaved")
def test_curves_show_every_epoch_the_accuracy_in_percent(tmp_path: Path) -> None:
    figure = visualize.plot_curves(make_history(3), 3, "CIFAR-10: ConvNet", tmp_path / "curves.png")
    loss, accuracy = ({line.get_label(): line for line in axes.get_lines()} for axes in figure.axes)
    assert list(loss["Training"].get_xdata()) == [1, 2, 3]
    assert list(loss["Training"].get_ydata()) == pytest.approx([2, 1, 2 / 3])
    assert list(loss["Validation"].get_ydata()) == pytest.approx([2.5, 1.25, 2.5 / 3])
    assert list(accuracy["Training"].get_ydata()) == pytest.approx([50, 75, 83.333], abs=0.01)
    assert list(accuracy["Validation"].get_ydata()) == pytest.approx([40, 65, 73.333], abs=0.01)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Loss", "Accuracy (%)"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["Epoch", "Epoch"]
    assert figure.get_suptitle() == "CIFAR-10: ConvNet"


@pytest.mark.parametrize(("epochs", "best"), [(1, 1), (8, 5), (200, 188)])
@pytest.mark.usefixtures("unsaved")
def test_best_epoch_is_marked_in_both_panels(tmp_path: Path, epochs: int, best: int) -> None:
    history = make_history(epochs)
    figure = visualize.plot_curves(history, best, "CIFAR-10", tmp_path / "curves.png")
    values = [history[best - 1]["validation_loss"], 100 * history[best - 1]["validation_accuracy"]]
    for axes, value in zip(figure.axes, values, strict=True):
        vertical = [line for line in axes.get_lines() if list(line.get_xdata()) == [best, best]]
        assert [line.get_linestyle() for line in vertical] == ["--"]
        ring = next(line for line in axes.get_lines() if line.get_label() == f"Best epoch: {best}")
        assert list(ring.get_xdata()) == [best] and list(ring.get_ydata()) == pytest.approx([value])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["Training", "Validation", f"Best epoch: {best}"]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_loss_that_diverged_does_not_stop_the_drawing(tmp_path: Path, value: float) -> None:
    history = make_history(5)
    history[3]["train_loss"] = history[4]["validation_loss"] = value
    visualize.plot_curves(history, 5, "CIFAR-10", tmp_path / "curves.png")
    assert imread(tmp_path / "curves.png").std() > 0


# ---- prediction grid


@pytest.mark.usefixtures("unsaved")
def test_grid_names_classes_and_confidence(tmp_path: Path) -> None:
    images, probabilities = make_predictions([1, 3, 0, 9, 8, 7, 6, 5, 4, 2], 0.734)
    labels = np.array([1, 4, 0, 9, 8, 7, 6, 5, 4, 3])
    figure = visualize.plot_predictions(images, probabilities, labels, CLASSES, "CIFAR-10", tmp_path / "grid.png")
    assert len(figure.axes) == 10
    assert figure.axes[0].get_title() == "Predicted: automobile\nActual: automobile"
    assert figure.axes[1].get_title() == "Predicted: cat\nActual: deer"
    assert figure.axes[9].get_title() == "Predicted: bird\nActual: cat"
    assert all("73 % confident" in axes.get_xlabel() for axes in figure.axes)
    for axes, image in zip(figure.axes, images, strict=True):
        assert np.array_equal(axes.images[0].get_array(), image)
        assert axes.images[0].get_interpolation() == "nearest"


@pytest.mark.usefixtures("unsaved")
def test_wrong_differs_from_right_in_more_than_colour(tmp_path: Path) -> None:
    images, probabilities = make_predictions([1, 1], 0.5)
    figure = visualize.plot_predictions(
        images, probabilities, np.array([1, 3]), CLASSES, "CIFAR-10", tmp_path / "grid.png"
    )
    right, wrong = figure.axes[:2]
    assert right.get_xlabel().startswith("✓") and wrong.get_xlabel().startswith("✗")
    assert right.xaxis.label.get_fontweight() == "normal" and wrong.xaxis.label.get_fontweight() == "bold"
    for side in ("top", "bottom", "left", "right"):
        assert wrong.spines[side].get_linewidth() >= 2 * right.spines[side].get_linewidth() > 0
        assert wrong.spines[side].get_edgecolor() != right.spines[side].get_edgecolor()


@pytest.mark.usefixtures("unsaved")
def test_fewer_than_ten_images_leave_cells_empty(tmp_path: Path) -> None:
    images, probabilities = make_predictions([1, 1, 1], 0.5)
    figure = visualize.plot_predictions(
        images, probabilities, np.array([1, 1, 1]), CLASSES, "CIFAR-10", tmp_path / "grid.png"
    )
    assert [len(axes.images) for axes in figure.axes] == [1] * 3 + [0] * 7
    assert [axes.axison for axes in figure.axes] == [True] * 3 + [False] * 7


@pytest.mark.usefixtures("unsaved")
def test_a_network_without_mistakes_is_told(tmp_path: Path) -> None:
    images, probabilities = make_predictions([], 0.5)
    figure = visualize.plot_predictions(images, probabilities, np.array([]), CLASSES, "CIFAR-10", tmp_path / "grid.png")
    assert any(text.get_text() == "No such image" for text in texts(figure))


# ---- confusion matrix


@pytest.mark.usefixtures("unsaved")
def test_confusion_matrix_shows_counts_and_accuracies(tmp_path: Path) -> None:
    confusion = np.array([[1500, 500, 0], [0, 0, 0], [1, 0, 2]])
    axes = visualize.plot_confusion(confusion, ["cat", "deer", "dog"], "CIFAR-10", tmp_path / "confusion.png").axes[0]
    assert np.allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [1 / 3, 0, 2 / 3]])
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for actual, predicted in np.ndindex(3, 3):
        assert shown[(predicted, actual)] == f"{confusion[actual, predicted]:,}"
    beside = [text for (x, y), text in sorted(shown.items(), key=lambda item: item[0][1]) if x > 2]
    assert beside == ["Accuracy", "75.0 % of 2,000", "–", "66.7 % of 3"]
    assert axes.get_xlabel() == "Predicted" and axes.get_ylabel() == "Actual"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "deer", "dog"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "deer", "dog"]


@pytest.mark.usefixtures("unsaved")
def test_counts_can_be_read_on_every_shade(tmp_path: Path) -> None:
    """Contrast of at least 4.5, the recommendation for text in WCAG 2.1, section 1.4.3."""
    confusion = np.zeros((21, 21), dtype=int)
    confusion[:, 0] = np.arange(0, 105, 5)  # shares of 0, 5, ... 100 %
    confusion[:, 1] = 100 - confusion[:, 0]
    axes = visualize.plot_confusion(confusion, list(range(21)), "CIFAR-10", tmp_path / "confusion.png").axes[0]
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


# ---- all figures


def test_png_is_about_1200_pixels_wide_and_not_blank(example: tuple[Figure, Path]) -> None:
    figure, path = example
    pixels = imread(path)
    assert pixels.shape[1] == round(figure.get_figwidth() * 150) and pixels.shape[1] > 1150
    assert pixels.shape[0] > 500
    assert pixels[..., :3].std() > 0.05
    assert pixels[0, 0].tolist() == [1, 1, 1, 1], "the background is not opaque white"


def test_texts_are_large_enough_at_the_width_of_a_readme(example: tuple[Figure, Path]) -> None:
    assert smallest_text(example[0]) >= 12.5


def test_texts_neither_overlap_nor_leave_the_figure(example: tuple[Figure, Path]) -> None:
    assert_texts_stand_apart(example[0])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_same_input_gives_the_same_bytes(tmp_path: Path, name: str, suffix: str) -> None:
    draw_example(name, tmp_path / f"first{suffix}")
    with matplotlib.rc_context({"font.size": 25, "axes.facecolor": "black", "savefig.dpi": 30, "lines.linewidth": 9}):
        draw_example(name, tmp_path / f"second{suffix}")
        assert matplotlib.rcParams["font.size"] == 25, "drawing changed the reader's settings"
    assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"second{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_failure_while_saving_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"figure{suffix}"
    path.write_text("the figure of the last run", encoding="utf-8")
    figure = Figure()
    figure.text(0.5, 0.5, r"$\frac{$")  # not valid math: fails in the middle of the drawing
    with pytest.raises(ValueError):
        visualize.save_figure(figure, path)
    assert path.read_text(encoding="utf-8") == "the figure of the last run"
    assert list(tmp_path.iterdir()) == [path]


def test_no_window_is_opened_whatever_the_backend(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
import numpy
from utils import visualize
visualize.plot_confusion(numpy.eye(2, dtype=int), ["cat", "dog"], "CIFAR-10", Path({str(tmp_path / "matrix.png")!r}))
assert "matplotlib.pyplot" not in sys.modules
"""
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"} | {"MPLBACKEND": "TkAgg"}
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code]
    subprocess.run(command, cwd=PROJECT, env=environment, check=True, timeout=MINUTE)
    assert (tmp_path / "matrix.png").stat().st_size > 0


def test_lines_differ_in_colour_and_in_line_style() -> None:
    with visualize.house_style():
        figure, panels = visualize.new_figure(8, 4, rows=2, columns=3)
        lines = [panels[1, 2].plot([0, 1], [number, 1])[0] for number in range(7)]
    assert panels.shape == (2, 3)
    assert len({line.get_color() for line in lines}) == 7
    assert [line.get_linestyle() for line in lines[:4]] == ["-", "--", "-.", ":"]
    assert {line.get_linewidth() for line in lines} == {visualize.STYLE["lines.linewidth"]}
