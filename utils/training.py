"""Training and evaluation of any classifier, and the checkpoints between two epochs."""

import json
import math
import warnings
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.errors import InputError, RunError
from utils.files import replace_when_complete

MOMENTUM = 0.9
FILTER_RATE = 0.15  # times the learning rate: the share of its own length by which a filter moves in a step
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of a step towards an orthogonal matrix (Jordan 2024)
HISTORY = (  # the numbers that are kept of each epoch; accuracies are shares from 0 to 1
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "seconds",
)
WARM_UP = 0.2  # share of the run in which the learning rate rises
GROWTH = (0.25, 0.65)  # shares of the run after which images become larger
LONG_RUN = 16  # epochs, from which on a square is cut out of each image
CUT_SIZE = 8  # pixels on each side of it
KNOWN = 0.5  # share of the images, those with the lowest losses, that may be skipped


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed all randomness of one epoch (order, augmentation), so that a resumed run needs no stored random state."""
    torch.manual_seed(seed * 100_003 + epoch)


class Muon(Optimizer):
    """SGD with Nesterov momentum, of which the step of a convolution's filters is made orthogonal.

    A step of SGD is ruled by a few directions in which the gradient is large; an orthogonal one goes equally far in all
    of them (Jordan 2024, kellerjordan.github.io/posts/muon). Filters keep their length instead of decaying: behind them
    is batch normalization, so that only their direction counts.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim == 4:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    step = FILTER_RATE * orthogonalize(self.add_momentum(parameter, parameter.grad).flatten(1))
                else:
                    decay = group["weight_decay"] * parameter
                    step = self.add_momentum(parameter, parameter.grad + decay)
                parameter.sub_(group["lr"] * step.view_as(parameter))

    def add_momentum(self, parameter: nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
        """Update the momentum of a parameter and return the step that Nesterov takes from it."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].mul_(MOMENTUM).add_(gradient)
        return gradient + MOMENTUM * momentum


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of a matrix (m, n) near 1 (0.7 to 1.2), except those that are almost zero.

    Three steps of Newton-Schulz, X <- (aI + bA + cA²) X with A = XXᵀ, which are done on A (m, m) alone: n is larger.
    """
    matrix = matrix / (matrix.norm() + 1e-7)  # no singular value is above 1
    gram = matrix @ matrix.T
    polynomial = product = newton_schulz_polynomial(gram)
    for _ in range(2):
        gram = polynomial @ gram @ polynomial
        polynomial = newton_schulz_polynomial(gram)
        product = polynomial @ product
    return product @ matrix


def newton_schulz_polynomial(gram: torch.Tensor) -> torch.Tensor:
    a, b, c = NEWTON_SCHULZ
    polynomial = torch.addmm(b * gram, gram, gram, alpha=c)
    polynomial.diagonal().add_(a)
    return polynomial


def make_optimizer(model: nn.Module, weight_decay: float) -> Muon:
    """Return Muon for what the model trains, in which only the weights of linear layers decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim == 1], "weight_decay": 0.0},
    ]
    return Muon(groups, {"lr": 0.0})


def one_cycle(peak: float, epoch: int, epochs: int, steps: int) -> list[float]:
    """Return the learning rate of each of the `steps` steps of an epoch (from 1): up to `peak`, then down to zero.

    Linear on both sides, over the whole run of `epochs` epochs (Smith 2018, arXiv:1803.09820).
    """
    progress = [((epoch - 1) * steps + step + 0.5) / (epochs * steps) for step in range(steps)]
    return [peak * min(done / WARM_UP, (1 - done) / (1 - WARM_UP)) for done in progress]


def image_size(sizes: tuple[int, int, int], epoch: int, epochs: int) -> int:
    """Return the size of the images of an epoch (from 1), of the three sizes of a run: the last epoch has the last.

    Progressive resizing (Howard 2018), but by cropping: most can be learned as well from a part of an image.
    """
    return sizes[sum(epoch / epochs > share for share in GROWTH)]


def cut_size(epoch: int, epochs: int) -> int:
    """Return the side of the square that is cut out of each image of an epoch (from 1), or 0.

    Cutout (DeVries and Taylor 2017, arXiv:1708.04552) keeps a network from learning its images by heart. A short run
    does not: it is hardly better on them than in validation. The first images of a run, the smallest, stay whole too.
    """
    return CUT_SIZE if epochs >= LONG_RUN and epoch / epochs > GROWTH[0] else 0


def images_to_train_on(losses: torch.Tensor, skipped_share: float, epoch: int, epochs: int) -> torch.Tensor:
    """Return the indices of the images of an epoch (from 1), in random order; known ones may be left out.

    `losses` (N,) are those of each image when it was last trained on. From the warm-up's end on, `skipped_share` of the
    half with the lowest losses is skipped. That is InfoBatch (Qin et al. 2024, arXiv:2303.04947), but with fixed
    shares, without weights, and until the end.
    """
    order = torch.randperm(len(losses))
    if (epoch - 1) / epochs < WARM_UP:
        return order
    known = (losses < losses.quantile(KNOWN, interpolation="lower")).nonzero().flatten()
    # Always as many: last batches of ever new sizes would fill the memory with convolutions compiled for them.
    skipped = known[torch.randperm(len(known))[: int(skipped_share * len(known))]]
    return order[~torch.isin(order, skipped)]


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    learning_rates: list[float],
    label_smoothing: float = 0.0,
    precision: str = "float32",
    title: str = "training",
) -> tuple[torch.Tensor, float]:
    """Train on each batch of the loader once, with one learning rate a batch; `title` names the epoch.

    Returns the losses (N,), without label smoothing, and the accuracy (0 to 1), of all images as they were met.
    Raises RunError if the loss becomes NaN or infinite.
    """
    model.train()
    losses, correct = [], []  # kept on the device: a copy from it has to wait for all that it is computing
    batches = tqdm(loader, desc=title, leave=False, disable=None)
    for step, ((images, labels), learning_rate) in enumerate(zip(batches, learning_rates, strict=True), start=1):
        logits = compute_logits(model, images, precision)
        losses.append(cross_entropy(logits.detach(), labels, reduction="none"))
        check_loss(losses[-1].mean().item(), f"in {title}, step {step} of {len(loader)}")
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        cross_entropy(logits, labels, label_smoothing=label_smoothing).backward()
        with autocast(images, precision):  # for the matrix products of Muon
            optimizer.step()
        correct.append(logits.argmax(dim=1) == labels)
    losses = torch.cat(losses).cpu()
    return losses, torch.cat(correct).sum().item() / len(losses)


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
    """The mean loss and the accuracy (0 to 1) over all images of a loader, with logits (N, classes) and labels (N,)."""

    loss: float
    accuracy: float
    logits: torch.Tensor
    labels: torch.Tensor

    def confusion_matrix(self) -> torch.Tensor:
        """Return the number of images of each actual class (row) that were taken for each class (column)."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.logits.argmax(dim=1)
        return pairs.bincount(minlength=classes * classes).view(classes, classes)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, precision: str = "float32", title: str = "evaluation") -> Evaluation:
    """Run the model over a loader without training it. Raises RunError if the loss is NaN or infinite."""
    model.eval()
    batches = [(compute_logits(model, images, precision), labels) for images, labels in loader]
    logits = torch.cat([logits for logits, _ in batches]).cpu()
    labels = torch.cat([labels for _, labels in batches]).cpu()
    loss = cross_entropy(logits, labels).item()
    check_loss(loss, f"in the {title}")
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    return Evaluation(loss, accuracy, logits, labels)


