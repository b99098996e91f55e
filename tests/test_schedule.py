"""utils/schedule.py: which images an epoch shows, how large, at which learning rates."""

import math

from utils.model import ConvNet, LargeConvNet
from utils.schedule import Schedule, choose_crop_size, choose_images, one_cycle, seed_epoch

import pytest
import torch
from torch import nn


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    rates = [rate for epoch in range(1, 9) for rate in one_cycle(0.5, epoch, 8, 100)]
    assert len(rates) == 800
    peak = rates.index(max(rates))
    assert 0.48 < max(rates) <= 0.5 and min(rates) > 0 and rates[0] < 0.02 and rates[-1] < 0.02
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert peak < 400  # more time is spent coming down


def test_the_learning_rate_does_not_jump_between_epochs() -> None:
    in_three_epochs = [rate for epoch in (1, 2, 3) for rate in one_cycle(0.5, epoch, 3, 10)]
    assert in_three_epochs == pytest.approx(one_cycle(0.5, 1, 1, 30))


def test_crops_grow_and_are_whole_in_the_last_epoch() -> None:
    sizes = (18, 26, 32)
    assert [choose_crop_size(sizes, epoch, 10) for epoch in range(1, 11)] == [18] * 2 + [26] * 4 + [32] * 4
    assert all(choose_crop_size(sizes, epochs, epochs) == 32 for epochs in range(1, 50))


@pytest.mark.parametrize("epochs", [4, 16])
def test_only_the_large_network_gets_cut_out_squares(epochs: int) -> None:
    """Whatever the number of epochs: no option does what its name does not say."""
    for model, expected in ((ConvNet, [0] * epochs), (LargeConvNet, [0] * (epochs // 4) + [8] * (3 * epochs // 4))):
        schedule = Schedule.for_model(model, epochs, 16, 0.1, 0)
        assert [schedule.plan(epoch, torch.rand(50)).cut_size for epoch in range(1, epochs + 1)] == expected


def test_by_default_all_images_are_shown_whole() -> None:
    schedule = Schedule.for_model(nn.Linear(3072, 10), 10, 16, 0.1, 0)
    for epoch in range(1, 11):
        plan = schedule.plan(epoch, torch.rand(50))
        assert plan.indices.sort().values.tolist() == list(range(50))
        assert (plan.crop_size, plan.cut_size, plan.epoch) == (32, 0, epoch)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(50, 16, 4), (48, 16, 3), (5, 16, 1)])
def test_there_is_a_learning_rate_for_each_step(count: int, batch_size: int, steps: int) -> None:
    plan = Schedule(2, batch_size, 0.1, 0).plan(1, torch.rand(count))
    assert len(plan.learning_rates) == steps and plan.batch_size == batch_size


def test_a_plan_follows_from_seed_and_epoch_alone() -> None:
    losses, plans = torch.rand(50), []
    for seed, epoch in ((0, 2), (0, 2), (1, 2), (0, 1)):
        torch.rand(3)
        plans.append(Schedule(2, 16, 0.1, seed).plan(epoch, losses).indices)
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2]) and not torch.equal(plans[0], plans[3])


def test_epochs_and_seeds_share_no_random_numbers() -> None:
    first_numbers = set()
    for seed in range(5):
        for epoch in range(1, 21):
            seed_epoch(seed, epoch)
            first_numbers.add(torch.rand(1, dtype=torch.float64).item())
    assert len(first_numbers) == 100


# Skipping


def test_most_images_with_low_losses_are_skipped() -> None:
    losses = torch.arange(1000.0)[torch.randperm(1000)]
    chosen = choose_images(losses, 0.9, epoch=6, epochs=10)
    assert chosen.unique().numel() == chosen.numel()
    assert not torch.equal(chosen, chosen.sort().values)
    known = (losses[chosen] < 499).sum()
    assert (losses[chosen] >= 499).sum() == 501 and known == 50


def test_no_image_is_skipped_before_its_loss_is_known() -> None:
    losses = torch.rand(200)
    skipping = [len(choose_images(losses, 0.9, epoch, 16)) < 200 for epoch in range(1, 17)]
    assert skipping == [False] * 2 + [True] * 14
    assert len(choose_images(torch.full((200,), math.inf), 0.9, 8, 16)) == 200


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_epoch_is_empty(count: int) -> None:
    for _ in range(20):
        assert len(choose_images(torch.full((count,), 0.1), 0.9, 5, 10)) == count  # none known better
        assert len(choose_images(torch.rand(count), 0.9, 5, 10)) > 0
