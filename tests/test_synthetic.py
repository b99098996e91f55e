"""utils/synthetic.py: images that a network must learn to tell apart, the same for the same seed."""

from utils.synthetic import CLASS_NAMES, SHAPES, draw_images, draw_masks

import numpy as np
import pytest


def test_images_are_of_the_kind_of_cifar10() -> None:
    images, labels = draw_images(200, seed=0)
    assert images.shape == (200, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (200,) and labels.dtype == np.int64
    assert images.min() == 0 and images.max() == 255
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 10


@pytest.mark.parametrize("count", [1000, 3000])
def test_every_class_is_drawn_equally_often(count: int) -> None:
    _, labels = draw_images(count, seed=0)
    assert np.bincount(labels, minlength=10).tolist() == [count // 10] * 10
    assert np.bincount(labels[: count // 2], minlength=10).min() > 0.7 * count / 20


def test_the_seed_decides_the_images() -> None:
    one, again, other = (draw_images(100, seed) for seed in (3, 3, 4))
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert not {image.tobytes() for image in one[0]} & {image.tobytes() for image in other[0]}


def test_drawing_leaves_other_random_numbers_alone() -> None:
    np.random.seed(0)
    expected = np.random.random()
    np.random.seed(0)
    draw_images(10, seed=0)
    assert np.random.random() == expected


def test_no_two_images_are_the_same() -> None:
    images, _ = draw_images(1000, seed=0)
    assert len({image.tobytes() for image in images}) == 1000


@pytest.mark.parametrize("label", range(10), ids=CLASS_NAMES)
def test_each_shape_is_whole_in_all_places_and_sizes(label: int) -> None:
    masks = draw_masks(np.full(200, label), np.random.default_rng(0))
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    assert not (rows[:, [0, -1]].any() and columns[:, [0, -1]].any())  # never cut off at a corner
    areas = masks.sum(axis=(1, 2))
    assert areas.min() > 40  # of 1024 pixels
    assert areas.max() > 1.5 * areas.min()
    assert len({(row.argmax(), column.argmax()) for row, column in zip(rows, columns, strict=True)}) > 50


def test_a_flip_never_turns_one_shape_into_another() -> None:
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    for contains in SHAPES.values():
        assert np.array_equal(contains(x, y), contains(-x, y))


def test_classes_cannot_be_told_by_their_mean_colour() -> None:
    images, labels = draw_images(4000, seed=0)
    colours = images.mean(axis=(1, 2))
    means = np.array([colours[labels == label].mean(axis=0) for label in range(10)])
    nearest = ((colours[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == labels).mean() < 0.2  # chance is 0.1


def test_the_shape_stands_out_from_the_noise() -> None:
    images, labels = draw_images(50, seed=1)
    random = np.random.default_rng(1)
    masks = draw_masks(random.permutation(labels), random)
    assert masks.any() and not masks.all()
    contrast = [image.reshape(-1, 3).std(axis=0).max() for image in images.astype(float)]
    assert min(contrast) > 20  # grey levels: more than the noise alone
