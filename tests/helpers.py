"""What several test files share."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path

import main
from utils.data import ImageDataset, LabelledImages
from utils.model import build_model
from utils.schedule import EpochPlan
from utils.synthetic import CLASS_NAMES, draw_images

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn
from utils.command_line import run_command

PROJECT = Path(__file__).resolve().parent.parent
MINUTE = 60  # seconds; no test waits longer for anything


def visible_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below the folder with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def read_json(path: Path) -> dict:
    """Read plain JSON: NaN and infinities, which Python would take too, are an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def end_of(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=MINUTE)
    finally:
        process.kill()
    return process.returncode, out, err


def make_dataset(count: int, seed: int = 0) -> ImageDataset:
    """Return random images, which get brighter one by one, with random labels."""
    generator = torch.Generator().manual_seed(seed)
    brightness = torch.linspace(0.1, 1, count).view(-1, 1, 1, 1)
    images = (brightness * torch.randint(0, 256, (count, 32, 32, 3), generator=generator)).to(torch.uint8)
    return ImageDataset(images, torch.randint(0, 10, (count,), generator=generator))


def make_model(name: str = "convnet", width: float = 0.1, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    examples, _ = make_dataset(20).__getitems__(list(range(20)))
    return build_model(name, 10, width, examples)


def make_plan(learning_rates: list[float], count: int = 20, batch_size: int = 8, epoch: int = 1) -> EpochPlan:
    """Return the plan of an epoch that shows whole images in their order."""
    return EpochPlan(epoch, torch.arange(count), 32, 0, batch_size, learning_rates)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(one.state_dict()[name], tensor) for name, tensor in other.state_dict().items())


# Running the script, in this process or in another

FILES = {"best.pt", "confusion.png", "curves.png", "last.pt", "metrics.json", "mistakes.png", "predictions.png"}
TINY = ("--dataset", "synthetic", "--model", "mlp", "--width", 0.05, "--batch-size", 60, "--device", "cpu")


@dataclass(frozen=True)
class Outcome:
    """What a run left: its exit code, what it printed, and its output folder."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def metrics(self) -> dict:
        return read_json(self.folder / "metrics.json")

    @property
    def last(self) -> dict:
        return torch.load(self.folder / "last.pt", weights_only=True)


def run_script(out_dir: Path, *options: object) -> Outcome:
    """Run main.py's command line in this process; a warning counts as printed on standard error."""
    out, err = StringIO(), StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore", DeprecationWarning)  # as outside pytest
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        code = run_command(main.main, ["--out-dir", str(out_dir), *map(str, options)], "go on with --resume")
    printed = "".join([err.getvalue(), *(f"{warning}\n" for warning in caught)])
    return Outcome(code, out.getvalue(), printed, output_folder_of(out_dir, options))


def without_times(value: object) -> object:
    """Return a checkpoint or metrics without the seconds, which alone may differ between two equal runs."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value


def results(folder: Path) -> list[object]:
    """Return all numbers that a run leaves, except how long it took."""
    checkpoints = [torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")]
    return [without_times(value) for value in (*checkpoints, read_json(folder / "metrics.json"))]


def output_folder_of(out_dir: Path, options: tuple) -> Path:
    name = "cifar10" if "cifar10" in options else "synthetic"
    return out_dir / ("dry-run" if "--dry-run" in options else name)


def few_images(**parts: torch.Tensor) -> LabelledImages:
    """Return 200 drawn images for training and validation and 40 for test, with some parts replaced."""
    drawn = {}
    for split, count in (("train", 200), ("test", 40)):
        drawn[f"{split}_images"], drawn[f"{split}_labels"] = draw_once(count)
    return LabelledImages("synthetic", "Synthetic images (not CIFAR-10)", CLASS_NAMES, **(drawn | parts))


@cache
def draw_once(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = draw_images(count, seed=0)
    return torch.from_numpy(images), torch.from_numpy(labels)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave empty files in the place of figures: drawing takes longer than all else in a small run."""
    for name in ("plot_curves", "plot_predictions", "plot_mistakes", "plot_confusion"):
        monkeypatch.setattr(main, name, lambda *arguments: arguments[-1].touch())


PIXELS = b"pixels" * 2000


def write_pixels(figure: Figure, path: Path, **settings: object) -> None:
    """Stand in for Figure.savefig, quickly; the file is not whole for some milliseconds."""
    with open(path, "wb") as file:
        file.write(PIXELS[:5000])
        file.flush()
        time.sleep(0.005)
        file.write(PIXELS[5000:])


class Process:
    """A run on few images, without real figures, in a process of its own. Needs Unix.

    The process is forked from one that has imported torch already. `prepare` is called in it before the run.
    """

    def __init__(self, out_dir: Path, *options: object, prepare: Callable[[], object] | None = None) -> None:
        self.folder = output_folder_of(out_dir, options)
        self.log = out_dir / "log"
        out_dir.mkdir(parents=True, exist_ok=True)
        for suffix in (".loading", ".out", ".err"):
            self.log.with_suffix(suffix).unlink(missing_ok=True)
        arguments = ["--out-dir", str(out_dir), *map(str, options)]
        self.process = fork_server().Process(target=run_alone, args=(arguments, self.log, prepare), daemon=True)
        self.process.start()

    def wait_for(self, happened: Callable[[], object]) -> bool:
        """Wait until something has happened, or the run has ended; say which."""
        end = time.monotonic() + MINUTE
        while not happened():
            assert time.monotonic() < end
            if not self.process.is_alive():
                return bool(happened())
            time.sleep(0.0002)
        return True

    def end(self) -> Outcome:
        """Wait for the end of the run, for a minute at most."""
        self.process.join(MINUTE)
        if self.process.is_alive():
            self.process.kill()
        out, err = (self.log.with_suffix(suffix).read_text() for suffix in (".out", ".err"))
        return Outcome(self.process.exitcode, out, err, self.folder)

    def kill(self) -> bool:
        """Kill the run; say whether that, or the kernel, was before it came to its end."""
        self.process.kill()
        self.process.join(MINUTE)
        return self.process.exitcode < 0


def fork_server() -> multiprocessing.context.BaseContext:
    """Return a way to start processes that have imported already what takes long."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pytest", "torch._dynamo", "matplotlib.figure"])
    return server


def run_alone(arguments: list[str], log: Path, prepare: Callable[[], object] | None) -> None:
    """Run main.py's command line; what it prints goes into <log>.out and <log>.err."""

    def load(choice: str, data_dir: Path) -> LabelledImages:
        log.with_suffix(".loading").touch()
        return few_images()

    torch.set_num_threads(1)
    main.load_dataset, Figure.savefig = load, write_pixels
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if prepare:
        prepare()
    sys.exit(run_command(main.main, arguments, "go on with --resume"))
