"""The data set: load, split, augment and serve it in batches."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from utils import synthetic
from utils.cifar10 import SIZE, DownloadError, load_cifar10
from utils.device import memory_format
from utils.errors import InputError
from utils.schedule import EpochPlan

# Mean and standard deviation of each channel (red, green, blue) over the 50,000 training images, for pixels in 0..1.
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.2470, 0.2435, 0.2616])

CROP_PADDING = 2  # pixels by which a random crop may be off the centre
SPLIT_SEED = 20241  # of its own: every run validates on the same images, whatever its --seed
MIRROR_SEED = 20242  # of its own: the images that are mirrored first are the same in each epoch, and after --resume
SYNTHETIC_SEED = 10
EVALUATION_BATCH = 250  # images at a time; with 500, feature maps outgrow what malloc keeps, and it is slower


@dataclass(frozen=True)
class LabelledImages:
    """A data set as it is loaded: images (N, 32, 32, 3) uint8 and labels (N,) int64; "train" includes validation."""

    name: str  # of the output folder
    title: str  # in the figures
    class_names: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_dataset(choice: str, data_dir: Path) -> LabelledImages:
    """Load CIFAR-10 ("cifar10"), drawn images ("synthetic"), or the latter only where the former is missing ("auto").

    Raises InputError for damaged files, DownloadError where CIFAR-10 is missing and no host delivers it.
    """
    if choice == "synthetic":
        return load_synthetic()
    try:
        return LabelledImages("cifar10", "CIFAR-10", *load_cifar10(data_dir))
    except OSError as error:
        raise InputError(f"--data-dir: cannot read {data_dir} ({error.strerror})") from None
    except DownloadError as error:
        if choice == "cifar10":
            raise
        print(f"WARNING: {error}\nWARNING: going on with drawn images. THE RESULTS ARE NOT CIFAR-10.", file=sys.stderr)
        return load_synthetic()


def load_synthetic() -> LabelledImages:
    """Draw 2,000 images for training and validation, and 1,000 for test."""
    train = map(torch.from_numpy, synthetic.draw_images(2000, SYNTHETIC_SEED))
    test = map(torch.from_numpy, synthetic.draw_images(1000, SYNTHETIC_SEED + 1))
    return LabelledImages("synthetic", "Synthetic images (not CIFAR-10)", synthetic.CLASS_NAMES, *train, *test)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images in one uint8 tensor, of which a whole batch is gathered, cropped, flipped and normalized at once.

    A DataLoader calls `__getitems__` with the indices of a batch, so that each tensor operation costs its overhead once
    a batch, not once an image; no worker processes are needed.
    """

    images: torch.Tensor  # (N, 32, 32, 3) uint8
    labels: torch.Tensor  # (N,) int64
    plan: EpochPlan | None = None  # of the epoch that trains on them; without one, the images stay as they are

    def to(self, device: torch.device) -> "ImageDataset":
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalized images (B, 3, size, size) float32 in the memory layout of the device, and labels (B,)."""
        chosen = torch.tensor(indices)
        rows, columns = self.augmented_coordinates(chosen) if self.plan else centred_coordinates(len(chosen))
        positions = (chosen[:, None, None] * SIZE + rows[:, :, None]) * SIZE + columns[:, None, :]  # (B, size, size)
        device = self.images.device
        pixels = self.images.view(-1, 3).index_select(0, positions.flatten().to(device))  # (B * size * size, 3)
        images = normalize(pixels.view(*positions.shape, 3)).contiguous(memory_format=memory_format(device))
        if self.plan and self.plan.cut_size:
            squares = random_squares(len(chosen), self.plan.crop_size, self.plan.cut_size)
            images.masked_fill_(squares[:, None].to(device), 0)  # the mean colour
        return images, self.labels.index_select(0, chosen.to(device))

    def augmented_coordinates(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows and columns, each (B, crop_size), of a random crop of each image or of its mirror image.

        An image is mirrored in every other epoch: at random, half of the images would look the same as in the epoch
        before (Jordan 2024, arXiv:2404.00498).
        """
        rows, columns = (random_crop(len(chosen), self.plan.crop_size) for _ in range(2))
        mirrored = self.mirrored_first[chosen] ^ (self.plan.epoch % 2 == 0)
        return rows, torch.where(mirrored[:, None], columns.flip(1), columns)

    @cached_property
    def mirrored_first(self) -> torch.Tensor:
        """Return a mask (N,) of the images that are mirrored in odd epochs."""
        return torch.rand(len(self), generator=torch.Generator().manual_seed(MIRROR_SEED)) < 0.5


