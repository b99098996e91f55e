"""Question 6: one hidden layer, from too narrow to wide enough to learn its images by heart."""

from functools import partial

from utils.experiments.study import (
    Batches,
    Study,
    as_curve,
    best_of,
    draw_curve,
    from_one,
    join,
    legend_below,
    sgd,
    train,
)
from utils.model import MLP
from utils.visualize import COLORS, PAGE_WIDTH, new_figure

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTHS = (2, 8, 32, 128, 512)  # hidden units
IMAGES, EPOCHS = 2000, 40
RATE = 0.01  # of all widths: they shall differ in width alone
OTHER_RATES, MIDDLE = (0.003, 0.03), 32  # and the width with which they are tried
RISE = 0.03  # of the validation loss above its lowest: from here on we say that it has turned


def measure(study: Study) -> dict:
    def run(width: int, rate: float, seed: int) -> dict:
        images = study.training(IMAGES, seed)
        watched = {"train": images, "validation": study.validation}
        curves = train(partial(MLP, (width,)), sgd, Batches(images, 50), rate, study.scaled(EPOCHS), seed, **watched)[1]
        return curves | find_turn(curves["validation_loss"])

    result = {f"{width}": study.repeat(run, width, RATE) for width in WIDTHS}
    others = {f"{rate:g}": study.repeat(run, MIDDLE, rate) for rate in OTHER_RATES}
    lowest = min(values["lowest_validation_loss"]["mean"] for values in result.values())
    for values in result.values():
        values["verdict"] = judge(values, lowest)
    return {"widths": result, f"{MIDDLE}_at_other_rates": others, "finding": describe(result)}


def find_turn(losses: list[float | None]) -> dict:
    """Tell where a validation loss is lowest, and the share by which it is higher at the end; None if it diverged."""
    if None in losses:
        return {"lowest_validation_loss": None, "turning_epoch": None, "rise": None}
    lowest = min(losses)
    rise = losses[-1] / lowest - 1
    return {"lowest_validation_loss": lowest, "turning_epoch": losses.index(lowest) + 1, "rise": rise}


def judge(values: dict, lowest: float) -> str:
    """Read the verdict off the curves; `lowest` is the lowest validation loss that any of the networks reached."""
    if values["rise"]["mean"] - values["rise"]["std"] > RISE:
        return "overfits"  # its validation loss has turned
    if values["final_train_loss"]["mean"] > lowest:
        return "underfits"  # worse on images that it was trained on than another on images that it never saw
    return "about right"


def describe(widths: dict[str, dict]) -> str:
    """Name the widths of each verdict, and those with the lowest validation loss of all."""
    verdicts = {"overfits": "overfit", "underfits": "underfit", "about right": "are about right"}
    parts = []
    for verdict, says in verdicts.items():
        names = [width for width in widths if widths[width]["verdict"] == verdict]
        parts += [f"{join(names)} units {says}"] if names else []
    return "; ".join([*parts, f"stopped early, best: {best_of(widths, 'lowest_validation_loss', min)}"])


def draw_fit(axes: Axes, values: dict, title: str) -> None:
    """Draw training and validation loss over the epochs, and mark the epoch of the lowest validation loss."""
    training, validation = values["train_loss"], values["validation_loss"]
    draw_curve(axes, from_one(training), training, "Training", color=COLORS["blue"], linestyle="-")
    draw_curve(axes, from_one(validation), validation, "Validation", color=COLORS["vermilion"], linestyle="--")
    axes.axvline(values["turning_epoch"]["mean"], color="black", linestyle=":", label="Lowest validation loss")
    last = len(training["mean"])
    axes.set(title=title, xlabel="Epoch", ylabel="Loss", xticks=[1, last // 2, last])


def draw(result: dict) -> Figure:
    figure, [[narrow, wide, sweep]] = new_figure(PAGE_WIDTH, 4.4, columns=3)
    widths = result["widths"]
    for axes, width in ((narrow, WIDTHS[0]), (wide, WIDTHS[-1])):
        draw_fit(axes, widths[f"{width}"], f"{width} units:\n{widths[f'{width}']['verdict']}")
    wide.sharey(narrow)
    sweep.sharey(narrow)
    lines = {
        "final_train_loss": (COLORS["blue"], "-"),
        "final_validation_loss": (COLORS["vermilion"], "--"),
        "lowest_validation_loss": ("black", ":"),
    }
    for quantity, (color, style) in lines.items():
        draw_curve(
            sweep, WIDTHS, as_curve(widths.values(), quantity), quantity, color=color, linestyle=style, marker="o"
        )
    sweep.set(
        title=f"All widths,\nafter {EPOCHS} epochs", xlabel="Hidden units (log scale)", ylabel="Loss", xscale="log"
    )
    sweep.set_xticks(WIDTHS, [f"{width}" for width in WIDTHS])
    sweep.minorticks_off()
    legend_below(figure, narrow, 3)
    return figure
