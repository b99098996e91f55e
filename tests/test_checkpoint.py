"""utils/checkpoint.py: a run goes on exactly, and a file that is not its own is refused in one line."""

import math
import os
import pickle
import random
import time
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from utils.checkpoint import EPOCH, Progress, load_results, resume_training, save_checkpoints
from utils.data import training_batches
from utils.model import MLP
from utils.optimizer import Muon, make_optimizer
from utils.schedule import Schedule

import pytest
import torch
from helpers import make_dataset, make_model, same_state
from torch import nn
from utils.errors import InputError
from utils.training import Evaluation, train_one_epoch

IMAGES = 50
SETTINGS = {
    **{"dataset": "synthetic", "model": "convnet", "width": 0.1, "epochs": 3, "batch_size": 16, "lr": 0.1},
    **{"weight_decay": 5e-4, "label_smoothing": 0.1, "seed": 0, "dry_run": False},
}
RIGHT = Evaluation(torch.eye(10), torch.arange(10))  # all of its predictions


def new_progress(**settings: str | float) -> Progress:
    return Progress(SETTINGS | settings, IMAGES, time.perf_counter())


def evaluation(accuracy: float) -> Evaluation:
    """Return the evaluation of ten images with this share of right predictions."""
    return Evaluation(torch.eye(10), torch.where(torch.arange(10) < round(10 * accuracy), torch.arange(10), 0))


def train(
    model: nn.Module,
    optimizer: Muon,
    progress: Progress,
    epochs: range,
    accuracies: tuple[float, ...] = (0.7, 0.6, 0.5),
) -> None:
    """Train like main.py, with validation accuracies that are given."""
    schedule = Schedule.for_model(model, 3, 16, 0.1, 0)
    for epoch in epochs:
        plan = schedule.plan(epoch, progress.image_losses)
        losses = train_one_epoch(model, training_batches(make_dataset(IMAGES), plan), optimizer, plan, 0.1)
        progress.add_epoch(plan, losses, RIGHT, evaluation(accuracies[epoch - 1]), model)


