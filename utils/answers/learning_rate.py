"""Questions 7 and 11: four optimizers from rates that hardly move a network to rates at which it diverges."""

from functools import partial

from utils.answers.study import GRID, Study, as_curve, differences, draw_curve, fully_connected, mark_guessing, train
from utils.visualize import PAGE_WIDTH, new_figure

from matplotlib.figure import Figure
from torch.optim import SGD, Adam, RMSprop

IMAGES, BATCH_SIZE = 5000, 50
STRETCH, STRETCHES = 50, 10  # steps, after which the loss is measured: 500 steps, or 5 epochs
# How to make each optimizer, and the learning rates to begin the search with.
OPTIMIZERS = {
    "SGD": (SGD, GRID[GRID.index(1e-4) : GRID.index(10) + 1]),
    "SGD with momentum": (partial(SGD, momentum=0.9), [0.003, 0.01, 0.03]),
    "RMSprop": (RMSprop, [1e-4, 3e-4, 1e-3]),
    "Adam": (Adam, [3e-4, 1e-3, 3e-3]),
}
TARGETS = {"final_train_loss": min, "final_validation_accuracy": max}
SHOWN = (1e-4, 1e-3, 0.01, 0.1, 0.3)  # rates of SGD, with their courses


def measure(study: Study) -> dict:
    def run(name: str, rate: float, seed: int) -> dict:
        images = study.training(IMAGES, seed)
        watched = {"train": images, "validation": study.validation}
        build, optimizer = partial(fully_connected, (128, 64)), partial(OPTIMIZERS[name][0], lr=rate)
        stretches, steps = study.scaled(STRETCHES), study.scaled(STRETCH)
        return train(build, optimizer, images, BATCH_SIZE, stretches, seed, steps, **watched)[1]

    found = {name: study.search(partial(run, name), rates, SHOWN, **TARGETS) for name, (_, rates) in OPTIMIZERS.items()}
    best = {target: {name: values["best"][target][target] for name, values in found.items()} for target in TARGETS}
    pairs = {target: {name: differences(of["Adam"], of[name]) for name in of} for target, of in best.items()}
    return {"optimizers": found, "adam_minus": pairs}


def draw(result: dict) -> Figure:
    figure, [[course, end]] = new_figure(PAGE_WIDTH, 5, columns=2)
    for rate in SHOWN:
        draw_curve(course, STRETCH, result["optimizers"]["SGD"]["tried"][f"{rate:g}"]["train_loss"], f"{rate:g}")
    for name, values in result["optimizers"].items():
        rates = [float(rate) for rate in values["tried"]]
        draw_curve(end, rates, as_curve(values["tried"].values(), "final_train_loss"), name, marker="o")
        best, color = values["best"]["final_train_loss"], end.lines[-1].get_color()
        end.plot(best["value"], best["final_train_loss"]["mean"], color=color, linestyle="", marker="*", markersize=16)
    for axes in (course, end):
        mark_guessing(axes)
        axes.set(ylabel="Training loss", ylim=(0.7, 2.6))
    course.set(title="SGD, while training", xlabel="Step")
    course.legend(title="Learning rate", loc="lower left")
    end.set(title="After 5 epochs; a star: the best rate", xlabel="Learning rate (log scale)", xscale="log")
    figure.legend(*end.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
