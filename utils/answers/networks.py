"""The drawings of answers.md that show networks: units and edges, numbers on them, a computational graph, dropout."""

from collections.abc import Sequence

from utils.visualize import COLORS, PAGE_WIDTH, new_figure

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

COLUMN_DISTANCE = 2.6  # between two layers; between two units of a layer it is 1
RADIUS = 0.38
EDGE = {"color": "#777777", "linewidth": 0.8, "linestyle": "-", "zorder": 1}
WHITE = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none"}
LIGHT = {"value": "#D6E8F5", "gradient": "#FBE3D3"}  # of COLORS["blue"] and COLORS["vermilion"]


def draw_network(layer_sizes: Sequence[int], layer_names: Sequence[str], title: str) -> Figure:
    """Draw a fully connected network; sizes and names start with the input.

    In an SVG, unit i of layer l is the group `unit-l-i`, the edge to it from unit j of the layer before the group
    `edge-l-j-i`. Layers count from 0, the input; units from 1, as in the label a_i^[l].
    """
    top, last = max(layer_sizes) / 2, len(layer_sizes) - 1
    axes = empty_figure(title, (-1.1, COLUMN_DISTANCE * last + 1.1), (-top - 1, top + 1))
    for layer, (size, name) in enumerate(zip(layer_sizes, layer_names, strict=True)):
        x = COLUMN_DISTANCE * layer
        draw_units(axes, layer, [f"$a_{{{unit}}}^{{[{layer}]}}$" for unit in range(1, size + 1)], layer == last)
        axes.text(x, top + 0.5, f"{name}\n{size} unit{'s' if size > 1 else ''}", ha="center", va="center")
        if layer > 0:
            for source, start in enumerate(unit_positions(layer - 1, layer_sizes[layer - 1]), start=1):
                for target, end in enumerate(unit_positions(layer, size), start=1):
                    axes.plot(*zip(start, end, strict=True), gid=f"edge-{layer}-{source}-{target}", **EDGE)
            shapes = f"$W^{{[{layer}]}}$: {size} × {layer_sizes[layer - 1]}\n$b^{{[{layer}]}}$: {size} × 1"
            axes.text(x - COLUMN_DISTANCE / 2, -top - 0.5, shapes, ha="center", va="center")
    if layer_sizes[-1] == 1:
        axes.text(COLUMN_DISTANCE * last + 0.5, 0, r"$= \hat{y}$", fontsize=15, va="center")
    return axes.figure


def empty_figure(title: str, across: tuple[float, float], down: tuple[float, float], scale: float = 0.8) -> Axes:
    """Return axes without frame, `scale` inches to a unit."""
    figure, [[axes]] = new_figure(scale * (across[1] - across[0]), scale * (down[1] - down[0]) + 0.5)
    axes.set(xlim=across, ylim=down, aspect="equal")
    axes.set_axis_off()
    figure.suptitle(title)
    return axes


def unit_positions(layer: int, size: int) -> list[tuple[float, float]]:
    """Return x and y of a layer's units, the first at the top, the layer centred on y = 0."""
    return [(COLUMN_DISTANCE * layer, (size - 1) / 2 - unit) for unit in range(size)]


def draw_units(axes: Axes, layer: int, labels: Sequence[str], is_last: bool, spread: float = 1) -> None:
    """Draw a layer's units, each with its label in it."""
    color = COLORS["sky" if layer == 0 else "green" if is_last else "orange"]
    for unit, ((x, y), label) in enumerate(zip(unit_positions(layer, len(labels)), labels, strict=True), start=1):
        look = {"facecolor": color, "edgecolor": "black", "zorder": 2, "gid": f"unit-{layer}-{unit}"}
        axes.add_patch(Circle((x, spread * y), RADIUS, **look))
        axes.text(x, spread * y, label, fontsize=15 if "$" in label else 12, ha="center", va="center", zorder=3)


def draw_numbers_network(weights: list[np.ndarray], biases: list[np.ndarray], x: np.ndarray, bent: str) -> Figure:
    """Draw a network with each unit's activation in it, its bias below it, and each weight on its edge.

    bent: the activation function of the hidden layers, "ReLU" or "sigmoid", which is that of the output too if sigmoid.
    """
    activations, spread = forward(weights, biases, x, bent), 1.5
    top = 0.75 * max(len(a) for a in activations) + 0.6
    axes = empty_figure(f"{bent} network, forward", (-0.7, COLUMN_DISTANCE * len(weights) + 0.7), (-top, top), 1.0)
    for layer, a in enumerate(activations):
        draw_units(axes, layer, [short(value) for value in a[:, 0]], layer == len(weights), spread)
        if layer > 0:
            sources, targets = unit_positions(layer - 1, len(activations[layer - 1])), unit_positions(layer, len(a))
            for (x1, y1), bias in zip(targets, biases[layer - 1][:, 0], strict=True):
                axes.text(x1, spread * y1 - 0.58, f"b = {short(bias)}", ha="center", va="center")
            for (i, j), weight in np.ndenumerate(weights[layer - 1]):
                start, end = (np.array([x1, spread * y1]) for x1, y1 in (sources[j], targets[i]))
                axes.plot(*zip(start, end, strict=True), **EDGE)
                label_at = start + 0.24 * (end - start)  # near its source, where edges to different units are apart
                axes.text(*label_at, short(weight), ha="center", va="center", bbox=WHITE)
    return axes.figure


