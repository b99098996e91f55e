"""What an epoch shows, how large, and how fast it learns: one EpochPlan."""

import time
from dataclasses import dataclass, field

import torch

# Shares of a run
WARM_UP = 0.2  # in which the learning rate rises
SKIP_AFTER = 0.12  # until which every image is trained on
GROW_AFTER = (0.25, 0.65)  # after which the crops become larger
CUT_AFTER = 0.25  # until which no square is cut out

SKIPPABLE = 0.5  # share of the images that may be skipped: those with the lowest losses


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch of training does."""

    epoch: int  # from 1
    indices: torch.Tensor  # (n,) of the images to train on, in random order
    crop_size: int  # pixels on each side of the part of an image that is shown
    cut_size: int  # pixels on each side of the square that is cut out of it, or 0
    batch_size: int  # images per step
    learning_rates: list[float]  # one for each step
    started: float = field(default_factory=time.perf_counter)  # seconds


@dataclass(frozen=True)
class Schedule:
    """The plans of all epochs of a run. The last three are for the network to choose, as attributes of its class."""

    epochs: int
    batch_size: int
    learning_rate: float  # at its peak
    seed: int
    crop_sizes: tuple[int, int, int] = (32, 32, 32)  # pixels, in the three parts of the run
    skipped_share: float = 0.0  # of the images that may be skipped
    cut_size: int = 0  # pixels

    @classmethod
    def for_model(cls, model: object, epochs: int, batch_size: int, learning_rate: float, seed: int) -> "Schedule":
        chosen = ("crop_sizes", "skipped_share", "cut_size")
        return cls(
            *(epochs, batch_size, learning_rate, seed),
            **{name: getattr(model, name) for name in chosen if hasattr(model, name)},
        )

    def plan(self, epoch: int, image_losses: torch.Tensor) -> EpochPlan:
        """Seed all randomness of an epoch (from 1) and return its plan.

        `image_losses` (N,) are those of each image when it was last trained on.
        """
        seed_epoch(self.seed, epoch)
        indices = choose_images(image_losses, self.skipped_share, epoch, self.epochs)
        steps = -(-len(indices) // self.batch_size)  # rounded up
        return EpochPlan(
            epoch,
            indices,
            choose_crop_size(self.crop_sizes, epoch, self.epochs),
            self.cut_size if epoch / self.epochs > CUT_AFTER else 0,
            self.batch_size,
            one_cycle(self.learning_rate, epoch, self.epochs, steps),
        )


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed all randomness of an epoch (order, augmentation), so that a resumed run needs no stored random state."""
    torch.manual_seed(seed * 100_003 + epoch)


def choose_images(losses: torch.Tensor, skipped_share: float, epoch: int, epochs: int) -> torch.Tensor:
    """Return the indices of the images of an epoch (from 1), in random order; well-known images may be left out.

    After SKIP_AFTER of the run, `skipped_share` of the SKIPPABLE images with the lowest losses (N,) is skipped. That is
    InfoBatch (Qin et al. 2024, arXiv:2303.04947), but with fixed shares, without weights, and until the end.
    """
    order = torch.randperm(len(losses))
    if (epoch - 1) / epochs < SKIP_AFTER:
        return order
    known = (losses < losses.quantile(SKIPPABLE, interpolation="lower")).nonzero().flatten()
    # Always as many: last batches of ever new sizes would fill the memory with convolutions compiled for them.
    skipped = known[torch.randperm(len(known))[: int(skipped_share * len(known))]]
    return order[~torch.isin(order, skipped)]


def choose_crop_size(sizes: tuple[int, int, int], epoch: int, epochs: int) -> int:
    """Return the crop size of an epoch (from 1), of the three sizes of a run: the last epoch has the last.

    Progressive resizing (Howard 2018), but by cropping: most can be learned as well from a part of an image.
    """
    return sizes[sum(epoch / epochs > share for share in GROW_AFTER)]


def one_cycle(peak: float, epoch: int, epochs: int, steps: int) -> list[float]:
    """Return the learning rate of each of the `steps` steps of an epoch (from 1): up to `peak`, then down to zero.

    Linear on both sides, over the whole run of `epochs` epochs (Smith 2018, arXiv:1803.09820).
    """
    progress = [((epoch - 1) * steps + step + 0.5) / (epochs * steps) for step in range(steps)]
    return [peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP)) for done in progress]
