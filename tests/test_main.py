"""main.py: whole runs, what they leave behind, and how they go on."""

import errno
import math
import os
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import main
from utils import files
from utils.checkpoint import Progress
from utils.data import batches, load_synthetic, split_dataset
from utils.files import write_json
from utils.model import MODELS
from utils.synthetic import CLASS_NAMES as SHAPE_NAMES

import pytest
import torch
from conftest import CLASS_NAMES, SmallCifar10
from helpers import (
    FILES,
    TINY,
    Outcome,
    contents,
    draw_nothing,
    few_images,
    read_json,
    results,
    run_script,
    visible_files,
    write_pixels,
)
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn
from utils.errors import InputError, RunError
from utils.training import evaluate

FIGURES = ("confusion.png", "curves.png", "mistakes.png", "predictions.png")
CHECKPOINTS = ("best.pt", "last.pt")
EPOCH_NUMBERS = {
    *("epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"),
}
# One epoch of the default recipe on the real images. Measured with seeds 0 and 1: 83.2 % and 82.0 %.
ONE_EPOCH_ACCURACY = 0.78


def refuse(out_dir: Path, *options: object, code: int = 2) -> str:
    """Run what must end in one line with nothing overwritten; return the line."""
    before = contents(out_dir.parent)
    run = run_script(out_dir, *options)
    assert run.code == code, run.err
    assert run.err.startswith("error: ") and run.err.endswith("\n") and run.err[:-1].isprintable()
    assert contents(out_dir.parent) == before
    return run.err


# A whole run on the drawn images

WHOLE = ("--dataset", "synthetic", "--width", 0.3, "--epochs", 3, "--batch-size", 64)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run from another current directory, into a folder with a space in its name."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    out_dir = tmp_path_factory.mktemp("results") / "out puts"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(elsewhere)
        run = run_script(out_dir, *WHOLE)
    assert os.listdir(elsewhere) == []
    assert os.listdir(out_dir) == ["synthetic"]
    return run


def test_a_run_ends_well_and_warns_of_nothing(whole_run: Outcome) -> None:
    assert (whole_run.code, whole_run.err) == (0, "")
    assert visible_files(whole_run.folder) == FILES


def test_the_network_learns_to_tell_the_shapes_apart(whole_run: Outcome) -> None:
    metrics = whole_run.metrics
    assert metrics["test_accuracy"] > 0.9
    assert set(metrics["class_accuracy"]) == set(SHAPE_NAMES)
    shares = list(metrics["class_accuracy"].values())  # of equally many test images
    assert sum(shares) / 10 == pytest.approx(metrics["test_accuracy"])
    assert metrics["history"][0]["train_loss"] > metrics["history"][-1]["train_loss"] > 0


