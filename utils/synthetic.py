"""Synthetic images: shapes, drawn for a machine that has neither CIFAR-10 nor a network."""

import numpy as np

SIZE = 32  # pixels, as in CIFAR-10

# Each class, and which points (x, y) belong to its shape; x and y run from -1 to 1 over its square, y downwards.
# Every shape is its own mirror image, so that a random left-right flip never turns one class into another.
SHAPES = {
    "disc": lambda x, y: np.hypot(x, y) <= 1,
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.8) <= 0.2,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) <= 0.85,
    "frame": lambda x, y: abs(np.maximum(abs(x), abs(y)) - 0.7) <= 0.2,
    "pyramid": lambda x, y: (abs(x) <= (1 + y) / 2) & (y <= 1),
    "funnel": lambda x, y: (abs(x) <= (1 - y) / 2) & (y >= -1),
    "plus": lambda x, y: (np.maximum(abs(x), abs(y)) <= 1) & (np.minimum(abs(x), abs(y)) <= 0.25),
    "cross": lambda x, y: (np.maximum(abs(x), abs(y)) <= 0.9) & (abs(abs(x) - abs(y)) <= 0.35),
    "bar": lambda x, y: (abs(x) <= 1) & (abs(y) <= 0.3),
    "pole": lambda x, y: (abs(x) <= 0.3) & (abs(y) <= 1),
}
CLASS_NAMES = tuple(SHAPES)


def draw_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw `count` images, as many of each class as of any other, over noise.

    Returns images (count, 32, 32, 3) uint8 and labels (count,) int64.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(CLASS_NAMES))
    inside = draw_masks(labels, random)[..., None]  # (count, 32, 32, 1)
    background, colour = draw_colours(count, random)
    noise = random.normal(0, 20, (count, SIZE, SIZE, 3))
    pixels = np.where(inside, colour, background) + noise
    return pixels.clip(0, 255).astype(np.uint8), labels


def draw_masks(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return for each label a mask (count, 32, 32), True inside its shape, which has a random place and size."""
    count = len(labels)
    radius = random.uniform(7, 12, (count, 1, 1))  # pixels from the centre of the shape's square to its edge
    centre_x, centre_y = random.uniform(radius, SIZE - 1 - radius, (2, count, 1, 1))
    x = (np.arange(SIZE) - centre_x) / radius  # (count, 1, 32)
    y = (np.arange(SIZE)[:, None] - centre_y) / radius  # (count, 32, 1)
    masks = np.empty((count, SIZE, SIZE), dtype=bool)
    for label, contains in enumerate(SHAPES.values()):
        chosen = labels == label
        masks[chosen] = contains(x[chosen], y[chosen])
    return masks


def draw_colours(count: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return random background and shape colours (0 to 255), each (count, 1, 1, 3), that are easy to tell apart."""
    background = random.uniform(0, 255, (count, 1, 1, 3))
    difference = random.uniform(70, 125, (count, 1, 1, 3))
    return background, np.where(background < 128, background + difference, background - difference)
