"""utils/schedule.py: which images an epoch shows, how large, at which learning rates."""

import math

from utils.recipe import Recipe
from utils.schedule import choose_images, one_cycle, part_of_run, plan_epoch, seed_epoch

import pytest
import torch


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [rate for epoch in range(1, 9) for rate in one_cycle(Recipe(epochs=8, lr=0.5), epoch, 100)]
    assert len(rates) == 800
    peak = rates.index(max(rates))
    assert 0.48 < max(rates) <= 0.5 and min(rates) > 0 and rates[0] < 0.02 and rates[-1] < 0.02
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak == pytest.approx(0.2 * 800, abs=1)


def test_without_a_warm_up_the_rate_only_falls() -> None:
    rates = one_cycle(Recipe(epochs=1, lr=0.5, warm_up=0), 1, 10)
    assert rates == pytest.approx([0.5 * (1 - (step + 0.5) / 10) for step in range(10)])


def test_the_learning_rate_does_not_jump_between_epochs() -> None:
    in_three_epochs = [rate for epoch in (1, 2, 3) for rate in one_cycle(Recipe(epochs=3), epoch, 10)]
    assert in_three_epochs == pytest.approx(one_cycle(Recipe(epochs=1), 1, 30))


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


def test_by_default_all_images_are_shown_whole() -> None:
    for epoch in range(1, 11):
        plan = plan_epoch(Recipe(), epoch, torch.rand(50))
        assert plan.indices.sort().values.tolist() == list(range(50))
        assert (plan.crop_size, plan.cut_size, plan.epoch) == (32, 0, epoch)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(50, 16, 4), (48, 16, 3), (5, 16, 1)])
def test_there_is_a_learning_rate_for_each_step(count: int, batch_size: int, steps: int) -> None:
    plan = plan_epoch(Recipe(batch_size=batch_size, padding=3), 1, torch.rand(count))
    assert len(plan.learning_rates) == steps and (plan.batch_size, plan.padding) == (batch_size, 3)


def test_a_plan_follows_from_seed_and_epoch_alone() -> None:
    losses, plans = torch.rand(50), []
    for seed, epoch in ((0, 2), (0, 2), (1, 2), (0, 1)):
        torch.rand(3)
        plans.append(plan_epoch(Recipe(seed=seed), epoch, losses).indices)
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2]) and not torch.equal(plans[0], plans[3])


def test_epochs_and_seeds_share_no_random_numbers() -> None:
    first_numbers = set()
    for seed in range(5):
        for epoch in range(1, 21):
            seed_epoch(seed, epoch)
            first_numbers.add(torch.rand(1, dtype=torch.float64).item())
    assert len(first_numbers) == 100


def test_most_images_with_low_losses_are_skipped() -> None:
    losses = torch.arange(1000.0)[torch.randperm(1000)]
    chosen = choose_images(losses, 0.9)
    assert chosen.unique().numel() == chosen.numel()
    assert not torch.equal(chosen, chosen.sort().values)
    assert (losses[chosen] >= 499).sum() == 501 and (losses[chosen] < 499).sum() == 50


def test_no_image_is_skipped_before_its_loss_is_known() -> None:
    assert len(choose_images(torch.full((200,), math.inf), 0.9)) == 200


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_epoch_is_empty(count: int) -> None:
    assert len(choose_images(torch.full((count,), 0.1), 1.0)) == count  # none is better known than another
    assert len(choose_images(torch.rand(count), 1.0)) > 0
