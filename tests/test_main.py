"""main.py: the whole walk, as a process of its own where that matters, and what it leaves behind."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import CLASS_NAMES, SmallCifar10
from helpers import MINUTE, PROJECT, contents, end_of, read_json, visible_files
from matplotlib.image import imread

import main as main_module
from main import main, parse_options
from utils.command_line import run_command
from utils.errors import InputError, RunError
from utils.synthetic import CLASS_NAMES as SHAPE_NAMES

FILES = {"best.pt", "confusion.png", "curves.png", "last.pt", "metrics.json", "predictions.png"}
OPTIONS = {
    *("dataset", "data_dir", "out_dir", "model", "width", "epochs", "batch_size", "lr", "weight_decay"),
    *("label_smoothing", "seed", "device", "precision", "resume", "test_only", "dry_run", "show"),
}
EPOCH_NUMBERS = {
    *("epoch", "learning_rate", "train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "seconds"),
}
# One epoch of the default recipe on the real images. Measured with seeds 0 and 1: 83.2 % and 82.0 %.
ONE_EPOCH_ACCURACY = 0.78


def start_walk(cwd: Path, *arguments: object) -> subprocess.Popen:
    """Start main.py in the folder `cwd`; it could not reach any other machine if it tried."""
    nowhere = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "main.py"), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | nowhere,
    )


@dataclass(frozen=True)
class Walk:
    """What a run of main.py left: its exit code, what it printed, and its output folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def metrics(self) -> dict:
        return read_json(self.folder / "metrics.json")


def finish_walk(process: subprocess.Popen, folder: Path) -> Walk:
    return Walk(*end_of(process), folder)


def assert_is_a_picture(path: Path) -> None:
    pixels = imread(path)
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.02  # not one colour


# The default run on the drawn images


