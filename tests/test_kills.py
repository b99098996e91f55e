"""Runs that are killed, stopped or lose their disk: what was finished stays whole, and goes on exactly.

Needs Unix: each run is a process of its own, forked from one that has imported torch already.
"""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import SmallCifar10
from helpers import MINUTE, read_json, visible_files
from test_main import FILES, without_times

from main import main
from utils import cifar10
from utils.command_line import run_command, uninterrupted

fork = multiprocessing.get_context("forkserver")
fork.set_forkserver_preload(["torch", "matplotlib.figure", "pytest", "main"])

TINY = ["--dataset", "synthetic", "--model", "mlp", "--width", "0.05", "--epochs", "4", "--device", "cpu"]


def run_walk(arguments: list[str], log: Path, file_size_limit: int | None) -> None:
    """Run main.py's command line in this process; what it prints goes into <log>.out and <log>.err.

    With a limit, the kernel kills the process in the middle of writing the first larger file.
    """
    torch.set_num_threads(1)
    for descriptor, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    if file_size_limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    sys.exit(run_command(main, arguments, "go on with --resume"))


class Run:
    """A run of main.py in a process of its own that writes into `out_dir`."""

    def __init__(self, out_dir: Path, *arguments: str, file_size_limit: int | None = None) -> None:
        self.folder = out_dir / "synthetic"
        self.log = out_dir / "log"
        out_dir.mkdir(exist_ok=True)
        arguments = [*TINY, *arguments, "--out-dir", str(out_dir)]
        self.process: BaseProcess = fork.Process(target=run_walk, args=(arguments, self.log, file_size_limit))
        self.process.start()

    def wait_for(self, happened: Callable[[], object]) -> bool:
        """Wait until something has happened, or the run has ended; say which."""
        end = time.monotonic() + MINUTE
        while not happened():
            assert time.monotonic() < end
            if not self.process.is_alive():
                return False
            time.sleep(0.0002)
        return True

    def wait_for_file(self, name: str) -> bool:
        return self.wait_for((self.folder / name).exists)

    def end(self) -> tuple[int, str]:
        """Return the exit code, and what was printed on standard error."""
        self.process.join(MINUTE)
        return self.process.exitcode, self.log.with_suffix(".err").read_text()

    def kill(self, wait: bool) -> bool:
        """Kill the run, or wait until the kernel has done so; say whether it was killed before it came to its end."""
        if not wait:
            self.process.kill()
        self.process.join(MINUTE)
        return self.process.exitcode < 0


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nobody interrupts."""
    run = Run(tmp_path_factory.mktemp("whole"))
    assert run.end() == (0, "")
    return run


def results(folder: Path) -> list[object]:
    """Return all that a run leaves, except how long it took."""
    checkpoints = [torch.load(folder / name, weights_only=True) for name in ("last.pt", "best.pt")]
    return [without_times(value) for value in (*checkpoints, read_json(folder / "metrics.json"))]


def assert_is_whole(folder: Path) -> None:
    """Look at each file that a run was writing when it ended: it is there from before, complete or not at all."""
    for path in folder.glob("*.pt"):
        torch.load(path, weights_only=True)
    for path in folder.glob("*.json"):
        read_json(path)


# Killed


def kill_and_resume(out_dir: Path, whole_run: Run, kills: int, seconds: float) -> None:
    """Kill a run, which takes some seconds, at hard and at random moments; assert that it ends like `whole_run`.

    A run that comes to its end before it is killed is compared too, and then begun anew.
    """
    generator = random.Random(kills)
    best, last = ((whole_run.folder / name).stat().st_size for name in ("best.pt", "last.pt"))
    killed = 0
    while killed < kills:
        limit = {1: best // 2, 2: (best + last) // 2}.get(killed % 5)  # in the middle of best.pt, of last.pt
        run = Run(out_dir, *resume_if_possible(out_dir), file_size_limit=limit)
        if killed == 0:
            run.wait_for_file("last.pt")  # from now on, each run goes on after an epoch
        elif killed % 5 == 3:
            being_drawn = generator.choice(["curves", "predictions", "confusion"])
            run.wait_for(lambda folder=run.folder, name=being_drawn: list(folder.glob(f".{name}.png.*.tmp")))
        elif not limit:
            run.process.join(generator.uniform(0, seconds))
        if run.kill(wait=bool(limit)):
            killed += 1
            assert_is_whole(run.folder)
        else:
            assert_ended_like(whole_run, run)
            shutil.rmtree(out_dir)
    assert_ended_like(whole_run, Run(out_dir, *resume_if_possible(out_dir)))


def resume_if_possible(out_dir: Path) -> list[str]:
    return ["--resume"] if (out_dir / "synthetic" / "last.pt").exists() else []


def assert_ended_like(whole_run: Run, run: Run) -> None:
    assert run.end() == (0, "")
    assert visible_files(run.folder) == FILES
    assert not list(run.folder.glob(".*.tmp"))
    assert results(run.folder) == results(whole_run.folder)


def test_a_run_that_is_killed_again_and_again_ends_like_one_that_never_was(whole_run: Run, tmp_path: Path) -> None:
    kill_and_resume(tmp_path / "killed", whole_run, kills=5, seconds=3)


def download(data_dir: Path, url: str) -> None:
    os.environ["no_proxy"] = "127.0.0.1"
    cifar10.MIRRORS = (url,)
    cifar10.load_cifar10(data_dir)


def test_a_download_that_is_killed_never_counts_as_data_and_leaves_nothing_behind(
    small_cifar10: SmallCifar10, tmp_path: Path
) -> None:
    data_dir = tmp_path / "new"
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        process = fork.Process(target=download, args=(data_dir, url))
        process.start()
        with server.accept()[0] as connection:
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
            while not any(path.stat().st_size for path in data_dir.glob(".*.tmp")):
                assert process.is_alive()
            process.kill()
            process.join(MINUTE)
    with pytest.raises(cifar10.DownloadError):
        cifar10.load_cifar10(data_dir)
    shutil.copy(small_cifar10.archive, data_dir)
    cifar10.load_cifar10(data_dir)
    assert visible_files(data_dir) == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


# Stopped


@pytest.mark.parametrize(
    ("seen", "epochs", "number", "code"),
    [
        ("log.err", 100, signal.SIGINT, 130),  # drawing the images to train on
        ("synthetic/best.pt", 100, signal.SIGTERM, 143),  # writing last.pt
        ("synthetic/metrics.json", 100, signal.SIGINT, 130),  # drawing the curves
        ("synthetic/predictions.png", 1, signal.SIGTERM, 143),  # drawing the confusion matrix
    ],
)
def test_a_stopped_run_ends_with_one_line_and_what_it_saved_belongs_together(
    tmp_path: Path, seen: str, epochs: int, number: signal.Signals, code: int
) -> None:
    run = Run(tmp_path, "--epochs", str(epochs))
    assert run.wait_for((tmp_path / seen).exists)
    time.sleep(0.02)
    os.kill(run.process.pid, number)
    ended, line = run.end()
    assert ended == code
    assert line.startswith("stopped") and line.count("\n") == 1 and "--resume" in line
    if seen != "log.err":
        history = read_json(run.folder / "metrics.json")["history"]
        assert history == torch.load(run.folder / "last.pt", weights_only=True)["history"] != []
        assert visible_files(run.folder) >= {"best.pt", "curves.png"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_signal_that_is_ignored_stays_ignored_while_files_are_written() -> None:
    """A shell script that starts a run in the background has it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# Without a disk


