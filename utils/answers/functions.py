"""The drawings of answers.md that plot functions; every number in them is computed here."""

from utils.visualize import COLORS, PAGE_WIDTH, new_figure

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

GREY = "#999999"

# Question 7: gradient descent on the square of one number, at each rate, with the verdict of the table there.
VERDICTS = ("converges from one side", "arrives in one step", "oscillates and converges", "diverges")
DESCENT_RATES = dict(zip((0.1, 0.5, 0.75, 1.1), VERDICTS, strict=True))

# Question 11: J = (1 * theta_1 ** 2 + 100 * theta_2 ** 2) / 2. The rates were chosen by hand, for paths that show what
# is typical; none is tuned.
CURVATURES, RAVINE_START, RAVINE_STEPS = (1.0, 100.0), (10.0, 1.0), 40
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
    "leaky, 0.1": lambda z: torch.maximum(0.1 * z, z),  # with 0.01, as usual, it would look like ReLU
    "GELU": torch.nn.functional.gelu,
}
POINTS = np.array([[1.0, 2], [2, 3], [3, 5], [4, 6]])  # of bonus 1
OTHER_LINE = (1.5, 1.0)  # intercept and slope of a line through the means that is not the least-squares line


def draw_descent() -> Figure:
    figure, panels = new_figure(PAGE_WIDTH, 5.6, rows=2, columns=2)
    curve = np.linspace(-2, 2, 201)
    for axes, (rate, verdict) in zip(panels.flat, DESCENT_RATES.items(), strict=True):
        theta = (1 - 2 * rate) ** np.arange(4)
        axes.plot(curve, curve**2, "-", color=GREY)
        draw_visited(axes, np.stack([theta, theta**2], axis=1))
        axes.text(0, 3.6, " → ".join(f"{value:.4g}".replace("-", "−") for value in theta), ha="center")
        axes.set(title=f"η = {rate:g}: {verdict}", xlim=(-2.1, 2.1), ylim=(-0.3, 4.2), xlabel="θ", ylabel="J(θ) = θ²")
        axes.set(xticks=[-2, -1, 0, 1, 2], yticks=[0, 1, 2, 3])
        axes.label_outer()
    figure.suptitle("Three steps of gradient descent, from θ = 1")
    return figure


def draw_visited(axes: Axes, path: np.ndarray, color: str = "vermilion") -> None:
    """Draw the points (steps + 1, 2) that an optimizer visits, a ring at the start and a larger dot at the end."""
    look = {"color": COLORS[color], "markersize": 8}
    axes.plot(*path.T, "o-", color=COLORS[color], linewidth=1.2, markersize=3)
    axes.plot(*path[0], "o", **look, markerfacecolor="white", markeredgewidth=2)
    axes.plot(*path[-1], "o", **look)


def draw_ravine() -> Figure:
    figure, panels = new_figure(PAGE_WIDTH, 5.6, rows=2, columns=2)
    across, along = np.meshgrid(np.linspace(-3, 11, 141), np.linspace(-1.4, 1.4, 141))
    loss = (CURVATURES[0] * across**2 + CURVATURES[1] * along**2) / 2
    for axes, (name, (kind, options)) in zip(panels.flat, RAVINE_OPTIMIZERS.items(), strict=True):
        theta = torch.tensor(RAVINE_START, dtype=torch.float64)
        optimizer, visited = kind([theta], **options), [theta.tolist()]
        for _ in range(RAVINE_STEPS):
            theta.grad = torch.tensor(CURVATURES, dtype=torch.float64) * theta
            optimizer.step()
            visited.append(theta.tolist())
        axes.contour(across, along, loss, levels=[1, 5, 15, 35, 70], colors=GREY, linewidths=0.8)
        axes.plot(0, 0, "*", color="black", markersize=13)
        draw_visited(axes, np.array(visited))
        axes.set(title=f"{name}, η = {options['lr']:g}", xticks=range(-2, 12, 2), yticks=[-1, 0, 1])
        axes.set(xlabel="θ₁ (curvature 1)", ylabel="θ₂ (curvature 100)")
        axes.label_outer()
        axes.grid(False)
    figure.suptitle(f"{RAVINE_STEPS} steps in a ravine, from ○ to ●; the minimum is ★")
    return figure


