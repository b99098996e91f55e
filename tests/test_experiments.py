"""utils/experiments.py: the whole set on a few synthetic images, interrupted once on the way."""

import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import main as walk
from utils import experiments
from utils.command_line import run_command
from utils.data import load_synthetic
from utils.errors import InputError
from utils.experiments import (
    EXPERIMENTS,
    RATES,
    Study,
    best_of,
    in_order,
    judge,
    run_experiments,
    sgd,
    shuffled,
    summarize,
    train,
)
from utils.files import write_json
from utils.model import MLP

PROJECT = Path(__file__).resolve().parent.parent
SHARE = 0.02  # of the images and epochs of the real measurements
WHOLE_SET = f"""
from pathlib import Path
import torch
from utils.data import load_synthetic
from utils.experiments import Study, run_experiments
torch.set_num_threads(1)
run_experiments(Study(load_synthetic(), [0, 1, 2], {SHARE}), Path("."))
"""


@dataclass(frozen=True)
class WholeSet:
    """What a run left that was killed after its first experiment, and what the run left that went on from there."""

    folder: Path
    files_after_kill: set[str]
    kept: dict  # the file of the unfinished run
    printed: str
    record: dict


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On so few images, several threads would spend more time on waiting for each other than on computing."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(load_synthetic(), [0, 1, 2], SHARE)


@pytest.fixture(scope="module")
def whole_set(study: Study, tmp_path_factory: pytest.TempPathFactory) -> WholeSet:
    folder = tmp_path_factory.mktemp("figures")
    command, environment = [sys.executable, "-c", WHOLE_SET], os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment) as process:
        next(line for line in process.stdout if line.startswith("representations"))
        process.kill()
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    kept = read_json(folder / "experiments.unfinished.json")
    printed = io.StringIO()
    with redirect_stdout(printed):
        run_experiments(study, folder)
    return WholeSet(folder, files, kept, printed.getvalue(), read_json(folder / "experiments.json"))


@pytest.fixture
def numbers(whole_set: WholeSet) -> dict[str, dict]:
    return whole_set.record["experiments"]


