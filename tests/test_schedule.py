"""utils/schedule.py: which images an epoch shows, how large, at which learning rates."""

import math
from itertools import product

from utils.recipe import Recipe
from utils.schedule import choose_images, one_cycle, part_of_run, plan_epoch

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("warm_up", [0, 0.2])
def test_the_learning_rate_rises_and_falls_in_straight_lines_over_the_whole_run(warm_up: float) -> None:
    recipe = Recipe(epochs=5, lr=0.5, warm_up=warm_up)
    rates = [rate for epoch in range(1, 6) for rate in one_cycle(recipe, epoch, 10)]
    middles = [(step + 0.5) / 50 for step in range(50)]
    assert rates == pytest.approx(np.interp(middles, [0, warm_up, 1], [0, 0.5, 0]))


@pytest.mark.parametrize(
    ("epochs", "parts"), [(7, [0] + [1] * 3 + [2] * 3), (10, [0] * 2 + [1] * 4 + [2] * 4), (2, [1, 2]), (1, [2])]
)
def test_all_that_changes_in_a_run_follows_one_clock(epochs: int, parts: list[int]) -> None:
    """A part begins with the epoch in which its share of the run is passed."""
    recipe = Recipe(epochs=epochs, crop_sizes=(18, 26, 32), skipped_share=0.9, cut_size=8)
    assert [part_of_run(recipe, epoch) for epoch in range(1, epochs + 1)] == parts
    plans = [plan_epoch(recipe, epoch, torch.rand(1000)) for epoch in range(1, epochs + 1)]
    assert [plan.crop_size for plan in plans] == [recipe.crop_sizes[part] for part in parts]
    assert [plan.cut_size > 0 for plan in plans] == [part > 0 for part in parts]
    assert [len(plan.indices) < 1000 for plan in plans] == [part > 0 for part in parts]


@pytest.mark.parametrize(("count", "steps"), [(50, 4), (48, 3), (5, 1)])
def test_by_default_all_images_are_shown_whole_with_a_learning_rate_for_each_step(count: int, steps: int) -> None:
    for epoch in range(1, 11):
        plan = plan_epoch(Recipe(batch_size=16, padding=3), epoch, torch.rand(count))
        assert plan.indices.sort().values.tolist() == list(range(count))
        assert (plan.epoch, plan.crop_size, plan.padding, plan.cut_size) == (epoch, 32, 3, 0)
        assert len(plan.learning_rates) == steps and plan.batch_size == 16


def test_each_seed_and_epoch_has_a_plan_of_its_own_and_always_the_same() -> None:
    losses, plans = torch.rand(50), set()
    for seed, epoch in product(range(5), range(1, 21)):
        plan, again = (plan_epoch(Recipe(epochs=20, seed=seed), epoch, losses).indices.tolist() for _ in range(2))
        assert plan == again
        plans.add(tuple(plan))
    assert len(plans) == 100


def test_most_images_with_low_losses_are_skipped() -> None:
    losses = torch.arange(1000.0)[torch.randperm(1000)]
    chosen = choose_images(losses, 0.9)
    assert chosen.unique().numel() == chosen.numel()
    assert not torch.equal(chosen, chosen.sort().values)
    assert (losses[chosen] >= 499).sum() == 501 and (losses[chosen] < 499).sum() == 50


@pytest.mark.parametrize("loss", [math.inf, 0.1])
def test_no_image_is_skipped_that_is_not_better_known_than_others(loss: float) -> None:
    """Before the first epoch, each loss is infinite."""
    for count in (1, 2, 3, 200):
        assert len(choose_images(torch.full((count,), loss), 1.0)) == count
        assert len(choose_images(torch.rand(count), 1.0)) > 0
