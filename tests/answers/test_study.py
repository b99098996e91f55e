"""utils/answers/study.py: images, training, the search for the best value, means and deviations."""

import math
from collections.abc import Callable
from functools import partial

from utils.answers import activations, batch_size, dropout, representations
from utils.answers.study import GRID, Study, differences, fully_connected, summarize, train
from utils.data import load_synthetic

import pytest
import torch
from torch.nn.functional import cross_entropy


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(load_synthetic())


def distance_to(best: float) -> Callable[[float, int], dict]:
    """Return a run whose loss is lowest, and whose gain is highest, at the value `best`, whatever the seed."""
    return lambda value, seed: {"loss": abs(math.log(value / best)), "gain": -abs(math.log(value / best))}


@pytest.mark.parametrize("best", [0.003, 0.03, 1])
@pytest.mark.parametrize(("target", "better"), [("loss", min), ("gain", max)])
def test_a_search_ends_when_the_best_has_worse_ones_on_both_sides(
    study: Study, best: float, target: str, better: Callable
) -> None:
    result = study.search(distance_to(best), [0.03], **{target: better})
    assert result["best"][target]["value"] == best
    tried = [float(value) for value in result["tried"]]
    assert min(tried) < best < max(tried)
    assert tried == GRID[GRID.index(min(tried)) : GRID.index(max(tried)) + 1]  # none left out between them


def test_each_target_has_its_own_best_value(study: Study) -> None:
    def run(value: float, seed: int) -> dict:
        return {"loss": distance_to(0.01)(value, seed)["loss"], "accuracy": distance_to(1)(value, seed)["gain"]}

    found = study.search(run, [0.1], loss=min, accuracy=max)["best"]
    assert (found["loss"]["value"], found["accuracy"]["value"]) == (0.01, 1)


def test_a_value_with_a_diverged_run_is_not_the_best(study: Study) -> None:
    found = study.search(lambda rate, seed: {"loss": None if rate > 0.05 and seed == 1 else -rate}, [0.1], loss=min)
    assert found["best"]["loss"]["value"] == 0.03


def test_a_summary_is_mean_and_deviation_or_null() -> None:
    assert summarize([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "per_seed": [1.0, 2.0, 3.0]}
    assert summarize([[1.0, 5.0], [3.0, None]]) == {"mean": [2.0, None], "std": [pytest.approx(math.sqrt(2)), None]}
    pairs = differences(summarize([1.0, 2.0, 3.0]), summarize([0.5, 1.0, 2.5]))
    assert pairs["per_seed"] == [0.5, 1.0, 0.5]


def test_no_image_is_both_for_training_and_for_validation(study: Study) -> None:
    for seed in (0, 1):
        images, labels = study.training(1800, seed)
        assert images.shape == (1800, 3, 32, 32) and len(study.validation[1]) == 200
        both = torch.cat([images, study.validation[0]]).flatten(1)
        assert len(both.unique(dim=0)) == len(study.data.training[0].flatten(1).unique(dim=0))


def test_training_learns_and_a_rate_far_too_high_is_null(study: Study) -> None:
    images, build = study.training(1000, 0), partial(fully_connected, (8,))
    _, curves = train(build, partial(torch.optim.SGD, lr=0.01), images, 20, 3, 0, watched=images)
    assert curves["watched_loss"][-1] == curves["final_watched_loss"] < curves["watched_loss"][0] < 3
    _, curves = train(build, partial(torch.optim.SGD, lr=1e38), images, 20, 2, 0, 1, watched=images)
    assert curves["watched_loss"] == [None, None] and curves["final_watched_accuracy"] is None


def test_error_signals_are_those_of_single_examples(study: Study) -> None:
    """The gradient of one example's loss, alone in its batch, with respect to each pre-activation."""
    sizes = activations.measure_error_signals(study, "tanh", 2, 0)["error_signals"]
    torch.manual_seed(0)
    first, second, last = activations.linear_layers(activations.build("tanh", 2))
    squares = []
    for image, label in zip(*study.training(500, 0), strict=True):
        z1 = first(image.flatten()).detach().requires_grad_()
        z2 = second(torch.tanh(z1))
        z3 = last(torch.tanh(z2))
        signals = torch.autograd.grad(cross_entropy(z3, label), (z1, z2, z3))
        squares.append([signal.square().sum().item() for signal in signals])
    assert sizes == pytest.approx(torch.tensor(squares).mean(dim=0).sqrt().tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("losses", "images"), [([2, 1.4, 1.6, 1.3, 1.2], 40), ([1, 1], 10), ([1.4, 2], None), ([1.4, None], None)]
)
def test_the_target_is_reached_when_the_loss_stays_below_it(losses: list, images: int | None) -> None:
    assert batch_size.stays_below(losses, 10) == images


def test_the_turn_of_a_curve_is_its_lowest_point() -> None:
    turn = dropout.find_turn([2.0, 1.5, 1.6, 1.8])
    assert turn == {"lowest_validation_loss": 1.5, "turning_epoch": 2, "rise": pytest.approx(0.2)}
    assert set(dropout.find_turn([2.0, None]).values()) == {None}


def test_oriented_gradients_see_direction_not_contrast() -> None:
    upright = torch.zeros(1, 3, 32, 32)
    upright[..., 16:] = 1  # an upright edge: the grey value changes across
    features = {"|": representations.oriented_gradients(upright)}
    features["-"] = representations.oriented_gradients(upright.transpose(2, 3))
    directions = representations.DIRECTIONS
    by_direction = {name: f.view(-1, directions, 4).sum(dim=(0, 2)) for name, f in features.items()}
    assert by_direction["|"].nonzero().tolist() == [[0]] and by_direction["-"].nonzero().tolist() == [[4]]
    image = torch.rand(1, 3, 32, 32)
    before = representations.oriented_gradients(image)
    for changed in (0.5 * image - 3, -image):  # less contrast and light; the negative
        assert (representations.oriented_gradients(changed) - before).norm() < 0.1 * before.norm()


def test_ridge_regression_reads_the_class_where_it_can() -> None:
    labels = torch.arange(200) % 10
    telling = torch.eye(10)[labels] + 0.1 * torch.rand(200, 10)
    for features, low, high in ((telling, 1, 1), (torch.rand(200, 10), 0, 0.5)):
        classify = representations.ridge_regression(features, labels, 0.01)
        assert low <= (classify(features) == labels).float().mean() <= high
