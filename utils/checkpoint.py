"""A run's own folder, and what the run has done so far: kept, saved, restored."""

import hashlib
import os
import pickle
import time
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

from utils.evaluation import Evaluation
from utils.files import InputError, make_folder, retry_while_held, warn, write_problem, write_whole
from utils.recipe import Recipe
from utils.schedule import EpochPlan

import torch
from torch import nn
from torch.optim import Optimizer

NETWORKS = Path(__file__).with_name("model.py")
PARTS = {  # of last.pt; the last three are for going on with the training
    *("dataset", "recipe", "code", "history", "best_epoch", "best_weights", "seconds"),
    *("image_losses", "weights", "optimizer"),
}


@contextmanager
def run_folder(options: Namespace, recipe: Recipe, dataset: str) -> Iterator[Path]:
    """Yield the folder of a run: a new one, or with --resume or --test-only that of an earlier run.

    Raises InputError if there is no such run, or if the folder cannot be written.
    """
    earlier = options.resume or options.test_only
    name = f"{dataset}-{recipe.model}-"
    if not earlier:
        folder = new_folder(options.out_dir, name) if not options.dry_run else options.out_dir / "dry-run"
    else:
        folder = earlier if isinstance(earlier, Path) else find_run(options, name, recipe)
        if not folder.is_dir():
            raise InputError(f"--resume, --test-only: there is no folder {folder}")
    try:
        if options.dry_run:
            make_folder(folder, "--out-dir")
        try_to_write(folder)
        yield folder
    except KeyboardInterrupt as stop:
        raise type(stop)(advice_after_stop(folder, options)) from None
    finally:
        if not earlier:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def advice_after_stop(folder: Path, options: Namespace) -> str:
    if options.dry_run or options.test_only:
        return "start again"
    if (folder / "last.pt").exists():
        return "go on after the last finished epoch with the same options and --resume"
    return "no epoch was finished, so start again"


def new_folder(out_dir: Path, name: str) -> Path:
    """Make the folder `name` with the next free number; in one step, so that no two runs get the same one."""
    make_folder(out_dir, "--out-dir")
    number = max(run_numbers(out_dir, name), default=0)
    while True:
        number += 1
        try:
            (out_dir / f"{name}{number}").mkdir()
            return out_dir / f"{name}{number}"
        except FileExistsError:
            continue
        except OSError as error:
            raise write_problem("--out-dir", out_dir, error) from None


def run_numbers(out_dir: Path, name: str) -> list[int]:
    endings = (path.name.removeprefix(name) for path in out_dir.glob("*") if path.name.startswith(name))
    return sorted(int(ending) for ending in endings if ending.isdecimal())


def try_to_write(folder: Path) -> None:
    """Write a file with the longest name of a run, and remove it, before the first epoch is trained."""
    path = folder / ".try-to-write.tmp"  # longer than predictions.png
    try:
        path.write_bytes(b"")
        retry_while_held(path.unlink)
    except OSError as error:
        raise write_problem("--out-dir", folder, error) from None


def find_run(options: Namespace, name: str, recipe: Recipe) -> Path:
    """Return the folder of the newest run of the same recipe that has a finished epoch.

    If there is none, a run of the same network with other options can be tested, not resumed.
    """
    newest, differences = None, ""
    for number in reversed(run_numbers(options.out_dir, name)):
        folder = options.out_dir / f"{name}{number}"
        if os.path.exists(folder / "last.pt"):
            others = differences_of(read_checkpoint(folder / "last.pt"), recipe)
            if not others:
                return folder
            newest = newest or folder
            differences = differences or f"; {folder.name} was made with {others}"
    if options.test_only and newest:
        return newest
    raise InputError(f"--resume, --test-only: no run in {options.out_dir} has these options{differences}: train first")


class Progress:
    """What a run has done: a row of numbers for each finished epoch, and the best weights by validation accuracy."""

    def __init__(self, recipe: Recipe, dataset: str, image_count: int, started: float) -> None:
        self.recipe = recipe
        self.dataset = dataset
        self.code = code_hash()  # now: the file may be edited while the run goes on
        self.history: list[dict[str, float]] = []  # accuracies are shares from 0 to 1
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


