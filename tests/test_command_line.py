"""utils/command_line.py: options in range, and one line with an exit code for every foreseen failure."""

import argparse
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from utils.command_line import OneLineParser, folder_path, number, plain_options, run_command
from utils.errors import InputError, RunError


@pytest.fixture(autouse=True)
def keep_signal_handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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
def test_a_foreseen_failure_is_one_line_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: list[str]) -> None:
        raise error

    assert run_command(main, [], "go on with --resume") == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert str(error) in printed.err
    assert ("go on with --resume" in printed.err) == (code == 130)


def test_a_run_that_ends_well_says_nothing_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    given = []
    assert run_command(given.extend, ["--epochs", "3"], "") == 0
    assert given == ["--epochs", "3"] and capsys.readouterr().err == ""


def test_being_asked_to_end_is_like_ctrl_c_with_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main(arguments: list[str]) -> None:
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL  # which would end pytest
        signal.raise_signal(signal.SIGTERM)

    assert run_command(main, [], "go on with --resume") == 143
    assert capsys.readouterr().err.count("\n") == 1


def test_memory_that_pytorch_cannot_get_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda arguments: torch.empty(2**60, dtype=torch.uint8), [], "") == 1
    assert "--batch-size" in capsys.readouterr().err


def test_a_mistake_in_the_program_is_not_hidden() -> None:
    def main(arguments: list[str]) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        run_command(main, [], "")


@pytest.mark.parametrize("text", ["0.5", "1", "2", "1e0", " 1.5 "])
def test_a_number_in_range_is_taken(text: str) -> None:
    assert number(float, 0.5, 2)(text) == float(text)


@pytest.mark.parametrize("text", ["0.499", "2.001", "nan", "inf", "-inf", "", "two", "1,5"])
def test_a_number_out_of_range_is_refused_with_its_value_and_the_range(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        number(float, 0.5, 2)(text)
    assert repr(text) in str(caught.value) and "from 0.5 to 2" in str(caught.value)


@pytest.mark.parametrize("text", ["1.0", "1e3", "0", "10001", "nan"])
def test_a_whole_number_is_no_fraction(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="whole number from 1 to 10,000"):
        number(int, 1, 10_000)(text)


def test_a_wrong_option_is_reported_without_the_usage_text(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser("A program.")
    parser.add_argument("--epochs", type=number(int, 1, 10))
    for arguments in (["--epochs", "11"], ["--epochs"], ["--epoch", "3"], ["3"]):
        with pytest.raises(InputError):
            parser.parse_args(arguments)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_folder_name_becomes_absolute_where_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder_path("out puts/ü")
    monkeypatch.chdir("/")
    assert path == tmp_path / "out puts" / "ü"


def test_options_become_plain_data(tmp_path: Path) -> None:
    options = plain_options(argparse.Namespace(out_dir=tmp_path, lr=0.1, resume=False, model="mlp"))
    assert json.loads(json.dumps(options)) == {"out_dir": str(tmp_path), "lr": 0.1, "resume": False, "model": "mlp"}