def read_json(path: Path) -> dict:
    """Read plain JSON: NaN and infinities, which Python would take too, are an error."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {path.name}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {key: without_seconds(entry) for key, entry in value.items() if "seconds" not in key}
    return value


def summaries(value: object) -> Iterator[dict]:
    """Yield each summary over the seeds, however deep it stands."""
    if isinstance(value, dict) and "per_seed" in value:
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from summaries(entry)


# What the whole set leaves


def test_every_experiment_has_a_figure_that_decodes_and_its_numbers(whole_set: WholeSet) -> None:
    files = {path.name for path in whole_set.folder.iterdir() if not path.name.startswith(".")}
    assert files == {"experiments.json", *(f"experiment-{name}.png" for name in EXPERIMENTS)}
    assert list(whole_set.record["experiments"]) == list(EXPERIMENTS)
    for name in EXPERIMENTS:
        path = whole_set.folder / f"experiment-{name}.png"
        image = imread(path)
        assert image.shape[1] >= 800 and image.std() > 0.05, name
        assert path.stat().st_size < 400_000, name


def test_the_record_names_dataset_seeds_versions_and_hardware(whole_set: WholeSet) -> None:
    record = whole_set.record
    assert record["dataset"] == "synthetic" and record["seeds"] == [0, 1, 2]
    assert {"python", "torch", "numpy", "matplotlib"} == set(record["versions"])
    assert record["hardware"]["cpu"] and record["hardware"]["threads"] > 0
    assert record["precision"] == "float32" and record["device"] == "cpu"
    assert all(experiment["seconds"] > 0 for experiment in record["experiments"].values())


def test_every_number_comes_with_its_mean_and_deviation_over_three_seeds(numbers: dict[str, dict]) -> None:
    assert experiments.SEEDS >= 3
    for name, experiment in numbers.items():
        found = list(summaries(experiment))
        assert found, name
        for summary in found:
            assert summary["n"] == len(summary["per_seed"]) == 3
            if not isinstance(summary["per_seed"][0], list) and None not in summary["per_seed"]:
                assert summary["mean"] == pytest.approx(sum(summary["per_seed"]) / 3)


def test_progress_tells_each_experiment_with_its_seconds_and_finding(whole_set: WholeSet) -> None:
    lines = dict(line.split(maxsplit=1) for line in whole_set.printed.splitlines()[1:])
    assert list(lines) == list(EXPERIMENTS)
    assert lines["dropout"].split()[1] == "s"
    assert whole_set.record["experiments"]["dropout"]["finding"] in lines["dropout"]


# Known truths


def test_the_gradient_of_sigmoid_vanishes_towards_the_input_and_that_of_relu_does_not(numbers: dict) -> None:
    activations = numbers["activations"]["activations"]
    sigmoid, relu = (activations[name]["gradient_norms"]["mean"] for name in ("sigmoid", "ReLU"))
    assert sigmoid[0] < relu[0] / 100
    assert sigmoid[1] < sigmoid[5] / 20 and relu[1] > relu[5] / 3
    assert activations["sigmoid"]["gradient_factor"]["mean"] < 0.5 < activations["ReLU"]["gradient_factor"]["mean"]


def test_the_variance_of_the_gradient_falls_as_one_over_the_batch_size(numbers: dict) -> None:
    gradient = numbers["batch-size"]["gradient"]
    for measured, expected in zip(gradient["variance"]["mean"], gradient["one_over_b"]["mean"], strict=True):
        assert expected / 2 < measured < 2 * expected
    assert gradient["power"]["mean"] == pytest.approx(-1, abs=0.15)


def test_at_the_highest_learning_rate_no_run_learns_and_a_diverged_one_is_recorded_as_null(numbers: dict) -> None:
    result = numbers["learning-rate"]
    highest = result["rates"][f"{RATES[-1]:g}"]["final_train_loss"]
    assert all(loss is None or loss > 0.95 * math.log(10) for loss in highest["per_seed"])
    assert None in highest["per_seed"] and highest["mean"] is None and highest["std"] is None
    low, high = result["usable_range"]
    assert RATES[0] < low <= result["best_rate"] <= high <= result["highest_rate_that_learns"] < RATES[-1]
    assert 1 <= result["above_it"]["diverged"] <= result["above_it"]["runs"]


def test_a_loss_that_diverges_only_when_it_is_evaluated_is_recorded_as_null_too(study: Study) -> None:
    """One step at this rate makes weights of which the next loss overflows; before the step, the loss is finite."""
    images = study.training_images(1000, 0)
    _, curves = train(partial(MLP, (8,)), sgd, shuffled(images, 20, batches=1), 1e38, 2, 0, watched=in_order(images))
    assert curves["watched_loss"] == curves["train_loss"] == [None, None]


def test_a_far_too_low_learning_rate_learns_next_to_nothing(numbers: dict) -> None:
    rates = numbers["learning-rate"]["rates"]
    first, *_, last = rates[f"{RATES[0]:g}"]["train_loss"]["mean"]
    assert abs(first - last) < 0.05


def test_single_images_take_longer_than_the_same_images_in_batches(numbers: dict) -> None:
    sizes = numbers["batch-size"]["batch_sizes"]
    one, many = (sizes[size]["at_best_rate"]["seconds"]["mean"] for size in ("1", "256"))
    assert one[0] > 0 and many == sorted(many)


# Statistics


def test_a_difference_within_the_spread_is_none() -> None:
    results = {"a": {"x": summarize([1, 2, 3])}, "b": {"x": summarize([2, 3, 4])}, "c": {"x": summarize([7, 8, 9])}}
    assert best_of(results, "x", max) == "c"
    assert best_of(results, "x", min) == "a and b"


def test_a_summary_is_mean_and_sample_deviation_or_null_where_a_seed_diverged() -> None:
    assert summarize([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "n": 3, "per_seed": [1.0, 2.0, 3.0]}
    curve = summarize([[1.0, 5.0], [3.0, None]])
    assert curve["mean"] == [2.0, None] and curve["std"] == [pytest.approx(math.sqrt(2)), None]


@pytest.mark.parametrize(
    ("train_loss", "rise", "verdict"), [(0.1, 0.4, "overfits"), (2.0, 0.0, "underfits"), (1.4, 0.01, "about right")]
)
def test_the_verdict_follows_from_the_curves(train_loss: float, rise: float, verdict: str) -> None:
    values = {"final_train_loss": summarize([train_loss] * 3), "rise": summarize([rise] * 3)}
    assert judge(values, lowest=1.7) == verdict


# Interruptions, and one experiment alone


def test_a_killed_run_keeps_what_was_finished_and_replaces_nothing(whole_set: WholeSet) -> None:
    assert whole_set.files_after_kill == {"experiments.unfinished.json"}
    finished = {name for name, numbers in whole_set.kept["experiments"].items() if numbers}
    assert finished == {"representations"}


def test_the_next_run_goes_on_without_repeating(whole_set: WholeSet) -> None:
    assert whole_set.printed.count("kept from the interrupted run") == 1
    assert whole_set.record["experiments"]["representations"] == whole_set.kept["experiments"]["representations"]


def test_only_replaces_one_entry_with_the_same_numbers(
    whole_set: WholeSet, study: Study, capsys: pytest.CaptureFixture
) -> None:
    before = read_json(whole_set.folder / "experiments.json")
    spoiled = read_json(whole_set.folder / "experiments.json")
    spoiled["experiments"]["dropout"] = {"finding": "spoiled"}
    write_json(whole_set.folder / "experiments.json", spoiled)
    (whole_set.folder / "experiment-dropout.png").unlink()
    run_experiments(study, whole_set.folder, only="dropout")
    after = read_json(whole_set.folder / "experiments.json")
    assert without_seconds(after) == without_seconds(before)
    assert after["experiments"]["dropout"]["seconds"] != before["experiments"]["dropout"]["seconds"]
    assert after["experiments"]["optimizers"] == before["experiments"]["optimizers"]
    assert (whole_set.folder / "experiment-dropout.png").exists()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_only_needs_no_other_numbers_and_leaves_an_interrupted_run_as_it_is(
    whole_set: WholeSet, study: Study, tmp_path: Path
) -> None:
    write_json(tmp_path / "experiments.unfinished.json", whole_set.kept)
    run_experiments(Study(study.data, [1, 2, 3], SHARE), tmp_path, only="dropout")
    assert read_json(tmp_path / "experiments.unfinished.json") == whole_set.kept
    record = read_json(tmp_path / "experiments.json")
    assert list(record["experiments"]) == ["dropout"] and record["seeds"] == [1, 2, 3]
    of_seeds_0_to_2, of_seeds_1_to_3 = (
        numbers["experiments"]["dropout"]["p"]["0.5"]["final_validation_loss"]["per_seed"]
        for numbers in (whole_set.record, record)
    )
    assert of_seeds_0_to_2[1:] == of_seeds_1_to_3[:2]
    assert of_seeds_1_to_3[2] not in of_seeds_0_to_2


@pytest.mark.parametrize("only", [None, "dropout"])
def test_numbers_of_another_seed_are_not_mixed_in(
    whole_set: WholeSet, study: Study, tmp_path: Path, only: str | None
) -> None:
    path = tmp_path / ("experiments.json" if only else "experiments.unfinished.json")
    write_json(path, whole_set.record)
    with pytest.raises(InputError, match=r"seeds \[0, 1, 2\], not \[5, 6, 7\]"):
        run_experiments(Study(study.data, [5, 6, 7], SHARE), tmp_path, only)
    assert read_json(path) == whole_set.record


@pytest.mark.parametrize("content", ["", "[]", '{"experiments": {}}', "null"])
def test_a_damaged_file_is_named(study: Study, tmp_path: Path, content: str) -> None:
    (tmp_path / "experiments.json").write_text(content)
    with pytest.raises(InputError, match="experiments.json is damaged: delete it"):
        run_experiments(study, tmp_path, only="dropout")


def test_an_experiment_measured_with_other_versions_says_so(whole_set: WholeSet, study: Study, tmp_path: Path) -> None:
    older = whole_set.record | {"versions": {"torch": "1.0"}}
    write_json(tmp_path / "experiments.json", older)
    run_experiments(study, tmp_path, only="dropout")
    record = read_json(tmp_path / "experiments.json")
    assert record["versions"] == {"torch": "1.0"}
    assert record["experiments"]["dropout"]["versions"] == whole_set.record["versions"]


# The command line


def test_without_cifar10_the_message_is_that_of_main(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--data-dir", str(tmp_path / "data"), "--out-dir", str(tmp_path / "out")]
    assert run_command(experiments.main, arguments, "") == 2
    message = capsys.readouterr().err
    assert run_command(walk.main, ["--dataset", "cifar10", *arguments], "") == 2
    assert message == capsys.readouterr().err
    assert message.count("\n") == 1 and "CIFAR-10 is not in" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--only", "sigmoid"], ["--seed", "-1"], ["--seed", "one"], ["--data-dir", ""], ["--on", "dropout"]]
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert run_command(experiments.main, arguments, "") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and arguments[0] in message and arguments[-1] in message


def test_an_unknown_experiment_is_answered_with_the_names_of_all(capsys: pytest.CaptureFixture) -> None:
    run_command(experiments.main, ["--only", "sigmoid"], "")
    message = capsys.readouterr().err
    assert all(name in message for name in EXPERIMENTS)


def test_ctrl_c_ends_with_one_line_that_says_how_to_go_on(real_data_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "utils.experiments", "--data-dir", str(real_data_dir), "--out-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert next(process.stdout).startswith("CIFAR-10, seeds [0, 1, 2]")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert err == "stopped: finished experiments are kept; the same command goes on from there\n"
