"""Question 8: an MLP without dropout and with two strengths of it, each at its own learning rate."""

from functools import partial

from utils.experiments.overfitting import find_turn
from utils.experiments.study import Batches, Study, as_curve, best_of, draw_curve, from_one, join, summarize, train
from utils.model import MLP
from utils.visualize import COLORS, PAGE_WIDTH, epoch_ticks, new_figure

from matplotlib.figure import Figure
from torch import nn
from torch.optim import Adam, Optimizer

SAME_RATE = 3e-4  # at which all p are compared too
# The learning rates to begin the search with, for each p.
RATES = {0: [3e-5, 1e-4, SAME_RATE], 0.2: [3e-5, 1e-4, SAME_RATE], 0.5: [1e-4, SAME_RATE, 1e-3]}
HIDDEN = (128, 128)
IMAGES, EPOCHS = 5000, 50
TARGETS = ("lowest_validation_loss", "final_validation_loss")


def measure(study: Study) -> dict:
    """Measure lowest and last validation loss, each at the rate that is best for it, and both at the same rate."""
    curves: dict[tuple[float, float, int], list] = {}

    def run(p: float, rate: float, seed: int) -> dict:
        images, epochs = study.training(IMAGES, seed), study.scaled(EPOCHS)
        build = partial(MLP, HIDDEN, dropout=p)
        values = train(build, adam, Batches(images, 100), rate, epochs, seed, validation=study.validation)[1]
        curves[p, rate, seed] = values["validation_loss"]
        return values | find_turn(values["validation_loss"])

    result = {f"{p:g}": study.search(partial(run, p), RATES[p], **dict.fromkeys(TARGETS, min)) for p in RATES}
    for p in RATES:
        result[f"{p:g}"]["course"] = summarize([curves[p, SAME_RATE, seed] for seed in study.seeds])
    return {"p": result, "finding": describe(result)}


def describe(result: dict[str, dict]) -> str:
    """Name the best p at the rates that suit each, and those whose training was too short to tell."""
    lowest, last = (
        best_of({p: values["best_by"][target] for p, values in result.items()}, target, min) for target in TARGETS
    )
    unfinished = [p for p in result if not is_finished(result[p]["best_by"]["lowest_validation_loss"])]
    warning = f" (not finished: p = {join(unfinished)})" if unfinished else ""
    return f"at the best rates, best by lowest validation loss: p = {lowest}; by the last one: p = {last}{warning}"


def is_finished(values: dict) -> bool:
    """Tell whether the validation loss was lowest before the last epoch with each seed."""
    return max(values["turning_epoch"]["per_seed"]) < len(values["validation_loss"]["mean"])


def adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters())


def draw(result: dict) -> Figure:
    figure, [[course, tuned]] = new_figure(PAGE_WIDTH, 4.6, columns=2)
    for p, values in result["p"].items():
        draw_curve(course, from_one(values["course"]), values["course"], f"p = {p}")
    lines = (("Lowest", COLORS["black"], "o", -0.005), ("After the last epoch", COLORS["vermilion"], "s", 0.005))
    for target, (label, color, marker, shift) in zip(TARGETS, lines, strict=True):
        losses = as_curve([values["best_by"][target] for values in result["p"].values()], target)
        places = [p + shift for p in RATES]  # beside each other, so that no bar hides another
        style = {"color": color, "marker": marker, "markersize": 8, "linestyle": "", "capsize": 5}
        tuned.errorbar(places, losses["mean"], losses["std"], label=label, **style)
    epochs = epoch_ticks(len(values["course"]["mean"]))
    course.set(title=f"All at the rate {SAME_RATE:g}", xlabel="Epoch", ylabel="Validation loss", xticks=epochs)
    tuned.set(title="Each at its best rate", xlabel="p", ylabel="Validation loss", xticks=list(RATES), xlim=(-0.1, 0.6))
    for axes in (course, tuned):
        axes.legend()
    return figure