@pytest.fixture(scope="module")
def synthetic_walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """The whole walk with default options, from another current directory, into a folder with a space in its name."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    out_dir = tmp_path_factory.mktemp("results") / "out puts"
    walk = finish_walk(start_walk(elsewhere, "--dataset", "synthetic", "--out-dir", out_dir), out_dir / "synthetic")
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in out_dir.iterdir()] == ["synthetic"]
    return walk


def test_the_walk_ends_well_and_warns_of_nothing(synthetic_walk: Walk) -> None:
    assert (synthetic_walk.code, synthetic_walk.err) == (0, "")
    assert visible_files(synthetic_walk.folder) == FILES


def test_the_network_learns_to_tell_the_shapes_apart(synthetic_walk: Walk) -> None:
    metrics = synthetic_walk.metrics
    assert metrics["test_accuracy"] > 0.9
    assert set(metrics["class_accuracy"]) == set(SHAPE_NAMES)
    shares = list(metrics["class_accuracy"].values())  # of equally many test images
    assert sum(shares) / 10 == pytest.approx(metrics["test_accuracy"])
    assert metrics["history"][0]["train_loss"] > metrics["history"][-1]["train_loss"] > 0


def test_metrics_tell_all_of_the_run(synthetic_walk: Walk) -> None:
    metrics = synthetic_walk.metrics
    assert metrics["dataset"] == "synthetic"
    assert set(metrics["options"]) == OPTIONS
    assert metrics["options"]["out_dir"] == str(synthetic_walk.folder.parent)
    for package in ("torch", "numpy", "matplotlib"):
        assert metrics["versions"][package] == sys.modules[package].__version__
    assert metrics["versions"]["python"] == sys.version.split()[0]
    assert metrics["device"].split()[0] in ("cpu", "cuda", "mps")
    assert metrics["precision"] in ("float32", "bfloat16")
    images = metrics["images"]
    assert images["training"] == 9 * images["validation"] > 0 and images["test"] > 0
    assert all(math.isfinite(metrics[name]) for name in ("test_loss", "test_accuracy"))
    history = metrics["history"]
    assert [row["epoch"] for row in history] == list(range(1, metrics["options"]["epochs"] + 1))
    assert all(set(row) == EPOCH_NUMBERS for row in history)
    assert sum(row["seconds"] for row in history) <= metrics["seconds"]["total"]
    accuracies = [row["validation_accuracy"] for row in history]
    assert metrics["best_epoch"] == 1 + accuracies.index(max(accuracies))


def test_what_is_printed_can_be_read_in_a_log_file(synthetic_walk: Walk) -> None:
    out, metrics = synthetic_walk.out, synthetic_walk.metrics
    assert all(letter.isprintable() or letter == "\n" for letter in out)  # no escape code, no carriage return
    assert "Synthetic images (not CIFAR-10)" in out
    assert f"{metrics['parameters']:,}" in out and metrics["precision"] in out and metrics["device"] in out
    epoch_lines = [line.split() for line in out.splitlines() if re.match(r" +\d+ +\d", line)]
    assert [int(line[0]) for line in epoch_lines] == [row["epoch"] for row in metrics["history"]]
    for line, row in zip(epoch_lines, metrics["history"], strict=True):
        assert f"{row['train_loss']:.4f}" in line and f"{row['validation_accuracy']:.2%}" in line
    assert "best," in epoch_lines[metrics["best_epoch"] - 1]
    assert f"accuracy {metrics['test_accuracy']:.2%}" in out
    assert all(name in out for name in SHAPE_NAMES)
    assert all(str(synthetic_walk.folder / name) in out for name in FILES)


def test_the_figures_are_pictures(synthetic_walk: Walk) -> None:
    for name in ("curves.png", "predictions.png", "confusion.png"):
        assert_is_a_picture(synthetic_walk.folder / name)


def test_the_checkpoints_are_plain_data(synthetic_walk: Walk) -> None:
    for name in ("best.pt", "last.pt"):
        checkpoint = torch.load(synthetic_walk.folder / name, weights_only=True)
        assert checkpoint["options"] == synthetic_walk.metrics["options"]


def test_test_only_finds_the_same_result_and_keeps_the_checkpoints(synthetic_walk: Walk, tmp_path: Path) -> None:
    folder = shutil.copytree(synthetic_walk.folder, tmp_path / "synthetic")
    arguments = ["--dataset", "synthetic", "--out-dir", str(tmp_path), "--test-only", "--device", "cpu"]
    assert run_command(main, arguments, "") == 0
    after, before = read_json(folder / "metrics.json"), synthetic_walk.metrics
    assert after["test_accuracy"] == before["test_accuracy"]
    assert after["test_loss"] == pytest.approx(before["test_loss"], rel=1e-4)
    assert after["class_accuracy"] == before["class_accuracy"]
    assert after["history"] == before["history"]
    for name in ("best.pt", "last.pt"):
        assert (folder / name).read_bytes() == (synthetic_walk.folder / name).read_bytes()


# Interrupting and going on

TINY = ("--dataset", "synthetic", "--width", 0.05, "--epochs", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def whole_walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    out_dir = tmp_path_factory.mktemp("whole")
    return finish_walk(start_walk(out_dir, *TINY, "--out-dir", out_dir), out_dir / "synthetic")


@pytest.fixture(scope="module")
def interrupted_walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """A run that gets Ctrl-C as soon as it has printed the line of its first epoch."""
    out_dir = tmp_path_factory.mktemp("interrupted")
    process = start_walk(out_dir, *TINY, "--out-dir", out_dir)
    while not re.match(r" +1 +\d", process.stdout.readline()):
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    return finish_walk(process, out_dir / "synthetic")


def test_ctrl_c_ends_with_one_line_that_says_how_to_go_on(interrupted_walk: Walk) -> None:
    assert interrupted_walk.code == 130
    assert interrupted_walk.err.count("\n") == 1 and "--resume" in interrupted_walk.err


def test_ctrl_c_leaves_figures_and_numbers_of_the_finished_epochs(interrupted_walk: Walk) -> None:
    assert visible_files(interrupted_walk.folder) == {"best.pt", "curves.png", "last.pt", "metrics.json"}
    assert_is_a_picture(interrupted_walk.folder / "curves.png")
    metrics = interrupted_walk.metrics
    assert [row["epoch"] for row in metrics["history"]] == [1]
    assert metrics["test_accuracy"] is None


def without_times(value: object) -> object:
    """Return a checkpoint or metrics without what two equal runs may differ in."""
    if isinstance(value, dict):
        differing = ("seconds", "out_dir", "resume")
        return {key: without_times(item) for key, item in value.items() if key not in differing}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def test_a_resumed_run_ends_like_one_that_was_never_interrupted(
    whole_walk: Walk, interrupted_walk: Walk, tmp_path: Path
) -> None:
    folder = shutil.copytree(interrupted_walk.folder, tmp_path / "synthetic")
    resumed = finish_walk(start_walk(tmp_path, *TINY, "--out-dir", tmp_path, "--resume"), folder)
    assert (whole_walk.code, whole_walk.err) == (resumed.code, resumed.err) == (0, "")
    assert not re.search(r"^ +1 +\d", resumed.out, re.MULTILINE) and re.search(r"^ +2 +\d", resumed.out, re.MULTILINE)
    assert visible_files(folder) == FILES
    for name in ("last.pt", "best.pt"):
        checkpoints = [torch.load(walk.folder / name, weights_only=True) for walk in (whole_walk, resumed)]
        assert without_times(checkpoints[0]) == without_times(checkpoints[1])
    assert without_times(whole_walk.metrics) == without_times(resumed.metrics)


def image_losses(walk: Walk) -> torch.Tensor:
    """The loss of each training image when the run last trained on it."""
    return torch.load(walk.folder / "last.pt", weights_only=True)["image_losses"]


def test_the_second_epoch_skips_most_of_the_images_that_the_first_knew_best(
    whole_walk: Walk, interrupted_walk: Walk
) -> None:
    first, second = image_losses(interrupted_walk), image_losses(whole_walk)
    skipped = first == second
    assert 0.4 < skipped.float().mean() < 0.5
    assert first[skipped].max() <= first.median()


# Small runs on a small CIFAR-10, inside this process


@dataclass(frozen=True)
class SmallWalk:
    """Runs the walk on a small CIFAR-10: 180 images for training, 20 for validation, 40 for test."""

    data_dir: Path
    out_dir: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def folder(self) -> Path:
        return self.out_dir / "cifar10"

    def __call__(self, *arguments: object) -> Walk:
        defaults = ["--dataset", "cifar10", "--data-dir", self.data_dir, "--out-dir", self.out_dir, "--device", "cpu"]
        defaults += ["--width", 0.1, "--epochs", 2, "--batch-size", 60]
        self.capsys.readouterr()
        code = run_command(main, [str(argument) for argument in (*defaults, *arguments)], "go on with --resume")
        return Walk(code, *self.capsys.readouterr(), self.folder)

    def refuse(self, *arguments: object, code: int = 2) -> str:
        """Run what must be refused in one line with nothing overwritten; return the line."""
        before = contents(self.out_dir.parent)
        walk = self(*arguments)
        assert walk.code == code
        assert walk.err.count("\n") == 1 and "Traceback" not in walk.err
        assert contents(self.out_dir.parent) == before
        return walk.err


@pytest.fixture
def small_walk(small_cifar10: SmallCifar10, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> SmallWalk:
    return SmallWalk(small_cifar10.data_dir, tmp_path / "out", capsys)


@pytest.mark.parametrize("model", ["convnet", "mlp"])
def test_each_model_walks_through_cifar10(small_walk: SmallWalk, model: str) -> None:
    walk = small_walk("--model", model)
    assert (walk.code, walk.err) == (0, "")
    assert visible_files(walk.folder) == FILES
    assert walk.metrics["dataset"] == "cifar10" and walk.metrics["options"]["model"] == model
    assert set(walk.metrics["class_accuracy"]) == set(CLASS_NAMES)
    assert "CIFAR-10" in walk.out and "ynthetic" not in walk.out


def test_a_dry_run_goes_through_one_batch_of_each_phase_and_writes_every_file(small_walk: SmallWalk) -> None:
    walk = small_walk("--dry-run", "--epochs", 100)
    assert (walk.code, walk.err) == (0, "")
    assert visible_files(walk.folder) == FILES
    assert len(walk.metrics["history"]) == 1 and walk.metrics["images"]["training"] == 60


def test_the_mlp_trains_on_every_image_in_every_epoch(small_walk: SmallWalk) -> None:
    losses = []
    for epochs in (1, 2):  # at a rate so low that an image keeps its loss unless it is met again, in another crop
        walk = small_walk("--model", "mlp", "--lr", 1e-9, "--epochs", epochs)
        assert walk.code == 0
        losses.append(image_losses(walk))
    assert not torch.isclose(*losses).any()


def test_the_seed_decides_the_run(small_walk: SmallWalk) -> None:
    losses = {}
    for run, seed in (("first", 0), ("again", 0), ("other", 1)):
        walk = small_walk("--dry-run", "--seed", seed)
        losses[run] = [walk.metrics["history"][0]["train_loss"], walk.metrics["test_loss"]]
    assert losses["first"] == losses["again"]
    assert losses["first"][0] != losses["other"][0] and losses["first"][1] != losses["other"][1]


def test_the_tested_weights_are_those_of_the_best_epoch_by_validation(small_walk: SmallWalk) -> None:
    for seed in range(8):  # until a run ends with another epoch than its best
        trained = small_walk("--epochs", 4, "--seed", seed).metrics
        accuracies = [row["validation_accuracy"] for row in trained["history"]]
        assert trained["best_epoch"] == 1 + accuracies.index(max(accuracies))
        if trained["best_epoch"] != 4:
            break
    assert trained["best_epoch"] != 4
    tested = small_walk("--test-only").metrics  # best.pt
    assert tested["test_loss"] == trained["test_loss"] and tested["class_accuracy"] == trained["class_accuracy"]


def test_a_finished_run_can_be_resumed_and_is_only_tested_again(small_walk: SmallWalk) -> None:
    finished = small_walk().metrics
    resumed = small_walk("--resume").metrics
    assert resumed["history"] == finished["history"] and resumed["test_loss"] == finished["test_loss"]


def test_without_cifar10_auto_goes_on_with_drawn_images_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data-dir", str(tmp_path / "none"), "--out-dir", str(tmp_path / "out"), "--dry-run"]
    assert run_command(main, arguments, "") == 0
    printed = capsys.readouterr()
    assert "WARNING" in printed.err and "NOT CIFAR-10" in printed.err
    assert "Synthetic images (not CIFAR-10)" in printed.out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["synthetic"]
    assert read_json(tmp_path / "out" / "synthetic" / "metrics.json")["dataset"] == "synthetic"


def test_default_folders_lie_beside_main_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_options([])
    assert options.data_dir == PROJECT / "data" and options.out_dir == PROJECT / "outputs"
    assert parse_options(["--out-dir", "here"]).out_dir == tmp_path / "here"


def test_help_names_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, default in vars(parse_options([])).items():
        described = text.rsplit(f"--{name.replace('_', '-')} ", 1)[1]
        described = re.split(r" --\w", described)[0]
        if not isinstance(default, bool | Path):
            assert re.search(rf"default: .*{re.escape(str(default))}\b", described), name


# Bad input

ABSENT_DEVICE = "mps" if torch.cuda.is_available() else "cuda"
BAD_OPTIONS = [
    *(("--epochs", value) for value in ("0", "-1", "1.5", "nan", "inf", "ten", "", "1e99")),
    *(("--batch-size", value) for value in ("0", "-5", "2.5", "181", "100000")),
    *(("--lr", value) for value in ("0", "-0.1", "nan", "inf", "fast", "1e99")),
    *(("--width", value) for value in ("0", "-1", "nan", "inf", "1e9", "wide")),
    *(("--weight-decay", value) for value in ("-1", "nan", "inf")),
    *(("--label-smoothing", value) for value in ("-0.1", "1", "nan")),
    *(("--seed", value) for value in ("-1", "0.5", "99999999999999999999")),
    *(("--device", value) for value in ("tpu", "", ABSENT_DEVICE)),
    *(("--dataset", "mnist"), ("--model", "resnet"), ("--precision", "float16")),
    *(("--epoch", "3"), ("--learning-rate", "3")),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_a_wrong_option_is_refused_in_one_line(small_walk: SmallWalk, option: str, value: str) -> None:
    line = small_walk.refuse(option, value)
    assert option in line and value in line


@pytest.mark.parametrize("option", ["--data-dir", "--out-dir"])
@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_folder_name_is_refused(small_walk: SmallWalk, option: str, value: str) -> None:
    assert option in small_walk.refuse(option, value)


def test_resuming_and_only_testing_exclude_each_other(small_walk: SmallWalk) -> None:
    line = small_walk.refuse("--resume", "--test-only")
    assert "--resume" in line and "--test-only" in line


def test_a_data_folder_that_is_a_file_is_refused(small_walk: SmallWalk, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert f"--data-dir: {tmp_path / 'file'}" in small_walk.refuse("--data-dir", tmp_path / "file")


def test_a_damaged_data_file_is_named(small_walk: SmallWalk) -> None:
    path = small_walk.data_dir / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    assert "data_batch_3" in small_walk.refuse()


def test_without_network_cifar10_is_not_replaced(small_walk: SmallWalk, tmp_path: Path) -> None:
    line = small_walk.refuse("--data-dir", tmp_path / "none")
    assert "127.0.0.1" in line and "refused" in line and str(tmp_path / "none") in line


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_found_before_training(
    small_walk: SmallWalk, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("precious")
    line = small_walk.refuse("--out-dir", tmp_path / name)
    assert "--out-dir" in line and str(tmp_path / name) in line


@pytest.mark.parametrize(("option", "name"), [("--resume", "last.pt"), ("--test-only", "best.pt")])
def test_a_missing_damaged_or_other_checkpoint_is_refused(small_walk: SmallWalk, option: str, name: str) -> None:
    path = small_walk.folder / name
    line = small_walk.refuse(option)
    assert str(path) in line and option in line

    assert small_walk("--epochs", 1).code == 0
    assert small_walk("--epochs", 1, option).code == 0
    line = small_walk.refuse(option, "--epochs", 1, "--width", 0.2)
    assert str(path) in line and "--width 0.1" in line and "0.2" in line
    line = small_walk.refuse(option, "--epochs", 1, "--model", "mlp")
    assert "--model convnet" in line and "mlp" in line

    path.write_bytes(path.read_bytes()[:-200])
    line = small_walk.refuse(option, "--epochs", 1)
    assert str(path) in line and "damaged" in line


def test_only_training_on_needs_the_same_training_options(small_walk: SmallWalk) -> None:
    assert small_walk("--epochs", 1).code == 0
    others = ("--epochs", 3, "--batch-size", 50, "--lr", 0.07, "--weight-decay", 0.01, "--label-smoothing", 0.3)
    line = small_walk.refuse("--resume", *others, "--seed", 4)
    for option, value in zip(others[::2], others[1::2], strict=True):
        assert re.search(rf"{option} \S+, not {value}", line)
    assert "--seed 0, not 4" in line and "--width" not in line
    assert small_walk("--test-only", *others, "--seed", 4).code == 0


# A run that fails


def test_a_loss_that_becomes_nan_ends_the_run_and_keeps_the_last_good_checkpoint(small_walk: SmallWalk) -> None:
    assert small_walk().code == 0
    line = small_walk.refuse("--lr", 1e6, "--epochs", 20, "--batch-size", 10, code=1)
    assert re.search(r"(nan|inf).*epoch \d+, step \d+", line) and "--lr" in line


def test_a_validation_loss_that_becomes_nan_is_never_saved(small_walk: SmallWalk) -> None:
    assert small_walk("--model", "mlp").code == 0
    # The second and last step of the epoch spoils the weights: no training batch is left to notice.
    line = small_walk.refuse("--model", "mlp", "--lr", 1e6, "--epochs", 1, "--batch-size", 90, code=1)
    assert re.search(r"(nan|inf).*epoch 1", line) and "validation" in line and "--lr" in line


# Notebooks


@pytest.mark.parametrize(
    "ending", [KeyboardInterrupt(), ValueError("a mistake of the student"), InputError("--lr"), RunError("nan")]
)
def test_after_any_ending_the_same_interpreter_runs_again(
    small_walk: SmallWalk, monkeypatch: pytest.MonkeyPatch, ending: BaseException
) -> None:
    def fail(*arguments: object) -> None:
        raise ending

    with monkeypatch.context() as patch, suppress(ValueError):
        patch.setattr(main_module, "train_one_epoch", fail)
        assert small_walk().code > 0
    assert small_walk("--dry-run").code == 0


def test_a_notebook_runs_it_again_and_again(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    run = f"%run {PROJECT / 'main.py'} --dataset synthetic --dry-run --out-dir {tmp_path}"
    after = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    cells = [f"{run} --epochs 0", run, run, after]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=MINUTE, allow_errors=True).execute()
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "--epochs" in printed[0] and "from 1 to" in printed[0]
    assert all("test     accuracy" in text and "metrics.json" in text for text in printed[1:3])
    assert printed[3] == "True\n"


# The real images


def test_one_epoch_on_the_real_images_reaches_a_stated_accuracy(
    real_data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--dataset", "cifar10", "--data-dir", str(real_data_dir), "--out-dir", str(tmp_path), "--epochs", "1"]
    assert run_command(main, arguments, "") == 0
    metrics = read_json(tmp_path / "cifar10" / "metrics.json")
    assert metrics["images"] == {"training": 45_000, "validation": 5_000, "test": 10_000}
    assert metrics["test_accuracy"] > ONE_EPOCH_ACCURACY
