"""What an epoch shows, how large, and how fast it learns: one EpochPlan."""

import time
from dataclasses import dataclass, field

from utils.recipe import Recipe

import torch


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch of training does."""

    epoch: int  # from 1
    indices: torch.Tensor  # (n,) of the images to train on, in random order
    crop_size: int  # pixels on each side of the part of an image that is shown
    padding: int  # pixels by which a whole image may be moved
    cut_size: int  # pixels on each side of the square that is cut out of it, or 0
    batch_size: int  # images per step
    learning_rates: list[float]  # one for each step
    started: float = field(default_factory=time.perf_counter)  # seconds


def plan_epoch(recipe: Recipe, epoch: int, image_losses: torch.Tensor) -> EpochPlan:
    """Seed all randomness of an epoch (from 1) and return its plan.

    `image_losses` (N,) are those of each image when it was last trained on.
    """
    seed_epoch(recipe.seed, epoch)
    part = part_of_run(recipe, epoch)
    indices = choose_images(image_losses, recipe.skipped_share) if part > 0 else torch.randperm(len(image_losses))
    steps = -(-len(indices) // recipe.batch_size)  # rounded up
    return EpochPlan(
        epoch,
        indices,
        # Progressive resizing (Howard 2018), but by cropping: most can be learned as well from a part of an image.
        recipe.crop_sizes[part],
        recipe.padding,
        recipe.cut_size if part > 0 else 0,
        recipe.batch_size,
        one_cycle(recipe, epoch, steps),
    )


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed all randomness of an epoch (order, augmentation), so that a resumed run needs no stored random state."""
    torch.manual_seed(seed * 100_003 + epoch)


def part_of_run(recipe: Recipe, epoch: int) -> int:
    """Return 0, 1 or 2: a part begins with the epoch in which its share of the run is passed."""
    return sum(epoch / recipe.epochs > share for share in recipe.parts)


def choose_images(losses: torch.Tensor, skipped_share: float) -> torch.Tensor:
    """Return the indices of the images of an epoch, in random order; well-known images may be left out.

    Of the half with the lowest losses (N,), `skipped_share` is skipped. That is InfoBatch (Qin et al. 2024,
    arXiv:2303.04947), but with fixed shares, without weights, and until the end.
    """
    order = torch.randperm(len(losses))
    known = (losses < losses.median()).nonzero().flatten()
    # Always equally many: last batches of ever new sizes would fill the memory with convolutions compiled for them.
    skipped = known[torch.randperm(len(known))[: int(skipped_share * len(known))]]
    return order[~torch.isin(order, skipped)]


def one_cycle(recipe: Recipe, epoch: int, steps: int) -> list[float]:
    """Return the learning rate of each of the `steps` steps of an epoch (from 1): up to the peak, then down to zero.

    Linear on both sides, over the whole run (Smith 2018, arXiv:1803.09820).
    """
    rising = max(recipe.warm_up, 1e-9)
    progress = [((epoch - 1) * steps + step + 0.5) / (recipe.epochs * steps) for step in range(steps)]
    return [recipe.lr * min(done / rising, (1 - done) / (1 - rising)) for done in progress]