def save_run(folder: Path) -> tuple[list[nn.Module], Progress]:
    """Train two of three epochs, the first the best, save after each; return the model as it was after each."""
    model, progress, snapshots = make_model(), new_progress(), []
    optimizer = make_optimizer(model, 5e-4)
    for epoch in (1, 2):
        train(model, optimizer, progress, range(epoch, epoch + 1))
        save_checkpoints(folder, progress, model, optimizer)
        snapshots.append(make_model(seed=9))
        snapshots[-1].load_state_dict(model.state_dict())
    return snapshots, progress


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the checkpoints of `save_run`."""
    save_run(tmp_path)
    return tmp_path


# Going on


def test_a_resumed_run_ends_like_one_never_interrupted(folder: Path) -> None:
    whole, whole_progress = make_model(), new_progress()
    train(whole, make_optimizer(whole, 5e-4), whole_progress, range(1, 4))
    resumed, progress = make_model(seed=5), new_progress()
    optimizer = make_optimizer(resumed, 5e-4)
    resume_training(folder / "last.pt", progress, resumed, optimizer)
    assert [row["epoch"] for row in progress.history] == [1, 2]
    torch.rand(1)  # whatever else has used random numbers
    train(resumed, optimizer, progress, range(3, 4))
    assert same_state(whole, resumed)
    assert torch.equal(whole_progress.image_losses, progress.image_losses)


def test_the_best_weights_are_those_of_the_best_epoch(tmp_path: Path) -> None:
    (after_first, after_second), saved = save_run(tmp_path)
    assert not same_state(after_first, after_second)
    model, progress = make_model(seed=5), new_progress()
    load_results(tmp_path / "last.pt", progress, model)
    model.load_state_dict(progress.best_weights)
    assert same_state(model, after_first)
    assert progress.best_epoch == 1 and progress.history == saved.history
    resume_training(tmp_path / "last.pt", progress, model, make_optimizer(model, 0.0))
    assert same_state(model, after_second)


def test_best_pt_is_a_plain_state_dict(tmp_path: Path) -> None:
    (after_first, _), _ = save_run(tmp_path)
    model = make_model(seed=5)
    model.load_state_dict(torch.load(tmp_path / "best.pt"))
    assert same_state(model, after_first)


def test_the_first_of_equally_good_epochs_is_the_best() -> None:
    progress, model, best = new_progress(), make_model("mlp"), []
    schedule = Schedule(5, 16, 0.1, 0)
    for epoch, accuracy in enumerate((0.0, 0.4, 0.4, 0.6, 0.5), start=1):
        plan = schedule.plan(epoch, progress.image_losses)
        progress.add_epoch(plan, torch.zeros(IMAGES), RIGHT, evaluation(accuracy), model)
        best.append(progress.best_epoch)
    assert best == [1, 2, 2, 4, 4]


def test_an_epoch_is_noted_with_its_numbers() -> None:
    progress = new_progress()
    plan = Schedule(1, 16, 0.1, 0).plan(1, progress.image_losses)
    progress.add_epoch(plan, torch.arange(50.0), RIGHT, evaluation(0.4), make_model("mlp"))
    row = progress.history[0]
    assert row.keys() == EPOCH.keys()
    assert (row["epoch"], row["learning_rate"]) == (1, max(plan.learning_rates))
    assert (row["train_accuracy"], row["validation_accuracy"]) == (1.0, pytest.approx(0.4))
    assert row["train_loss"] < row["validation_loss"] and row["seconds"] > 0
    assert torch.equal(progress.image_losses[plan.indices], torch.arange(50.0))


def test_checkpoints_are_plain_data(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["best.pt", "last.pt"]
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    assert checkpoint["settings"] == SETTINGS
    assert all(row.keys() == EPOCH.keys() for row in checkpoint["history"])


def test_seconds_add_up_over_the_runs(folder: Path) -> None:
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    assert checkpoint["seconds"] >= sum(row["seconds"] for row in checkpoint["history"])
    progress, model = new_progress(), make_model()
    resume_training(folder / "last.pt", progress, model, make_optimizer(model, 0.0))
    assert progress.total_seconds() > checkpoint["seconds"]


# Files that are not this run's


def load_both_ways(folder: Path, **settings: str | float) -> None:
    model = make_model()
    load_results(folder / "last.pt", new_progress(**settings), model)
    resume_training(folder / "last.pt", new_progress(**settings), model, make_optimizer(model, 0.0))


def refusal(folder: Path, **settings: str | float) -> str:
    """Return the one line with which last.pt is refused."""
    with pytest.raises(InputError) as caught:
        load_both_ways(folder, **settings)
    message = str(caught.value)
    assert str(folder / "last.pt") in message and "\n" not in message
    return message


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    assert "--resume" in refusal(tmp_path)


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def compress(content: bytes) -> bytes:
    """PyTorch never compresses; a file of a few kilobytes that does could unpack to terabytes."""
    parts, compressed = zipfile.ZipFile(BytesIO(content)), BytesIO()
    with zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in parts.namelist():
            archive.writestr(name, parts.read(name))
    return compressed.getvalue()


DAMAGE = {
    "flipped byte": flip_a_byte,
    "truncated": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-200],
    "empty": lambda content: b"",
    "another kind of file": lambda content: b"an essay\n" * 100,
    "pickled": lambda content: pickle.dumps([1, 2]),
    "compressed": compress,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    load_both_ways(folder)
    path = folder / "last.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert "damaged" in refusal(folder)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**checkpoint, "history": Trap(folder / "sprung")}, folder / "last.pt")
    assert "damaged" in refusal(folder)
    assert not (folder / "sprung").exists()


def test_all_other_settings_that_matter_are_listed(folder: Path) -> None:
    message = refusal(folder, model="mlp", lr=0.3)
    assert "other options" in message and "--model convnet, not mlp" in message and "lr" not in message
    model = make_model()
    with pytest.raises(InputError) as caught:
        resume_training(folder / "last.pt", new_progress(lr=0.3, width=0.2), model, make_optimizer(model, 0.0))
    message = str(caught.value)
    assert message.count("--width 0.1, not 0.2") == message.count("--lr 0.1, not 0.3") == 1
    assert "--seed" not in message and "\n" not in message


def test_testing_needs_the_same_network_and_data_only(folder: Path) -> None:
    load_results(folder / "last.pt", new_progress(lr=0.3, epochs=9, seed=7), make_model())
    with pytest.raises(InputError, match="--width 0.1, not 0.2"):
        load_results(folder / "last.pt", new_progress(width=0.2), make_model(width=0.2))


def test_a_checkpoint_from_before_a_new_option_is_taken(folder: Path) -> None:
    load_both_ways(folder, an_option_of_a_later_version=1.5)
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    del checkpoint["settings"]["label_smoothing"]
    torch.save(checkpoint, folder / "last.pt")
    load_both_ways(folder)


def test_a_checkpoint_of_other_images_is_refused(folder: Path) -> None:
    model = make_model()
    with pytest.raises(InputError, match="damaged"):
        resume_training(
            folder / "last.pt", Progress(dict(SETTINGS), IMAGES - 1, 0.0), model, make_optimizer(model, 0.0)
        )


# Checkpoints from strangers


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The last.pt of an MLP, small enough to be changed in hundreds of ways."""
    folder, model, progress = tmp_path_factory.mktemp("genuine"), MLP(width=0.005), new_progress()
    optimizer = make_optimizer(model, 0.0)
    train(model, optimizer, progress, range(1, 2))
    save_checkpoints(folder, progress, model, optimizer)
    return (folder / "last.pt").read_bytes()


