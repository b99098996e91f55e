"""utils/synthetic.py: images that a network must learn to tell apart, the same for the same seed."""

from utils.synthetic import CLASS_NAMES, SHAPES, draw_images, draw_masks

import numpy as np
import pytest


def test_images_are_of_the_kind_of_cifar10_and_not_to_be_told_by_their_mean_colour() -> None:
    images, labels = draw_images(2000, seed=0)
    assert images.shape == (2000, 32, 32, 3) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert len({image.tobytes() for image in images}) == 2000
    assert len(set(CLASS_NAMES)) == 10 and labels.dtype == np.int64
    assert np.bincount(labels).tolist() == [200] * 10
    assert np.bincount(labels[:500], minlength=10).min() > 30  # in no order
    colours = images.mean(axis=(1, 2))
    means = np.array([colours[labels == label].mean(axis=0) for label in range(10)])
    nearest = ((colours[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == labels).mean() < 0.2  # chance is 0.1


def test_the_seed_alone_decides_the_images() -> None:
    one, again, other = (draw_images(100, seed) for seed in (3, 3, 4))
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert not {image.tobytes() for image in one[0]} & {image.tobytes() for image in other[0]}


@pytest.mark.parametrize("label", range(10), ids=CLASS_NAMES)
def test_each_shape_is_whole_in_all_places_and_sizes(label: int) -> None:
    masks = draw_masks(np.full(200, label), np.random.default_rng(0))
    assert not masks[:, [0, -1]].any() and not masks[:, :, [0, -1]].any()  # never cut off at an edge
    areas = masks.sum(axis=(1, 2))
    assert areas.min() > 40  # of 1024 pixels
    assert areas.max() > 1.5 * areas.min()
    corners = zip(masks.any(axis=2).argmax(axis=1), masks.any(axis=1).argmax(axis=1), strict=True)
    assert len({(int(row), int(column)) for row, column in corners}) > 50


def test_a_flip_never_turns_one_shape_into_another() -> None:
    y, x = np.mgrid[-1:1:101j, -1:1:101j]
    for contains in SHAPES.values():
        assert np.array_equal(contains(x, y), contains(-x, y))