def forward(weights: list[np.ndarray], biases: list[np.ndarray], x: np.ndarray, bent: str) -> list[np.ndarray]:
    """Return the activations of every layer, the input first."""
    activations = [x]
    for layer, (W, b) in enumerate(zip(weights, biases, strict=True), start=1):
        z = W @ activations[-1] + b
        linear = z if layer == len(weights) else np.maximum(z, 0)
        activations.append(1 / (1 + np.exp(-z)) if bent == "sigmoid" else linear)
    return activations


def short(number: float) -> str:
    return f"{round(number, 3) + 0.0:g}".replace("-", "−")  # + 0.0: no "−0"


# The example of questions 2 and 3, and that of question 13.
EXAMPLE = {
    "weights": [np.array([[1, 0.5], [-1, 0.25], [0.5, 1]]), np.array([[0.5, 1, -1], [1, -1, 2]])],
    "biases": [np.array([[0.0], [0], [-1]]), np.array([[0.5], [-1]])],
    "x": np.array([[1.0], [2]]),
}
SIGMOID_EXAMPLE = {
    "weights": [np.array([[1, 0.5], [-1, 1]]), np.array([[1.0, -1], [0, 2]]), np.array([[4.0, -2]])],
    "biases": [np.array([[-1.0], [0]]), np.array([[0.5], [-1]]), np.array([[0.0]])],
    "x": np.array([[1.0], [2]]),
}


def graph_numbers() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the values of the example of questions 2 and 3, forward, and the loss's gradients, backward; by name."""
    (W1, W2), (b1, b2), x = EXAMPLE.values()
    y, (_, a1, y_hat) = np.array([[1.0], [3]]), forward([W1, W2], [b1, b2], x, "ReLU")
    loss = 0.5 * np.sum((y_hat - y) ** 2, keepdims=True)
    values = {"x": x, "y": y, "W1": W1, "b1": b1, "W2": W2, "b2": b2, "z1": W1 @ x + b1, "a1": a1, "y_hat": y_hat}
    delta2 = y_hat - y
    delta_a1 = W2.T @ delta2
    delta1 = delta_a1 * (a1 > 0)
    gradients = {"W2": delta2 @ a1.T, "b2": delta2, "W1": delta1 @ x.T, "b1": delta1}
    gradients |= {"loss": np.ones((1, 1)), "y_hat": delta2, "a1": delta_a1, "z1": delta1}
    return values | {"loss": loss}, gradients


# Where things stand in the computational graph, in half inches: wires and nodes along the middle, and for each
# parameter its own place and that of the node that it enters.
WIRES = {"x": (0.5, 1.9), "z1": (4.9, 6.3), "a1": (7.7, 8.9), "y_hat": (11.8, 12.8), "loss": (14.6, 15.6)}
LINEAR, MAXIMUM = "sum: hands on\nproduct: swaps", "maximum:\nchooses"  # how gradients pass
NODES = {3.4: ("$W^{[1]}x + b^{[1]}$", LINEAR), 7.0: ("ReLU", MAXIMUM)}
NODES |= {10.35: ("$W^{[2]}a^{[1]} + b^{[2]}$", LINEAR), 13.7: ("loss", "")}
PARAMETERS = {"W1": (2.6, 3.2), "b1": (4.6, 3.8), "W2": (9.5, 10.1), "b2": (11.7, 10.7), "y": (13.7, 13.7)}
NAMES = {"x": "$x$", "y": "$y$", "W1": "$W^{[1]}$", "b1": "$b^{[1]}$", "W2": "$W^{[2]}$", "b2": "$b^{[2]}$"}
NAMES |= {"z1": "$z^{[1]}$", "a1": "$a^{[1]}$", "y_hat": r"$\hat{y}$", "loss": r"$\mathcal{L}$"}


