"""Questions 6 and 8: a network that overfits, without dropout and with two strengths of it."""

from functools import partial

from utils.answers.study import Study, as_curve, differences, draw_curve, fully_connected, train
from utils.visualize import PAGE_WIDTH, new_figure

from matplotlib.figure import Figure
from torch.optim import Adam

SAME_RATE = 3e-4  # at which all p are compared too, and the search begins
STRENGTHS = (0, 0.2, 0.5)
HIDDEN = (128, 128)
IMAGES, EPOCHS = 5000, 40
TARGETS = ("lowest_validation_loss", "final_validation_loss")


def measure(study: Study) -> dict:
    """Measure lowest and last validation loss, each at the rate that is best for it, and both at the same rate."""

    def run(p: float, rate: float, seed: int) -> dict:
        images, epochs = study.training(IMAGES, seed), study.scaled(EPOCHS)
        build, adam = partial(fully_connected, HIDDEN, dropout=p), partial(Adam, lr=rate)
        values = train(build, adam, images, 100, epochs, seed, train=images, validation=study.validation)[1]
        return values | find_turn(values["validation_loss"])

    targets = dict.fromkeys(TARGETS, min)
    result = {f"{p:g}": study.search(partial(run, p), [SAME_RATE], [SAME_RATE], **targets) for p in STRENGTHS}
    lowest = {p: values["best"][TARGETS[0]][TARGETS[0]] for p, values in result.items()}
    return {"p": result, "half_minus_none": differences(lowest["0.5"], lowest["0"])}


def find_turn(losses: list[float | None]) -> dict:
    """Tell where a validation loss is lowest, and the share by which it is higher at the end; None if it diverged."""
    if None in losses:
        return {"lowest_validation_loss": None, "turning_epoch": None, "rise": None}
    lowest = min(losses)
    rise = losses[-1] / lowest - 1
    return {"lowest_validation_loss": lowest, "turning_epoch": losses.index(lowest) + 1, "rise": rise}


def draw(result: dict) -> Figure:
    figure, [[course, tuned]] = new_figure(PAGE_WIDTH, 4.6, columns=2)
    for p, values in result["p"].items():
        at_same_rate = values["tried"][f"{SAME_RATE:g}"]
        draw_curve(course, 1, at_same_rate["validation_loss"], f"p = {p}")
        look = {"color": course.lines[-1].get_color(), "linestyle": course.lines[-1].get_linestyle()}
        draw_curve(course, 1, at_same_rate["train_loss"], None, **look, linewidth=1)
    for target, label in zip(TARGETS, ("Lowest", "After the last epoch"), strict=True):
        best = [values["best"][target] for values in result["p"].values()]
        draw_curve(tuned, STRENGTHS, as_curve(best, target), label, marker="o")
    course.set(title="Validation; thin: training", xlabel="Epoch", ylabel="Loss")
    tuned.set(title="Each at its best rate", xlabel="p", ylabel="Validation loss", xticks=STRENGTHS)
    for axes in (course, tuned):
        axes.legend()
    return figure
