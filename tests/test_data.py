"""utils/data.py: the right images in the right split, batches as they should be."""

import pytest
import torch
from conftest import SmallCifar10
from torch.nn.functional import pad

from utils import data
from utils.data import (
    ImageData,
    ImageDataset,
    Loaders,
    load_dataset,
    make_loader,
    make_loaders,
    normalize,
    serve_epoch,
    split_train_validation,
    unnormalize,
)
from utils.errors import InputError

# Splits


def image_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def assert_splits_are_disjoint_and_balanced(loaders: Loaders, count: int) -> None:
    images = [image_set(loader.dataset.images) for loader in loaders]
    assert not images[0] & images[1] and not images[0] & images[2] and not images[1] & images[2]
    assert len(loaders.training.dataset) + len(loaders.validation.dataset) == count
    assert len(loaders.validation.dataset) == count // 10
    for loader in loaders:
        per_class = loader.dataset.labels.bincount(minlength=10)
        expected = len(loader.dataset) / 10
        assert (per_class - expected).abs().max() <= 0.05 * expected


def test_splits_are_disjoint_and_balanced(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_dataset("cifar10", small_cifar10.data_dir), 16)
    assert_splits_are_disjoint_and_balanced(loaders, 200)


def test_splits_of_the_real_images_are_disjoint_and_balanced(real_cifar10: ImageData) -> None:
    loaders = make_loaders(real_cifar10, 256)
    assert_splits_are_disjoint_and_balanced(loaders, 50_000)
    assert len(loaders.test.dataset) == 10_000


