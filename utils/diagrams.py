"""The drawings of answers.md that show networks: units and edges, a computational graph, dropout; and the command.

python -m utils.diagrams    draws all drawings of answers.md, these and those of function_diagrams.py, into figures/
"""

from collections.abc import Sequence
from pathlib import Path

from utils.function_diagrams import draw_activations, draw_descent, draw_ravine, draw_residuals
from utils.visualize import COLORS, PAGE_WIDTH, house_style, new_figure, save_figure

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

COLUMN_DISTANCE = 2.6  # in a network diagram the distance between two units of a layer is 1
RADIUS = 0.38
EDGE = {"color": "#777777", "linewidth": 0.8, "linestyle": "-", "zorder": 1}


@house_style()
def draw_network(layer_sizes: Sequence[int], layer_names: Sequence[str], title: str, path: Path) -> Figure:
    """Draw the diagram of a fully connected network, save and return it; sizes and names start with the input.

    In an SVG, unit i of layer l is the group `unit-l-i`, the edge to it from unit j of the layer before the group
    `edge-l-j-i`. Layers count from 0, the input; units from 1, as in the label a_i^[l].
    """
    columns = [unit_positions(layer, size) for layer, size in enumerate(layer_sizes)]
    top, last = max(layer_sizes) / 2, len(layer_sizes) - 1
    width, height = COLUMN_DISTANCE * last + 2.2, 2 * top + 2
    figure, panels = new_figure(0.8 * width, 0.8 * height + 0.5)
    axes = panels[0, 0]
    axes.set(xlim=(-1.1, width - 1.1), ylim=(-height / 2, height / 2), aspect="equal")
    axes.set_axis_off()
    figure.suptitle(title)
    for layer, (size, name) in enumerate(zip(layer_sizes, layer_names, strict=True)):
        x = COLUMN_DISTANCE * layer
        draw_units(axes, layer, columns[layer], COLORS[{0: "sky", last: "green"}.get(layer, "orange")])
        axes.text(x, top + 0.5, f"{name}\n{size} unit{'s' if size > 1 else ''}", ha="center", va="center")
        if layer > 0:
            draw_edges(axes, layer, columns[layer - 1], columns[layer])
            shapes = f"$W^{{[{layer}]}}$: {size} × {layer_sizes[layer - 1]}\n$b^{{[{layer}]}}$: {size} × 1"
            axes.text(x - COLUMN_DISTANCE / 2, -top - 0.5, shapes, ha="center", va="center")
    if layer_sizes[-1] == 1:
        axes.text(COLUMN_DISTANCE * last + 0.5, 0, r"$= \hat{y}$", fontsize=15, va="center")
    save_figure(figure, path)
    return figure


def unit_positions(layer: int, size: int) -> list[tuple[float, float]]:
    """Return x and y of a layer's units, the first at the top, the layer centred on y = 0."""
    return [(COLUMN_DISTANCE * layer, (size - 1) / 2 - unit) for unit in range(size)]


def draw_units(axes: Axes, layer: int, positions: list[tuple[float, float]], color: str) -> None:
    """Draw a layer's units, each with its name in it."""
    for unit, (x, y) in enumerate(positions, start=1):
        axes.add_patch(Circle((x, y), RADIUS, facecolor=color, edgecolor="black", zorder=2, gid=f"unit-{layer}-{unit}"))
        axes.text(x, y, f"$a_{{{unit}}}^{{[{layer}]}}$", fontsize=15, ha="center", va="center")


def draw_edges(axes: Axes, layer: int, sources: list[tuple[float, float]], targets: list[tuple[float, float]]) -> None:
    """Draw an edge from each unit of the layer before to each unit of this layer."""
    for source, (x0, y0) in enumerate(sources, start=1):
        for target, (x1, y1) in enumerate(targets, start=1):
            name = f"edge-{layer}-{source}-{target}"
            axes.plot([x0, x1], [y0, y1], gid=name, **EDGE)


def draw_network_diagrams(folder: Path) -> None:
    """Save the three network diagrams of answers.md into the folder."""
    one, two = ["input", "hidden", "output"], ["input", "hidden 1", "hidden 2", "output"]
    draw_network([4, 6, 4, 3], two, "The network of question 5: 4-6-4-3", folder / "network-4-6-4-3.svg")
    draw_network([3, 4, 4, 1], two, "Two hidden layers: 3-4-4-1", folder / "network-two-hidden.svg")
    draw_network([3, 4, 1], one, "One hidden layer: 3-4-1", folder / "network-3-4-1.svg")


