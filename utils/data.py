"""The data set: load, split, augment and serve it in batches."""

import sys
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from utils import synthetic
from utils.cifar10 import SIZE, DownloadError, load_cifar10
from utils.device import memory_format
from utils.errors import InputError

# Mean and standard deviation of each channel (red, green, blue) over the 50,000 training images, for pixels in 0..1.
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.2470, 0.2435, 0.2616])

CROP_PADDING = 2  # pixels by which a random crop may be off the centre
SPLIT_SEED = 20241  # of its own, so that every run of every --seed validates on the same images
MIRROR_SEED = 20242  # so is this: which images are mirrored first is the same in each epoch, and after --resume
SYNTHETIC_SEED = 10
EVALUATION_BATCH = 250  # images at a time; with 500, feature maps outgrow what malloc keeps, and it is slower


@dataclass(frozen=True)
class ImageData:
    """A data set: images (N, 32, 32, 3) uint8 and labels (N,) int64. Those for training include validation."""

    name: str  # of the output folder
    title: str  # of the figures
    class_names: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_dataset(choice: str, data_dir: Path) -> ImageData:
    """Load CIFAR-10 ("cifar10"), drawn images ("synthetic"), or the latter only where the former is missing ("auto").

    Raises InputError for damaged files, DownloadError where CIFAR-10 is missing and no host delivers it.
    """
    if choice == "synthetic":
        return load_synthetic()
    try:
        return ImageData("cifar10", "CIFAR-10", *load_cifar10(data_dir))
    except OSError as error:
        raise InputError(f"--data-dir: cannot read {data_dir} ({error.strerror})") from None
    except DownloadError as error:
        if choice == "cifar10":
            raise
        print(f"WARNING: {error}\nWARNING: going on with drawn images. THE RESULTS ARE NOT CIFAR-10.", file=sys.stderr)
        return load_synthetic()


def load_synthetic() -> ImageData:
    """Draw 2,000 images for training and validation, and 1,000 for test."""
    train_images, train_labels = map(torch.from_numpy, synthetic.draw_images(2000, SYNTHETIC_SEED))
    test_images, test_labels = map(torch.from_numpy, synthetic.draw_images(1000, SYNTHETIC_SEED + 1))
    return ImageData(
        "synthetic",
        "Synthetic images (not CIFAR-10)",
        synthetic.CLASS_NAMES,
        train_images,
        train_labels,
        test_images,
        test_labels,
    )


