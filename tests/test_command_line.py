"""utils/command_line.py: options in range, and one line with an exit code for every foreseen failure."""

import argparse
import io
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import MINUTE
from utils.command_line import OneLineParser, folder_path, number, run_command, uninterrupted
from utils.errors import InputError, RunError


def raising(error: BaseException) -> Callable[[list[str]], None]:
    def main(arguments: list[str]) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("--lr: 0 is too small"), 2),
        (RunError("the loss became nan"), 1),
        (OSError(28, "No space left on device", "last.pt"), 1),
        (MemoryError("too much"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_foreseen_failure_is_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error), [], "go on with --resume") == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(error) in printed.err
    assert ("go on with --resume" in printed.err) == (code == 130)


def test_a_failure_is_one_line_whatever_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    """The name of a path, or a foreign checkpoint, may hold any character."""
    run_command(raising(InputError("no\nfile \x1b[2J \udcff é")), [], "")
    line = capsys.readouterr().err
    assert line.endswith("\n") and line[:-1].isprintable() and line[:-1].endswith(" é")


def test_a_good_end_says_nothing_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    given = []
    assert run_command(given.extend, ["--epochs", "3"], "") == 0
    assert given == ["--epochs", "3"] and capsys.readouterr().err == ""


def test_being_asked_to_end_is_like_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> None:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # which would end pytest
        signal.raise_signal(signal.SIGTERM)

    assert run_command(main, [], "go on with --resume") == 143
    assert capsys.readouterr().err.count("\n") == 1


def test_out_of_memory_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda arguments: torch.empty(2**60, dtype=torch.uint8), [], "") == 1
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("too much"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.00 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to"),
    ],
)
def test_each_device_has_its_words_for_out_of_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(error), [], "") == 1
    assert "--batch-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("unsupported memory format option Preserve"),
        RuntimeError("required rank 4 tensor to use channels_last memory format"),
    ],
)
def test_a_mistake_in_the_program_is_not_hidden(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)):
        run_command(raising(error), [], "")


# Streams and signals of the process


class NotebookStream(io.TextIOBase):
    """What a kernel or IDLE has in the place of sys.stdout: no reconfigure, no file descriptor."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)


def test_a_stream_of_a_notebook_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = NotebookStream(), NotebookStream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert run_command(print, ["--epochs"], "") == 0
    assert run_command(raising(InputError("--lr")), [], "") == 2
    assert out.text == "['--epochs']\n" and err.text == "error: --lr\n"


@pytest.mark.parametrize("closed", [["stderr"], ["stdout"], ["stdin", "stdout", "stderr"]])
def test_a_closed_stream_will_do(monkeypatch: pytest.MonkeyPatch, closed: list[str]) -> None:
    def main(arguments: list[str]) -> None:
        for name in ("stdout", "stderr"):
            getattr(sys, name).write("text")

    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert run_command(main, [], "") == 0
    assert run_command(raising(InputError("--lr")), [], "") == 2
    assert all(getattr(sys, name) is None for name in closed)


@pytest.mark.parametrize(
    "ending", [None, InputError("--lr"), KeyboardInterrupt(), ValueError("a bug"), OSError(28, "full")]
)
def test_the_interpreter_is_left_as_it_was(ending: BaseException | None) -> None:
    def state() -> list:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return [*handlers, sys.stdout, sys.stderr, sys.stdout.errors, sys.stderr.errors]

    def main(arguments: list[str]) -> None:
        with uninterrupted():
            pass
        assert state() != before
        if ending:
            raise ending

    before = state()
    with suppress(ValueError):
        run_command(main, [], "")
    assert state() == before


def test_a_run_in_another_thread_needs_no_signals() -> None:
    def main(arguments: list[str]) -> None:
        with uninterrupted():
            codes.append("ran")

    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_command(main, [], "")))
    thread.start()
    thread.join(MINUTE)
    assert codes == ["ran", 0]


# Options


@pytest.mark.parametrize("text", ["0.5", "1", "2", "1e0", " 1.5 "])
def test_a_number_in_range_is_taken(text: str) -> None:
    assert number(float, 0.5, 2)(text) == float(text)


@pytest.mark.parametrize("text", ["0.499", "2.001", "nan", "inf", "-inf", "", "two", "1,5"])
def test_a_number_out_of_range_is_named_with_the_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        number(float, 0.5, 2)(text)
    assert repr(text) in str(caught.value) and "from 0.5 to 2" in str(caught.value)


@pytest.mark.parametrize("text", ["1.0", "1e3", "0", "10001", "nan"])
def test_a_whole_number_is_no_fraction(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 to 10,000"):
        number(int, 1, 10_000)(text)


def test_a_wrong_option_gets_no_usage_text(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser("A program.")
    parser.add_argument("--epochs", type=number(int, 1, 10))
    for arguments in (["--epochs", "11"], ["--epochs"], ["--epoch", "3"], ["3"]):
        with pytest.raises(InputError):
            parser.parse_args(arguments)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_folder_is_meant_from_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_path("out puts/ü")
    monkeypatch.chdir("/")
    assert path == tmp_path / "out puts" / "ü"
