"""The drawings of answers.md that plot functions: descent on a parabola and in a ravine, activations, least squares.

`python -m utils.diagrams` draws them. Every number in them is computed here.
"""

from collections.abc import Callable
from pathlib import Path

from utils.visualize import COLORS, PAGE_WIDTH, house_style, new_figure, save_figure

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

GREY = "#999999"

# Question 7: gradient descent on the square of one number, at each rate, with the verdict of the table there.
DESCENT_RATES = {
    0.1: "converges from one side",
    0.5: "arrives in one step",
    0.75: "oscillates and converges",
    1.1: "diverges",
}
DESCENT_STEPS = 3

# Question 11: J = (1 * theta_1 ** 2 + 100 * theta_2 ** 2) / 2. The rates were chosen by hand, for paths that show what
# is typical; none is tuned.
CURVATURES = (1.0, 100.0)
RAVINE_START = (10.0, 1.0)
RAVINE_STEPS = 40
RAVINE_OPTIMIZERS = {
    "Gradient descent": (torch.optim.SGD, {"lr": 0.018}),
    "Momentum 0.9": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.2}),
    "Adam": (torch.optim.Adam, {"lr": 0.5}),
}

ACTIVATIONS = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": torch.nn.functional.gelu,
}

# Bonus 1: the four points of the example, and a line that is not the least-squares line but passes through the means.
POINTS = np.array([[1.0, 2], [2, 3], [3, 5], [4, 6]])
OTHER_LINE = (1.5, 1.0)  # intercept and slope


def descend(rate: float, steps: int, start: float = 1.0) -> np.ndarray:
    """Return the steps + 1 values of theta that gradient descent on J = theta ** 2 visits."""
    return start * (1 - 2 * rate) ** np.arange(steps + 1)


@house_style()
def draw_descent(path: Path) -> Figure:
    """Draw gradient descent on theta ** 2 at four rates, save the figure and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 5.6, rows=2, columns=2)
    curve = np.linspace(-2, 2, 201)
    for axes, (rate, verdict) in zip(panels.flat, DESCENT_RATES.items(), strict=True):
        theta = descend(rate, DESCENT_STEPS)
        axes.plot(curve, curve**2, "-", color=GREY)
        draw_path(axes, theta, theta**2, COLORS["vermilion"])
        axes.text(0, 3.6, " → ".join(f"{value:.4g}".replace("-", "−") for value in theta), ha="center")
        axes.set(title=f"η = {rate:g}: {verdict}", xlim=(-2.1, 2.1), ylim=(-0.3, 4.2))
        axes.set(xticks=[-2, -1, 0, 1, 2], yticks=[0, 1, 2, 3])
    for axes in panels[:, 0]:
        axes.set_ylabel("J(θ) = θ²")
    for axes in panels[1]:
        axes.set_xlabel("θ")
    figure.suptitle("Three steps of gradient descent, from θ = 1")
    save_figure(figure, path)
    return figure


def draw_path(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Draw an arrow for each step, a ring at the start and a dot at each later point."""
    for x0, y0, x1, y1 in zip(x[:-1], y[:-1], x[1:], y[1:], strict=True):
        if (x0, y0) != (x1, y1):
            arrow = {"arrowstyle": "->", "color": color, "linewidth": 1.8, "shrinkA": 3, "shrinkB": 3}
            axes.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
    axes.plot(x[:1], y[:1], "o", color=color, markersize=8, markerfacecolor="white", markeredgewidth=2)
    axes.plot(x[1:], y[1:], "o", color=color)


def descend_ravine(kind: Callable[..., torch.optim.Optimizer], options: dict[str, float], steps: int) -> np.ndarray:
    """Return the points (steps + 1, 2) that the optimizer visits in the ravine."""
    theta = torch.tensor(RAVINE_START, dtype=torch.float64)
    optimizer = kind([theta], **options)
    visited = [theta.tolist()]
    for _ in range(steps):
        theta.grad = torch.tensor(CURVATURES, dtype=torch.float64) * theta
        optimizer.step()
        visited.append(theta.tolist())
    return np.array(visited)


def ravine_loss(theta: np.ndarray) -> np.ndarray:
    """Return J at points (..., 2)."""
    return (np.array(CURVATURES) * theta**2).sum(axis=-1) / 2