@dataclass
class Progress:
    """What a run has done: its options, a row of numbers for each finished epoch, the best weights by validation.

    `image_losses` (N,) are those of each training image when it was last trained on, infinite before.
    """

    options: dict
    image_losses: torch.Tensor
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def add_epoch(self, numbers: tuple[float, ...], model: nn.Module) -> None:
        """Append the numbers of a finished epoch, in the order of HISTORY, and keep the weights if they are best."""
        row = dict(zip(HISTORY, numbers, strict=True))
        best = self.history[self.best_epoch - 1]["validation_accuracy"] if self.history else -1
        if row["validation_accuracy"] > best:
            self.best_epoch = row["epoch"]
            self.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.history.append(row)


def save_checkpoints(folder: Path, progress: Progress, model: nn.Module, optimizer: Optimizer) -> None:
    """Write best.pt (the best weights so far) and last.pt (the same, and all that is needed to go on) into `folder`."""
    best = {name: value for name, value in vars(progress).items() if name != "image_losses"}
    momentum = [optimizer.state[parameter]["momentum_buffer"] for parameter in parameters_of(optimizer)]
    last = {**vars(progress), "weights": model.state_dict(), "momentum": dict(enumerate(momentum))}
    for name, checkpoint in (("best.pt", best), ("last.pt", last)):
        buffer = BytesIO()  # torch.save would turn a full disk into a RuntimeError of its own
        torch.save(checkpoint, buffer)
        with replace_when_complete(folder / name) as temporary:
            temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(
    path: Path, new: Progress, must_match: tuple[str, ...], model: nn.Module, optimizer: Optimizer | None = None
) -> Progress:
    """Restore the best weights (from best.pt), or if there is an optimizer, the last ones and its momentum (last.pt).

    `must_match` names the options that the run of the checkpoint must share with `new`, the progress of this one.
    Raises InputError if the file is missing, damaged, not plain data, or made with other options.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}: train without --resume and --test-only first")
    try:
        checkpoint = read_checkpoint(path)
        numbers_and_weights = (checkpoint[name] for name in ("history", "best_epoch", "best_weights"))
        progress = Progress(checkpoint["options"], new.image_losses, *numbers_and_weights)
        check_options(progress.options, new.options, must_match)
        check_history(progress)
        restore_weights(model, progress.best_weights)
        if optimizer:
            restore_weights(model, checkpoint["weights"])
            restore_momentum(optimizer, checkpoint["momentum"])
            check_tensors({"losses": checkpoint["image_losses"]}, {"losses": new.image_losses})
            progress.image_losses = checkpoint["image_losses"]
    except OtherOptions as error:
        raise InputError(f"{path} was made with other options: {error}") from None
    except Exception as error:  # what a damaged or foreign file can raise has no end
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no checkpoint of this project ({reason}): train anew") from None
    return progress


class OtherOptions(Exception):
    """A checkpoint was made with other options than this run has."""


def read_checkpoint(path: Path) -> dict:
    """Read a file of plain data. zipfile compares the checksums of its parts, which torch.load does not do."""
    with zipfile.ZipFile(path) as archive:
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise zipfile.BadZipFile("compressed parts")  # torch.save makes none; a few kB could fill the memory
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*sparse")  # PyTorch warns of sparse tensors, and this project saves none
        return torch.load(path, map_location="cpu", weights_only=True)


def check_options(saved: dict, options: dict, must_match: tuple[str, ...]) -> None:
    """Raise OtherOptions that lists those of the options named in `must_match` that were others when it was saved."""
    if saved.keys() != options.keys():
        raise ValueError("its options are not those of main.py")
    different = [name for name in must_match if saved[name] != options[name]]
    if different:
        lines = [f"--{name.replace('_', '-')} {str(saved[name])[:40]}, not {options[name]}" for name in different]
        raise OtherOptions("; ".join(lines))


def check_history(progress: Progress) -> None:
    """Raise ValueError or TypeError unless each epoch has a row of plain numbers, and one of them is the best."""
    json.dumps([progress.options, progress.history], allow_nan=False)  # nothing but what metrics.json can hold
    if type(progress.history) is not list or type(progress.best_epoch) is not int:
        raise TypeError("its history is no list of epochs")
    for epoch, row in enumerate(progress.history, start=1):
        if set(row) != set(HISTORY) or row["epoch"] != epoch or not all(0 <= row[name] < 1e30 for name in row):
            raise ValueError(f"the history of epoch {epoch} is {row}")
    if not 1 <= progress.best_epoch <= len(progress.history):
        raise ValueError(f"best epoch {progress.best_epoch} of {len(progress.history)}")


def restore_weights(model: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    check_tensors(weights, model.state_dict())
    model.load_state_dict(weights)


def restore_momentum(optimizer: Optimizer, momentum: dict[int, torch.Tensor]) -> None:
    parameters = parameters_of(optimizer)
    check_tensors(momentum, dict(enumerate(parameters)))
    for number, parameter in enumerate(parameters):
        optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(momentum[number])


def parameters_of(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def check_tensors(found: dict, expected: dict) -> None:
    """Raise ValueError unless both hold tensors of the same names, types and shapes. PyTorch casts and copies first."""

    def kinds(tensors: dict) -> dict:
        return {name: (tensor.dtype, tensor.layout, tensor.shape) for name, tensor in tensors.items()}

    if kinds(found) != kinds(expected):
        raise ValueError("its tensors are not those of this network")
