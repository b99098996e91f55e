"""Question 7: one network at eleven learning rates and more, from one that hardly moves it to one that diverges."""

import math
from functools import partial

from utils.experiments.study import (
    GRID,
    GUESSING,
    Batches,
    Study,
    as_curve,
    draw_curve,
    from_one,
    legend_below,
    percent,
    sgd,
    summarize,
    train,
)
from utils.model import MLP
from utils.visualize import COLORS, PAGE_WIDTH, new_figure

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RATES = GRID[GRID.index(1e-4) : GRID.index(10) + 1]
STRETCH = 10  # steps, after which the loss is measured
NEAR = 1.2  # times the lowest loss


def measure(study: Study) -> dict:
    curves: dict[tuple[float, int], list] = {}

    def run(rate: float, seed: int) -> dict:
        images, stretches = study.training(5000, seed), study.scaled(30)
        batches = Batches(images, 64, STRETCH)
        values = train(partial(MLP, (128, 64)), sgd, batches, rate, stretches, seed, train=images)[1]
        curves[rate, seed] = values["train_loss"]
        return values

    found = study.search(run, RATES, final_train_loss=min)
    result = found | read_off(found)
    rates, best, highest = (result[key] for key in ("rates", "best_rate", "highest_rate_that_learns"))
    shown = {rates[0], rates[2], best, highest, *[rate for rate in rates if rate > highest][:1]}
    courses = {f"{rate:g}": summarize([curves[rate, seed] for seed in study.seeds]) for rate in sorted(shown)}
    return result | {"courses": courses, "finding": describe(result)}


def read_off(found: dict) -> dict:
    """Tell which rates come near the lowest loss, above which rate runs fail, and how many of them."""
    finals = {float(rate): values["final_train_loss"] for rate, values in found["tried"].items()}
    best = found["best_by"]["final_train_loss"]
    limit = NEAR * best["final_train_loss"]["mean"]
    near = [rate for rate, loss in finals.items() if loss["mean"] is not None and loss["mean"] <= limit]
    failing = [rate for rate in finals if rate > best["value"] and any(map(fails, finals[rate]["per_seed"]))]
    highest = max(rate for rate in finals if not failing or rate < failing[0])
    above = [loss for rate in finals if rate > highest for loss in finals[rate]["per_seed"]]
    outcomes = {
        "runs": len(above),
        "fail": sum(map(fails, above)),
        "diverged": above.count(None),
        "no_better_than_guessing": sum(fails(loss) for loss in above if loss is not None),
    }
    return {
        "rates": list(finals),
        "best_rate": best["value"],
        "near_best": [near[0], near[-1]],
        "highest_rate_that_learns": highest,
        "above_it": outcomes,
    }


def fails(loss: float | None) -> bool:
    """Tell whether a run diverged, or ended no better than guessing."""
    return loss is None or loss >= GUESSING


def describe(result: dict) -> str:
    lowest, highest, above = (result[key] for key in ("best_rate", "highest_rate_that_learns", "above_it"))
    if not above["runs"]:
        return f"lowest loss at the rate {lowest:g}; every run learns"
    count = "none" if above["fail"] == above["runs"] else above["runs"] - above["fail"]
    return f"lowest loss at the rate {lowest:g}; above {highest:g}, {count} of {above['runs']} runs learn"


def draw(result: dict) -> Figure:
    figure, [[course, end]] = new_figure(PAGE_WIDTH, 4.8, columns=2)
    for rate, curve in result["courses"].items():
        draw_course(course, rate, curve)
    rates, above = result["rates"], result["above_it"]
    draw_curve(end, rates, as_curve(result["tried"].values(), "final_train_loss"), "Final loss", marker="o")
    shade(end, *result["near_best"], COLORS["green"], f"Within {percent(NEAR - 1)} of the lowest")
    beyond = [rate for rate in rates if rate > result["highest_rate_that_learns"]]
    if beyond:
        text = "No run learns" if above["fail"] == above["runs"] else "Not every run learns"
        shade(end, beyond[0], beyond[-1], COLORS["vermilion"], text)
    course.set(title="While training", xlabel="Step", ylabel="Training loss", ylim=(None, 3))
    end.set(title="At the end", xlabel="Learning rate (log scale)", ylabel="Training loss", xscale="log")
    legend_below(figure, course, 5, title="Learning rate, on the left")
    return figure


def draw_course(axes: Axes, rate: str, curve: dict) -> None:
    """Draw the loss over the steps, or where runs diverge, a cross at the end of each."""
    ends = [STRETCH * (losses.index(None) + 1) for losses in curve["per_seed"] if None in losses]
    if ends:
        label = f"{rate} ({len(ends)} of {curve['n']} diverge)"
        axes.plot(ends, [2.9] * len(ends), linestyle="", marker="X", markersize=11, label=label)
    else:
        draw_curve(axes, [STRETCH * stretch for stretch in from_one(curve)], curve, rate)


def shade(axes: Axes, low: float, high: float, color: str, text: str) -> None:
    """Shade the rates from `low` to `high` and half a step of the grid beyond, with a text along the middle."""
    axes.axvspan(low / 10**0.25, high * 10**0.25, color=color, alpha=0.2, linewidth=0)
    middle = math.sqrt(low * high)
    axes.text(middle, 0.97, text, rotation=90, ha="center", va="top", transform=axes.get_xaxis_transform())
