"""utils/data.py: the right images in the right split, batches as they should be."""

from utils import data
from utils.data import ImageDataset, LabelledImages, Splits, batches, normalize, split_dataset, training_batches
from utils.files import InputError
from utils.schedule import EpochPlan

import pytest
import torch
from helpers import make_dataset
from torch.nn.functional import pad


def unnormalize(images: torch.Tensor) -> torch.Tensor:
    """Undo `normalize`: (B, 3, H, W) float32 to pixels (B, H, W, 3) uint8."""
    pixels = images.permute(0, 2, 3, 1) * (255 * data.STD) + 255 * data.MEAN
    return pixels.round().clamp(0, 255).to(torch.uint8)


def image_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def check_splits(splits: Splits, count: int) -> None:
    training, sample, validation, test = (image_set(dataset.pixels) for dataset in splits)
    assert not training & validation and not training & test and not validation & test
    assert sample < training
    assert len(splits.training) + len(splits.validation) == count
    assert len(splits.validation) == count // 10
    assert len(splits.training_sample) == min(count // 10, 2000)
    for dataset in splits:
        expected = len(dataset) / 10
        assert (dataset.labels.bincount(minlength=10) - expected).abs().max() <= 0.05 * expected


def test_splits_are_disjoint_and_balanced_keep_the_labels_and_are_always_the_same() -> None:
    synthetic = data.load_synthetic()
    splits, again = split_dataset(synthetic, 16), split_dataset(synthetic, 16)
    check_splits(splits, 2000)
    label_of = {image.numpy().tobytes(): label for image, label in zip(*synthetic.training, strict=True)}
    for dataset, other in zip(splits[:3], again[:3], strict=True):
        assert torch.equal(dataset.pixels, other.pixels)
        for image, label in zip(dataset.pixels, dataset.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_splits_of_the_real_images(real_cifar10: LabelledImages) -> None:
    splits = split_dataset(real_cifar10, 256)
    check_splits(splits, 50_000)
    assert len(splits.test) == 10_000


def test_a_dry_run_gets_one_batch_of_each_split() -> None:
    assert [len(dataset) for dataset in split_dataset(data.load_synthetic(), 16, one_batch=True)] == [16] * 4


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    assert len(split_dataset(data.load_synthetic(), 1800).training) == 1800
    with pytest.raises(InputError, match=r"--batch-size: 1801 .* 1,?800"):
        split_dataset(data.load_synthetic(), 1801)


def serve_epoch(
    pixels: torch.Tensor, indices: list[int], epoch: int = 1, crop_size: int = 32, padding: int = 2, cut_size: int = 0
) -> torch.Tensor:
    """Return all images (N, crop_size, crop_size, 3) uint8 as an epoch of training shows them."""
    plan = EpochPlan(epoch, torch.tensor(indices), crop_size, padding, cut_size, len(indices), [])
    [(images, labels)] = training_batches(ImageDataset(pixels, torch.arange(len(pixels))), plan)
    assert labels.tolist() == indices
    return unnormalize(images)


def test_batches_are_in_the_order_that_is_asked_for() -> None:
    dataset, order = make_dataset(50), torch.randperm(50)[:30]
    served = list(batches(dataset, 16))
    assert [len(labels) for _, labels in served] == [16, 16, 16, 2]
    assert torch.equal(unnormalize(torch.cat([images for images, _ in served])), dataset.pixels)  # as they are
    assert torch.equal(torch.cat([labels for _, labels in served]), dataset.labels)
    assert torch.equal(unnormalize(dataset[3][0][None])[0], dataset.pixels[3]) and dataset[3][1] == dataset.labels[3]
    trained_on = [labels for _, labels in training_batches(dataset, EpochPlan(1, order, 32, 2, 0, 16, []))]
    assert [len(labels) for labels in trained_on] == [16, 14]
    assert torch.equal(torch.cat(trained_on), dataset.labels[order])


def all_crops_and_flips(image: torch.Tensor) -> list[torch.Tensor]:
    """Return the 50 images (32, 32, 3) that augmentation may make: each of 25 crops, as it is and then flipped."""
    padded = pad(image.permute(2, 0, 1).float()[None], (2, 2, 2, 2), mode="reflect")[0].to(torch.uint8)
    crops = [padded[:, top : top + 32, left : left + 32].permute(1, 2, 0) for top in range(5) for left in range(5)]
    return crops + [crop.flip(1) for crop in crops]


def test_crop_and_flip_keep_the_pixels_they_should() -> None:
    images = make_dataset(3).pixels
    before = images.clone()
    epochs = [serve_epoch(images, [0, 1, 2] * 1000, epoch=epoch) for epoch in (1, 2)]
    for index in range(3):
        number_of = {crop.numpy().tobytes(): number for number, crop in enumerate(all_crops_and_flips(images[index]))}
        # A KeyError here is an image that no crop and flip of this image gives.
        numbers = [[number_of[image.numpy().tobytes()] for image in served[index::3]] for served in epochs]
        assert {frozenset(of_epoch) for of_epoch in numbers} == {frozenset(range(25)), frozenset(range(25, 50))}
        assert all(max(map(of_epoch.count, range(50))) < 90 for of_epoch in numbers)  # of 40 that are expected
    assert torch.equal(images, before)


@pytest.mark.parametrize("padding", [0, 4])
def test_images_are_mirrored_in_every_other_epoch_and_moved_by_the_padding(padding: int) -> None:
    images, everyone = torch.zeros(400, 32, 32, 3, dtype=torch.uint8), list(range(400))
    images[:, :, 8] = 255
    rows = [serve_epoch(images, everyone, epoch=epoch, padding=padding)[:, 0, :, 0] for epoch in range(4)]
    places = torch.stack(rows).argmax(dim=2)  # of the white column
    assert {*places.flatten().tolist()} == {*range(8 - padding, 9 + padding), *range(23 - padding, 24 + padding)}
    mirrored = places > 15
    assert torch.equal(mirrored[0], ~mirrored[1]) and torch.equal(mirrored[:2], mirrored[2:])
    assert 150 < mirrored[0].sum() < 250


def test_small_crops_reach_all_of_the_image_and_no_more() -> None:
    image = (torch.arange(1024).view(1, 32, 32, 1).expand(1, 32, 32, 3) % 251).to(torch.uint8)
    windows = image[0].unfold(0, 26, 1).unfold(1, 26, 1).permute(0, 1, 3, 4, 2).reshape(49, 26, 26, 3)
    served = [image_set(serve_epoch(image, [0] * 2000, epoch=epoch, crop_size=26)) for epoch in (1, 2)]
    assert served[0] | served[1] == image_set(torch.cat([windows, windows.flip(2)]))


def test_one_square_is_cut_out_anywhere_in_each_image() -> None:
    white = torch.full((1, 32, 32, 3), 255, dtype=torch.uint8)
    mean_colour = torch.tensor([125, 123, 114])
    cut = (serve_epoch(white, [0] * 2000, crop_size=26, cut_size=8) == mean_colour).all(dim=3)
    heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert torch.equal(cut.sum(dim=(1, 2)), heights * widths)  # a rectangle, and nothing else
    assert {*heights.tolist(), *widths.tolist()} == {4, 5, 6, 7, 8}  # beyond an edge, up to half of it
    assert cut.any(dim=0).all()


def test_normalization_uses_the_constants_of_cifar10() -> None:
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 32, 32, 3)
    normalized = normalize(pixels)
    assert normalized.shape == (3, 3, 32, 32) and normalized.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        expected = torch.tensor([(value / 255 - mean) / std for value in (0, 100, 255)])
        torch.testing.assert_close(normalized[:, channel], expected.view(3, 1, 1).expand(3, 32, 32))
    assert pixels[:, 0, 0, 0].tolist() == [0, 100, 255]  # the input is left alone


def test_the_constants_are_those_of_the_real_images(real_cifar10: LabelledImages) -> None:
    channels = real_cifar10.training[0].view(-1, 3).T
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels])
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
    value = torch.arange(256).double() / 255
    mean = (share * value).sum(dim=1)
    std = ((share * value**2).sum(dim=1) - mean**2).sqrt()
    assert (mean - data.MEAN).abs().max() < 6e-5
    assert (std - data.STD).abs().max() < 6e-5
