"""What several test files share: small images, networks and plans; runs of the script in this process or another."""

import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import main
from utils.data import ImageDataset
from utils.files import run_command
from utils.model import build_model
from utils.schedule import EpochPlan

import torch
from torch import nn

PROJECT = Path(__file__).resolve().parent.parent
MINUTE = 60  # seconds; no test waits longer for anything
FILES = {"best.pt", "confusion.png", "curves.png", "last.pt", "metrics.json", "mistakes.png", "predictions.png"}
# A run of a second, on the CPU: elsewhere the numbers would be others.
TINY = ("--dataset", "synthetic", "--model", "mlp", "--width", "0.05", "--batch-size", "60", "--device", "cpu")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def read_json(path: Path) -> dict:
    """Read plain JSON: NaN and infinities, which Python would take too, are an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below the folder with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    return EpochPlan(epoch, torch.arange(count), 32, 2, 0, batch_size, learning_rates)


@dataclass(frozen=True)
class Outcome:
    """What a run left: its exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def folder(self) -> Path:
        """Return the run's folder, which its header names."""
        (line,) = (line for line in self.out.splitlines() if line.startswith("output   "))
        return Path(line.removeprefix("output   ").partition(" (")[0])

    @property
    def last(self) -> dict:
        return torch.load(self.folder / "last.pt", weights_only=True)


def run_script(out_dir: Path, *options: object) -> Outcome:
    """Run main.py's command line in this process; a warning counts as printed on standard error."""
    out, err = StringIO(), StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(out), redirect_stderr(err):
        warnings.simplefilter("ignore", DeprecationWarning)  # as outside pytest
        warnings.simplefilter("ignore", PendingDeprecationWarning)
        code = run_command(main.main, ["--out-dir", str(out_dir), *map(str, options)])
    return Outcome(code, out.getvalue(), "".join([err.getvalue(), *(f"{warning}\n" for warning in caught)]))


def start_script(options: Sequence[object], project: Path = PROJECT, before: str = "") -> subprocess.Popen:
    """Start main.py in a process of its own, in which the code `before` runs first."""
    start = (
        f"import runpy, sys; sys.path.insert(0, {str(project)!r}); sys.argv = ['main.py', *sys.argv[1:]]\n{before}\n"
    )
    code = f"{start}runpy.run_path({str(project / 'main.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")


def end_of(process: subprocess.Popen) -> Outcome:
    """Wait for the end of a process, for a minute at most."""
    try:
        out, err = process.communicate(timeout=MINUTE)
    finally:
        process.kill()
    return Outcome(process.returncode, out, err)


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
