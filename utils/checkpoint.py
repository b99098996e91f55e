"""What a run has done so far: kept, saved, restored."""

import json
import time
import warnings
import zipfile
from io import BytesIO
from pathlib import Path

import torch
from torch import nn

from utils.errors import InputError
from utils.files import replace_when_complete
from utils.optimizer import Muon
from utils.schedule import EpochPlan
from utils.training import Evaluation

Settings = dict[str, str | float]

# A run can test what another run has trained, or go on with it, only if these settings are the same in both.
TEST_SETTINGS = ("dataset", "model", "width")
TRAINING_SETTINGS = (*TEST_SETTINGS, "epochs", "batch_size", "lr", "weight_decay", "label_smoothing", "seed", "dry_run")
EPOCH = {  # the numbers of an epoch; accuracies are shares from 0 to 1
    "epoch": 1,
    "learning_rate": 0.0,
    "train_loss": 0.0,
    "train_accuracy": 0.0,
    "validation_loss": 0.0,
    "validation_accuracy": 0.0,
    "seconds": 0.0,
}


class Progress:
    """What a run has done: a row of numbers for each finished epoch, and the best weights by validation accuracy."""

    def __init__(self, settings: Settings, image_count: int, started: float) -> None:
        self.settings = settings
        self.history: list[dict[str, float]] = []
        self.best_epoch = 0
        self.best_weights: dict[str, torch.Tensor] = {}
        self.image_losses = torch.full((image_count,), torch.inf)  # of each training image when last trained on
        self.started = started
        self.seconds_before = 0.0  # of the runs that this one goes on after

    def add_epoch(
        self, plan: EpochPlan, losses: torch.Tensor, training: Evaluation, validation: Evaluation, model: nn.Module
    ) -> None:
        """Note the numbers of a finished epoch, and the weights if they are the best so far."""
        self.image_losses[plan.indices] = losses
        row = {
            "epoch": plan.epoch,
            "learning_rate": max(plan.learning_rates),
            "train_loss": training.loss,
            "train_accuracy": training.accuracy,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "seconds": time.perf_counter() - plan.started,
        }
        if not self.history or validation.accuracy > self.history[self.best_epoch - 1]["validation_accuracy"]:
            self.best_epoch = plan.epoch
            # On the CPU, so that best.pt can be read where there is no GPU.
            self.best_weights = {name: tensor.cpu().clone() for name, tensor in model.state_dict().items()}
        self.history.append(row)

    def total_seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def results(self) -> dict:
        """Return what testing the best weights needs."""
        return {
            "settings": self.settings,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "seconds": self.total_seconds(),
        }

    def restore(self, results: dict) -> None:
        self.settings = self.settings | results["settings"]
        self.history = results["history"]
        self.best_epoch = results["best_epoch"]
        self.best_weights = results["best_weights"]
        self.seconds_before = results["seconds"]


def training_state(progress: Progress, model: nn.Module, optimizer: Muon) -> dict:
    """Return what going on with the training needs, besides the results."""
    return {
        "image_losses": progress.image_losses,
        "weights": dict(model.state_dict()),
        "momentum": optimizer.all_momentum(),
    }


def save_checkpoints(folder: Path, progress: Progress, model: nn.Module, optimizer: Muon) -> None:
    """Write best.pt (the best weights) and last.pt (all that is needed to go on, or to test) into `folder`.

    In this order, so that a run that is killed in between repeats the epoch and its best.pt.
    """
    write_checkpoint(folder / "best.pt", progress.best_weights)
    write_checkpoint(folder / "last.pt", progress.results() | training_state(progress, model, optimizer))


