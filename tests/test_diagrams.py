"""utils/diagrams.py and utils/function_diagrams.py: the drawings of answers.md show the numbers of its text."""

import re
import runpy
import shutil
from functools import partial
from pathlib import Path

from utils import diagrams, function_diagrams

import numpy as np
import pytest
from helpers import PROJECT
from matplotlib.figure import Figure
from test_visualize import assert_texts_stand_apart, smallest_text, texts

PAGE = (PROJECT / "answers.md").read_text(encoding="utf-8")
NETWORKS = {"network-4-6-4-3": [4, 6, 4, 3], "network-two-hidden": [3, 4, 4, 1], "network-3-4-1": [3, 4, 1]}
LAYERS = ["input", "hidden 1", "hidden 2", "output"]
DRAWINGS = {
    "network-4-6-4-3": partial(diagrams.draw_network, [4, 6, 4, 3], LAYERS, "The network of question 5: 4-6-4-3"),
    "activations": function_diagrams.draw_activations,
    "computational-graph": diagrams.draw_computational_graph,
    "descent": function_diagrams.draw_descent,
    "dropout": diagrams.draw_dropout,
    "ravine": function_diagrams.draw_ravine,
    "residuals": function_diagrams.draw_residuals,
}


def answer(number: int) -> str:
    return re.split(r"^## \d+\. ", PAGE, flags=re.MULTILINE)[number]


# ---- all drawings


@pytest.fixture(scope="module")
def by_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder into which `python -m utils.diagrams`, in a copy of the project, has drawn."""
    project = tmp_path_factory.mktemp("project")
    (project / "utils").mkdir()
    (project / "figures").mkdir()
    shutil.copy(PROJECT / "utils" / "diagrams.py", project / "utils")
    runpy.run_path(str(project / "utils" / "diagrams.py"), run_name="__main__")
    return project / "figures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawings")


@pytest.fixture(scope="module")
def drawings(folder: Path) -> dict[str, Figure]:
    """Return the drawings by name, after they were saved into the folder."""
    return {name: draw(folder / f"{name}.svg") for name, draw in DRAWINGS.items()}


every_drawing = pytest.mark.parametrize("name", DRAWINGS)


@every_drawing
def test_texts_of_a_drawing_are_large_enough(drawings: dict[str, Figure], name: str) -> None:
    assert smallest_text(drawings[name]) >= 12.5


@every_drawing
def test_texts_of_a_drawing_neither_overlap_nor_leave_it(drawings: dict[str, Figure], name: str) -> None:
    assert_texts_stand_apart(drawings[name])


@every_drawing
def test_the_same_drawing_has_the_same_bytes(drawings: dict, folder: Path, by_command: Path, name: str) -> None:
    assert (folder / f"{name}.svg").read_bytes() == (by_command / f"{name}.svg").read_bytes()


def written_texts(path: Path) -> list[str]:
    """Return the texts of an SVG: matplotlib draws letters as curves, and writes what they say in a comment."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"), re.DOTALL)


def test_command_draws_the_committed_drawings(by_command: Path) -> None:
    assert {path.stem for path in by_command.iterdir()} == set(DRAWINGS) | set(NETWORKS)
    for path in by_command.iterdir():
        assert written_texts(path) == written_texts(PROJECT / "figures" / path.name)
        assert f"](figures/{path.name})" in PAGE
    for name, sizes in NETWORKS.items():
        for drawn in (PROJECT / "figures", by_command):
            assert drawn_ids(drawn / f"{name}.svg", "unit") == expected_units(sizes)
            assert drawn_ids(drawn / f"{name}.svg", "edge") == expected_edges(sizes)


def test_the_figures_folder_stays_under_4_mb() -> None:
    assert sum(path.stat().st_size for path in (PROJECT / "figures").iterdir()) < 4e6


# ---- networks


def drawn_ids(path: Path, kind: str) -> set[str]:
    found = re.findall(rf'<g id="({kind}-[\d-]+)">', path.read_text())
    assert len(found) == len(set(found))
    return set(found)


def expected_units(sizes: list[int]) -> set[str]:
    return {f"unit-{layer}-{unit}" for layer, size in enumerate(sizes) for unit in range(1, size + 1)}


def expected_edges(sizes: list[int]) -> set[str]:
    return {
        f"edge-{layer}-{source}-{target}"
        for layer in range(1, len(sizes))
        for source in range(1, sizes[layer - 1] + 1)
        for target in range(1, sizes[layer] + 1)
    }


def test_network_of_question_5_has_17_units_and_60_edges() -> None:
    assert len(drawn_ids(PROJECT / "figures" / "network-4-6-4-3.svg", "unit")) == 17
    assert len(drawn_ids(PROJECT / "figures" / "network-4-6-4-3.svg", "edge")) == 60


