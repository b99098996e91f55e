"""main.py: whole runs, from the command line to the last figure, and whatever ends them."""

import errno
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import main
from utils import data, files
from utils.data import LabelledImages
from utils.model import MODELS
from utils.recipe import Recipe
from utils.synthetic import CLASS_NAMES, draw_images

import matplotlib
import numpy as np
import pytest
import torch
from conftest import SmallCifar10
from helpers import (
    FILES,
    MINUTE,
    PROJECT,
    TINY,
    Outcome,
    contents,
    end_of,
    names_in,
    read_json,
    results,
    run_script,
    start_script,
)
from matplotlib.image import imread
from torch import nn

GO_ON = "stopped: go on after the last finished epoch with the same options and --resume\n"
START_AGAIN = "stopped: no epoch was finished, so start again\n"
UNIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")


@cache
def few_images() -> LabelledImages:
    """Return 200 synthetic images for training and validation and 40 for test."""
    parts = [tuple(map(torch.from_numpy, draw_images(count, seed=0))) for count in (200, 40)]
    return LabelledImages("synthetic", "Synthetic images (not CIFAR-10)", CLASS_NAMES, *parts)


@pytest.fixture
def quick(no_figures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "load_synthetic", few_images)


# A whole run


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Train the default network, but a narrow one, on all synthetic images."""
    options = ("--dataset", "synthetic", "--width", "0.15", "--epochs", "4", "--device", "cpu")
    return run_script(tmp_path_factory.mktemp("run"), *options)


def test_a_run_learns_and_warns_of_nothing(whole_run: Outcome) -> None:
    assert (whole_run.code, whole_run.err) == (0, "")
    assert names_in(whole_run.folder) == FILES
    assert read_json(whole_run.folder / "metrics.json")["test_accuracy"] > 0.6  # guessing: 0.1


def test_what_is_printed_can_be_read_in_a_log_file(whole_run: Outcome) -> None:
    lines = whole_run.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["run", "images", "device", "choices", "output"]
    assert lines[3].split(None, 1)[1] == "recipe convnet, --width 0.15, --epochs 4"
    assert sum(line.split()[:1] == [str(epoch)] for epoch in range(1, 5) for line in lines) == 4
    assert all(line.isprintable() and len(line) < 200 for line in lines)
    assert {Path(line.split()[-1]).name for line in lines[-7:]} == FILES


def test_metrics_tell_all_of_the_run(whole_run: Outcome) -> None:
    metrics = read_json(whole_run.folder / "metrics.json")
    assert metrics["recipe"]["width"] == 0.15 and set(metrics["recipe"]) == set(vars(Recipe()))
    assert metrics["images"] == {"training": 1800, "training_sample": 200, "validation": 200, "test": 1000}
    assert [row["epoch"] for row in metrics["history"]] == list(range(1, 5))
    accuracies = [row["validation_accuracy"] for row in metrics["history"]]
    assert metrics["best_epoch"] == 1 + accuracies.index(max(accuracies))
    assert np.mean(list(metrics["class_accuracy"].values())) == pytest.approx(metrics["test_accuracy"], abs=1e-3)
    assert metrics["seconds"]["total"] > metrics["seconds"]["training"] > 0


def test_the_figures_are_pictures_of_their_own(whole_run: Outcome) -> None:
    pictures = [imread(whole_run.folder / name) for name in sorted(FILES) if name.endswith(".png")]
    assert len(pictures) == 4 and all(picture.std() > 0.05 for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4


def test_testing_again_finds_the_same_and_trains_nothing(no_figures: None, whole_run: Outcome) -> None:
    weights = (whole_run.folder / "best.pt").read_bytes()
    again = run_script(
        whole_run.folder.parent, "--dataset", "synthetic", "--device", "cpu", "--width", "0.15", "--test-only"
    )
    assert again.folder == whole_run.folder and "after epoch 4" in again.out
    line = next(line for line in whole_run.out.splitlines() if line.startswith("test "))
    assert line in again.out.splitlines() and "validation loss" not in again.out
    assert (whole_run.folder / "best.pt").read_bytes() == weights


@pytest.mark.parametrize("model", MODELS)
def test_each_network_runs_on_cifar10(
    no_figures: None, small_cifar10: SmallCifar10, tmp_path: Path, model: str
) -> None:
    options = ("--dataset", "cifar10", "--data-dir", small_cifar10.data_dir, "--model", model, "--width", "0.05")
    outcome = run_script(tmp_path, *options, "--epochs", "2", "--batch-size", "60", "--device", "cpu")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.folder.name == f"cifar10-{model}-1" and outcome.out.startswith(f"run      CIFAR-10, {model} with")


def test_a_network_of_plain_layers_trains_with_each_optimizer(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no batch normalization, a lazy layer, and a scale of four dimensions."""

    class Plain(nn.Module):
        def __init__(self, classes: int, width: float) -> None:
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.LazyLinear(classes)
            self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head((self.scale * self.convolution(images).relu()).flatten(1))

    monkeypatch.setitem(MODELS, "plain", Plain)
    monkeypatch.setattr(main, "RECIPES", [*main.RECIPES, Recipe(model="plain", epochs=2, batch_size=60, lr=0.01)])
    for optimizer in ("sgd", "muon", "adam"):
        options = ("--dataset", "synthetic", "--device", "cpu", "--model", "plain", "--optimizer", optimizer)
        assert run_script(tmp_path, *options).code == 0