def write_checkpoint(path: Path, checkpoint: dict) -> None:
    buffer = BytesIO()  # torch.save would turn a full disk into a RuntimeError of its own
    torch.save(checkpoint, buffer)
    with replace_when_complete(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def resume_training(path: Path, progress: Progress, model: nn.Module, optimizer: Muon) -> None:
    """Restore progress, model and optimizer from the last.pt of a run with the same settings.

    Raises InputError if the file is missing, damaged, not plain data, or was made with other settings.
    """
    template = training_state(progress, model, optimizer)
    state = load_checkpoint(path, progress, TRAINING_SETTINGS, model, template)
    model.load_state_dict(state["weights"])
    progress.image_losses = state["image_losses"]
    for number, momentum in optimizer.all_momentum().items():
        momentum.copy_(state["momentum"][number])


def load_results(path: Path, progress: Progress, model: nn.Module) -> None:
    """Restore progress from the last.pt of a run, to test its best weights. Raises InputError as `resume_training`."""
    load_checkpoint(path, progress, TEST_SETTINGS, model, {})


def load_checkpoint(path: Path, progress: Progress, must_match: tuple[str, ...], model: nn.Module, state: dict) -> dict:
    """Restore progress from a checkpoint and return the checkpoint, in which there is something like all of `state`.

    The settings named by `must_match` must be those of `progress`.
    """
    if not path.exists():
        raise InputError(f"there is no checkpoint {path}: train without --resume and --test-only first")
    template = {"history": [EPOCH], "best_epoch": 1, "best_weights": dict(model.state_dict()), "seconds": 0.0, **state}
    try:
        checkpoint = read_checkpoint(path)
        check_settings(checkpoint["settings"], progress.settings, must_match)
        check_alike({name: checkpoint[name] for name in template}, template, "it")
        check_epochs(checkpoint["history"], checkpoint["best_epoch"])
    except OtherSettings as error:
        raise InputError(f"{path} was made with other options: {error}") from None
    except Exception as error:  # what a damaged or foreign file can raise has no end
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged or no checkpoint of this project ({reason}): train anew") from None
    progress.restore(checkpoint)
    return checkpoint


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


class OtherSettings(Exception):
    """A checkpoint was made with other settings than this run has."""


def check_settings(saved: Settings, settings: Settings, must_match: tuple[str, ...]) -> None:
    """Raise OtherSettings that lists those named by `must_match` that differ; an older checkpoint may lack some."""
    json.dumps(saved, allow_nan=False)  # raises if they are not plain data
    different = [name for name in must_match if saved.get(name, settings[name]) != settings[name]]
    if different:
        lines = [f"--{name.replace('_', '-')} {str(saved[name])[:40]}, not {settings[name]}" for name in different]
        raise OtherSettings("; ".join(lines))


def check_alike(found: object, template: object, name: str) -> None:
    """Raise ValueError unless `found` has the type and parts of `template`, its tensors, and numbers from 0 on.

    PyTorch would first cast and copy a wrong tensor.
    """
    if type(found) is not type(template):
        raise ValueError(f"{name} is of type {type(found).__name__}, not {type(template).__name__}")
    if isinstance(template, dict):
        if found.keys() != template.keys():
            raise ValueError(f"{name} has other parts than this run would save")
        for key, part in template.items():
            check_alike(found[key], part, f"{key}")
    elif isinstance(template, list):
        for item in found:
            check_alike(item, template[0], name)
    elif isinstance(template, torch.Tensor):
        if (found.dtype, found.layout, found.shape) != (template.dtype, template.layout, template.shape):
            raise ValueError(f"the tensor {name} is not one of this network")
    elif not 0 <= found < 1e30:
        raise ValueError(f"{name} is {found}")


def check_epochs(history: list[dict], best_epoch: int) -> None:
    """Raise ValueError unless the epochs are numbered from 1, and one of them is the best."""
    if [row["epoch"] for row in history] != list(range(1, len(history) + 1)):
        raise ValueError("its epochs are not numbered from 1")
    if not 1 <= best_epoch <= len(history):
        raise ValueError(f"best epoch {best_epoch} of {len(history)}")
