"""Question 8: an MLP without dropout and with two strengths of it, each at its own learning rate."""

from functools import partial

from matplotlib.figure import Figure
from torch import nn
from torch.optim import Adam, Optimizer

from utils.experiments.overfitting import draw_fit, find_turn
from utils.experiments.study import Batches, Study, best_of, join, legend_below, train
from utils.model import MLP
from utils.visualize import PAGE_WIDTH, new_figure

RATES = {0: [3e-5, 1e-4, 3e-4], 0.2: [3e-5, 1e-4, 3e-4], 0.5: [1e-4, 3e-4, 1e-3]}  # of each p, to begin the search with
HIDDEN = (128, 128)
IMAGES, EPOCHS = 5000, 50


def measure(study: Study) -> dict:
    """Measure validation losses at the rate that gives the lowest one."""

    def run(p: float, rate: float, seed: int) -> dict:
        images, epochs = study.training(IMAGES, seed), study.scaled(EPOCHS)
        watched = {"train": images, "validation": study.validation}
        build = partial(MLP, HIDDEN, dropout=p)
        curves = train(build, adam, Batches(images, 100), rate, epochs, seed, **watched)[1]
        return curves | find_turn(curves["validation_loss"])

    result = {f"{p:g}": study.search(partial(run, p), rates, lowest_validation_loss=min) for p, rates in RATES.items()}
    best = {p: at_best_rate(values) for p, values in result.items()}
    unfinished = [p for p in best if not is_finished(best[p])]
    finding = (
        f"lowest validation loss with p = {best_of(best, 'lowest_validation_loss', min)}, "
        f"last one with p = {best_of(best, 'final_validation_loss', min)}"
    )
    return {"p": result, "finding": finding + (f" (not finished: p = {join(unfinished)})" if unfinished else "")}


def is_finished(values: dict) -> bool:
    """Tell whether the validation loss was lowest before the last epoch with each seed."""
    return max(values["turning_epoch"]["per_seed"]) < len(values["validation_loss"]["mean"])


def adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters())


def at_best_rate(values: dict) -> dict:
    return values["best_by"]["lowest_validation_loss"]


def draw(result: dict) -> Figure:
    figure, [panels] = new_figure(PAGE_WIDTH, 4.2, columns=len(result["p"]))
    for axes, (p, values) in zip(panels, result["p"].items(), strict=True):
        best = at_best_rate(values)
        lowest, last = best["lowest_validation_loss"]["mean"], best["final_validation_loss"]["mean"]
        draw_fit(axes, best, f"p = {p}: validation\nlowest {lowest:.2f}, last {last:.2f}")
        axes.sharey(panels[0])
    legend_below(figure, panels[0], 3)
    return figure