# Runs beside runs


def test_a_new_run_changes_nothing_of_older_ones(quick: None, tmp_path: Path) -> None:
    (tmp_path / ".notes.tmp").write_text("of another program", encoding="utf-8")
    first = run_script(tmp_path, *TINY, "--epochs", "2")
    before = contents(tmp_path)
    second, dry = run_script(tmp_path, *TINY, "--epochs", "1"), run_script(tmp_path, *TINY, "--dry-run")
    assert [run.folder.name for run in (first, second, dry)] == ["synthetic-mlp-1", "synthetic-mlp-2", "dry-run"]
    after = contents(tmp_path)
    assert {path: after[path] for path in before} == before
    assert run_script(tmp_path, *TINY, "--dry-run").folder == dry.folder and names_in(dry.folder) == FILES


# Whatever ends a run


@UNIX
def test_a_killed_run_ends_as_if_never_killed(no_figures: None, tmp_path: Path) -> None:
    options = [*TINY, "--epochs", "3"]
    unbroken = run_script(tmp_path / "unbroken", *options)
    process = start_script(["--out-dir", tmp_path / "killed", *options])
    try:
        for line in process.stdout:
            if line.startswith("    2 "):  # two epochs are finished
                process.kill()
    finally:
        assert end_of(process).code == -signal.SIGKILL  # not ended before
    resumed = run_script(tmp_path / "killed", *options, "--resume")
    assert resumed.code == 0 and names_in(tmp_path / "killed") == {"synthetic-mlp-1"}
    assert results(resumed.folder) == results(unbroken.folder)


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "metrics.json", "curves.png"])
def test_a_run_cut_off_between_two_files_goes_on(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """In its last epoch: no later one can write again what is missing."""
    unbroken = run_script(tmp_path / "unbroken", *TINY, "--epochs", "1")
    genuine = os.replace

    def cut_off(source: Path, target: Path) -> None:
        genuine(source, target)
        if target.name == name:
            raise KeyboardInterrupt

    def cut_off_curves(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut_off)
        if name == "curves.png":
            patch.setattr(main, "plot_curves", cut_off_curves)
        stopped = run_script(tmp_path / "cut", *TINY, "--epochs", "1")
    assert (stopped.code, stopped.err) == (130, START_AGAIN if name == "best.pt" else GO_ON)
    goes_on = [] if name == "best.pt" else ["--resume"]
    resumed = run_script(tmp_path / "cut", *TINY, "--epochs", "1", *goes_on)
    assert resumed.code == 0 and results(resumed.folder) == results(unbroken.folder)


@UNIX
@pytest.mark.parametrize(
    ("number", "code", "moment", "line"),
    [(signal.SIGINT, 130, "epoch ", START_AGAIN), (signal.SIGTERM, 143, "    1 ", GO_ON)],
)
def test_a_stopped_run_says_in_one_line_how_to_go_on(
    tmp_path: Path, number: int, code: int, moment: str, line: str
) -> None:
    options = ["--dataset", "synthetic", "--width", "0.5", "--epochs", "500", "--device", "cpu", "--out-dir", tmp_path]
    process = start_script(options, before="import signal; signal.signal(signal.SIGINT, signal.default_int_handler)")
    try:
        next(printed for printed in process.stdout if printed.startswith(moment))
        process.send_signal(number)
    finally:
        outcome = end_of(process)
    assert (outcome.code, outcome.err) == (code, line)
    assert bool(names_in(tmp_path)) == (line == GO_ON)


@UNIX
def test_ctrl_c_while_pytorch_is_imported_is_one_line() -> None:
    """The script itself sends it, from a module that stands in the place of a part of PyTorch."""
    interrupt = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    interrupt += "class Finder:\n    def find_spec(self, name, path=None, target=None):\n"
    interrupt += "        if name == 'torch.nn': os.kill(os.getpid(), signal.SIGINT)\nsys.meta_path.insert(0, Finder())"
    assert end_of(start_script([], before=interrupt)).err == "stopped before anything was done\n"


def test_wrong_options_and_data_are_one_line_each(small_cifar10: SmallCifar10, quick: None, tmp_path: Path) -> None:
    (small_cifar10.folder / "data_batch_2").write_bytes(b"damaged")
    for options, message in (
        ((*TINY, "--epochs", "0"), "--epochs"),
        ((*TINY, "--batch-size", "181"), "--batch-size: 181 is more than the 180 training images"),
        ((*TINY, "--crop-sizes", "18", "26", "32"), "--crop-sizes: the network takes no images of 26 x 26 pixels"),
        (("--data-dir", small_cifar10.data_dir), "data_batch_2 is damaged (7 bytes"),
    ):
        outcome = run_script(tmp_path / "out", *options)
        assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1
        assert not (tmp_path / "out").exists() or names_in(tmp_path / "out") == set()


@UNIX
def test_a_full_disk_costs_the_run_and_is_one_line(quick: None, tmp_path: Path) -> None:
    """Nothing half written stays."""
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, unlimited[1]))  # between best.pt and last.pt
        outcome = run_script(tmp_path, *TINY, "--epochs", "2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (outcome.code, names_in(outcome.folder)) == (1, {"best.pt"})
    assert outcome.err == f"error: cannot write {outcome.folder / 'last.pt'} (File too large)\n"


def test_a_held_figure_costs_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program holds it, as on Windows."""
    genuine = os.replace

    def replace(source: Path, target: Path) -> None:
        if target.name == "curves.png":
            raise PermissionError(errno.EACCES, "Access is denied")
        genuine(source, target)

    monkeypatch.setattr(data, "load_synthetic", few_images)
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    monkeypatch.setattr(os, "replace", replace)
    outcome = run_script(tmp_path, *TINY, "--epochs", "2")
    assert outcome.code == 0 and outcome.err.count("\n") == 1
    assert f"WARNING: cannot write {outcome.folder / 'curves.png'} (Access is denied): does" in outcome.err


# Where it runs


@UNIX
def test_a_run_where_almost_nothing_is_there(tmp_path: Path) -> None:
    """No standard streams, no home folder, a backend of matplotlib that is not installed, another current folder."""
    command = [sys.executable, PROJECT / "main.py", *TINY, "--dry-run", "--threads", "1", "--out-dir", tmp_path / "out"]
    environment = {
        "MPLBACKEND": "no_such_backend",
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
        "PATH": os.environ["PATH"],
    }
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *map(str, command)]
    subprocess.run(closed, cwd=tmp_path, env=environment, check=True, timeout=MINUTE)
    assert names_in(tmp_path / "out" / "dry-run") == FILES


def test_one_epoch_on_the_real_images(real_data_dir: Path, tmp_path: Path) -> None:
    options = ("--dataset", "cifar10", "--data-dir", real_data_dir, "--width", "0.25", "--device", "cpu")
    outcome = run_script(tmp_path, *options, "--epochs", "1")
    assert outcome.code == 0 and read_json(outcome.folder / "metrics.json")["test_accuracy"] > 0.5
