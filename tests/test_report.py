"""utils/report.py: what a run tells of itself, also where there is nothing to tell."""

import json
import sys
from pathlib import Path

import pytest
import torch

from utils.report import describe_test, print_test, save_progress, show_figures
from utils.training import Evaluation, Progress

NAMES = ("cat", "dog", "ship")


@pytest.fixture
def evaluation() -> Evaluation:
    """Two cats, one taken for a dog, and two ships, both recognized; no dog."""
    logits = torch.eye(3)[[0, 1, 2, 2]] * 5
    return Evaluation(0.75, 0.75, logits, torch.tensor([0, 0, 2, 2]))


def test_accuracy_per_class_is_the_share_of_the_images_of_that_class(evaluation: Evaluation) -> None:
    result = describe_test(evaluation, NAMES)
    assert result["class_accuracy"] == {"cat": 0.5, "dog": None, "ship": 1.0}
    assert (result["test_loss"], result["test_accuracy"]) == (0.75, 0.75)


def test_a_class_without_images_is_printed_as_such(evaluation: Evaluation, capsys: pytest.CaptureFixture[str]) -> None:
    print_test(describe_test(evaluation, NAMES), 4, best_epoch=3)
    lines = capsys.readouterr().out.strip().splitlines()
    assert "75.00%" in lines[0] and "epoch 3" in lines[0] and "4 images" in lines[0]
    assert [line.split() for line in lines[1:]] == [["cat", "50.00%"], ["dog", "no", "images"], ["ship", "100.00%"]]


def test_before_the_test_pass_its_numbers_are_null(tmp_path: Path, evaluation: Evaluation) -> None:
    numbers = {"train_loss": 2.0, "train_accuracy": 0.2, "validation_loss": 1.9, "validation_accuracy": 0.3}
    history = [{"epoch": 1, "learning_rate": 0.1, **numbers, "seconds": 4.0}]
    progress = Progress({"lr": 0.1}, torch.zeros(3), history, best_epoch=1)
    run = {"dataset": "synthetic", "title": "Synthetic images"}

    save_progress(tmp_path, run, progress, 5.0)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["test_loss"] is metrics["test_accuracy"] is metrics["class_accuracy"] is None
    assert metrics["history"] == history and metrics["seconds"] == {"training": 4.0, "total": 5.0}
    assert (tmp_path / "curves.png").stat().st_size > 0

    save_progress(tmp_path, run, progress, 6.0, describe_test(evaluation, NAMES))
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["test_accuracy"] == 0.75


def test_show_without_a_display_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "curves.png").write_bytes(b"no picture: opening it would fail")
    show_figures(tmp_path)
    assert "--show" in capsys.readouterr().err