def graph_numbers() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the values of the example of questions 2 and 3, forward, and the loss's gradients, backward; by name."""
    x, y = np.array([[1.0], [2]]), np.array([[1.0], [3]])
    W1, b1 = np.array([[1, 0.5], [-1, 0.25], [0.5, 1]]), np.array([[0.0], [0], [-1]])
    W2, b2 = np.array([[0.5, 1, -1], [1, -1, 2]]), np.array([[0.5], [-1]])
    z1 = W1 @ x + b1
    a1 = np.maximum(z1, 0)
    y_hat = W2 @ a1 + b2
    loss = 0.5 * np.sum((y_hat - y) ** 2, keepdims=True)
    values = {"x": x, "y": y, "W1": W1, "b1": b1, "W2": W2, "b2": b2, "z1": z1, "a1": a1, "y_hat": y_hat, "loss": loss}
    delta2 = y_hat - y
    delta_a1 = W2.T @ delta2
    delta1 = delta_a1 * (z1 > 0)
    gradients = {"W2": delta2 @ a1.T, "b2": delta2, "W1": delta1 @ x.T, "b1": delta1}
    gradients |= {"loss": np.ones((1, 1)), "y_hat": delta2, "a1": delta_a1, "z1": delta1}
    return values, gradients


# Where things stand in the computational graph, in half inches: wires and nodes along the middle, and for each
# parameter its own place and that of the node that it enters.
WIRES = {"x": (0.5, 1.9), "z1": (4.9, 6.3), "a1": (7.7, 8.9), "y_hat": (11.8, 12.8), "loss": (14.6, 15.6)}
NODES = {3.4: "$W^{[1]}x + b^{[1]}$", 7.0: "ReLU", 10.35: "$W^{[2]}a^{[1]} + b^{[2]}$", 13.7: "loss"}
PARAMETERS = {"W1": (2.6, 3.2), "b1": (4.6, 3.8), "W2": (9.5, 10.1), "b2": (11.7, 10.7), "y": (13.7, 13.7)}
NAMES = {"x": "$x$", "y": "$y$", "W1": "$W^{[1]}$", "b1": "$b^{[1]}$", "W2": "$W^{[2]}$", "b2": "$b^{[2]}$"}
NAMES |= {"z1": "$z^{[1]}$", "a1": "$a^{[1]}$", "y_hat": r"$\hat{y}$", "loss": r"$\mathcal{L}$"}
LIGHT = {"value": "#D6E8F5", "gradient": "#FBE3D3"}  # of COLORS["blue"] and COLORS["vermilion"]