def save_checkpoints(folder: Path, progress: Progress, model: nn.Module, optimizer: Optimizer) -> None:
    """Write best.pt (the best weights) and last.pt (all that is needed to go on, or to test) into `folder`.

    In this order, so that a run that is killed in between repeats the epoch and its best.pt.
    """
    last = {
        "dataset": progress.dataset,
        "recipe": asdict(progress.recipe),
        "code": progress.code,
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "best_weights": progress.best_weights,
        "seconds": progress.total_seconds(),
        "image_losses": progress.image_losses,
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    for name, content in (("best.pt", progress.best_weights), ("last.pt", last)):
        buffer = BytesIO()  # torch.save would turn a full disk into a RuntimeError of its own
        torch.save(content, buffer)
        write_whole(folder / name, buffer.getvalue())


def code_hash() -> str:
    return hashlib.sha256(NETWORKS.read_text(encoding="utf-8").encode()).hexdigest()


def restore(folder: Path, progress: Progress, model: nn.Module, optimizer: Optimizer | None) -> None:
    """Restore progress from the last.pt of `folder` and, to go on training, model and optimizer too.

    Raises InputError if the file is missing, damaged, not plain data, or does not fit; warns of edited networks.
    """
    path = folder / "last.pt"
    saved = read_checkpoint(path)
    others = differences_of(saved, progress.recipe)
    if saved["dataset"] != progress.dataset or (others and optimizer):
        raise InputError(f"{path} was made with other options: {others or '--dataset ' + str(saved['dataset'])[:40]}")
    try:
        model.load_state_dict(saved["best_weights"])
        if optimizer:
            model.load_state_dict(saved["weights"])
            check_same_kind(saved["optimizer"], optimizer)
            optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} does not fit this network or optimizer ({others or reason})") from None
    if saved["code"] != progress.code:
        warn(f"WARNING: {NETWORKS.name} was edited after {folder.name} was trained: these weights are of other code")
    progress.recipe = Recipe(**saved["recipe"])
    progress.history, progress.best_epoch = saved["history"], saved["best_epoch"]
    progress.best_weights, progress.seconds_before = saved["best_weights"], saved["seconds"]
    progress.image_losses = saved["image_losses"]


def check_same_kind(saved: dict, optimizer: Optimizer) -> None:
    """Raise ValueError if the state is of an optimizer with other settings: PyTorch itself compares numbers only."""
    if [group.keys() for group in saved["param_groups"]] != [group.keys() for group in optimizer.param_groups]:
        raise ValueError(f"it was trained with another optimizer than {type(optimizer).__name__}")


def differences_of(saved: dict, recipe: Recipe) -> str:
    """Return the options in which the saved recipe differs from this one."""
    return "; ".join(Recipe(**saved["recipe"]).options(recipe))


def read_checkpoint(path: Path) -> dict:
    """Read a last.pt, which is plain data. Raises InputError if it is missing, damaged or foreign.

    zipfile compares the checksums of its parts, which torch.load does not do.
    """
    try:
        content = BytesIO(retry_while_held(path.read_bytes))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no checkpoint {path}: train first") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): does another program hold it?") from None
    try:
        with zipfile.ZipFile(content) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        content.seek(0)
        saved = torch.load(content, map_location="cpu", weights_only=True)
        if saved.keys() != PARTS:
            raise pickle.UnpicklingError("other parts than this project saves")
        Recipe(**saved["recipe"])
    except Exception as error:  # what a foreign file makes zipfile and PyTorch raise has no end
        # PyTorch's own text advises to trust the file.
        reason = str(error) if isinstance(error, zipfile.BadZipFile) else f"no plain data, {type(error).__name__}"
        raise InputError(f"{path} is damaged or no checkpoint of this project ({reason}): train anew") from None
    return saved