def centred_coordinates(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns, each (count, 32), that leave an image as it is."""
    return torch.arange(SIZE).expand(count, SIZE), torch.arange(SIZE).expand(count, SIZE)


def random_crop(count: int, size: int) -> torch.Tensor:
    """Return the rows or columns (count, size) of random crops, which reach beyond the edge only if they are whole."""
    padding = CROP_PADDING if size == SIZE else 0
    first = torch.randint(-padding, SIZE - size + padding + 1, (count, 1))
    return reflect(first + torch.arange(size))


def random_squares(count: int, size: int, side: int) -> torch.Tensor:
    """Return masks (count, size, size), each of a square whose centre is anywhere: at an edge, a part lies outside.

    Cutout keeps a network from learning its images by heart (DeVries and Taylor 2017, arXiv:1708.04552).
    """
    starts = torch.randint(size, (2, count, 1)) - side // 2
    offsets = torch.arange(size) - starts
    rows, columns = (offsets >= 0) & (offsets < side)  # (count, size) each
    return rows[:, :, None] & columns[:, None, :]


def reflect(coordinates: torch.Tensor) -> torch.Tensor:
    """Mirror coordinates beyond an edge back into the image: -1 becomes 1, and 32 becomes 30."""
    last = SIZE - 1
    return last - (last - coordinates.abs()).abs()


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Turn pixels (B, H, W, 3) uint8 into (B, 3, H, W) float32, of mean 0 and deviation 1 over all of CIFAR-10."""
    width = images.shape[2]
    rows = images.reshape(-1, width * 3).float()  # whole rows: broadcasting over 3 channels alone is much slower
    rows = rows.sub_((255 * MEAN).repeat(width).to(rows.device)).div_((255 * STD).repeat(width).to(rows.device))
    return rows.view(images.shape).permute(0, 3, 1, 2)  # the strides of channels_last


class Splits(NamedTuple):
    training: ImageDataset
    training_sample: ImageDataset  # as many training images as there are for validation, to measure them alike
    validation: ImageDataset
    test: ImageDataset

    def to(self, device: torch.device) -> "Splits":
        return Splits(*(dataset.to(device) for dataset in self))


def split_dataset(data: LabelledImages, batch_size: int, one_batch: bool = False) -> Splits:
    """Split the training images: always the same tenth of each class is for validation.

    Returns all images of each split, or one batch of each.
    Raises InputError if the batch is larger than the training set.
    """
    in_validation = one_in(10, data.train_labels)
    images, labels = data.train_images[~in_validation], data.train_labels[~in_validation]
    if batch_size > len(labels):
        raise InputError(f"--batch-size: {batch_size} is more than the {len(labels)} training images of {data.name}")
    in_sample = one_in(9, labels)
    splits = (
        (images, labels),
        (images[in_sample], labels[in_sample]),
        (data.train_images[in_validation], data.train_labels[in_validation]),
        (data.test_images, data.test_labels),
    )
    limit = batch_size if one_batch else None
    return Splits(*(ImageDataset(images[:limit], labels[:limit]) for images, labels in splits))


def one_in(count: int, labels: torch.Tensor) -> torch.Tensor:
    """Return a mask (N,) of one in `count` images of each class, always the same ones."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_this_class = order[labels[order] == label]
        chosen[of_this_class[: len(of_this_class) // count]] = True
    return chosen


def batches(
    dataset: ImageDataset, batch_size: int = EVALUATION_BATCH, indices: Iterable[int] | None = None
) -> DataLoader:
    """Serve images in batches: all of them in their order, or those that `indices` names, in that order."""
    return DataLoader(dataset, batch_size, sampler=indices, collate_fn=keep_batch)


def training_batches(dataset: ImageDataset, plan: EpochPlan) -> DataLoader:
    """Serve the images of an epoch in batches, augmented as its plan says."""
    return batches(replace(dataset, plan=plan), plan.batch_size, plan.indices.tolist())


def keep_batch(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch  # `__getitems__` has made a batch already, there is nothing to collate
