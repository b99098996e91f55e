"""Train a classifier for one epoch, and evaluate it."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.device import memory_format
from utils.errors import RunError
from utils.schedule import EpochPlan


def train_one_epoch(
    model: nn.Module,
    batches: DataLoader,
    optimizer: Optimizer,
    plan: EpochPlan,
    label_smoothing: float = 0.0,
    precision: str = "float32",
) -> torch.Tensor:
    """Train on each batch once, at the learning rates of the plan, one for each batch.

    Returns the loss of each image (N,), without label smoothing, in the order of the batches.
    Raises RunError if the loss becomes NaN or infinite.
    """
    model.train()
    losses = []  # kept on the device: a copy from it has to wait for all that it is computing
    bar = tqdm(batches, desc=f"epoch {plan.epoch}", leave=False, disable=None)
    for step, ((images, labels), learning_rate) in enumerate(zip(bar, plan.learning_rates, strict=True), start=1):
        logits = compute_logits(model, images, precision)
        losses.append(cross_entropy(logits.detach(), labels, reduction="none"))
        check_loss(losses[-1].mean().item(), f"in epoch {plan.epoch}, step {step} of {len(batches)}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        cross_entropy(logits, labels, label_smoothing=label_smoothing).backward()
        with autocast(images, precision):  # for the matrix products of Muon
            optimizer.step()
    return torch.cat(losses).cpu()


def check_loss(loss: float, where: str) -> None:
    if not math.isfinite(loss):
        raise RunError(f"the loss became {loss} {where}: try a lower --lr; earlier checkpoints stay as they are")


def compute_logits(model: nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    """Run the model in the given precision, and return float32: the loss would be too coarse in bfloat16."""
    with autocast(images, precision):
        return model(images).float()


def autocast(images: torch.Tensor, precision: str) -> torch.autocast:
    """Return a context in which convolutions and matrix products are computed in this precision."""
    return torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16")


@dataclass(frozen=True)
class Evaluation:
    """What a model says of a number of images: logits (N, classes), and the labels (N,) that are right."""

    logits: torch.Tensor
    labels: torch.Tensor
    views: int = 1  # of each image, over which the logits are a mean

    @cached_property
    def loss(self) -> float:
        return cross_entropy(self.logits, self.labels).item()

    @cached_property
    def predictions(self) -> torch.Tensor:
        return self.logits.argmax(dim=1)

    @cached_property
    def accuracy(self) -> float:
        """Return the share of right predictions, from 0 to 1."""
        return (self.predictions == self.labels).float().mean().item()

    @cached_property
    def probabilities(self) -> torch.Tensor:
        return self.logits.softmax(dim=1)

    @cached_property
    def confidence(self) -> float:
        """Return the mean probability of the predicted classes; the accuracy should be as high."""
        return self.probabilities.amax(dim=1).mean().item()

    @cached_property
    def confusion_matrix(self) -> torch.Tensor:
        """Return the number of images of each actual class (row) for each predicted class (column)."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.predictions
        return pairs.bincount(minlength=classes * classes).view(classes, classes)


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
        of_views = [compute_logits(model, view, precision) for view in islice(views_of(images), views)]
        results.append((torch.stack(of_views).mean(dim=0), labels))
    logits, labels = (torch.cat(parts).cpu() for parts in zip(*results, strict=True))
    evaluation = Evaluation(logits, labels, views)
    check_loss(evaluation.loss, "in an evaluation")
    return evaluation


def views_of(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield six views of images (B, C, H, W): as they are, moved by a pixel to two corners, each then mirrored.

    Test-time augmentation (Krizhevsky et al. 2012), with the views of airbench94 (Jordan 2024, arXiv:2404.00498).
    """
    size, layout = images.shape[-1], memory_format(images.device)
    yield images
    yield images.flip(3).contiguous(memory_format=layout)
    padded = pad(images, (1, 1, 1, 1), mode="reflect")
    for start in (2, 0):
        moved = padded[..., start : start + size, start : start + size]
        yield moved.contiguous(memory_format=layout)
        yield moved.flip(3).contiguous(memory_format=layout)
