"""The data set: load, split, augment and serve it in batches."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from utils import synthetic
from utils.device import memory_format
from utils.files import InputError, warn
from utils.schedule import EpochPlan

import torch
from torch.utils.data import DataLoader, Dataset

SIZE = 32  # pixels on each side of an image
# Mean and standard deviation of each channel (red, green, blue) over the 50,000 training images, for pixels in 0..1.
MEAN = torch.tensor([0.4914, 0.4822, 0.4465])
STD = torch.tensor([0.2470, 0.2435, 0.2616])

SPLIT_SEED = 20241  # of its own: every run validates on the same images, whatever its --seed
MIRROR_SEED = 20242  # of its own: the images that are mirrored first are the same in each epoch, and after --resume
SYNTHETIC_SEED = 10
TRAINING_SAMPLE = 2000  # images: the standard error of 90 % is then 0.7 points
EVALUATION_BATCH = 250  # images at a time; with 500, feature maps outgrow what malloc keeps, and it is slower

Images = tuple[torch.Tensor, torch.Tensor]  # images (N, 32, 32, 3) uint8 and labels (N,) int64


@dataclass(frozen=True)
class LabelledImages:
    """A data set as it is loaded; "training" includes validation."""

    name: str  # of the output folder
    title: str  # in the figures
    class_names: tuple[str, ...]
    training: Images
    test: Images


def load_dataset(choice: str, data_dir: Path) -> LabelledImages:
    """Load "cifar10", "synthetic" images, or ("auto") the latter only where no host delivers the former.

    Raises InputError for damaged files, DownloadError where CIFAR-10 is missing and no host delivers it.
    """
    if choice == "synthetic":
        return load_synthetic()
    # Imported here: torchvision takes as long as PyTorch, and nothing else needs it.
    try:
        import torchvision.datasets  # noqa: F401
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise InputError(torchvision_problem(error)) from None
    from utils.cifar10 import DownloadError, load_cifar10

    try:
        return LabelledImages("cifar10", "CIFAR-10", *load_cifar10(data_dir))
    except DownloadError as error:
        if choice == "cifar10":
            raise
        warn(f"WARNING: {error}")
        warn("WARNING: going on with synthetic images. THE RESULTS ARE NOT CIFAR-10.")
        return load_synthetic()


def torchvision_problem(error: Exception) -> str:
    try:
        found = f"torchvision {version('torchvision')} does not fit PyTorch {torch.__version__}"
    except PackageNotFoundError:
        found = "torchvision is not installed"
    reason = " ".join(str(error).split())[:100]
    return f"{found} ({reason}): run pip install --upgrade torch torchvision"


def load_synthetic() -> LabelledImages:
    """Draw 2,000 images for training and validation, and 1,000 for test."""
    draws = (synthetic.draw_images(count, SYNTHETIC_SEED + number) for number, count in enumerate((2000, 1000)))
    images = [(torch.from_numpy(drawn), torch.from_numpy(labels)) for drawn, labels in draws]
    return LabelledImages("synthetic", "Synthetic images (not CIFAR-10)", synthetic.CLASS_NAMES, *images)


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images in one uint8 tensor, of which a whole batch is gathered, cropped, mirrored and normalized at once.

    A DataLoader calls `__getitems__` with the indices of a batch, so that each tensor operation costs its overhead once
    a batch, not once an image; no worker processes are needed.
    """

    pixels: torch.Tensor  # (N, 32, 32, 3) uint8
    labels: torch.Tensor  # (N,) int64
    plan: EpochPlan | None = None  # of the epoch that trains on them; without one, the images stay as they are

    def to(self, device: torch.device) -> "ImageDataset":
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def subset(self, chosen: torch.Tensor | slice) -> "ImageDataset":
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Images:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> Images:
        """Return normalized images (B, 3, size, size) float32 in the memory layout of the device, and labels (B,)."""
        chosen, device = torch.tensor(indices), self.pixels.device
        pixels = self.augment(chosen) if self.plan else self.pixels.index_select(0, chosen.to(device))
        images = normalize(pixels).contiguous(memory_format=memory_format(device))
        if self.plan and self.plan.cut_size:
            squares = random_squares(len(chosen), self.plan.crop_size, self.plan.cut_size)
            images.masked_fill_(squares[:, None].to(device), 0)  # the mean colour
        return images, self.labels.index_select(0, chosen.to(device))

    def augment(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return a random crop (B, size, size, 3) of each chosen image or of its mirror image.

        An image is mirrored in every other epoch: at random, half of the images would look the same as in the epoch
        before (Jordan 2024, arXiv:2404.00498).
        """
        rows, columns = (random_crop(len(chosen), self.plan.crop_size, self.plan.padding) for _ in range(2))
        mirrored = self.mirrored_first[chosen] ^ (self.plan.epoch % 2 == 0)
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
        positions = (chosen[:, None, None] * SIZE + rows[:, :, None]) * SIZE + columns[:, None, :]  # (B, size, size)
        flat = positions.flatten().to(self.pixels.device)
        return self.pixels.view(-1, 3).index_select(0, flat).view(*positions.shape, 3)

    @cached_property
    def mirrored_first(self) -> torch.Tensor:
        """Return a mask (N,) of the images that are mirrored in odd epochs."""
        return torch.rand(len(self), generator=torch.Generator().manual_seed(MIRROR_SEED)) < 0.5


def random_crop(count: int, size: int, padding: int) -> torch.Tensor:
    """Return the rows or columns (count, size) of random crops; only whole images are moved beyond the edge."""
    padding = padding if size == SIZE else 0
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
    training_sample: ImageDataset  # to measure training and validation alike; enough of them for a curve
    validation: ImageDataset
    test: ImageDataset

    def to(self, device: torch.device) -> "Splits":
        return Splits(*(dataset.to(device) for dataset in self))


def split_dataset(data: LabelledImages, batch_size: int, one_batch: bool = False) -> Splits:
    """Split the training images: always the same tenth of each class is for validation.

    Returns all images of each split, or one batch of each.
    Raises InputError if the batch is larger than the training set.
    """
    images, labels = data.training
    in_validation = pick_balanced(labels, len(labels) // 10)
    training, validation = (
        (images[~in_validation], labels[~in_validation]),
        (images[in_validation], labels[in_validation]),
    )
    if batch_size > len(training[1]):
        raise InputError(f"--batch-size: {batch_size} is more than the {len(training[1])} training images")
    in_sample = pick_balanced(training[1], min(TRAINING_SAMPLE, len(validation[1])))
    sample = (training[0][in_sample], training[1][in_sample])
    limit = batch_size if one_batch else None
    parts = (training, sample, validation, data.test)
    return Splits(*(ImageDataset(images[:limit], labels[:limit]) for images, labels in parts))


def pick_balanced(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask (N,) of `count` images, the same share of each class (rounded down), always the same ones."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_this_class = order[labels[order] == label]
        chosen[of_this_class[: count * len(of_this_class) // len(labels)]] = True
    return chosen


def batches(
    dataset: ImageDataset, batch_size: int = EVALUATION_BATCH, indices: Iterable[int] | None = None
) -> DataLoader:
    """Serve images in batches: all of them in their order, or those that `indices` names, in that order."""
    return DataLoader(dataset, batch_size, sampler=indices, collate_fn=keep_batch)


def training_batches(dataset: ImageDataset, plan: EpochPlan) -> DataLoader:
    """Serve the images of an epoch in batches, augmented as its plan says."""
    return batches(replace(dataset, plan=plan), plan.batch_size, plan.indices.tolist())


def keep_batch(batch: Images) -> Images:
    return batch  # `__getitems__` has made a batch already, there is nothing to collate
