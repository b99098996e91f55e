"""utils/data.py: the right images in the right split, batches as they should be."""

from utils import data
from utils.data import (
    ImageDataset,
    LabelledImages,
    Splits,
    batches,
    load_dataset,
    normalize,
    one_in,
    split_dataset,
    training_batches,
)
from utils.schedule import EpochPlan

import pytest
import torch
from conftest import SmallCifar10
from torch.nn.functional import pad
from utils.errors import InputError


def unnormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo `normalize`: (B, 3, H, W) float32 to pixels (B, H, W, 3) uint8."""
    pixels = images.permute(0, 2, 3, 1) * (255 * data.STD) + 255 * data.MEAN
    return pixels.round().clamp(0, 255).to(torch.uint8)


def make_plan(indices: list[int], epoch: int = 1, crop_size: int = 32, cut_size: int = 0) -> EpochPlan:
    return EpochPlan(epoch, torch.tensor(indices), crop_size, cut_size, max(1, len(indices)), [])


# Splits


def image_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def assert_splits_are_disjoint_and_balanced(splits: Splits, count: int) -> None:
    training, sample, validation, test = (image_set(dataset.images) for dataset in splits)
    assert not training & validation and not training & test and not validation & test
    assert sample < training
    assert len(splits.training) + len(splits.validation) == count
    assert len(splits.validation) == len(splits.training_sample) == count // 10
    for dataset in splits:
        per_class = dataset.labels.bincount(minlength=10)
        expected = len(dataset) / 10
        assert (per_class - expected).abs().max() <= 0.05 * expected


def test_splits_are_disjoint_and_balanced(small_cifar10: SmallCifar10) -> None:
    splits = split_dataset(load_dataset("cifar10", small_cifar10.data_dir), 16)
    assert_splits_are_disjoint_and_balanced(splits, 200)


def test_splits_of_the_real_images(real_cifar10: LabelledImages) -> None:
    splits = split_dataset(real_cifar10, 256)
    assert_splits_are_disjoint_and_balanced(splits, 50_000)
    assert len(splits.test) == 10_000


def test_each_image_keeps_its_own_label(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("cifar10", small_cifar10.data_dir)
    pairs = zip(read.train_images, read.train_labels, strict=True)
    label_of = {image.numpy().tobytes(): int(label) for image, label in pairs}
    for dataset in split_dataset(read, 16)[:3]:
        for image, label in zip(dataset.images, dataset.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_every_run_validates_on_the_same_images() -> None:
    labels, chosen = torch.arange(500) % 10, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        chosen.append(one_in(10, labels))
    assert torch.equal(*chosen) and chosen[0].sum() == 50


def test_a_dry_run_gets_one_batch_of_each_split(small_cifar10: SmallCifar10) -> None:
    splits = split_dataset(load_dataset("cifar10", small_cifar10.data_dir), 16, one_batch=True)
    assert [len(dataset) for dataset in splits] == [16] * 4


def test_a_batch_larger_than_the_training_set_is_refused(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("cifar10", small_cifar10.data_dir)
    assert len(split_dataset(read, 180).training) == 180
    with pytest.raises(InputError, match=r"--batch-size: 181 .* 180"):
        split_dataset(read, 181)


def test_drawn_images_only_replace_what_is_missing(small_cifar10: SmallCifar10) -> None:
    assert load_dataset("auto", small_cifar10.data_dir).name == "cifar10"
    assert load_dataset("synthetic", small_cifar10.data_dir).name == "synthetic"


# Batches


def make_images(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_batches_are_whole_images_in_their_order() -> None:
    dataset = ImageDataset(make_images(50), torch.arange(50))
    served = list(batches(dataset, 16))
    assert [len(labels) for _, labels in served] == [16, 16, 16, 2]
    assert torch.cat([labels for _, labels in served]).tolist() == list(range(50))
    assert torch.equal(unnormalize(torch.cat([images for images, _ in served])), dataset.images)


def test_training_batches_are_in_the_order_of_the_plan() -> None:
    dataset, order = ImageDataset(make_images(50), torch.arange(50)), torch.randperm(50)[:30]
    plan = EpochPlan(1, order, 32, 0, 16, [])
    served = list(training_batches(dataset, plan))
    assert [len(labels) for _, labels in served] == [16, 14]
    assert torch.equal(torch.cat([labels for _, labels in served]), order)


def test_training_images_are_augmented() -> None:
    dataset = ImageDataset(make_images(100), torch.arange(100))
    before = dataset.images.clone()
    served, _ = next(iter(training_batches(dataset, make_plan(list(range(100))))))
    raw = image_set(before)
    assert len(image_set(unnormalize(served)) - raw) > 0.9 * len(raw)  # 1 of 50 crops and flips changes nothing
    assert torch.equal(dataset.images, before) and dataset.plan is None


def all_crops_and_flips(image: torch.Tensor) -> list[torch.Tensor]:
    """Return the 50 images (32, 32, 3) that augmentation may make: each of 25 crops, as it is and then flipped."""
    padded = pad(image.permute(2, 0, 1).float()[None], (2, 2, 2, 2), mode="reflect")[0].to(torch.uint8)
    crops = [padded[:, top : top + 32, left : left + 32].permute(1, 2, 0) for top in range(5) for left in range(5)]
    return crops + [crop.flip(1) for crop in crops]


def served_in_epoch(epoch: int, images: torch.Tensor, indices: list[int], crop_size: int = 32) -> torch.Tensor:
    """Return pixels (len(indices), crop_size, crop_size, 3) of augmented images, as an epoch of training shows them."""
    dataset = ImageDataset(images, torch.arange(len(images)))
    batch, labels = next(iter(training_batches(dataset, make_plan(indices, epoch, crop_size))))
    assert labels.tolist() == indices
    return unnormalize(batch)


def test_crop_and_flip_keep_the_pixels_they_should() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=generator)
    torch.manual_seed(0)
    epochs = [served_in_epoch(epoch, images, [0, 1, 2] * 250) for epoch in (1, 2)]
    for index in range(3):
        number_of = {crop.numpy().tobytes(): number for number, crop in enumerate(all_crops_and_flips(images[index]))}
        # A KeyError here is an image that no crop and flip of this image gives.
        numbers = [[number_of[image.numpy().tobytes()] for image in served[index::3]] for served in epochs]
        assert {frozenset(of_epoch) for of_epoch in numbers} == {frozenset(range(25)), frozenset(range(25, 50))}
        assert all(max(map(of_epoch.count, of_epoch)) < 30 for of_epoch in numbers)  # of 10 that are expected


def test_each_image_is_mirrored_in_every_other_epoch() -> None:
    symmetric_but_for_one_column = torch.zeros(400, 32, 32, 3, dtype=torch.uint8)
    symmetric_but_for_one_column[:, :, 8] = 255
    mirrored = []
    for epoch in range(1, 5):
        served = served_in_epoch(epoch, symmetric_but_for_one_column, list(range(400)))
        mirrored.append(served[:, 0, :, 0].argmax(dim=1) > 15)
    assert torch.equal(mirrored[0], ~mirrored[1])
    assert torch.equal(mirrored[0], mirrored[2]) and torch.equal(mirrored[1], mirrored[3])
    assert 150 < mirrored[0].sum() < 250


def test_each_image_of_a_batch_is_cropped_on_its_own() -> None:
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert len(image_set(served_in_epoch(1, image, [0] * 200))) > 20  # of 25 that there are


def test_small_crops_reach_all_of_the_image_and_no_more() -> None:
    image = torch.arange(1024).view(1, 32, 32, 1).expand(1, 32, 32, 3) % 251  # tells where a pixel comes from
    windows = image[0].unfold(0, 26, 1).unfold(1, 26, 1).permute(0, 1, 3, 4, 2).reshape(49, 26, 26, 3)
    expected = image_set(torch.cat([windows, windows.flip(2)]).to(torch.uint8))
    served = [image_set(served_in_epoch(epoch, image.to(torch.uint8), [0] * 500, 26)) for epoch in (1, 2)]
    assert served[0] | served[1] == expected


def test_one_square_is_cut_out_anywhere_in_each_image() -> None:
    white = ImageDataset(torch.full((500, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(500))
    epoch = training_batches(white, make_plan(list(range(500)), crop_size=26, cut_size=8))
    cut = (next(iter(epoch))[0] == 0).all(dim=1)  # (500, 26, 26): the mean colour is 0, and white is not
    heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert torch.equal(cut.sum(dim=(1, 2)), heights * widths)  # a rectangle, and nothing else
    assert {*heights.tolist(), *widths.tolist()} == {4, 5, 6, 7, 8}  # beyond an edge, up to half of it
    assert cut.any(dim=0).all()


def test_a_single_image_can_be_looked_at() -> None:
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    image, label = ImageDataset(images, torch.arange(5))[3]
    assert label == 3
    assert torch.equal(unnormalize(image[None])[0], images[3])


# Normalization


def test_normalization_uses_the_constants_of_cifar10() -> None:
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 32, 32, 3)
    normalized = normalize(pixels)
    assert normalized.shape == (3, 3, 32, 32) and normalized.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        expected = torch.tensor([(value / 255 - mean) / std for value in (0, 100, 255)])
        torch.testing.assert_close(normalized[:, channel], expected.view(3, 1, 1).expand(3, 32, 32))


def test_normalizing_leaves_its_input_alone() -> None:
    pixels = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    normalize(pixels)
    assert (pixels == 77).all()


def test_the_constants_are_those_of_the_real_images(real_cifar10: LabelledImages) -> None:
    channels = real_cifar10.train_images.view(-1, 3).T
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels])
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
    value = torch.arange(256).double() / 255
    mean = (share * value).sum(dim=1)
    std = ((share * value**2).sum(dim=1) - mean**2).sqrt()
    assert (mean - data.MEAN).abs().max() < 6e-5
    assert (std - data.STD).abs().max() < 6e-5
