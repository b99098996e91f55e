"""utils/report.py: what a run tells of itself, also where there is nothing to tell."""

import sys
from dataclasses import replace
from pathlib import Path

from utils.checkpoint import Progress
from utils.evaluation import Evaluation
from utils.recipe import Recipe
from utils.report import Run, print_header, print_test, save_metrics, show_figures

import pytest
import torch
from helpers import read_json

RECIPES = [Recipe(model="mlp", lr=0.2)]
# Two cats, one taken for a dog, and two ships, both recognized; no dog.
EVALUATION = Evaluation(torch.eye(3)[[0, 1, 2, 2]] * 5, torch.tensor([0, 0, 2, 2]))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    facts = {"parameters": 1000, "images": {"training": 20, "training_sample": 2}, "device": "cpu", "threads": 2}
    return Run(tmp_path, "Synthetic images", ("cat", "dog", "ship"), facts | {"precision": "float32"})


@pytest.fixture
def progress() -> Progress:
    numbers = {"train_loss": 2.0, "train_accuracy": 0.2, "validation_loss": 1.9, "validation_accuracy": 0.3}
    progress = Progress(replace(RECIPES[0], lr=0.1), "synthetic", 3, started=0.0)
    progress.history = [{"epoch": 1, "learning_rate": 0.1, **numbers, "seconds": 4.0}]
    progress.best_epoch = 1
    return progress


def test_the_test_line_and_a_class_without_images(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    print_test(run, EVALUATION, best_epoch=3)
    lines = capsys.readouterr().out.strip().splitlines()
    assert "75.00%" in lines[0] and "epoch 3" in lines[0] and "4 images" in lines[0]
    assert "confidence 98.67%" in lines[0] and "views" not in lines[0]
    assert [line.split() for line in lines[1:]] == [["cat", "50.00%"], ["dog", "no", "images"], ["ship", "100.00%"]]
    print_test(run, replace(EVALUATION, views=6, plain_logits=torch.eye(3)[[0, 1, 1, 2]]), best_epoch=3)
    printed = capsys.readouterr().out
    assert "accuracy 75.00%" in printed and "4 images, 6 views of each, weights" in printed
    assert "accuracy 50.00% on the images as they are" in printed


def test_before_the_test_pass_its_numbers_are_null(run: Run, progress: Progress) -> None:
    save_metrics(run, progress)
    metrics = read_json(run.folder / "metrics.json")
    assert metrics["test_loss"] is metrics["test_accuracy"] is metrics["class_accuracy"] is None
    assert metrics["history"] == progress.history
    assert metrics["seconds"]["training"] == 4.0 and metrics["seconds"]["total"] > 0
    save_metrics(run, progress, EVALUATION)
    metrics = read_json(run.folder / "metrics.json")
    assert (metrics["test_accuracy"], metrics["test_views"]) == (0.75, 1)
    assert metrics["test_confidence"] == pytest.approx(0.9867, abs=1e-4)


@pytest.mark.parametrize("epochs", [range(2, 4), []])
def test_the_header_names_what_differs_from_the_recipe(
    run: Run, progress: Progress, capsys: pytest.CaptureFixture[str], epochs: range | list
) -> None:
    print_header(run, progress, RECIPES, epochs)
    printed = capsys.readouterr().out
    assert "20 training, 2 training sample" in printed and "threads: 2" in printed
    assert "recipe mlp, --lr 0.1\n" in printed and "(an earlier run, after epoch 1)" in printed
    assert ("validation loss" in printed) == bool(epochs)


def test_show_without_a_display_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "curves.png").write_bytes(b"no picture: opening it would fail")
    show_figures(tmp_path)
    assert "--show" in capsys.readouterr().err