def load(path: Path, content: bytes) -> bytes:
    """Resume from a checkpoint of this content; return all that was restored."""
    path.write_bytes(content)
    model, progress = MLP(width=0.005), new_progress()
    optimizer = make_optimizer(model, 0.0)
    resume_training(path, progress, model, optimizer)
    restored = {name: value for name, value in vars(progress).items() if name != "started"}
    return saved([restored, dict(model.state_dict()), optimizer.all_momentum()])


def saved(checkpoint: object) -> bytes:
    buffer = BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getvalue()


def put(*path: object) -> Callable[[dict], None]:
    """Return a change: put("history", 0, "epoch", 7) sets checkpoint["history"][0]["epoch"] to 7."""
    *keys, last, value = path

    def change(checkpoint: dict) -> None:
        part = checkpoint
        for key in keys:
            part = part[key]
        part[last] = value(part[last]) if callable(value) else value

    return change


WEIGHT = "layers.0.weight"
FOREIGN_TENSORS = {
    "of an absurd size": lambda tensor: torch.ones(1).expand(2**50),
    "of another shape": lambda tensor: tensor[:1],
    "of another type": lambda tensor: tensor.half(),
    "of complex numbers": lambda tensor: tensor.to(torch.complex64),
    "that is sparse": lambda tensor: tensor.to_sparse(),
    "that is none": lambda tensor: [1.0, 2.0],
}
HOSTILE = {
    **{f"weights with a tensor {kind}": put("weights", WEIGHT, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"best weights {kind}": put("best_weights", WEIGHT, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"momentum {kind}": put("momentum", 0, tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    **{f"losses {kind}": put("image_losses", tensor) for kind, tensor in FOREIGN_TENSORS.items()},
    "weights of another name": lambda checkpoint: checkpoint["weights"].update({"\x1b[2J": torch.ones(2)}),
    "no weights": lambda checkpoint: checkpoint.pop("weights"),
    "no momentum": put("momentum", {}),
    "a setting that is not JSON": put("settings", "lr", float("nan")),
    "a setting of another kind": put("settings", "data_dir", torch.ones(3)),
    "a setting without a name": put("settings", (1, 2), 3),
    "a setting of several lines": put("settings", "width", "0.05\n\x1b[2J"),
    "a setting without end": put("settings", "width", "9" * 100_000),
    "settings that are none": put("settings", [1, 2]),
    "seconds that are none": put("seconds", "many"),
    "an epoch that is a tensor": put("history", 0, "epoch", torch.tensor(1)),
    "a loss that is a tensor": put("history", 0, "train_loss", torch.tensor(1.0)),
    "a loss that cannot be drawn": put("history", 0, "validation_loss", 1e308),
    "a loss that is NaN": put("history", 0, "validation_loss", float("nan")),
    "a number too long for a float": put("history", 0, "seconds", 10**400),
    "another number of epochs": put("history", lambda history: history * 2),
    "no history": put("history", []),
    "a history that cannot grow": put("history", tuple),
    "a history of words": put("history", "history"),
    "a best epoch that is a tensor": put("best_epoch", torch.tensor(1)),
    "a best epoch that is no whole number": put("best_epoch", 1.0),
    "a best epoch that never was": put("best_epoch", 7),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_checkpoint_is_refused(
    genuine: bytes, tmp_path: Path, change: Callable[[dict], None], recwarn: pytest.WarningsRecorder
) -> None:
    load(tmp_path / "last.pt", genuine)
    checkpoint = torch.load(BytesIO(genuine), weights_only=True)
    change(checkpoint)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "last.pt", saved(checkpoint))
    assert str(tmp_path / "last.pt") in str(caught.value) and len(str(caught.value)) < len(str(tmp_path)) + 400
    assert not recwarn.list  # it would be a second line


def test_no_flipped_byte_changes_what_is_loaded(genuine: bytes, tmp_path: Path) -> None:
    generator = random.Random(0)
    expected, refused = load(tmp_path / "last.pt", genuine), 0
    size = len(genuine)
    # Most bytes are those of the tensors, but the names and sizes, at the ends of the file, are what is hard to check.
    for start, end, count in ((0, size, 40), (0, 3000, 30), (size - 5000, size, 30)):
        for position in generator.sample(range(start, end), count):
            flipped = bytearray(genuine)
            flipped[position] ^= 1 << generator.randrange(8)
            try:
                assert load(tmp_path / "last.pt", flipped) == expected, position
            except InputError as error:
                assert "damaged" in str(error) and "\n" not in str(error)
                refused += 1
    assert refused > 50


def test_a_loss_never_seen_is_infinite_until_it_is(genuine: bytes) -> None:
    assert new_progress().image_losses.tolist() == [math.inf] * IMAGES
    assert torch.load(BytesIO(genuine), weights_only=True)["image_losses"].isfinite().all()