def assert_fails_and_keeps_what_was_saved(run: Run, folder: Path) -> None:
    code, line = run.end()
    assert code == 1
    assert line.startswith("error") and line.count("\n") == 1 and str(run.folder) in line
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    history = read_json(folder / "metrics.json")["history"]
    assert checkpoint["history"][: len(history)] == history != []
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Returns a function that mounts something on a folder; where that is not permitted, the test is skipped."""
    mounted = []

    def mount(folder: Path, *arguments: object) -> None:
        done = subprocess.run(["mount", *map(str, arguments), folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr}")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_in_one_line_and_costs_nothing(
    mount: Callable[..., None], whole_run: Run, tmp_path: Path
) -> None:
    sizes = {name: (whole_run.folder / name).stat().st_size for name in FILES}
    too_small = sum(sizes.values()) - sizes["confusion.png"]
    mount(tmp_path, "-t", "tmpfs", "-o", f"size={too_small}", "tmpfs")
    run = Run(tmp_path)
    assert_fails_and_keeps_what_was_saved(run, run.folder)


def test_a_folder_that_can_no_longer_be_written_ends_the_run_in_one_line_and_costs_nothing(
    mount: Callable[..., None], tmp_path: Path
) -> None:
    run = Run(tmp_path, "--epochs", "100")
    assert run.wait_for_file("metrics.json")
    mount(run.folder, "--bind", "-o", "ro", run.folder)
    assert_fails_and_keeps_what_was_saved(run, run.folder)


def test_a_folder_that_is_moved_away_ends_the_run_in_one_line_and_costs_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, "--epochs", "100")
    assert run.wait_for_file("metrics.json")
    moved = run.folder.rename(tmp_path / "moved")
    assert_fails_and_keeps_what_was_saved(run, moved)