def test_each_image_keeps_its_own_label(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("cifar10", small_cifar10.data_dir)
    pairs = zip(read.train_images, read.train_labels, strict=True)
    label_of = {image.numpy().tobytes(): int(label) for image, label in pairs}
    for loader in make_loaders(read, 16)[:2]:
        for image, label in zip(loader.dataset.images, loader.dataset.labels, strict=True):
            assert label_of[image.numpy().tobytes()] == label


def test_every_run_validates_on_the_same_images_whatever_its_seed() -> None:
    labels = torch.arange(500) % 10
    torch.manual_seed(1)
    one = split_train_validation(labels)
    torch.manual_seed(2)
    other = split_train_validation(labels)
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


# Batches


def test_an_epoch_shows_every_training_image_once_in_a_new_order(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("cifar10", small_cifar10.data_dir)
    loader = make_loaders(read, 50).training
    loader.dataset.labels = torch.arange(len(loader.dataset))  # tells which image is which
    first, second = ([labels for _, labels in loader] for _ in range(2))
    assert [len(labels) for labels in first] == [50, 50, 50, 30]
    assert torch.cat(first).sort().values.tolist() == torch.cat(second).sort().values.tolist() == list(range(180))
    assert torch.cat(first).tolist() != torch.cat(second).tolist() != list(range(180))


def test_validation_and_test_images_are_never_augmented(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_dataset("cifar10", small_cifar10.data_dir), 16)
    for loader in (loaders.validation, loaders.test):
        raw = loader.dataset.images
        for _ in range(2):
            served = torch.cat([images for images, _ in loader])
            assert torch.equal(unnormalize(served), raw)
            assert torch.equal(torch.cat([labels for _, labels in loader]), loader.dataset.labels)


def test_training_images_are_augmented(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_dataset("cifar10", small_cifar10.data_dir), 16)
    raw = image_set(loaders.training.dataset.images)
    served = image_set(torch.cat([unnormalize(images) for images, _ in loaders.training]))
    assert len(served - raw) > 0.9 * len(raw)  # 1 of 50 crops and flips leaves an image as it is


def all_crops_and_flips(image: torch.Tensor) -> list[torch.Tensor]:
    """Return the 50 images (32, 32, 3) that augmentation may make: each of 25 crops, as it is and then flipped."""
    padded = pad(image.permute(2, 0, 1).float()[None], (2, 2, 2, 2), mode="reflect")[0].to(torch.uint8)
    crops = [padded[:, top : top + 32, left : left + 32].permute(1, 2, 0) for top in range(5) for left in range(5)]
    return crops + [crop.flip(1) for crop in crops]


def served_in_epoch(epoch: int, images: torch.Tensor, indices: list[int], crop_size: int = 32) -> torch.Tensor:
    """Return pixels (len(indices), crop_size, crop_size, 3) of augmented images, as an epoch of training shows them."""
    loader = make_loader(ImageDataset(images, torch.arange(len(images)), augment=True), len(indices))
    batch, labels = next(iter(serve_epoch(loader, torch.tensor(indices), epoch, crop_size)))
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


def test_each_image_is_mirrored_in_every_other_epoch_and_half_of_them_in_the_first() -> None:
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


def test_small_crops_stay_within_the_image_and_reach_all_of_it() -> None:
    image = torch.arange(1024).view(1, 32, 32, 1).expand(1, 32, 32, 3) % 251  # tells where a pixel comes from
    windows = image[0].unfold(0, 26, 1).unfold(1, 26, 1).permute(0, 1, 3, 4, 2).reshape(49, 26, 26, 3)
    expected = image_set(torch.cat([windows, windows.flip(2)]).to(torch.uint8))
    served = [image_set(served_in_epoch(epoch, image.to(torch.uint8), [0] * 500, 26)) for epoch in (1, 2)]
    assert served[0] | served[1] == expected


def test_one_square_is_cut_out_of_each_image_and_it_can_lie_anywhere() -> None:
    white = ImageDataset(torch.full((500, 32, 32, 3), 255, dtype=torch.uint8), torch.arange(500), augment=True)
    epoch = serve_epoch(make_loader(white, 500), torch.arange(500), 1, 26, cut_size=8)
    cut = (next(iter(epoch))[0] == 0).all(dim=1)  # (500, 26, 26): the mean colour is 0, and white is not
    heights, widths = cut.any(dim=2).sum(dim=1), cut.any(dim=1).sum(dim=1)
    assert torch.equal(cut.sum(dim=(1, 2)), heights * widths)  # a rectangle, and nothing else
    assert {*heights.tolist(), *widths.tolist()} == {4, 5, 6, 7, 8}  # beyond an edge, up to half of it
    assert cut.any(dim=0).all()


def test_an_epoch_leaves_the_loader_it_comes_from_as_it_was() -> None:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    loader = make_loader(ImageDataset(images, torch.arange(4), augment=True), 4)
    serve_epoch(loader, torch.arange(2), 2, 26, 8)
    served = next(iter(loader))[0]
    assert len(loader.dataset) == 4 and served.shape == (4, 3, 32, 32) and (served != 0).all()


def test_a_single_image_can_be_looked_at() -> None:
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    image, label = ImageDataset(images, torch.arange(5), augment=False)[3]
    assert label == 3
    assert torch.equal(unnormalize(image[None])[0], images[3])


def test_a_dry_run_gets_one_batch_of_each_split(small_cifar10: SmallCifar10) -> None:
    loaders = make_loaders(load_dataset("cifar10", small_cifar10.data_dir), 16, images_per_split=16)
    assert [len(loader) for loader in loaders] == [1, 1, 1]
    assert len(loaders.training.dataset) == 16


def test_a_batch_larger_than_the_training_set_is_refused(small_cifar10: SmallCifar10) -> None:
    read = load_dataset("cifar10", small_cifar10.data_dir)
    assert len(make_loaders(read, 180).training) == 1
    with pytest.raises(InputError, match=r"--batch-size: 181 .* 180"):
        make_loaders(read, 181)


# Normalization


def test_normalization_uses_the_constants_of_the_training_images() -> None:
    pixels = torch.tensor([0, 100, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 32, 32, 3)
    normalized = normalize(pixels)
    assert normalized.shape == (3, 3, 32, 32) and normalized.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.4914, 0.2470), (0.4822, 0.2435), (0.4465, 0.2616))):
        expected = torch.tensor([(value / 255 - mean) / std for value in (0, 100, 255)])
        torch.testing.assert_close(normalized[:, channel], expected.view(3, 1, 1).expand(3, 32, 32))


def test_unnormalizing_gives_back_every_pixel_value() -> None:
    pixels = torch.arange(256 * 12).view(1, 32, 32, 3).remainder(256).to(torch.uint8)
    pixels = torch.cat([pixels, pixels.flip(1), pixels.roll(1, 3)])
    assert torch.equal(unnormalize(normalize(pixels)), pixels)


def test_normalizing_leaves_the_pixels_it_was_given_alone() -> None:
    pixels = torch.full((2, 32, 32, 3), 77, dtype=torch.uint8)
    normalize(pixels)
    assert (pixels == 77).all()


def test_the_constants_are_those_of_the_real_training_images(real_cifar10: ImageData) -> None:
    channels = real_cifar10.train_images.view(-1, 3).T
    counts = torch.stack([channel.bincount(minlength=256) for channel in channels])
    share = counts.double() / counts.sum(dim=1, keepdim=True)  # (3, 256)
    value = torch.arange(256).double() / 255
    mean = (share * value).sum(dim=1)
    std = ((share * value**2).sum(dim=1) - mean**2).sqrt()
    assert (mean - data.MEAN).abs().max() < 6e-5
    assert (std - data.STD).abs().max() < 6e-5