def test_network_is_labelled_with_units_layers_and_shapes(tmp_path: Path) -> None:
    figure = diagrams.draw_network([3, 4, 1], ["input", "hidden", "output"], "A network", tmp_path / "network.svg")
    shown = [text.get_text() for text in texts(figure)]
    units = [f"$a_{{{unit}}}^{{[{layer}]}}$" for layer, size in enumerate([3, 4, 1]) for unit in range(1, size + 1)]
    assert set(units) <= set(shown)
    assert {"input\n3 units", "hidden\n4 units", "output\n1 unit", r"$= \hat{y}$"} <= set(shown)
    assert {"$W^{[1]}$: 4 × 3\n$b^{[1]}$: 4 × 1", "$W^{[2]}$: 1 × 4\n$b^{[2]}$: 1 × 1"} <= set(shown)


def test_edges_end_at_the_units_that_they_name(tmp_path: Path) -> None:
    figure = diagrams.draw_network([2, 3], ["input", "output"], "A network", tmp_path / "network.svg")
    centre = {patch.get_gid(): patch.center for patch in figure.axes[0].patches}
    assert centre["unit-0-1"][1] > centre["unit-0-2"][1], "the first unit is not at the top"
    for line in figure.axes[0].get_lines():
        layer, source, target = map(int, line.get_gid().split("-")[1:])
        (x0, x1), (y0, y1) = line.get_data()
        assert (x0, y0) == centre[f"unit-{layer - 1}-{source}"]
        assert (x1, y1) == centre[f"unit-{layer}-{target}"]


def test_layers_without_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        diagrams.draw_network([3, 4, 1], ["input", "output"], "A network", tmp_path / "network.svg")
    assert list(tmp_path.iterdir()) == []


# ---- computational graph


def drawn_matrices(figure: Figure) -> dict[str, list[list[float]]]:
    """Return the matrices in the graph by name, `value-x` or `gradient-W1`."""
    boxes = {text.get_gid(): text.get_text().replace("−", "-") for text in texts(figure) if text.get_gid()}
    return {name: [[float(word) for word in row.split()] for row in box.split("\n")] for name, box in boxes.items()}


def written_matrices() -> dict[str, list[list[float]]]:
    """Return the results in the displayed formulas of questions 2 and 3: the last matrix of `left = ... = matrix`."""
    found = {}
    for formula in re.findall(r"\$\$\n(.*)\n\$\$", answer(2) + answer(3)):
        for equation in formula.split(r" \qquad "):
            matrices = re.findall(r"\\begin\{pmatrix\} (.*?) \\end\{pmatrix\}", equation)
            if matrices and " = " in equation:
                rows = [row.split(" & ") for row in matrices[-1].split(r" \cr ")]
                found[equation.split(" = ")[0]] = [[float(entry) for entry in row] for row in rows]
    return found


def test_graph_shows_the_numbers_of_questions_2_and_3(drawings: dict[str, Figure]) -> None:
    drawn, written = drawn_matrices(drawings["computational-graph"]), written_matrices()
    weights = {f"{letter}{layer}": f"{letter}^{{[{layer}]}}" for letter in "Wb" for layer in (1, 2)}
    values = {"x": "x", "z1": "z^{[1]}", "a1": "a^{[1]}", "y_hat": r"\hat y"} | weights
    gradients = {name: rf"\frac{{\partial \mathcal{{L}}}}{{\partial {values[name]}}}" for name in ("W1", "W2", "a1")}
    gradients |= {"z1": r"\delta^{[1]}", "b1": r"\delta^{[1]}", "y_hat": r"\delta^{[2]}", "b2": r"\delta^{[2]}"}
    expected = {f"value-{name}": written[left] for name, left in values.items()}
    expected |= {f"gradient-{name}": written[left] for name, left in gradients.items()}
    assert "target $y = (1, 3)^{\\top}$ the loss is" in answer(2) and r"\rVert^2 = \frac{1}{2}(1 + 1) = 1$" in answer(2)
    assert drawn == expected | {"value-y": [[1], [3]], "value-loss": [[1]], "gradient-loss": [[1]]}


def test_graph_has_values_above_and_gradients_below(drawings: dict[str, Figure]) -> None:
    figure = drawings["computational-graph"]
    heights = {text.get_gid(): text.get_position()[1] for text in texts(figure) if text.get_gid()}
    _, gradients = diagrams.graph_numbers()
    assert all(heights[f"value-{name}"] > heights[f"gradient-{name}"] for name in gradients)
    assert all(heights[f"value-{name}"] > 0 > heights[f"gradient-{name}"] for name in ("z1", "a1", "y_hat", "loss"))


