"""utils/files.py: files are whole or absent; each foreseen failure is one line with an exit code."""

import errno
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from utils import files
from utils.files import InputError, RunError, WriteError, run_command, write_or_warn, write_whole

import pytest
import torch

DISK_FULL = OSError(errno.ENOSPC, "No space left")


def raising(error: BaseException) -> Callable[..., None]:
    def action(*arguments: object) -> None:
        raise error

    return action


# Whole files


@pytest.mark.parametrize(("error", "raised"), [(DISK_FULL, WriteError), (KeyboardInterrupt(), KeyboardInterrupt)])
def test_a_broken_off_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type
) -> None:
    (tmp_path / "last.pt").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", raising(error))
    for write in (write_whole, write_or_warn):  # a full disk is no matter of one figure
        with pytest.raises(raised):
            write(tmp_path / "last.pt", b"new")
    assert (tmp_path / "last.pt").read_bytes() == b"old" and os.listdir(tmp_path) == ["last.pt"]


def test_a_file_system_that_cannot_sync_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a folder that somebody removed during the run is made again."""
    monkeypatch.setattr(os, "fsync", raising(OSError(errno.ENOTSUP, "not supported")))
    write_whole(tmp_path / "removed" / "last.pt", b"new")
    assert (tmp_path / "removed" / "last.pt").read_bytes() == b"new"


def test_a_held_file_is_replaced_later_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Windows, while another program holds it."""
    replace, refusals, path = os.replace, [PermissionError(errno.EACCES, "Access is denied")] * 2, tmp_path / "last.pt"

    def replace_later(source: Path, target: Path) -> None:
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_later)
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    refusals += [PermissionError(errno.EACCES, "Access is denied")] * 1000
    with pytest.raises(WriteError) as caught:
        write_whole(path, b"newer")
    assert f"{path} (Access is denied): does another program hold it?" in str(caught.value)
    for _ in range(2):
        write_or_warn(path, b"newer")
    assert capsys.readouterr().err == f"WARNING: {caught.value}\n"  # told once
    assert os.listdir(tmp_path) == ["last.pt"]


def test_json_never_holds_nan_or_infinity() -> None:
    value = {"accuracy": 0.1, "none": None, "names": ["é", "b"]}
    assert json.loads(files.to_json(value).decode("utf-8")) == value
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            files.to_json({"loss": number})


# One line and an exit code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("--lr: no\nfile \x1b[2J \udcff é"), 2, r"error: --lr: no\nfile \x1b[2J \udcff é"),
        (RunError("the loss became nan"), 1, "error: the loss became nan"),
        (KeyboardInterrupt("go on with --resume"), 130, "stopped: go on with --resume"),
    ],
)
def test_a_foreseen_failure_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error), []) == code
    assert capsys.readouterr() == ("", f"{line}\n")


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
)


@pytest.mark.parametrize("main", [lambda _: torch.empty(2**60, dtype=torch.uint8), *map(raising, OUT_OF_MEMORY)])
def test_out_of_memory_is_told_with_what_to_do(main: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, []) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "--batch-size" in printed


@pytest.mark.parametrize("error", [ValueError("a bug"), DISK_FULL, RuntimeError("illegal memory access")])
def test_a_mistake_in_the_program_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(raising(error), [])


def test_being_asked_to_end_is_like_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_command(lambda arguments: signal.raise_signal(signal.SIGTERM), []) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # as it was: a notebook goes on
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "stopped\n"


def test_a_run_in_another_thread_needs_no_signals(capsys: pytest.CaptureFixture[str]) -> None:
    thread = threading.Thread(target=run_command, args=(print, ["ran"]))
    thread.start()
    thread.join(timeout=60)
    assert capsys.readouterr() == ("['ran']\n", "")


# Streams


@pytest.mark.parametrize("given", [True, False], ids=["a notebook's", "closed, or pythonw's"])
def test_any_stream_or_none_will_do(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    texts = []
    notebook = SimpleNamespace(write=texts.append, flush=texts.copy)  # no reconfigure, isatty or fileno

    def main(arguments: list[str]) -> None:
        files.say("text")
        sys.stderr.write("a library's")
        assert list(files.progress_bar([1, 2])) == [1, 2]

    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, notebook if given else None)
    assert run_command(main, []) == 0
    assert run_command(raising(InputError("--lr")), []) == 2
    assert "".join(texts) == ("text\na library'serror: --lr\n" if given else "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("is_full", [True, False], ids=["full disk", "closed pipe"])
def test_an_output_that_nobody_takes_ends_the_run_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], is_full: bool
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full" if is_full else writing, "w", encoding="utf-8") as broken:  # flushed at the end, as by Python
        monkeypatch.setattr(sys, "stdout", broken)
        assert run_command(lambda arguments: files.say("epoch 1"), []) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: cannot print (") and printed.count("\n") == 1
