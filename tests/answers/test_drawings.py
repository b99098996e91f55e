"""utils/answers: the drawings of answers.md are those of the page, and show the numbers of its text."""

import re
from io import BytesIO
from pathlib import Path

from utils.answers import functions, networks
from utils.answers.__main__ import DRAWINGS
from utils.visualize import house_style

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "answers.md").read_text(encoding="utf-8")
NETWORKS = {"network-4-6-4-3": [4, 6, 4, 3], "network-two-hidden": [3, 4, 4, 1], "network-3-4-1": [3, 4, 1]}


def answer(number: int) -> str:
    return re.split(r"^## \d+\. ", PAGE, flags=re.MULTILINE)[number]


@pytest.fixture(scope="module")
def drawings() -> dict[str, Figure]:
    with house_style():
        return {name: draw() for name, draw in DRAWINGS.items()}


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def written_texts(svg: str) -> list[str]:
    """Return the texts of an SVG: matplotlib draws letters as curves, and writes what they say in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_can_be_read_and_is_on_the_page(drawings: dict[str, Figure], name: str) -> None:
    figure, drawn = drawings[name], BytesIO()
    pixels = 800 / (72 * max(8, figure.get_figwidth()))  # of a point, on a page 800 pixels wide
    assert min(text.get_fontsize() for text in texts(figure)) * pixels >= 12.5
    with house_style():
        figure.savefig(drawn, format="svg")
    inside, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(inside.x0, inside.y0, width - inside.x1, height - inside.y1) >= -0.03
    committed = (PROJECT / "figures" / f"{name}.svg").read_text(encoding="utf-8")
    assert written_texts(drawn.getvalue().decode()) == written_texts(committed)
    assert f"](figures/{name}.svg)" in PAGE


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_every_unit_and_edge(drawings: dict[str, Figure], name: str) -> None:
    sizes, axes = NETWORKS[name], drawings[name].axes[0]
    centre = {patch.get_gid(): patch.center for patch in axes.patches}
    assert set(centre) == {f"unit-{layer}-{unit + 1}" for layer, size in enumerate(sizes) for unit in range(size)}
    edges = {line.get_gid(): line.get_xydata().tolist() for line in axes.get_lines()}
    assert len(edges) == sum(before * after for before, after in zip(sizes, sizes[1:], strict=False))
    for name, ends in edges.items():
        layer, source, target = map(int, name.split("-")[1:])
        assert ends == [list(centre[f"unit-{layer - 1}-{source}"]), list(centre[f"unit-{layer}-{target}"])]


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


def test_the_graph_shows_the_numbers_of_questions_2_and_3(drawings: dict[str, Figure]) -> None:
    boxes = {text.get_gid(): text.get_text().replace("−", "-") for text in texts(drawings["computational-graph"])}
    drawn = {name: [[float(word) for word in row.split()] for row in boxes[name].split("\n")] for name in boxes if name}
    written = written_matrices()
    weights = {f"{letter}{layer}": f"{letter}^{{[{layer}]}}" for letter in "Wb" for layer in (1, 2)}
    values = {"x": "x", "z1": "z^{[1]}", "a1": "a^{[1]}", "y_hat": r"\hat y"} | weights
    gradients = {name: rf"\frac{{\partial \mathcal{{L}}}}{{\partial {values[name]}}}" for name in ("W1", "W2", "a1")}
    gradients |= {"z1": r"\delta^{[1]}", "b1": r"\delta^{[1]}", "y_hat": r"\delta^{[2]}", "b2": r"\delta^{[2]}"}
    expected = {f"value-{name}": written[left] for name, left in values.items()}
    expected |= {f"gradient-{name}": written[left] for name, left in gradients.items()}
    assert drawn == expected | {"value-y": [[1], [3]], "value-loss": [[1]], "gradient-loss": [[1]]}


@pytest.mark.parametrize(("name", "number"), [("network-numbers", 2), ("sigmoid-numbers", 13)])
def test_a_network_with_numbers_has_those_of_the_example(drawings: dict[str, Figure], name: str, number: int) -> None:
    shown = [text.get_text().removeprefix("b = ").replace("−", "-") for text in texts(drawings[name])[:-1]]
    example = networks.EXAMPLE if number == 2 else networks.SIGMOID_EXAMPLE
    activations = networks.forward(**example, bent="ReLU" if number == 2 else "sigmoid")
    expected = [*np.concatenate([a.ravel() for a in (*activations, *example["weights"], *example["biases"])])]
    assert sorted(map(float, shown[-len(expected) :])) == pytest.approx(sorted(np.round(expected, 3)))
    assert f"{activations[-1][0, 0]:.3f}".rstrip("0").rstrip(".") in answer(number)


def test_descent_shows_the_numbers_of_the_table(drawings: dict[str, Figure]) -> None:
    for axes in drawings["descent"].axes:
        rate, verdict = re.fullmatch(r"η = ([\d.]+): (.+)", axes.get_title()).groups()
        (numbers,) = (text.get_text() for text in axes.texts if "→" in text.get_text())
        assert f"| {rate} | {numbers.replace(' → ', ', ')} | {verdict} |" in answer(7)


def test_the_ravine_has_the_paths_of_the_optimizers(drawings: dict[str, Figure]) -> None:
    paths = {axes.get_title().split(",")[0]: axes.get_lines()[1].get_xydata() for axes in drawings["ravine"].axes}
    factors = 1 - 0.018 * np.array([1, 100])  # of each step of gradient descent
    assert np.allclose(paths["Gradient descent"], [10, 1] * factors ** np.arange(41)[:, None])
    assert np.allclose(paths["RMSprop"][1], [10 - 10 * 0.2, 1 - 10 * 0.2])  # ten times the rate, both ways
    assert np.allclose(paths["Adam"][1], [10 - 0.5, 1 - 0.5])


def test_the_errors_of_the_polynomials_are_those_of_the_table() -> None:
    for degree, training, new in ((1, 0.312, 0.301), (3, 0.078, 0.111)):
        assert np.round(functions.expected_errors(degree), 3).tolist() == [training, new]
        assert f"| {training:.3f} |" in answer(6) and f"| {new:.3f} |" in answer(6)


def test_squares_reach_from_the_points_to_the_line(drawings: dict[str, Figure]) -> None:
    areas = []
    for axes in drawings["residuals"].axes:
        line, points = axes.get_lines()
        slope, intercept = np.polyfit(*line.get_data(), 1)
        for square, (x, y) in zip(axes.patches, points.get_xydata(), strict=True):
            assert y + square.get_height() == pytest.approx(slope * x + intercept)
        areas.append(sum(square.get_width() * square.get_height() for square in axes.patches))
    assert areas == pytest.approx([0.2, 1.0]) and "RSS is 0.2" in answer(12)