def draw_computational_graph() -> Figure:
    """Draw the example of questions 2 and 3 as a graph: values above the wires, gradients below."""
    figure, [[axes]] = new_figure(PAGE_WIDTH, 4.8)
    axes.set(xlim=(0, 16), ylim=(-2.6, 6.6))
    axes.set_axis_off()
    values, gradients = graph_numbers()
    places = {name: ((x0, 0), (x1, 0), (x0 + x1) / 2, 2.05, 1.05, -1.05) for name, (x0, x1) in WIRES.items()}
    places |= {name: ((x, 2.5), (node, 0.55), x, 6.2, 5.1, 3.4) for name, (x, node) in PARAMETERS.items()}
    for name, (start, end, x, name_y, value_y, gradient_y) in places.items():
        draw_wire(axes, start, end, both_ways=name in gradients)
        axes.text(x, name_y, NAMES[name], fontsize=13, ha="center", va="center")
        write_matrix(axes, (x, value_y), f"value-{name}", values[name])
        if name in gradients:
            write_matrix(axes, (x, gradient_y), f"gradient-{name}", gradients[name])
    for x, (label, rule) in NODES.items():
        axes.text(x, 0, label, ha="center", va="center", bbox={"boxstyle": "round,pad=0.4", "facecolor": "white"})
        axes.text(x, -1.05, rule, ha="center", va="center", color=COLORS["vermilion"], fontsize=9)
    for x, kind, text in ((4.5, "value", "→ values"), (10.5, "gradient", "← gradients of the loss")):
        axes.text(x, -2.35, text, ha="center", va="center", bbox={"facecolor": LIGHT[kind], "edgecolor": "none"})
    figure.suptitle("One pass forward, one pass backward")
    return figure


def draw_wire(axes: Axes, start: tuple[float, float], end: tuple[float, float], both_ways: bool) -> None:
    """Draw an arrow forward, and beside it a dashed one backward if a gradient flows there."""
    arrows = [("blue", "->", "-", 0.1)] + both_ways * [("vermilion", "<-", "--", -0.1)]
    for color, style, dashes, shift in arrows:
        (x0, y0), (x1, y1) = ((x + shift * (start[1] != end[1]), y + shift) for x, y in (start, end))
        arrow = {"arrowstyle": style, "color": COLORS[color], "linestyle": dashes, "linewidth": 1.5}
        axes.annotate("", (x1, y1), (x0, y0), arrowprops=arrow | {"shrinkA": 0, "shrinkB": 0})


def write_matrix(axes: Axes, centre: tuple[float, float], name: str, numbers: np.ndarray) -> None:
    """Write a matrix in a box, coloured as a value or a gradient by the first word of `name`."""
    words = [[short(number) for number in row] for row in numbers]
    width = max(len(word) for row in words for word in row)
    rows = "\n".join(" ".join(word.rjust(width) for word in row) for row in words)
    box = {"boxstyle": "round,pad=0.25", "facecolor": LIGHT[name.partition("-")[0]], "edgecolor": "none"}
    axes.text(*centre, rows, family="monospace", ha="center", va="center", bbox=box, gid=name)


# Question 8: dropout in the hidden layer of a small network, with two masks in training and none in testing.
DROPOUT_ACTIVATIONS = np.array([4.0, 8, 2, 6, 1])
DROPOUT_MASKS = {"Training: one mask": (0, 1, 1, 1, 0), "Training: another": (1, 1, 0, 1, 1), "Testing": None}
DROPOUT_RATE = 0.2


def draw_dropout() -> Figure:
    """Draw a network under two dropout masks and in testing; a dropped unit is white, dashed and alone."""
    figure, panels = new_figure(PAGE_WIDTH, 3.2, columns=3)
    for axes, (title, mask) in zip(panels[0], DROPOUT_MASKS.items(), strict=True):
        axes.set(title=title, xlim=(-0.6, 5.8), ylim=(-2.6, 2.6), aspect="equal")
        axes.set_axis_off()
        factors = np.ones(5) if mask is None else np.array(mask) / (1 - DROPOUT_RATE)
        draw_units(axes, 0, [""] * 3, False)
        draw_units(axes, 2, [""] * 2, True)
        for (x, y), output in zip(unit_positions(1, 5), factors * DROPOUT_ACTIVATIONS, strict=True):
            look = {"facecolor": COLORS["orange"]} if output else {"facecolor": "white", "linestyle": "--"}
            axes.add_patch(Circle((x, y), RADIUS, edgecolor="black", zorder=2, **look))
            axes.text(x, y, short(output), fontsize=9, ha="center", va="center")
            for x1, y1 in unit_positions(0, 3) + unit_positions(2, 2) if output else []:
                axes.plot([x, x1], [y, y1], **EDGE)
    figure.suptitle(f"Dropout, p = {DROPOUT_RATE:g}: in training, kept units count {1 / (1 - DROPOUT_RATE):g} times")
    return figure