@house_style()
def draw_computational_graph(path: Path) -> Figure:
    """Draw the example of questions 2 and 3 as a graph: values above the wires, gradients below; save and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 4.8)
    axes = panels[0, 0]
    axes.set(xlim=(0, 16), ylim=(-2.6, 6.6))
    axes.set_axis_off()
    values, gradients = graph_numbers()
    for name, (start, end) in WIRES.items():
        x = (start + end) / 2
        draw_wire(axes, (start, 0), (end, 0), both_ways=name in gradients)
        axes.text(x, 2.05, NAMES[name], fontsize=13, ha="center", va="center")
        draw_numbers(axes, (x, 1.05), f"value-{name}", values[name])
        if name in gradients:
            draw_numbers(axes, (x, -1.05), f"gradient-{name}", gradients[name])
    for name, (x, node) in PARAMETERS.items():
        draw_wire(axes, (x, 2.5), (node, 0.55), both_ways=name in gradients)
        axes.text(x, 6.2, NAMES[name], fontsize=13, ha="center", va="center")
        draw_numbers(axes, (x, 5.1), f"value-{name}", values[name])
        if name in gradients:
            draw_numbers(axes, (x, 3.4), f"gradient-{name}", gradients[name])
    for x, label in NODES.items():
        axes.text(x, 0, label, ha="center", va="center", bbox={"boxstyle": "round,pad=0.4", "facecolor": "white"})
    draw_legend(axes)
    figure.suptitle("One pass forward, one pass backward")
    save_figure(figure, path)
    return figure


def draw_wire(axes: Axes, start: tuple[float, float], end: tuple[float, float], both_ways: bool) -> None:
    """Draw an arrow forward, and beside it a dashed one backward if a gradient flows there."""
    arrows = [("blue", "->", "-", 0.1)] + both_ways * [("vermilion", "<-", "--", -0.1)]
    for color, style, dashes, shift in arrows:
        (x0, y0), (x1, y1) = ((x + shift * (start[1] != end[1]), y + shift) for x, y in (start, end))
        arrow = {"arrowstyle": style, "color": COLORS[color], "linestyle": dashes, "linewidth": 1.5}
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


def draw_numbers(axes: Axes, centre: tuple[float, float], name: str, numbers: np.ndarray) -> None:
    """Write a matrix in a box, coloured as a value or a gradient by the first word of `name`."""
    words = [[f"{number + 0.0:g}".replace("-", "−") for number in row] for row in numbers]  # + 0.0: no "−0"
    width = max(len(word) for row in words for word in row)
    rows = "\n".join(" ".join(word.rjust(width) for word in row) for row in words)
    box = {"boxstyle": "round,pad=0.25", "facecolor": LIGHT[name.partition("-")[0]], "edgecolor": "none"}
    axes.text(*centre, rows, family="monospace", ha="center", va="center", bbox=box, gid=name)


def draw_legend(axes: Axes) -> None:
    for x, kind, text in ((4.5, "value", "→ values"), (10.5, "gradient", "← gradients of the loss")):
        box = {"boxstyle": "round,pad=0.25", "facecolor": LIGHT[kind], "edgecolor": "none"}
        axes.text(x, -2.35, text, ha="center", va="center", bbox=box)


# Question 8: dropout in the hidden layer of a small network, with two masks in training and none in testing.
DROPOUT_SIZES = (3, 5, 2)
DROPOUT_ACTIVATIONS = np.array([4.0, 8, 2, 6, 1])
DROPOUT_RATE = 0.2
DROPOUT_SEED = 2


def dropout_outputs() -> dict[str, np.ndarray]:
    """Return what the hidden layer gives to the next one (5,), by panel: inverted dropout, then none."""
    random = np.random.default_rng(DROPOUT_SEED)
    masks = random.random((2, len(DROPOUT_ACTIVATIONS))) >= DROPOUT_RATE
    first, second = masks * DROPOUT_ACTIVATIONS / (1 - DROPOUT_RATE)
    return {"Training: one mask": first, "Training: another": second, "Testing: all units": DROPOUT_ACTIVATIONS}


@house_style()
def draw_dropout(path: Path) -> Figure:
    """Draw the network under two dropout masks and in testing, save the figure and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 3.9, columns=3)
    for axes, (title, outputs) in zip(panels[0], dropout_outputs().items(), strict=True):
        axes.set(title=title, xlim=(-0.6, 3.8), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
        axes.set_axis_off()
        columns = [[(1.6 * layer, y) for _, y in unit_positions(0, size)] for layer, size in enumerate(DROPOUT_SIZES)]
        for position in columns[0] + columns[2]:
            color = COLORS["sky" if position in columns[0] else "green"]
            axes.add_patch(Circle(position, RADIUS, facecolor=color, edgecolor="black", zorder=2))
        for position, output in zip(columns[1], outputs, strict=True):
            draw_hidden_unit(axes, position, output, neighbours=columns[0] + columns[2])
    figure.suptitle(f"Dropout, p = {DROPOUT_RATE:g}: in training, kept units count {1 / (1 - DROPOUT_RATE):g} times")
    save_figure(figure, path)
    return figure


def draw_hidden_unit(
    axes: Axes, position: tuple[float, float], output: float, neighbours: list[tuple[float, float]]
) -> None:
    """Draw a unit with its output in it and an edge to each neighbour; a dropped one is white, dashed and alone."""
    look = {"facecolor": COLORS["orange"]} if output else {"facecolor": "white", "linestyle": "--"}
    axes.add_patch(Circle(position, RADIUS, edgecolor="black", zorder=2, **look))
    axes.text(*position, f"{output:g}", ha="center", va="center")
    for x, y in neighbours if output else []:
        axes.plot([position[0], x], [position[1], y], **EDGE)


def draw_all(folder: Path) -> None:
    """Save all drawings of answers.md into the folder."""
    draw_network_diagrams(folder)
    draw_computational_graph(folder / "computational-graph.svg")
    draw_activations(folder / "activations.svg")
    draw_descent(folder / "descent.svg")
    draw_dropout(folder / "dropout.svg")
    draw_ravine(folder / "ravine.svg")
    draw_residuals(folder / "residuals.svg")


if __name__ == "__main__":
    draw_all(Path(__file__).resolve().parent.parent / "figures")