def split_train_validation(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices for training and for validation: a tenth of each class, always the same, is for validation."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    for_validation = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_this_class = order[labels[order] == label]
        for_validation[of_this_class[: len(of_this_class) // 10]] = True
    return (~for_validation).nonzero().flatten(), for_validation.nonzero().flatten()


class ImageDataset(Dataset):
    """Images in one uint8 tensor, of which a whole batch is gathered, cropped, flipped and normalized at once.

    A DataLoader calls `__getitems__` with the indices of a batch, so that each tensor operation costs its overhead once
    a batch, not once an image; no worker processes are needed.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, augment: bool) -> None:
        self.images = images  # (N, 32, 32, 3) uint8
        self.labels = labels
        self.augment = augment
        self.epoch = 1
        self.crop_size = SIZE  # pixels on each side of an augmented image
        self.cut_size = 0  # pixels on each side of the square that is cut out of it
        self.mirrored_first = torch.rand(len(labels), generator=torch.Generator().manual_seed(MIRROR_SEED)) < 0.5

    def to(self, device: torch.device) -> None:
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalized images (B, 3, size, size) float32 in the memory layout of the device, and labels (B,)."""
        chosen = torch.tensor(indices)
        rows, columns = self.augmented_coordinates(chosen) if self.augment else centred_coordinates(len(chosen))
        positions = (chosen[:, None, None] * SIZE + rows[:, :, None]) * SIZE + columns[:, None, :]  # (B, size, size)
        device = self.images.device
        pixels = self.images.view(-1, 3).index_select(0, positions.flatten().to(device))  # (B * size * size, 3)
        images = normalize(pixels.view(*positions.shape, 3)).contiguous(memory_format=memory_format(device))
        if self.augment and self.cut_size:
            squares = random_squares(len(chosen), self.crop_size, self.cut_size)
            images.masked_fill_(squares[:, None].to(device), 0)  # the mean colour
        return images, self.labels[chosen.to(device)]

    def augmented_coordinates(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows and columns, each (B, crop_size), of a random crop of each image or of its mirror image.

        An image is mirrored in every other epoch: at random, half of the images would look the same as in the epoch
        before (Jordan 2024, arXiv:2404.00498).
        """
        rows, columns = (random_crop(len(chosen), self.crop_size) for _ in range(2))
        mirrored = self.mirrored_first[chosen] ^ (self.epoch % 2 == 0)
        return rows, torch.where(mirrored[:, None], columns.flip(1), columns)


def centred_coordinates(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows and columns, each (count, 32), that leave an image as it is."""
    return torch.arange(SIZE).expand(count, SIZE), torch.arange(SIZE).expand(count, SIZE)


def random_crop(count: int, size: int) -> torch.Tensor:
    """Return the rows or columns (count, size) of random crops, which reach beyond the edge only if they are whole."""
    padding = CROP_PADDING if size == SIZE else 0
    first = torch.randint(-padding, SIZE - size + padding + 1, (count, 1))
    return reflect(first + torch.arange(size))


def random_squares(count: int, size: int, side: int) -> torch.Tensor:
    """Return masks (count, size, size), each of a square whose centre is anywhere: at an edge, a part lies outside."""
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


def unnormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo `normalize`: (B, 3, H, W) float32 to pixels (B, H, W, 3) uint8."""
    pixels = images.permute(0, 2, 3, 1).cpu() * (255 * STD) + 255 * MEAN
    return pixels.round().clamp(0, 255).to(torch.uint8)


class Loaders(NamedTuple):
    training: DataLoader
    validation: DataLoader
    test: DataLoader


def make_loaders(data: ImageData, batch_size: int, images_per_split: int | None = None) -> Loaders:
    """Return the loaders: training images shuffled and augmented, the others as they are.

    Raises InputError if the batch is larger than the training set.
    """
    train, validation = split_train_validation(data.train_labels)
    if batch_size > len(train):
        raise InputError(f"--batch-size: {batch_size} is more than the {len(train)} training images of {data.name}")

    def dataset(images: torch.Tensor, labels: torch.Tensor, augment: bool) -> ImageDataset:
        return ImageDataset(images[:images_per_split], labels[:images_per_split], augment)

    return Loaders(
        make_loader(dataset(data.train_images[train], data.train_labels[train], augment=True), batch_size),
        make_loader(
            dataset(data.train_images[validation], data.train_labels[validation], augment=False), EVALUATION_BATCH
        ),
        make_loader(dataset(data.test_images, data.test_labels, augment=False), EVALUATION_BATCH),
    )


def make_loader(dataset: ImageDataset, batch_size: int) -> DataLoader:
    """Serve a data set in batches, in random order if it is augmented."""
    return DataLoader(dataset, batch_size, shuffle=dataset.augment, collate_fn=as_it_is)


def serve_epoch(
    loader: DataLoader, indices: torch.Tensor, epoch: int, crop_size: int = SIZE, cut_size: int = 0
) -> DataLoader:
    """Serve the images of a loader that `indices` (n,) names, in this order, as crops with a square cut out of each."""
    dataset = copy(loader.dataset)
    dataset.epoch, dataset.crop_size, dataset.cut_size = epoch, crop_size, cut_size
    return DataLoader(dataset, loader.batch_size, sampler=indices.tolist(), collate_fn=as_it_is)


def as_it_is(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch  # `__getitems__` has made a batch already, there is nothing to collate