def draw_activations() -> Figure:
    """Draw each activation function above its derivative."""
    figure, panels = new_figure(PAGE_WIDTH, 4.4, rows=2, columns=len(ACTIVATIONS))
    for (upper, lower), (name, function) in zip(panels.T, ACTIVATIONS.items(), strict=True):
        z = torch.linspace(-4, 4, 400, dtype=torch.float64).requires_grad_()  # without 0, where ReLU has no derivative
        outputs = function(z)
        derivative = torch.autograd.grad(outputs.sum(), z)[0]
        jumps = derivative.diff(prepend=derivative[:1]).abs() > 0.5
        derivative = derivative.masked_fill(jumps, torch.nan)  # so that no line joins the two sides of a jump
        upper.plot(z.detach(), outputs.detach(), "-", color=COLORS["blue"])
        lower.plot(z.detach(), derivative, "-", color=COLORS["vermilion"])
        upper.set(title=name, ylim=(-2.1, 2.1), yticks=[-2, -1, 0, 1, 2])
        lower.set(ylim=(-0.2, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1], xlabel="z")
        for axes in (upper, lower):
            axes.set(xlim=(-4, 4), xticks=[-3, 0, 3])
            axes.label_outer(remove_inner_ticks=True)
    panels[0, 0].set_ylabel("φ(z): output")
    panels[1, 0].set_ylabel("φ′(z): factor on\nthe gradient")
    figure.suptitle("Activation functions and their slopes")
    return figure


def draw_residuals() -> Figure:
    """Draw the squared residuals of the least-squares line, and of another line, as squares."""
    figure, panels = new_figure(PAGE_WIDTH, 4.9, columns=2)
    x, y = POINTS.T
    lines = {"Least-squares line": np.polyfit(x, y, 1)[::-1], "Another line": OTHER_LINE}
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
    return figure


# Question 6: twenty points on a sine with noise, and polynomials through them.
SINE_POINTS, NOISE, DEGREES = np.linspace(-1, 1, 20), 0.3, (1, 3, 19)


def draw_fits() -> Figure:
    """Draw the fits of three degrees over the same points, then exact expected errors against the degree."""
    figure, panels = new_figure(PAGE_WIDTH, 5.4, rows=2, columns=3)
    new, truth = np.linspace(-1, 1, 801), np.sin(np.pi * SINE_POINTS)
    targets = truth + NOISE * np.random.default_rng(0).normal(size=20)
    for axes, degree, verdict in zip(panels[0], DEGREES, ("underfits", "about right", "overfits"), strict=True):
        fit = np.polynomial.Polynomial.fit(SINE_POINTS, targets, degree)
        axes.plot(new, np.sin(np.pi * new), "--", color=GREY)
        axes.plot(new, fit(new), "-", color=COLORS["blue"])
        axes.plot(SINE_POINTS, targets, "o", color="black", markersize=4)
        axes.set(title=f"Degree {degree}: {verdict}", ylim=(-2.2, 2.2), xlabel="x")
    grid = panels[1, 0].get_gridspec()
    for axes in panels[1]:
        axes.remove()
    axes = figure.add_subplot(grid[1, :])
    degrees = range(1, 13)
    errors = np.array([expected_errors(degree) for degree in degrees])
    axes.plot(degrees, errors[:, 0], "o-", color=COLORS["blue"], label="Training error")
    axes.plot(degrees, errors[:, 1], "s--", color=COLORS["vermilion"], label="Error on new inputs")
    axes.axhline(NOISE**2, color="black", linestyle=":", label="Noise alone")
    axes.set(title="Expected squared error", xlabel="Degree (capacity)", xticks=degrees, ylim=(0, 0.45))
    axes.legend(loc="upper center", ncols=3)
    figure.suptitle("Twenty points, a sine (grey) and three polynomials (blue)")
    return figure


