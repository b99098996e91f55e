"""Runs that are killed, stopped or lose their disk: what was finished stays whole, and goes on exactly. Needs Unix."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from utils import cifar10

import pytest
import torch
from conftest import SmallCifar10
from helpers import FILES, MINUTE, PIXELS, TINY, Process, fork_server, read_json, results, visible_files
from utils.command_line import uninterrupted

resource = pytest.importorskip("resource", reason="needs Unix")
EPOCHS = ("--epochs", 3)


def start(out_dir: Path, *options: object, prepare: Callable[[], None] | None = None) -> Process:
    return Process(out_dir, *TINY, *EPOCHS, *options, prepare=prepare)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody interrupts."""
    run = start(tmp_path_factory.mktemp("whole")).end()
    assert (run.code, run.err) == (0, "")
    return run.folder


def assert_is_whole(folder: Path) -> None:
    """Look at each file that a run was writing when it ended: it is there from before, complete or not at all."""
    for path in folder.glob("*.pt"):
        torch.load(path, weights_only=True)
    for path in folder.glob("*.json"):
        read_json(path)
    for path in folder.glob("*.png"):
        assert path.read_bytes() == PIXELS


# Killed


def limit_file_size(limit: int) -> None:
    """Let the kernel kill this process in the middle of writing the first larger file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def assert_ended_like(whole_run: Path, run: Process) -> None:
    ended = run.end()
    assert (ended.code, ended.err) == (0, "")
    assert visible_files(run.folder) == FILES
    assert not list(run.folder.glob(".*.tmp"))
    assert results(run.folder) == results(whole_run)


def kill_somewhere(run: Process, place: str, generator: random.Random) -> bool:
    """Kill a run while it writes a file, or after a random time; say whether that was before it came to its end."""
    if place == "the size limit":
        run.process.join(MINUTE)  # the kernel does it
    elif place == "any":
        run.process.join(generator.uniform(0, 1))
    else:
        run.wait_for(lambda: list(run.folder.glob(f".{place}.*.tmp")))
    return run.kill()


def test_a_run_killed_again_and_again_ends_the_same(whole_run: Path, tmp_path: Path) -> None:
    """A run that comes to its end before it is killed is compared too, and then begun anew."""
    out_dir, generator = tmp_path / "killed", random.Random(0)
    half = (whole_run / "last.pt").stat().st_size // 2
    for place in ("curves.png", "the size limit", "best.pt", "metrics.json", "mistakes.png", "any"):
        limit = partial(limit_file_size, half) if place == "the size limit" else None
        run = start(out_dir, *resume_if_possible(out_dir), prepare=limit)
        if kill_somewhere(run, place, generator):
            assert_is_whole(run.folder)
        else:
            assert not limit
            assert_ended_like(whole_run, run)
            shutil.rmtree(out_dir)
    assert_ended_like(whole_run, start(out_dir, *resume_if_possible(out_dir)))


def resume_if_possible(out_dir: Path) -> list[str]:
    return ["--resume"] if (out_dir / "synthetic" / "last.pt").exists() else []


def download(data_dir: Path, url: str) -> None:
    os.environ["no_proxy"] = "127.0.0.1"
    cifar10.MIRRORS = (url,)
    cifar10.load_cifar10(data_dir)


def test_a_killed_download_never_counts_as_data(small_cifar10: SmallCifar10, tmp_path: Path) -> None:
    """Nor does it leave anything behind."""
    data_dir = tmp_path / "new"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(MINUTE)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        process = fork_server().Process(target=download, args=(data_dir, url), daemon=True)
        process.start()
        with server.accept()[0] as connection:
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(100_000))
            end = time.monotonic() + MINUTE
            while not any(path.stat().st_size for path in data_dir.glob(".*.tmp")):
                assert process.is_alive() and time.monotonic() < end
            process.kill()
            process.join(MINUTE)
    with pytest.raises(cifar10.DownloadError):
        cifar10.load_cifar10(data_dir)
    shutil.copy(small_cifar10.archive, data_dir)
    cifar10.load_cifar10(data_dir)
    assert visible_files(data_dir) == {"cifar-10-batches-py", "cifar-10-python.tar.gz"}


# Stopped


@pytest.mark.parametrize(
    ("seen", "number", "code"),
    [
        ("log.loading", signal.SIGINT, 130),  # the images are made
        ("synthetic/last.pt", signal.SIGTERM, 143),  # best.pt is written
        ("synthetic/metrics.json", signal.SIGINT, 130),  # the curves are drawn
        ("synthetic/predictions.png", signal.SIGTERM, 143),  # the mistakes are drawn
    ],
)
def test_a_stopped_run_ends_with_one_line(tmp_path: Path, seen: str, number: signal.Signals, code: int) -> None:
    """What it saved belongs together."""
    run = start(tmp_path, "--epochs", 1 if "predictions" in seen else 100)
    assert run.wait_for((tmp_path / seen).exists)
    os.kill(run.process.pid, number)
    stopped = run.end()
    assert (stopped.code, stopped.err) == (code, "stopped: go on with --resume\n")
    if run.folder.exists():
        history = stopped.metrics["history"]
        assert history == stopped.last["history"] != []
        assert visible_files(run.folder) >= {"best.pt", "curves.png"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """While files are written, too: a shell script that starts a run in the background has it ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# Without a disk


def assert_fails_and_keeps_what_was_saved(run: Process, folder: Path) -> None:
    failed = run.end()
    assert failed.code == 1
    assert failed.err.startswith("error: ") and failed.err.count("\n") == 1 and str(run.folder) in failed.err
    history = read_json(folder / "metrics.json")["history"]
    assert torch.load(folder / "last.pt", weights_only=True)["history"][: len(history)] == history != []
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Returns a function that mounts something on a folder; where that is not permitted, the test is skipped."""
    mounted = []

    def mount(folder: Path, *arguments: object) -> None:
        command = ["mount", *map(str, arguments), folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=MINUTE)
        if done.returncode:
            pytest.skip(f"mounting is not permitted here: {done.stderr}")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", folder], check=True, timeout=MINUTE)


def test_a_full_disk_costs_nothing(mount: Callable[..., None], whole_run: Path, tmp_path: Path) -> None:
    sizes = {name: (whole_run / name).stat().st_size for name in FILES}
    too_small = sum(sizes.values()) - sizes["confusion.png"]
    mount(tmp_path, "-t", "tmpfs", "-o", f"size={too_small}", "tmpfs")
    run = start(tmp_path)
    assert_fails_and_keeps_what_was_saved(run, run.folder)


def test_a_folder_that_becomes_read_only_costs_nothing(mount: Callable[..., None], tmp_path: Path) -> None:
    run = start(tmp_path, "--epochs", 100)
    assert run.wait_for((run.folder / "metrics.json").exists)
    mount(run.folder, "--bind", "-o", "ro", run.folder)
    assert_fails_and_keeps_what_was_saved(run, run.folder)


def test_a_folder_that_is_moved_away_costs_nothing(tmp_path: Path) -> None:
    run = start(tmp_path, "--epochs", 100)
    assert run.wait_for((run.folder / "metrics.json").exists)
    moved = run.folder.rename(tmp_path / "moved")
    assert_fails_and_keeps_what_was_saved(run, moved)
