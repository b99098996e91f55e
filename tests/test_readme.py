"""README.md: what a reader is told to type works."""

import re
import shlex
from pathlib import Path

import main
from utils import model
from utils.recipe import parse_options

import pytest
from helpers import PROJECT, TINY, run_script

pytestmark = pytest.mark.usefixtures("no_figures")
README = (PROJECT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python main\.py[^\n`#|]*", README)))
TRICKS = re.findall(r"`(--[^`]+)` \|", README.partition("## What each trick brings")[2].partition("\n## ")[0])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "--help" not in command])
def test_each_command_has_options_that_exist(command: str) -> None:
    words = shlex.split(command.replace("--model small", "--model mlp"))[2:]  # the reader's own network
    parse_options(words, "A program.", main.RECIPES, main.HERE)


@pytest.mark.parametrize("options", TRICKS)
def test_each_trick_can_be_taken_out(options: str, tmp_path: Path) -> None:
    """For one batch of a small network."""
    small = ("--dataset", "synthetic", "--width", "0.1", "--batch-size", "16", "--device", "cpu", "--dry-run")
    assert run_script(tmp_path, *small, *options.split()).code == 0


def test_there_are_tricks_and_the_files_that_are_linked() -> None:
    assert len(TRICKS) >= 5
    for target in re.findall(r"\]\(([^)#\s]+)", README):
        assert target.startswith("http") or (PROJECT / target).exists(), target


def test_the_network_of_the_reader_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two code blocks are run as they stand, in the modules that they are written for."""
    of_model, of_main = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.setattr(model, "MODELS", dict(model.MODELS))
    monkeypatch.setattr(main, "RECIPES", list(main.RECIPES))
    exec(of_model, vars(model))
    exec(of_main, vars(main))
    outcome = run_script(tmp_path, *TINY[:2], *TINY[-2:], "--model", "small", "--width", "0.2", "--epochs", "1")
    assert outcome.code == 0 and outcome.folder.name == "synthetic-small-1"