def expected_errors(degree: int) -> tuple[float, float]:
    """Return the expected squared error of least squares on the training targets, and on new inputs from -1 to 1."""
    new = (np.arange(2000) + 0.5) / 1000 - 1
    truth, new_truth = np.sin(np.pi * SINE_POINTS), np.sin(np.pi * new)
    basis, new_basis = (np.polynomial.legendre.legvander(points, degree) for points in (SINE_POINTS, new))
    fit, new_fit = basis @ np.linalg.pinv(basis), new_basis @ np.linalg.pinv(basis)  # predictions = fit @ targets
    training = np.mean((truth - fit @ truth) ** 2) + NOISE**2 * np.mean(np.sum((np.eye(20) - fit) ** 2, axis=1))
    return training, np.mean((new_truth - new_fit @ truth) ** 2) + NOISE**2 * (1 + np.mean(np.sum(new_fit**2, axis=1)))


def draw_three_paths() -> Figure:
    """Draw the paths of batch, mini-batch and stochastic gradient descent on one least-squares loss, question 10."""
    random = np.random.default_rng(1)
    inputs = np.stack([np.ones(64), random.normal(size=64)], axis=1)  # 64 examples (1, x)
    targets = inputs @ [1.0, 2.0] + random.normal(size=64)
    across, along = np.meshgrid(np.linspace(-1.4, 2.2, 91), np.linspace(-0.7, 3.2, 91))
    loss = np.mean((across[..., None] * inputs[:, 0] + along[..., None] * inputs[:, 1] - targets) ** 2, axis=-1) / 2
    figure, panels = new_figure(PAGE_WIDTH, 5.8, rows=2, columns=2)
    names = {64: "Batch: all 64", 8: "Mini-batch: 8", 1: "Stochastic: 1"}
    for axes, (size, name) in zip(panels.flat[:3], names.items(), strict=True):
        theta, order = np.array([-1.0, -0.3]), np.random.default_rng(3)
        visited = [theta]
        for _ in range(40):
            chosen = order.permutation(64)[:size]
            theta = theta - 0.15 * inputs[chosen].T @ (inputs[chosen] @ theta - targets[chosen]) / size
            visited.append(theta)
        axes.contour(across, along, loss, levels=[0.6, 0.8, 1.2, 2, 3], colors=GREY, linewidths=0.8)
        draw_visited(axes, np.array(visited))
        axes.plot(*np.linalg.lstsq(inputs, targets, rcond=None)[0], "*", color="black", markersize=13)
        axes.set_title(name)
    draw_saddle(panels.flat[3])
    for axes in panels.flat:
        axes.set(xlabel="θ₁", ylabel="θ₂", xticks=[], yticks=[])
        axes.grid(False)
    figure.suptitle("40 steps at the same rate, from ○ to ●; the minimum is ★")
    return figure


def draw_saddle(axes: Axes) -> None:
    """Draw exact and noisy steps on J = (θ₁² - θ₂²) / 2, from a point on the ridge."""
    across, along = np.meshgrid(np.linspace(-0.6, 1.3, 91), np.linspace(-1.1, 1.1, 91))
    axes.contour(across, along, across**2 - along**2, levels=9, colors=GREY, linewidths=0.8, linestyles="solid")
    random = np.random.default_rng(0)
    for noise, color in ((0.05, "vermilion"), (0, "blue")):
        theta = np.array([1.1, 0])
        visited = [theta]
        for _ in range(40):
            theta = theta - 0.15 * (np.array([1, -1]) * theta + noise * random.normal(size=2))
            visited.append(theta)
        draw_visited(axes, np.array(visited), color)
    for place, text in (((0.85, 0.15), "high"), ((0.5, 0.9), "low"), ((0.5, -1), "low")):
        axes.text(*place, text)
    axes.set(title="A saddle point: exact (blue), noisy (orange)", ylim=(-1.1, 1.1))
