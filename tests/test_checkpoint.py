"""utils/checkpoint.py: a run's own folder; what is saved goes on as if nothing had happened."""

import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

from main import train_one_epoch
from utils import checkpoint
from utils.checkpoint import Progress, new_folder, restore, run_folder, save_checkpoints
from utils.data import batches, training_batches
from utils.evaluation import evaluate
from utils.files import InputError
from utils.optimizer import make_optimizer
from utils.recipe import Recipe
from utils.schedule import plan_epoch

import pytest
import torch
from helpers import Trap, make_dataset, make_model, without_times
from torch import nn

RECIPE = Recipe(model="convnet", epochs=4, batch_size=8, optimizer="muon", crop_sizes=(18, 26, 32), skipped_share=0.5)
NEW = Namespace(dry_run=False, resume=None, test_only=None)
RESUME = Namespace(dry_run=False, resume=True, test_only=None)
TEST = Namespace(dry_run=False, resume=None, test_only=True)


class Training:
    """A network in training, and what it has done."""

    def __init__(self, recipe: Recipe = RECIPE, make: Callable = make_optimizer) -> None:
        self.recipe = recipe
        self.model = make_model(recipe.model)
        self.optimizer = make(recipe, self.model)
        self.dataset = make_dataset(40)
        self.progress = Progress(recipe, "synthetic", 40, 0.0)

    def train(self, *epochs: int) -> "Training":
        for epoch in epochs:
            plan = plan_epoch(self.recipe, epoch, self.progress.image_losses)
            losses = train_one_epoch(self.model, training_batches(self.dataset, plan), self.optimizer, plan)
            evaluation = evaluate(self.model, batches(self.dataset))
            self.progress.add_epoch(plan, losses, evaluation, evaluation, self.model)
        return self

    def save(self, folder: Path) -> "Training":
        save_checkpoints(folder, self.progress, self.model, self.optimizer)
        return self

    def resume(self, folder: Path) -> "Training":
        restore(folder, self.progress, self.model, self.optimizer)
        return self

    def refusal(self, folder: Path, test_only: bool = False) -> str:
        with pytest.raises(InputError) as caught:
            restore(folder, self.progress, self.model, None if test_only else self.optimizer)
        assert "\n" not in str(caught.value) and str(folder / "last.pt") in str(caught.value)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run that was stopped after two of four epochs."""
    Training().train(1, 2).save(tmp_path)
    return tmp_path


# Saved and restored


def adamw(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=recipe.lr)


@pytest.mark.parametrize(
    ("recipe", "make"),
    [(RECIPE, make_optimizer), (replace(RECIPE, optimizer="sgd"), make_optimizer), (RECIPE, adamw)],
    ids=["muon", "sgd", "AdamW in the place of make_optimizer"],
)
def test_a_resumed_run_ends_like_one_never_stopped(tmp_path: Path, recipe: Recipe, make: Callable) -> None:
    unbroken = Training(recipe, make).train(1, 2).save(tmp_path).train(3, 4)
    resumed = Training(recipe, make).resume(tmp_path).train(3, 4)
    states = []
    for training in (unbroken, resumed):
        training.save(tmp_path)
        states.append(without_times(torch.load(tmp_path / "last.pt", weights_only=True)))
    assert states[0] == states[1]


def test_best_pt_holds_the_weights_of_the_first_of_the_best_epochs(folder: Path) -> None:
    training = Training().resume(folder)
    progress = training.progress
    assert [row["epoch"] for row in progress.history] == [1, 2]
    accuracies = [row["validation_accuracy"] for row in progress.history]
    assert progress.best_epoch == 1 + accuracies.index(max(accuracies))
    training.model.load_state_dict(torch.load(folder / "best.pt"))
    assert evaluate(training.model, batches(training.dataset)).accuracy == max(accuracies)
    assert progress.image_losses.isfinite().all()
    assert progress.total_seconds() > progress.seconds_before > 0


# What does not fit


def test_each_field_of_the_recipe_is_saved_and_compared(folder: Path) -> None:
    saved = torch.load(folder / "last.pt", weights_only=True)["recipe"]
    assert saved == asdict(RECIPE)
    for choice in fields(Recipe):
        value = getattr(RECIPE, choice.name)
        if isinstance(value, str):
            changed = "mlp" if choice.name == "model" else "sgd"
        elif isinstance(value, tuple):
            changed = (*value[:-1], 1)
        else:
            changed = choice.metadata["high"]
        training = Training()
        training.progress.recipe = replace(RECIPE, **{choice.name: changed})
        assert f"--{choice.name.replace('_', '-')} " in training.refusal(folder)


def test_other_images_and_another_network_are_refused(folder: Path) -> None:
    training = Training()
    training.progress.dataset = "cifar10"
    assert "--dataset synthetic" in training.refusal(folder, test_only=True)
    wider = Training()
    wider.model, wider.progress.recipe = make_model("convnet", 0.3), replace(RECIPE, width=0.3)
    assert "does not fit this network or optimizer (--width 1.0)" in wider.refusal(folder, test_only=True)
    assert "another optimizer than AdamW" in Training(RECIPE, adamw).refusal(folder)


def test_testing_does_not_compare_how_it_was_trained(folder: Path) -> None:
    progress = Progress(replace(RECIPE, epochs=9, lr=0.3), "synthetic", 40, 0.0)
    restore(folder, progress, make_model(), None)
    assert progress.recipe == RECIPE and len(progress.history) == 2


def test_an_edited_network_is_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Training().resume(folder)
    assert capsys.readouterr().err == ""
    edited = tmp_path / "model.py"
    edited.write_text(checkpoint.NETWORKS.read_text(encoding="utf-8").replace("SiLU", "ReLU"), encoding="utf-8")
    monkeypatch.setattr(checkpoint, "NETWORKS", edited)
    training = Training()
    for optimizer in (training.optimizer, None):  # --resume, --test-only
        restore(folder, training.progress, training.model, optimizer)
        warning = capsys.readouterr().err
        assert warning.count("\n") == 1 and "model.py was edited" in warning and folder.name in warning


def test_a_damaged_or_foreign_checkpoint_is_refused(folder: Path) -> None:
    path = folder / "last.pt"
    genuine = path.read_bytes()
    torch.save({"weights": torch.zeros(3)}, path)
    foreign = path.read_bytes()
    for content in (b"", genuine[:-1000], b"a text", foreign):
        path.write_bytes(content)
        assert "is damaged or no checkpoint of this project" in Training().refusal(folder)
    path.write_bytes(genuine)
    expected = without_times(torch.load(path, weights_only=True))
    for position in range(100, len(genuine), len(genuine) // 40):
        path.write_bytes(genuine[:position] + bytes([genuine[position] ^ 0xFF]) + genuine[position + 1 :])
        try:
            assert without_times(checkpoint.read_checkpoint(path)) == expected  # a byte that nothing reads
        except InputError as error:
            assert "is damaged" in str(error)


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    state = torch.load(folder / "last.pt", weights_only=True)
    torch.save(state | {"history": Trap(folder / "trapped")}, folder / "last.pt")
    refusal = Training().refusal(folder)
    assert "no plain data" in refusal and "weights_only" not in refusal  # PyTorch advises to trust the file
    assert not (folder / "trapped").exists()


def test_what_cannot_be_read_is_not_called_damaged(folder: Path) -> None:
    (folder / "last.pt").unlink()
    assert "there is no checkpoint" in Training().refusal(folder)
    (folder / "last.pt").mkdir()  # as a file that another program holds, it cannot be opened
    refusal = Training().refusal(folder)
    assert "cannot read" in refusal and "damaged" not in refusal and "train anew" not in refusal


# The folder of a run


def test_each_run_makes_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "cifar10-convnet-large-7").mkdir()
    (tmp_path / "cifar10-convnet-3").write_text("a file", encoding="utf-8")
    made = [new_folder(tmp_path, "cifar10-convnet-").name for _ in range(2)]
    assert made == ["cifar10-convnet-4", "cifar10-convnet-5"]


def test_of_two_runs_at_once_each_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As both see it before either has made one.
    monkeypatch.setattr(checkpoint, "run_numbers", lambda out_dir, name: [])
    assert new_folder(tmp_path, "run-") != new_folder(tmp_path, "run-")


def test_the_newest_run_of_the_recipe_with_a_finished_epoch_is_found(tmp_path: Path) -> None:
    others = {1: RECIPE, 2: RECIPE, 3: replace(RECIPE, lr=0.3), 10: RECIPE}
    for number, recipe in others.items():
        path = tmp_path / f"synthetic-convnet-{number}"
        path.mkdir()
        if number != 10:  # stopped in its first epoch
            Training(recipe).train(1).save(path)
    for options, recipe, expected in (
        (RESUME, RECIPE, "synthetic-convnet-2"),
        (RESUME, replace(RECIPE, lr=0.3), "synthetic-convnet-3"),
        (TEST, RECIPE, "synthetic-convnet-2"),
        (TEST, replace(RECIPE, seed=5), "synthetic-convnet-3"),
        (Namespace(**vars(RESUME) | {"resume": tmp_path / "synthetic-convnet-1"}), RECIPE, "synthetic-convnet-1"),
    ):
        with run_folder(Namespace(**vars(options), out_dir=tmp_path), recipe, "synthetic") as found:
            assert found.name == expected
    options = Namespace(**vars(RESUME), out_dir=tmp_path)
    advice = "no run in .* synthetic-convnet-3 was made with --lr 0.3; --seed 0: train first"
    with pytest.raises(InputError, match=advice):
        run_folder(options, replace(RECIPE, seed=5), "synthetic").__enter__()


def test_an_output_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = [tmp_path / "file", tmp_path / "file" / "below"]
    if hasattr(os, "symlink") and os.name != "nt":  # a plain account of Windows may make no links
        (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
        places.append(tmp_path / "dangling")
    for place in places:
        with pytest.raises(InputError, match=r"--out-dir: cannot write to .*: choose another folder"):
            run_folder(Namespace(**vars(NEW), out_dir=place), RECIPE, "synthetic").__enter__()
