"""The drawings of answers.md that show ideas: what is inside what, features, bends, two loops, two searches."""

from utils.visualize import COLORS, PAGE_WIDTH, new_figure

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

LINE = {"color": "black", "linestyle": "-", "linewidth": 2}


def blank(axes: Axes, width: float, height: float, title: str = "") -> None:
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal", title=title)
    axes.set_axis_off()


def draw_box(axes: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.1", facecolor=color, edgecolor="black")
    axes.add_patch(shape)


def draw_fields() -> Figure:
    """Draw what is inside what, and features from edges to an object, question 1."""
    figure, [[sets, features]] = new_figure(PAGE_WIDTH, 3.4, columns=2)
    blank(sets, 10, 7)
    fields = ("Artificial intelligence", "Machine learning", "Representation learning", "Deep learning")
    for depth, (field, color) in enumerate(zip(fields, ("#FFFFFF", "#D6E8F5", "#9ECAE9", "#5BA4DC"), strict=True)):
        draw_box(sets, 0.3 + 0.6 * depth, 0.3 + 0.35 * depth, 9.4 - 1.2 * depth, 6.4 - 1.75 * depth, color)
        sets.text(5, 6.1 - 1.4 * depth, field, ha="center", va="center")
    blank(features, 12.3, 8.5)
    for x, title in ((1.5, "edges"), (5.5, "parts"), (10, "object")):
        features.text(x, 0.4, title, ha="center", va="center")
    for y, angle in ((7, 0), (5, 90), (3, 45), (1.5, 135)):
        across, up = 0.6 * np.cos(np.radians(angle)), 0.6 * np.sin(np.radians(angle))
        features.plot([1.5 - across, 1.5 + across], [y - up, y + up], **LINE)
    features.add_patch(Circle((5.5, 2.3), 0.8, fill=False, linewidth=2))
    features.add_patch(Polygon([(4.6, 4), (6.4, 4), (5.9, 5), (5.1, 5)], fill=False, linewidth=2))
    features.add_patch(Rectangle((4.6, 6.2), 1.8, 0.9, fill=False, linewidth=2))
    outline = [(8, 3), (12, 3), (12, 4), (11.2, 4.2), (10.6, 5.2), (9.2, 5.2), (8.7, 4.2), (8, 4)]
    features.add_patch(Polygon(outline, fill=False, linewidth=2))
    for x in (9, 11):
        features.add_patch(Circle((x, 2.9), 0.5, facecolor="white", edgecolor="black", linewidth=2))
    for x in (2.9, 7):
        features.annotate("", (x + 0.8, 4.2), (x, 4.2), arrowprops={"arrowstyle": "->", "linewidth": 1.5})
    return figure


def draw_bends() -> Figure:
    """Draw XOR with a bend that separates it, and the tent, and the tent of the tent, question 1."""
    figure, [[xor, one, two]] = new_figure(PAGE_WIDTH, 3.2, columns=3)
    x1, x2 = np.meshgrid(np.linspace(-0.4, 1.4, 181), np.linspace(-0.4, 1.4, 181))
    score = np.maximum(x1 + x2, 0) - 2 * np.maximum(x1 + x2 - 1, 0)
    xor.contourf(x1, x2, score, levels=[-9, 0.5, 9], colors=["white", "#FBE3D3"])
    xor.plot([0, 1], [0, 1], "o", color=COLORS["blue"], markersize=9)
    xor.plot([0, 1], [1, 0], "s", color=COLORS["vermilion"], markersize=9)
    xor.set(title="XOR: two units", xlabel="$x_1$", ylabel="$x_2$", xticks=[0, 1], yticks=[0, 1], aspect="equal")
    a = np.linspace(0, 1, 257)
    for axes, times, title in ((one, 1, "The tent"), (two, 2, "The tent of the tent")):
        height = a
        for _ in range(times):
            height = 2 * np.maximum(height, 0) - 4 * np.maximum(height - 0.5, 0)
        axes.plot(a, height, "-", color=COLORS["blue"])
        axes.set(title=title, xlabel="x", xticks=[0, 0.5, 1], yticks=[0, 1], aspect="equal")
    return figure


def draw_loops_and_searches() -> Figure:
    """Draw the two loops of question 9, one inside the other, and grid beside random search."""
    figure, [[loops, grid, chance]] = new_figure(PAGE_WIDTH, 3.4, columns=3)
    blank(loops, 10, 10, "Two loops")
    draw_box(loops, 0.4, 0.6, 9.2, 8.8, "#FFFFFF")
    loops.text(5, 8.6, "choose hyperparameters", ha="center", va="center")
    loops.text(5, 1.3, "validation error", ha="center", va="center")
    draw_box(loops, 1.6, 2.6, 6.8, 4.6, "#D6E8F5")
    loops.text(5, 6.4, "update weights", ha="center", va="center")
    loops.text(5, 3.4, "training gradient", ha="center", va="center")
    for x, low, high in ((5, 4, 5.8), (9, 1.8, 8)):
        for start, end, shift in ((low, high, -0.35), (high, low, 0.35)):
            arrow = {"arrowstyle": "->", "linewidth": 1.5}
            loops.annotate("", (x + shift, end), (x + shift, start), arrowprops=arrow)
    places = np.array([1, 5, 9]) / 10
    random = np.random.default_rng(7).permutation(9)
    across, along = (np.arange(9) + 0.5) / 9, (random + 0.5) / 9
    for axes, title, x, y in (
        (grid, "Grid: 3 rates in 9 runs", np.repeat(places, 3), np.tile(places, 3)),
        (chance, "Random: 9 rates in 9 runs", across, along),
    ):
        axes.plot(x, y, "o", color=COLORS["vermilion"], markersize=8)
        axes.plot(x, np.full(9, -0.06), "|", color="black", markersize=10, markeredgewidth=2)
        axes.set(title=title, xlabel="learning rate (matters)", ylabel="a choice that hardly matters")
        axes.set(xlim=(-0.05, 1.05), ylim=(-0.1, 1.05), xticks=[], yticks=[], aspect="equal")
    return figure
