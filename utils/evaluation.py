"""What a network says of images, without training it, and what that tells: accuracy, confusion, mistakes."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from utils.device import autocast, memory_format
from utils.files import RunError

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad


@dataclass(frozen=True)
class Evaluation:
    """Logits (N, classes) of a number of images, and the labels (N,) that are right."""

    logits: torch.Tensor
    labels: torch.Tensor
    views: int = 1  # of each image, over which the logits are a mean
    plain_logits: torch.Tensor | None = None  # of the first view, the image as it is

    @cached_property
    def loss(self) -> float:
        return cross_entropy(self.logits, self.labels).item()

    @cached_property
    def probabilities(self) -> torch.Tensor:
        return self.logits.softmax(dim=1)

    @cached_property
    def accuracy(self) -> float:
        """Return the share of right predictions, from 0 to 1."""
        return share_right(self.logits, self.labels)

    @cached_property
    def plain_accuracy(self) -> float:
        """Return the share of right predictions from the images as they are, without their other views."""
        return share_right(self.logits if self.plain_logits is None else self.plain_logits, self.labels)

    @cached_property
    def confidence(self) -> float:
        """Return the mean probability of the predicted classes; the accuracy should be as high."""
        return self.probabilities.amax(dim=1).mean().item()

    @cached_property
    def confusion_matrix(self) -> torch.Tensor:
        """Return the number of images of each actual class (row) for each predicted class (column)."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.logits.argmax(dim=1)
        return pairs.bincount(minlength=classes * classes).view(classes, classes)

    def class_accuracies(self, class_names: tuple[str, ...]) -> dict[str, float | None]:
        """Return the share of right predictions of each class, None for a class without images."""
        rows = self.confusion_matrix.tolist()
        shares = [row[label] / sum(row) if any(row) else None for label, row in enumerate(rows)]
        return dict(zip(class_names, shares, strict=True))

    def worst_mistakes(self, count: int) -> torch.Tensor:
        """Return the indices of the wrong predictions with the greatest confidence, the greatest first."""
        confidence, predictions = self.probabilities.max(dim=1)
        order = confidence.argsort(descending=True, stable=True)
        return order[(predictions != self.labels)[order]][:count]


def share_right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return (logits.argmax(dim=1) == labels).float().mean().item()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], precision: str = "float32", views: int = 1
) -> Evaluation:
    """Run the model over some batches without training it; the logits are means over 1 to 6 views of each image.

    Raises RunError if the loss is NaN or infinite.
    """
    model.eval()
    results = []
    for images, labels in batches:
        with autocast(images.device, precision):
            of_views = [model(view).float() for view in islice(views_of(images), views)]
        results.append((torch.stack(of_views).mean(dim=0), labels, of_views[0]))
    logits, labels, plain_logits = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    evaluation = Evaluation(logits, labels, views, plain_logits)
    check_finite(evaluation.loss, "in an evaluation: these weights cannot be used")
    return evaluation


def check_finite(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise RunError(f"the loss is {loss} {where}")


def views_of(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield six views of images (B, C, H, W): as they are and moved by a pixel to two corners, each of them mirrored.

    Test-time augmentation (Krizhevsky et al. 2012), with the views of airbench94 (Jordan 2024, arXiv:2404.00498). Every
    other one is mirrored, so that the first three already bring most of what all bring (measured).
    """
    size, layout = images.shape[-1], memory_format(images.device)
    padded = pad(images, (1, 1, 1, 1), mode="reflect")
    for number, start in enumerate((1, 2, 0, 1, 2, 0)):
        moved = padded[..., start : start + size, start : start + size]
        yield (moved.flip(3) if number % 2 else moved).contiguous(memory_format=layout)