@house_style()
def draw_ravine(path: Path) -> Figure:
    """Draw the paths of four optimizers in the ravine, equal numbers of steps, save the figure and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 5.6, rows=2, columns=2)
    across, along = np.meshgrid(np.linspace(-3, 11, 141), np.linspace(-1.4, 1.4, 141))
    loss = ravine_loss(np.stack([across, along], axis=-1))
    for axes, (name, (kind, options)) in zip(panels.flat, RAVINE_OPTIMIZERS.items(), strict=True):
        theta = descend_ravine(kind, options, RAVINE_STEPS)
        axes.contour(across, along, loss, levels=[1, 5, 15, 35, 70], colors=GREY, linewidths=0.8)
        axes.plot(0, 0, "*", color="black", markersize=13)
        axes.plot(*theta.T, "o-", color=COLORS["vermilion"], linewidth=1.2, markersize=3.5)
        axes.plot(*theta[0], "o", color=COLORS["vermilion"], markersize=8, markerfacecolor="white", markeredgewidth=2)
        axes.plot(*theta[-1], "o", color=COLORS["vermilion"], markersize=8)
        axes.set(title=f"{name}, η = {options['lr']:g}", xticks=range(-2, 12, 2), yticks=[-1, 0, 1])
        axes.grid(False)
    for axes in panels[:, 0]:
        axes.set_ylabel("θ₂ (curvature 100)")
    for axes in panels[1]:
        axes.set_xlabel("θ₁ (curvature 1)")
    figure.suptitle(f"{RAVINE_STEPS} steps in a ravine, from ○ to ●; the minimum is ★")
    save_figure(figure, path)
    return figure


def slope(function: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor) -> torch.Tensor:
    """Return the derivative of an activation function at each entry of z."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


@house_style()
def draw_activations(path: Path) -> Figure:
    """Draw each activation function above its derivative, save the figure and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 4.4, rows=2, columns=len(ACTIVATIONS))
    z = torch.linspace(-4, 4, 400, dtype=torch.float64)  # 0, where ReLU has no derivative, is not among them
    for (upper, lower), (name, function) in zip(panels.T, ACTIVATIONS.items(), strict=True):
        derivative = slope(function, z)
        jumps = derivative.diff(prepend=derivative[:1]).abs() > 0.9
        derivative = derivative.masked_fill(jumps, torch.nan)  # so that no line joins the two sides of a jump
        upper.plot(z, function(z), "-", color=COLORS["blue"])
        lower.plot(z, derivative, "-", color=COLORS["vermilion"])
        upper.set(title=name, ylim=(-2.1, 2.1), yticks=[-2, -1, 0, 1, 2])
        lower.set(ylim=(-0.2, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1], xlabel="z")
        for axes in (upper, lower):
            axes.set(xlim=(-4, 4), xticks=[-3, 0, 3])
            axes.label_outer(remove_inner_ticks=True)
    panels[0, 0].set_ylabel("φ(z): output")
    panels[1, 0].set_ylabel("φ′(z): factor on\nthe gradient")
    figure.suptitle("Activation functions and their slopes")
    save_figure(figure, path)
    return figure


def least_squares_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return intercept and slope of the line with the smallest residual sum of squares."""
    centred = x - x.mean()
    w1 = np.sum(centred * (y - y.mean())) / np.sum(centred**2)
    return y.mean() - w1 * x.mean(), w1


@house_style()
def draw_residuals(path: Path) -> Figure:
    """Draw the squared residuals of the least-squares line, and of another line, as squares; save it and return it."""
    figure, panels = new_figure(PAGE_WIDTH, 4.9, columns=2)
    x, y = POINTS.T
    lines = {"Least-squares line": least_squares_line(x, y), "Another line": OTHER_LINE}
    for axes, (name, (w0, w1)) in zip(panels[0], lines.items(), strict=True):
        residuals = y - w1 * x - w0
        for x_i, y_i, e_i in zip(x, y, residuals, strict=True):
            # Towards the line up or down, and to the side where the rising line does not cut the square.
            axes.add_patch(Rectangle((x_i, y_i), -e_i, -e_i, facecolor=COLORS["orange"], edgecolor="black"))
        ends = np.array([0.5, 4.9])
        axes.plot(ends, w0 + w1 * ends, "-", color=COLORS["blue"])
        axes.plot(x, y, "o", color="black", markersize=4)
        axes.set(title=f"{name}: total area {np.sum(residuals**2):.1f}", xlabel="x", xticks=[1, 2, 3, 4])
        axes.set(xlim=(0.5, 4.9), ylim=(1, 7), aspect="equal")
    panels[0, 0].set_ylabel("y")
    figure.suptitle("Each square has the area of a squared residual")
    save_figure(figure, path)
    return figure
