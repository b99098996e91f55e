"""Question 11: four optimizers, each at the learning rate that is best for what is said of it."""

from collections.abc import Callable
from functools import partial

from utils.experiments.study import PERCENT, Batches, Study, as_curve, best_of, draw_curve, legend_below, sgd, train
from utils.model import MLP
from utils.visualize import PAGE_WIDTH, new_figure

from matplotlib.figure import Figure
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

SEEDS = 5
IMAGES, EPOCHS = 5000, 5
# How to make each optimizer, and the learning rates to begin the search with.
OPTIMIZERS: dict[str, tuple[Callable[[nn.Module], Optimizer], list[float]]] = {
    "SGD": (sgd, [0.003, 0.01, 0.03, 0.1, 0.3]),
    "SGD with momentum": (partial(sgd, momentum=0.9), [3e-4, 1e-3, 0.003, 0.01, 0.03]),
    "RMSprop": (lambda model: RMSprop(model.parameters()), [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
    "Adam": (lambda model: Adam(model.parameters()), [3e-5, 1e-4, 3e-4, 1e-3, 3e-3]),
}


def measure(study: Study) -> dict:
    study = study.with_seeds(SEEDS)

    def run(name: str, rate: float, seed: int) -> dict:
        images = study.training(IMAGES, seed)
        watched = {"train": images, "validation": study.validation}
        batches, epochs = Batches(images, 50), study.scaled(EPOCHS)
        return train(partial(MLP, (128, 64)), OPTIMIZERS[name][0], batches, rate, epochs, seed, **watched)[1]

    targets = {"final_train_loss": min, "final_validation_accuracy": max}
    result = {name: study.search(partial(run, name), rates, **targets) for name, (_, rates) in OPTIMIZERS.items()}
    lowest, highest = (
        best_of({name: values["best_by"][target] for name, values in result.items()}, target, better)
        for target, better in targets.items()
    )
    return {"optimizers": result, "finding": f"lowest training loss: {lowest}; best validation accuracy: {highest}"}


def draw(result: dict) -> Figure:
    figure, panels = new_figure(PAGE_WIDTH, 4.8, columns=2)
    quantities = ("final_train_loss", "final_validation_accuracy")
    for axes, quantity in zip(panels[0], quantities, strict=True):
        for name, values in result["optimizers"].items():
            rates = [float(rate) for rate in values["tried"]]
            draw_curve(axes, rates, as_curve(values["tried"].values(), quantity), name, marker="o")
            best, color = values["best_by"][quantity], axes.lines[-1].get_color()
            axes.plot(best["value"], best[quantity]["mean"], color=color, linestyle="", marker="*", markersize=16)
        axes.set(xlabel="Learning rate (log scale)", xscale="log")
    panels[0, 0].set(title=f"Training loss after {EPOCHS} epochs", ylabel="Training loss")
    panels[0, 1].set(title="Validation accuracy", ylabel="Validation accuracy")
    panels[0, 1].yaxis.set_major_formatter(PERCENT)
    legend_below(figure, panels[0, 0], 4, title="A star marks the best rate of each")
    return figure