# ---- dropout


def test_dropped_units_have_no_edge(drawings: dict[str, Figure]) -> None:
    figure = drawings["dropout"]
    dropped_in_all = 0
    for axes in figure.axes:
        scale = 1.25 if axes.get_title().startswith("Training") else 1
        outputs = [float(text.get_text()) for text in axes.texts]
        hidden = [patch for patch in axes.patches if patch.center in [text.get_position() for text in axes.texts]]
        for unit, output, activation in zip(hidden, outputs, (4, 8, 2, 6, 1), strict=True):
            edges = [line for line in axes.get_lines() if unit.center == (line.get_xdata()[0], line.get_ydata()[0])]
            assert (output, len(edges), unit.get_linestyle()) in [(scale * activation, 5, "solid"), (0, 0, "--")]
        dropped_in_all += outputs.count(0)
    assert outputs.count(0) == 0 < dropped_in_all, "the last panel is testing"
    assert "$a = 4$" in answer(8) and "is 5 with probability 0.8" in answer(8)


# ---- functions


def test_descent_shows_the_numbers_of_the_table(drawings: dict[str, Figure]) -> None:
    figure = drawings["descent"]
    assert len(figure.axes) == 4
    for axes in figure.axes:
        rate, verdict = re.fullmatch(r"η = ([\d.]+): (.+)", axes.get_title()).groups()
        (numbers,) = (text.get_text() for text in axes.texts if "→" in text.get_text())
        assert f"| {rate} | {numbers.replace(' → ', ', ')} | {verdict} |" in answer(7)
        _, start, later = axes.get_lines()  # the first line is the parabola
        drawn = [*start.get_xdata(), *later.get_xdata()]
        assert [f"{theta:.4g}".replace("-", "−") for theta in drawn] == numbers.split(" → ")
        assert np.allclose(np.square(drawn), [*start.get_ydata(), *later.get_ydata()])


def test_ravine_has_equal_numbers_of_steps_from_one_start(drawings: dict[str, Figure]) -> None:
    figure = drawings["ravine"]
    paths = {axes.get_title().split(",")[0]: axes.get_lines()[1].get_xydata() for axes in figure.axes}
    assert list(paths) == ["Gradient descent", "Momentum 0.9", "RMSprop", "Adam"]
    assert {len(path) for path in paths.values()} == {41} and "40 steps" in figure.get_suptitle()
    assert all(path[0].tolist() == [10, 1] for path in paths.values())
    factors = 1 - 0.018 * np.array([1, 100])  # of each step of gradient descent
    assert np.allclose(paths["Gradient descent"], [10, 1] * factors ** np.arange(41)[:, None])
    assert np.allclose(paths["RMSprop"][1], [10 - 10 * 0.2, 1 - 10 * 0.2])  # ten times the rate, both ways
    assert np.allclose(paths["Adam"][1], [10 - 0.5, 1 - 0.5])


def test_slopes_are_those_of_the_functions_above_them(drawings: dict[str, Figure]) -> None:
    upper, lower = np.split(np.array(drawings["activations"].axes), 2)
    assert [axes.get_title() for axes in upper] == ["identity", "sigmoid", "tanh", "ReLU", "GELU"]
    for above, below in zip(upper, lower, strict=True):
        z, outputs = above.get_lines()[0].get_data()
        _, slopes = below.get_lines()[0].get_data()
        differences = np.gradient(outputs, z)
        smooth = np.abs(z) > 0.03 if above.get_title() == "ReLU" else np.isfinite(slopes)
        assert np.nanmax(np.abs(differences - np.asarray(slopes))[smooth][1:-1]) < 0.001


def test_squares_reach_from_the_points_to_the_line(drawings: dict[str, Figure]) -> None:
    figure = drawings["residuals"]
    areas = []
    for axes in figure.axes:
        line, points = axes.get_lines()
        slope, intercept = np.polyfit(*line.get_data(), 1)
        assert points.get_xydata().tolist() == [[1, 2], [2, 3], [3, 5], [4, 6]]
        for square, (x, y) in zip(axes.patches, points.get_xydata(), strict=True):
            assert square.get_xy() == (x, y) and abs(square.get_width()) == abs(square.get_height())
            assert y + square.get_height() == pytest.approx(slope * x + intercept)
        areas.append(sum(square.get_width() * square.get_height() for square in axes.patches))
        assert axes.get_title().endswith(f"total area {areas[-1]:.1f}")
    assert areas == pytest.approx([0.2, 1.0]) and "RSS is 0.2" in answer(12)