def test_metrics_tell_all_of_the_run(whole_run: Outcome) -> None:
    metrics = whole_run.metrics
    assert metrics["dataset"] == "synthetic"
    recipe = main.RECIPES["convnet"] | {"width": 0.3, "epochs": 3, "batch_size": 64}
    settings = {"dataset": "synthetic", "model": "convnet", "seed": 0, "dry_run": False}
    assert metrics["settings"] == recipe | settings
    for package in ("torch", "numpy", "matplotlib"):
        assert metrics["versions"][package] == sys.modules[package].__version__
    assert metrics["versions"]["python"] == sys.version.split()[0]
    assert metrics["device"].split()[0] in ("cpu", "cuda", "mps")
    assert metrics["precision"] in ("float32", "bfloat16")
    images = metrics["images"]
    assert images["training"] == 9 * images["validation"] == 9 * images["training_sample"] > 0 and images["test"] > 0
    assert all(math.isfinite(metrics[name]) for name in ("test_loss", "test_accuracy", "test_confidence"))
    history = metrics["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(set(row) == EPOCH_NUMBERS for row in history)
    assert sum(row["seconds"] for row in history) == metrics["seconds"]["training"] <= metrics["seconds"]["total"]
    accuracies = [row["validation_accuracy"] for row in history]
    assert metrics["best_epoch"] == 1 + accuracies.index(max(accuracies))


def test_what_is_printed_can_be_read_in_a_log_file(whole_run: Outcome) -> None:
    out, metrics = whole_run.out, whole_run.metrics
    assert all(letter.isprintable() or letter == "\n" for letter in out)  # no escape code, no carriage return
    assert "Synthetic images (not CIFAR-10)" in out
    assert f"{metrics['parameters']:,}" in out and metrics["precision"] in out and metrics["device"] in out
    epoch_lines = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d", line)]
    assert [int(line[0]) for line in epoch_lines] == [row["epoch"] for row in metrics["history"]]
    for line, row in zip(epoch_lines, metrics["history"], strict=True):
        assert f"{row['train_loss']:.4f}" in line and f"{row['validation_accuracy']:.2%}" in line
    assert "best" in epoch_lines[metrics["best_epoch"] - 1]
    assert f"accuracy {metrics['test_accuracy']:.2%}" in out
    assert all(name in out for name in SHAPE_NAMES)
    assert all(str(whole_run.folder / name) in out for name in FILES)


def test_the_figures_are_pictures_of_their_own(whole_run: Outcome) -> None:
    assert len({(whole_run.folder / name).read_bytes() for name in FIGURES}) == 4
    for name in FIGURES:
        pixels = imread(whole_run.folder / name)
        assert min(pixels.shape[:2]) > 300
        assert pixels[..., :3].std() > 0.02  # not one colour


def test_best_pt_holds_the_weights_and_nothing_else(whole_run: Outcome) -> None:
    """One line is enough to use them."""
    model = MODELS["convnet"](width=0.3)
    model.load_state_dict(torch.load(whole_run.folder / "best.pt"))
    metrics, data = whole_run.metrics, load_synthetic()
    splits = split_dataset(data, 64)
    test = evaluate(model, batches(splits.test), metrics["precision"])
    assert test.accuracy == pytest.approx(metrics["test_accuracy"], abs=0.005)
    best = metrics["history"][metrics["best_epoch"] - 1]
    for split, name in ((splits.training_sample, "train_accuracy"), (splits.validation, "validation_accuracy")):
        measured = evaluate(model, batches(split), metrics["precision"])
        assert measured.accuracy == pytest.approx(best[name], abs=0.011)


def test_testing_again_finds_the_same(whole_run: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an epoch there is no table, and the checkpoints stay as they are."""
    draw_nothing(monkeypatch)
    folder = shutil.copytree(whole_run.folder, tmp_path / "synthetic")
    options = ("--dataset", "synthetic", "--width", 0.3, "--device", "cpu", "--test-only")
    again = run_script(tmp_path, *options)
    assert (again.code, again.err) == (0, "")
    assert "validation loss" not in again.out and "test     accuracy" in again.out
    after, before = again.metrics, whole_run.metrics
    assert after["test_accuracy"] == before["test_accuracy"]
    assert after["test_loss"] == pytest.approx(before["test_loss"], rel=1e-4)
    for name in ("class_accuracy", "history", "best_epoch", "settings"):
        assert after[name] == before[name]
    for name in CHECKPOINTS:
        assert (folder / name).read_bytes() == (whole_run.folder / name).read_bytes()


def test_the_figures_show_the_test_images(tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}
    for name in ("predictions", "mistakes", "confusion"):
        monkeypatch.setattr(main, f"plot_{name}", lambda *arguments, name=name: drawn.update({name: arguments}))
    run = run_script(tmp_path, *TINY, "--epochs", 1)
    data, accuracy = few_images(), run.metrics["test_accuracy"]
    for name in ("predictions", "mistakes"):
        images, probabilities, labels, class_names, title, path = drawn[name]
        assert (images == data.test_images.numpy()).all() and (labels == data.test_labels.numpy()).all()
        assert (probabilities.argmax(axis=1) == labels).mean() == pytest.approx(accuracy)
        assert class_names == SHAPE_NAMES and path == run.folder / f"{name}.png"
        assert f"{100 * accuracy:.1f} %" in title and "not CIFAR-10" in title
    matrix, class_names, title, path = drawn["confusion"]
    assert matrix.sum() == 40 and matrix.trace() / 40 == pytest.approx(accuracy)
    assert class_names == SHAPE_NAMES and path == run.folder / "confusion.png"


# Every network


class OwnNetwork(nn.Module):
    """What a student adds, and nothing more. One layer is frozen, and one is never used."""

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, kernel_size=4, stride=4).requires_grad_(False)
        self.unused = nn.Linear(3, 3)
        self.layer = nn.Linear(4 * 8 * 8, round(100 * width))
        self.head = nn.Linear(round(100 * width), classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.frozen(images).flatten(1)).relu())


NETWORKS = ("convnet", "convnet-large", "mlp", "own")
SMALL = ("--dataset", "synthetic", "--width", 0.1, "--batch-size", 60, "--epochs", 2, "--device", "cpu")


@pytest.fixture
def own_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "own", OwnNetwork)
    monkeypatch.setitem(main.RECIPES, "own", main.RECIPES["mlp"])


@pytest.mark.parametrize("model", NETWORKS)
def test_each_network_runs_on_cifar10(
    small_cifar10: SmallCifar10, own_network: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    draw_nothing(monkeypatch)
    run = run_script(
        tmp_path / "out", *SMALL, "--dataset", "cifar10", "--data-dir", small_cifar10.data_dir, "--model", model
    )
    assert (run.code, run.err) == (0, "")
    assert visible_files(run.folder) == FILES
    assert run.metrics["dataset"] == "cifar10" and run.metrics["settings"]["model"] == model
    assert run.metrics["test_views"] == (6 if model == "convnet-large" else 1)
    assert set(run.metrics["class_accuracy"]) == set(CLASS_NAMES)
    assert "CIFAR-10" in run.out and "ynthetic" not in run.out


def stop_after_an_epoch(out_dir: Path, *options: object) -> Outcome:
    """Run until Ctrl-C comes, after the line of the first epoch."""

    def print_and_stop(progress: Progress) -> None:
        print_epoch(progress)
        raise KeyboardInterrupt

    print_epoch = main.print_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "print_epoch", print_and_stop)
        return run_script(out_dir, *options)


def test_ctrl_c_leaves_what_the_finished_epochs_made(tmp_path: Path, quick_runs: None) -> None:
    stopped = stop_after_an_epoch(tmp_path, *SMALL)
    assert stopped.code == 130
    assert stopped.err == "stopped: go on with --resume\n"
    assert visible_files(stopped.folder) == {"best.pt", "curves.png", "last.pt", "metrics.json"}
    assert [row["epoch"] for row in stopped.metrics["history"]] == [1]
    assert stopped.metrics["test_accuracy"] is None


@pytest.mark.parametrize("model", NETWORKS)
def test_a_resumed_run_ends_like_one_never_stopped(
    quick_runs: None, own_network: None, tmp_path: Path, model: str
) -> None:
    options = (*SMALL, "--model", model)
    whole = run_script(tmp_path / "whole", *options)
    stopped = stop_after_an_epoch(tmp_path / "stopped", *options)
    known = stopped.last["image_losses"]
    resumed = run_script(tmp_path / "stopped", *options, "--resume")
    assert (whole.code, whole.err) == (resumed.code, resumed.err) == (0, "")
    assert not re.search(r"^ +1 +\d", resumed.out, re.MULTILINE) and re.search(r"^ +2 +\d", resumed.out, re.MULTILINE)
    assert visible_files(resumed.folder) == FILES
    assert results(resumed.folder) == results(whole.folder)

    # The second epoch skips images that the first knew well, if the network asks for it.
    skipped = known == whole.last["image_losses"]
    if getattr(MODELS[model], "skipped_share", 0):
        assert 0.4 < skipped.float().mean() < 0.5
        assert known[skipped].max() <= known.median()
    else:
        assert not skipped.any()


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "metrics.json", "curves.png"])
def test_a_run_cut_off_between_two_files_goes_on(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The last epoch is finished, but only some of its files are written."""

    def draw(history: list, best_epoch: int, title: str, path: Path) -> None:
        write_json(path, {"epochs": len(history)})

    def fail(source: Path, target: Path) -> None:
        if Path(target).name == name:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(main, "plot_curves", draw)
    replace = os.replace
    options = (*TINY, "--epochs", 1)
    whole = run_script(tmp_path / "whole", *options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", fail)
        cut_off = run_script(tmp_path / "cut off", *options)
    assert cut_off.code == 130
    goes_on = ["--resume"] if (cut_off.folder / "last.pt").exists() else []
    assert run_script(tmp_path / "cut off", *options, *goes_on).code == 0
    assert results(cut_off.folder) == results(whole.folder)
    assert read_json(cut_off.folder / "curves.png") == {"epochs": 1}


def test_a_recipe_without_a_network_is_refused(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main.RECIPES, "own", main.RECIPES["mlp"])
    line = refuse(tmp_path / "out", *SMALL, "--model", "own")
    assert "--model" in line and "no own" in line and "utils/model.py" in line


# What the options do


def test_a_dry_run_is_small_and_costs_no_results(tmp_path: Path, quick_runs: None) -> None:
    earlier = run_script(tmp_path, *SMALL)
    before = contents(earlier.folder)
    run = run_script(tmp_path, *SMALL, "--dry-run", "--epochs", 100)
    assert (run.code, run.err) == (0, "")
    assert visible_files(run.folder) == FILES and run.folder == tmp_path / "dry-run"
    assert len(run.metrics["history"]) == 1
    assert run.metrics["images"] == {"training": 60, "training_sample": 20, "validation": 20, "test": 40}
    assert contents(earlier.folder) == before


def test_the_seed_decides_the_run(tmp_path: Path, quick_runs: None) -> None:
    losses = []
    for seed in (0, 0, 1):
        metrics = run_script(tmp_path, *SMALL, "--dry-run", "--seed", seed).metrics
        losses.append([metrics["history"][0]["train_loss"], metrics["test_loss"]])
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[2][0] and losses[0][1] != losses[2][1]


def test_the_weights_of_the_best_epoch_are_tested(tmp_path: Path, quick_runs: None) -> None:
    for seed in range(8):  # until a run ends with another epoch than its best
        trained = run_script(tmp_path, *SMALL, "--epochs", 4, "--seed", seed).metrics
        accuracies = [row["validation_accuracy"] for row in trained["history"]]
        assert trained["best_epoch"] == 1 + accuracies.index(max(accuracies))
        if trained["best_epoch"] != 4:
            break
    assert trained["best_epoch"] != 4
    tested = run_script(tmp_path, *SMALL, "--test-only").metrics
    assert tested["test_loss"] == trained["test_loss"] and tested["class_accuracy"] == trained["class_accuracy"]
    model = MODELS["convnet"](width=0.1)
    model.load_state_dict(torch.load(tmp_path / "synthetic" / "best.pt"))


def test_auto_goes_on_with_drawn_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    options = ("--data-dir", tmp_path / "none", "--model", "mlp", "--width", 0.05, "--epochs", 1)
    run = run_script(tmp_path / "out", *options)
    assert run.code == 0, run.err
    assert "WARNING" in run.err and "NOT CIFAR-10" in run.err
    assert "Synthetic images (not CIFAR-10)" in run.out
    assert os.listdir(tmp_path / "out") == ["synthetic"]
    assert run.metrics["dataset"] == run.metrics["settings"]["dataset"] == "synthetic"


# Going on after another process


def test_a_finished_run_is_only_tested_again(tmp_path: Path, quick_runs: None) -> None:
    finished = run_script(tmp_path, *TINY, "--epochs", 1).metrics
    resumed = run_script(tmp_path, *TINY, "--epochs", 1, "--resume").metrics
    assert resumed["history"] == finished["history"] and resumed["test_loss"] == finished["test_loss"]


def change_last(folder: Path, change: Callable[[dict], object]) -> None:
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "last.pt")


@pytest.mark.parametrize("option", ["--resume", "--test-only"])
def test_seconds_are_those_of_all_processes(tmp_path: Path, quick_runs: None, option: str) -> None:
    """The training that is added up was in an earlier process."""

    def be_slow(checkpoint: dict) -> None:
        checkpoint["history"][0]["seconds"], checkpoint["seconds"] = 900.0, 1000.0

    stopped = stop_after_an_epoch(tmp_path, *TINY, "--epochs", 2)
    change_last(stopped.folder, be_slow)
    seconds = run_script(tmp_path, *TINY, "--epochs", 2, option).metrics["seconds"]
    assert seconds["training"] >= 900 and seconds["total"] > 1000


@pytest.mark.parametrize("option", ["--resume", "--test-only"])
def test_a_checkpoint_older_than_an_option_is_taken(tmp_path: Path, quick_runs: None, option: str) -> None:
    stopped = stop_after_an_epoch(tmp_path, *TINY, "--epochs", 2)
    change_last(stopped.folder, lambda checkpoint: checkpoint["settings"].pop("label_smoothing"))
    run = run_script(tmp_path, *TINY, "--epochs", 2, option)
    assert (run.code, run.err) == (0, "")
    assert "label_smoothing" in run.metrics["settings"]


@pytest.mark.parametrize("option", ["--resume", "--test-only"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, quick_runs: None, option: str) -> None:
    path = run_script(tmp_path, *TINY, "--epochs", 1).folder / "last.pt"
    path.write_bytes(path.read_bytes()[:-200])
    line = refuse(tmp_path, *TINY, "--epochs", 1, option)
    assert str(path) in line and "damaged" in line


def test_options_that_must_match_are_named(tmp_path: Path, quick_runs: None) -> None:
    """Going on needs the same recipe, testing only the same network."""
    path = run_script(tmp_path, *TINY, "--epochs", 1).folder / "last.pt"
    others = ("--epochs", 3, "--batch-size", 50, "--lr", 0.07, "--weight-decay", 0.01, "--label-smoothing", 0.3)
    line = refuse(tmp_path, *TINY, *others, "--seed", 4, "--resume")
    for option, value in zip(others[::2], others[1::2], strict=True):
        assert len(re.findall(rf"{option} \S+, not {value}", line)) == 1
    assert str(path) in line and "--seed 0, not 4" in line and "--width" not in line
    assert run_script(tmp_path, *TINY, *others, "--seed", 4, "--test-only").code == 0
    for option in ("--resume", "--test-only"):
        line = refuse(tmp_path, *TINY, "--epochs", 1, "--width", 0.1, option)
        assert line.count("--width 0.05, not 0.1") == 1
        assert "--model mlp, not convnet" in refuse(tmp_path, *TINY, "--epochs", 1, "--model", "convnet", option)


# Bad input


@pytest.mark.parametrize(("option", "value"), [("--epochs", "0"), ("--batch-size", "181")])
def test_a_wrong_option_is_refused_before_anything(tmp_path: Path, quick_runs: None, option: str, value: str) -> None:
    line = refuse(tmp_path / "out", *SMALL, option, value)
    assert option in line and value in line
    assert os.listdir(tmp_path) == []


def test_a_damaged_data_file_is_named(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    path = small_cifar10.folder / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    line = refuse(tmp_path / "out", *SMALL, "--dataset", "cifar10", "--data-dir", small_cifar10.data_dir)
    assert "data_batch_3" in line


def test_a_useless_output_folder_is_found_at_once(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "train_one_epoch", None)
    (tmp_path / "file").write_text("precious")
    line = refuse(tmp_path / "file", *SMALL)
    assert "--out-dir" in line and str(tmp_path / "file") in line


# Numbers


NUMBERS = {
    "constant images": ({"train_images": torch.full((200, 32, 32, 3), 128, dtype=torch.uint8)}, 60),
    "one class only": ({"train_labels": torch.full((200,), 3), "test_labels": torch.full((40,), 3)}, 60),
    "one batch": ({}, 180),
    "a last batch of one image": ({}, 179),
}


@pytest.mark.parametrize(("parts", "batch_size"), NUMBERS.values(), ids=NUMBERS)
def test_degenerate_data_can_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, torch.Tensor], batch_size: int
) -> None:
    monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: few_images(**parts))
    monkeypatch.setattr(Figure, "savefig", write_pixels)
    run = run_script(tmp_path, *SMALL, "--epochs", 1, "--batch-size", batch_size)
    assert (run.code, run.err) == (0, "")
    assert visible_files(run.folder) == FILES
    assert run.metrics["test_accuracy"] is not None


def test_a_loss_that_becomes_nan_costs_no_checkpoint(tmp_path: Path, quick_runs: None) -> None:
    assert run_script(tmp_path, *SMALL).code == 0
    line = refuse(tmp_path, *SMALL, "--lr", 1e6, "--epochs", 20, "--batch-size", 10, code=1)
    assert re.search(r"(nan|inf) in epoch \d+, step \d+", line) and "--lr" in line


def test_an_evaluation_that_becomes_nan_is_never_saved(tmp_path: Path, quick_runs: None) -> None:
    assert run_script(tmp_path, *TINY, "--epochs", 1).code == 0
    # The second and last step of the epoch spoils the weights: no training batch is left to notice.
    line = refuse(tmp_path, *TINY, "--lr", 1e6, "--epochs", 1, "--batch-size", 90, code=1)
    assert re.search(r"(nan|inf) in an evaluation", line) and "--lr" in line


# Files that another program holds


def hold(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let another program hold these files for ever, as on Windows."""
    replace = os.replace

    def refuse_held(source: Path, target: Path) -> None:
        if Path(target).name in names:
            raise PermissionError(errno.EACCES, "Access is denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_held)
    monkeypatch.setattr(files, "PATIENCE", 0)


def test_held_figures_cost_one_warning_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "load_dataset", lambda choice, data_dir: few_images())
    monkeypatch.setattr(Figure, "savefig", write_pixels)
    held = (*FIGURES, "metrics.json")
    hold(monkeypatch, *held)
    run = run_script(tmp_path, *TINY, "--epochs", 2)
    assert run.code == 0, run.err
    lines = run.err.splitlines()
    assert len(lines) == len(held) and all(line.startswith("WARNING: ") for line in lines)
    assert all(run.err.count(str(run.folder / name)) == 1 for name in held)
    assert visible_files(run.folder) == set(CHECKPOINTS) and len(run.last["history"]) == 2


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_held_checkpoint_ends_the_run(
    tmp_path: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hold(monkeypatch, name)
    run = run_script(tmp_path, *TINY)
    assert run.code == 1
    assert run.err.startswith("error: ") and run.err.count("\n") == 1 and str(run.folder / name) in run.err


# Again in the same interpreter


@pytest.mark.parametrize(
    "ending", [KeyboardInterrupt(), ValueError("a mistake of the student"), InputError("--lr"), RunError("nan")]
)
def test_after_any_ending_the_interpreter_runs_again(tmp_path: Path, quick_runs: None, ending: BaseException) -> None:
    def fail(*arguments: object) -> None:
        raise ending

    with pytest.MonkeyPatch.context() as patch, suppress(ValueError):
        patch.setattr(main, "train_one_epoch", fail)
        assert run_script(tmp_path, *TINY).code > 0
    assert run_script(tmp_path, *TINY, "--epochs", 1).code == 0


# The real images


def test_one_epoch_on_the_real_images(real_data_dir: Path, tmp_path: Path) -> None:
    run = run_script(tmp_path, "--dataset", "cifar10", "--data-dir", real_data_dir, "--epochs", 1)
    assert run.code == 0, run.err
    images = {"training": 45_000, "training_sample": 5_000, "validation": 5_000, "test": 10_000}
    assert run.metrics["images"] == images
    assert run.metrics["test_accuracy"] > ONE_EPOCH_ACCURACY
