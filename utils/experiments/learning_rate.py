"""Question 7: one network at eleven learning rates and more, from one that hardly moves it to one that diverges."""

import math
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.experiments.study import (
    GRID,
    GUESSING,
    Batches,
    Study,
    as_curve,
    draw_curve,
    from_one,
    legend_below,
    sgd,
    train,
)
from utils.model import MLP
from utils.visualize import COLORS, PAGE_WIDTH, new_figure

RATES = GRID[GRID.index(1e-4) : GRID.index(10) + 1]
STRETCH = 10  # steps, after which the loss is measured
NEAR = 1.1  # times the lowest loss


def measure(study: Study) -> dict:
    def run(rate: float, seed: int) -> dict:
        images = study.training(5000, seed)
        batches = Batches(images, 64, STRETCH)
        return train(partial(MLP, (128, 64)), sgd, batches, rate, study.scaled(30), seed, train=images)[1]

    found = study.search(run, RATES, final_train_loss=min)
    finals = {float(rate): values["final_train_loss"] for rate, values in found["tried"].items()}
    best = found["best_by"]["final_train_loss"]
    near = [rate for rate in finals if (finals[rate]["mean"] or math.inf) <= NEAR * best["final_train_loss"]["mean"]]
    failing = [rate for rate in finals if rate > best["value"] and any(map(fails, finals[rate]["per_seed"]))]
    highest = max(rate for rate in finals if not failing or rate < failing[0])
    above = [loss for rate in finals if rate > highest for loss in finals[rate]["per_seed"]]
    outcomes = {
        "runs": len(above),
        "fail": sum(map(fails, above)),
        "diverged": above.count(None),
        "no_better_than_guessing": sum(fails(loss) for loss in above if loss is not None),
    }
    result = found | {"near_best": [near[0], near[-1]], "highest_rate_that_learns": highest, "above_it": outcomes}
    return result | {"finding": describe(result)}


def fails(loss: float | None) -> bool:
    """Tell whether a run diverged, or ended no better than guessing."""
    return loss is None or loss >= GUESSING


def describe(result: dict) -> str:
    lowest = f"lowest loss at the rate {result['best_by']['final_train_loss']['value']:g}"
    highest, outcomes = result["highest_rate_that_learns"], result["above_it"]
    if not outcomes["runs"]:
        return f"{lowest}; every run learns"
    return f"{lowest}; above {highest:g}, {outcomes['fail']} of {outcomes['runs']} runs learn nothing"


def draw(result: dict) -> Figure:
    figure, [[course, end]] = new_figure(PAGE_WIDTH, 4.8, columns=2)
    rates = [float(rate) for rate in result["tried"]]
    best, highest = result["best_by"]["final_train_loss"]["value"], result["highest_rate_that_learns"]
    beyond = [rate for rate in rates if rate > highest]
    for rate in sorted({rates[0], rates[2], best, highest, *beyond[:1]}):
        draw_course(course, rate, result["tried"][f"{rate:g}"]["train_loss"])
    draw_curve(end, rates, as_curve(result["tried"].values(), "final_train_loss"), "Final loss", marker="o")
    shade(end, *result["near_best"], COLORS["green"], "Within 10 % of the lowest")
    if beyond:
        every = result["above_it"]["fail"] == result["above_it"]["runs"]
        shade(end, beyond[0], beyond[-1], COLORS["vermilion"], "No run learns" if every else "Not every run learns")
    course.set(title="While training", xlabel="Step", ylabel="Training loss", ylim=(None, 4))
    end.set(
        title="At the end", xlabel="Learning rate (log scale)", ylabel="Training loss", xscale="log", ylim=(None, 3)
    )
    legend_below(figure, course, 5, title="Learning rate, on the left")
    return figure


def draw_course(axes: Axes, rate: float, curve: dict) -> None:
    """Draw the loss over the steps, or where runs diverge, a cross at the end of each."""
    ends = [STRETCH * (losses.index(None) + 1) for losses in curve["per_seed"] if None in losses]
    if ends:
        label = f"{rate:g} ({len(ends)} of {curve['n']} diverge)"
        axes.plot(ends, [3.9] * len(ends), linestyle="", marker="X", markersize=11, label=label)
    else:
        draw_curve(axes, [STRETCH * stretch for stretch in from_one(curve)], curve, f"{rate:g}")


def shade(axes: Axes, low: float, high: float, color: str, text: str) -> None:
    """Shade the rates from `low` to `high` and half a step of the grid beyond, with a text along the middle."""
    axes.axvspan(low / 10**0.25, high * 10**0.25, color=color, alpha=0.2, linewidth=0)
    middle = math.sqrt(low * high)
    axes.text(middle, 0.97, text, rotation=90, ha="center", va="top", transform=axes.get_xaxis_transform())
