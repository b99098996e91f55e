"""utils/experiments: the whole set on a few synthetic images, interrupted once on the way."""

import io
import math
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import main as script
from utils import data
from utils.data import load_synthetic
from utils.experiments import __main__ as command
from utils.experiments import activations, batch_size, dropout, learning_rate, optimizers, overfitting, representations
from utils.experiments.__main__ import EXPERIMENTS, draw_experiment, measure_experiment, parse_options, run_experiments
from utils.experiments.study import GRID, Batches, Study, best_of, find_edges, sgd, summarize, train
from utils.files import write_json
from utils.model import MLP

import pytest
import torch
from helpers import PROJECT, read_json, visible_files
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import nn
from torch.nn.functional import cross_entropy
from utils.command_line import run_command
from utils.errors import InputError, RunError

SHARE = 0.01  # of the images, epochs and draws of the real measurements
KILLED_IN_THE_SECOND = """
import os
from pathlib import Path
from utils.data import load_synthetic
from utils.experiments.__main__ import EXPERIMENTS, Study, run_experiments
EXPERIMENTS.clear()
EXPERIMENTS["first"] = (lambda study: {"finding": "done"}, None)
EXPERIMENTS["second"] = (lambda study: os._exit(9), None)
run_experiments(Study(load_synthetic(), (0, 1, 2)), Path("."))
"""


@dataclass(frozen=True)
class WholeSet:
    """What a run left that was stopped in its last experiment, and what the run left that went on from there."""

    folder: Path
    files_after_stop: set[str]
    kept: dict  # the file of the unfinished run
    printed: str
    record: dict


@pytest.fixture(scope="module", autouse=True)
def modest_aims() -> Iterator[None]:
    """A training loss that few epochs reach; fewer hand-made features, for whose 1,764 weights one waits long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "TARGET", 10)
        patch.setattr(representations, "CELL", 8)
        patch.setattr(representations, "COUNTS", (200, 20_000))
        patch.setattr(activations, "DEPTHS", (2, 12))
        yield


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(load_synthetic(), (0, 1, 2), SHARE, further=0)


@pytest.fixture(scope="module", autouse=True)
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen]]:
    """A folder, and the process that works there until it dies; it starts while the whole set is measured."""
    folder = tmp_path_factory.mktemp("killed")
    command, environment = [sys.executable, "-c", KILLED_IN_THE_SECOND], os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL) as process:
        yield folder, process
        process.kill()


@pytest.fixture(scope="module")
def whole_set(study: Study, tmp_path_factory: pytest.TempPathFactory) -> WholeSet:
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setitem(EXPERIMENTS, "optimizers", (stop, optimizers.draw))
        run_experiments(study, folder)
    files = visible_files(folder)
    kept = read_json(folder / "experiments.unfinished.json")
    printed = io.StringIO()
    with redirect_stdout(printed):
        run_experiments(study, folder)
    return WholeSet(folder, files, kept, printed.getvalue(), read_json(folder / "experiments.json"))


def stop(study: Study) -> dict:
    raise KeyboardInterrupt


@pytest.fixture
def numbers(whole_set: WholeSet) -> dict[str, dict]:
    return whole_set.record["experiments"]


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


def same(value: object) -> dict:
    """Return the summary of three runs that gave the same."""
    return summarize([value] * 3)


# What the whole set leaves


def test_every_experiment_has_a_figure_and_its_numbers(whole_set: WholeSet) -> None:
    assert visible_files(whole_set.folder) == {"experiments.json", *(f"experiment-{name}.png" for name in EXPERIMENTS)}
    assert list(whole_set.record["experiments"]) == list(EXPERIMENTS)
    for name in EXPERIMENTS:
        path = whole_set.folder / f"experiment-{name}.png"
        image = imread(path)
        assert image.shape[1] >= 800 and image.std() > 0.05, name
        assert path.stat().st_size < 400_000, name


def test_the_record_names_dataset_seeds_and_hardware(whole_set: WholeSet) -> None:
    record = whole_set.record
    assert record["dataset"] == "synthetic" and record["seeds"] == [0, 1, 2]
    assert {"python", "torch", "numpy", "matplotlib"} == set(record["versions"])
    assert record["hardware"]["cpu"] and record["hardware"]["threads"] > 0
    assert record["precision"] == "float32" and record["device"] == "cpu"
    assert all(experiment["seconds"] > 0 for experiment in record["experiments"].values())


def test_every_number_has_mean_and_deviation(numbers: dict[str, dict]) -> None:
    """Over three seeds, or five where the differences are small."""
    for name, experiment in numbers.items():
        found = list(summaries(experiment))
        assert found, name
        for summary in found:
            seeds = 5 if name in ("batch-size", "optimizers") and "power" not in summary else 3
            assert summary["n"] == len(summary["per_seed"]) == seeds, name
            if not isinstance(summary["per_seed"][0], list) and None not in summary["per_seed"]:
                assert summary["mean"] == pytest.approx(sum(summary["per_seed"]) / seeds)


def test_progress_tells_seconds_and_finding(whole_set: WholeSet) -> None:
    lines = dict(line.split(maxsplit=1) for line in whole_set.printed.splitlines()[1:])
    assert list(lines) == list(EXPERIMENTS)
    assert lines["optimizers"].split()[1] == "s"
    assert whole_set.record["experiments"]["optimizers"]["finding"] in lines["optimizers"]


# The search for the best value


@pytest.fixture
def searching(study: Study) -> Study:
    return Study(study.data, study.seeds)


def distance_to(best: float) -> Callable[[float, int], dict]:
    """Return a run whose loss is lowest at the value `best`, whatever the seed."""
    return lambda value, seed: {"loss": abs(math.log(value / best)), "gain": -abs(math.log(value / best))}


@pytest.mark.parametrize("best", [0.003, 0.03, 1])
@pytest.mark.parametrize(("target", "better"), [("loss", min), ("gain", max)])
def test_a_search_goes_on_until_the_best_is_inside(
    searching: Study, best: float, target: str, better: Callable
) -> None:
    result = searching.search(distance_to(best), [0.01, 0.03, 0.1], **{target: better})
    found = result["best_by"][target]
    assert (found["value"], found["edge"]) == (best, None)
    tried = [float(value) for value in result["tried"]]
    assert min(tried) < best < max(tried)
    assert tried == GRID[GRID.index(min(tried)) : GRID.index(max(tried)) + 1]  # none left out between them
    assert find_edges(result) == []


def test_the_grid_has_two_values_a_decade() -> None:
    assert all(2.9 < after / before < 3.4 for before, after in zip(GRID, GRID[1:], strict=False))


@pytest.mark.parametrize(("best", "edge"), [(1e9, "highest"), (1e-12, "lowest")])
def test_a_search_without_end_reports_the_edge(searching: Study, best: float, edge: str) -> None:
    result = searching.search(distance_to(best), [0.01, 0.03, 0.1], loss=min)
    assert result["best_by"]["loss"]["edge"] == edge
    assert len(result["tried"]) == 3 + searching.further
    assert find_edges({"networks": {"MLP": result}}) == [f"networks/MLP/best_by/loss ({edge})"]


def test_an_edge_stands_in_the_finding_and_the_title(searching: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(study: Study) -> dict:
        return {"rates": study.search(distance_to(1e9), [0.1, 0.3, 1], loss=min), "finding": "the loss falls"}

    monkeypatch.setitem(EXPERIMENTS, "dropout", (measure, lambda numbers: Figure()))
    measured = measure_experiment("dropout", searching)
    assert measured["edges"] == ["rates/best_by/loss (highest)"]
    assert measured["finding"] == "the loss falls; best at the edge of what was tried: rates/best_by/loss (highest)"
    assert draw_experiment("dropout", measured, "CIFAR-10").get_suptitle() == f"CIFAR-10: {measured['finding']}"


def test_each_target_has_its_own_best_value(searching: Study) -> None:
    def run(value: float, seed: int) -> dict:
        return distance_to(0.01)(value, seed) | {"accuracy": -abs(math.log(value / 1))}

    found = searching.search(run, [0.01, 0.03, 0.1], loss=min, accuracy=max)["best_by"]
    assert (found["loss"]["value"], found["accuracy"]["value"]) == (0.01, 1)
    assert found["loss"]["edge"] is None and found["accuracy"]["edge"] is None


def test_a_value_with_a_diverged_run_is_not_the_best(searching: Study) -> None:
    def run(value: float, seed: int) -> dict:
        return {"loss": None if value > 0.05 and seed == 1 else -value}

    found = searching.search(run, [0.03, 0.1, 0.3], loss=min)["best_by"]["loss"]
    assert (found["value"], found["edge"]) == (0.03, None)


def test_a_search_in_which_every_run_diverges_fails(searching: Study) -> None:
    with pytest.raises(RunError, match="no value from .* to 0.3 gives a loss"):
        searching.search(lambda value, seed: {"loss": None}, [0.03, 0.1, 0.3], loss=min)


# Titles and verdicts follow from the numbers


def test_a_difference_within_the_spread_is_none() -> None:
    results = {"a": {"x": summarize([1, 2, 3])}, "b": {"x": summarize([2, 3, 4])}, "c": {"x": summarize([7, 8, 9])}}
    assert best_of(results, "x", max) == "c"
    assert best_of(results, "x", min) == "a and b"


def test_a_summary_is_mean_and_deviation_or_null() -> None:
    assert summarize([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "n": 3, "per_seed": [1.0, 2.0, 3.0]}
    curve = summarize([[1.0, 5.0], [3.0, None]])
    assert curve["mean"] == [2.0, None] and curve["std"] == [pytest.approx(math.sqrt(2)), None]


@pytest.mark.parametrize(
    ("train_loss", "rise", "verdict"), [(0.1, 0.4, "overfits"), (2.0, 0.0, "underfits"), (1.4, 0.01, "about right")]
)
def test_the_verdict_follows_from_the_curves(train_loss: float, rise: float, verdict: str) -> None:
    assert overfitting.judge({"final_train_loss": same(train_loss), "rise": same(rise)}, lowest=1.7) == verdict


def test_the_turn_of_a_curve_is_its_lowest_point() -> None:
    turn = overfitting.find_turn([2.0, 1.5, 1.6, 1.8])
    assert turn == {"lowest_validation_loss": 1.5, "turning_epoch": 2, "rise": pytest.approx(0.2)}
    assert set(overfitting.find_turn([2.0, None]).values()) == {None}


def test_the_widths_are_named_with_their_verdicts() -> None:
    losses = {"2": 2.2, "32": 1.8, "512": 1.8}
    verdicts = {"2": "underfits", "32": "overfits", "512": "overfits"}
    widths = {n: {"verdict": verdicts[n], "lowest_validation_loss": same(losses[n])} for n in losses}
    assert overfitting.describe(widths) == "32 and 512 units overfit; 2 units underfit; stopped early, best: 32 and 512"


def test_the_best_method_is_named_for_each_count() -> None:
    accuracies = {"hand-made features": {"200": 0.31, "20000": 0.52}, "ConvNet": {"200": 0.26, "20000": 0.7}}
    methods = {
        name: {"images": {count: {"test_accuracy": same(share)} for count, share in by_count.items()}}
        for name, by_count in accuracies.items()
    }
    assert representations.best_with(methods, 200) == "hand-made features"
    assert representations.best_with(methods, 20_000) == "ConvNet"


@pytest.mark.parametrize(
    ("above", "says"),
    [
        ({"runs": 9, "fail": 9}, "lowest loss at the rate 0.1; above 0.3, none of 9 runs learn"),
        ({"runs": 9, "fail": 7}, "lowest loss at the rate 0.1; above 0.3, 2 of 9 runs learn"),
        ({"runs": 0, "fail": 0}, "lowest loss at the rate 0.1; every run learns"),
    ],
)
def test_the_title_counts_the_runs_that_fail(above: dict, says: str) -> None:
    assert learning_rate.describe({"best_rate": 0.1, "highest_rate_that_learns": 0.3, "above_it": above}) == says


@pytest.mark.parametrize(("turns", "finished"), [([3, 4, 5], True), ([3, 4, 6], False)])
def test_an_unfinished_dropout_training_is_named(turns: list[int], finished: bool) -> None:
    best = {"turning_epoch": summarize(turns), "validation_loss": same([1.0] * 6)}
    assert dropout.is_finished(best) == finished


@pytest.mark.parametrize(("losses", "first"), [([11, 9, 8], 1), ([11, 12, None], None), ([10, 9, 8], 0)])
def test_the_target_is_reached_at_the_first_loss_below(losses: list, first: int | None) -> None:
    curves = {"train_loss": losses, "steps": [1, 2, 3], "images": [10, 20, 30], "seconds": [0.1, 0.2, 0.3]}
    expected = {f"{unit}_to_target": None if first is None else curves[unit][first] for unit in list(curves)[1:]}
    assert batch_size.reach_target(curves) == expected


# Training


def test_more_seeds_are_those_that_follow(study: Study) -> None:
    assert Study(study.data, (4, 5, 6)).with_seeds(5).seeds == (4, 5, 6, 7, 8)


def test_batches_use_each_image_alike() -> None:
    images = [(torch.zeros(6, 3, 32, 32), torch.arange(6)), (torch.zeros(4, 3, 32, 32), torch.arange(6, 10))]
    for count, times in ((5, 2), (20, 8), (None, 1)):
        served = [labels for _, labels in Batches(images, 4, count)]
        assert len(served) == (count or 3)
        assert torch.equal(torch.cat(served).bincount(), torch.full((10,), times))


def test_a_falling_rate_ends_near_zero(study: Study) -> None:
    made = []

    def keep(model: nn.Module) -> torch.optim.Optimizer:
        made.append(sgd(model))
        return made[-1]

    batches = Batches(study.training(2000, 0), 5)  # 4 batches an epoch
    for falling, last in ((False, 0.8), (True, 0.8 / 8)):
        train(partial(MLP, (8,)), keep, batches, 0.8, 2, 0, falling)
        assert made[-1].param_groups[0]["lr"] == pytest.approx(last)


def test_a_loss_that_diverges_in_evaluation_is_null(study: Study) -> None:
    """One step at this rate makes weights of which the next loss overflows; before the step, the loss is finite."""
    images = study.training(1000, 0)
    _, curves = train(partial(MLP, (8,)), sgd, Batches(images, 20, 1), 1e38, 2, 0, watched=images)
    assert curves["watched_loss"] == curves["seconds"] == [None, None]


def test_validation_takes_all_its_images(study: Study) -> None:
    whole = Study(study.data, study.seeds)
    assert sum(len(labels) for _, labels in whole.validation) == 200  # a tenth of the 2,000


# Known truths


def test_error_signals_are_those_of_single_examples(study: Study) -> None:
    """The gradient of one example's loss, alone in its batch, with respect to each pre-activation."""
    sizes = activations.measure_error_signals(study, "tanh", 2, 0)["error_signals"]
    torch.manual_seed(0)
    first, second, last = activations.build("tanh", 2).layers
    images, labels = (torch.cat(parts) for parts in zip(*study.training(500, 0), strict=True))
    squares = []
    for image, label in zip(images, labels, strict=True):
        z1 = first(image.flatten()).detach().requires_grad_()
        z2 = second(torch.tanh(z1))
        z3 = last(torch.tanh(z2))
        signals = torch.autograd.grad(cross_entropy(z3, label), (z1, z2, z3))
        squares.append([signal.square().sum().item() for signal in signals])
    expected = torch.tensor(squares).mean(dim=0).sqrt().tolist()
    assert sizes == pytest.approx(expected, rel=1e-4)


def test_sigmoid_loses_the_error_signal_and_relu_keeps_it(numbers: dict) -> None:
    deepest = {
        name: by_depth["12"]["share"]["mean"] for name, by_depth in numbers["activations"]["activations"].items()
    }
    assert deepest["sigmoid, ReLU's weights"] < 1e-4 < deepest["sigmoid"] < 0.02
    assert 0.5 < deepest["ReLU"] < 2


def test_gradient_variance_falls_as_one_over_the_batch_size(numbers: dict) -> None:
    gradient = numbers["batch-size"]["gradient"]
    for measured, expected in zip(gradient["variance"]["mean"], gradient["one_over_b"]["mean"], strict=True):
        assert expected / 2 < measured < 2 * expected
    assert gradient["power"]["mean"] == pytest.approx(-1, abs=0.15)


def test_at_the_highest_rate_no_run_learns(numbers: dict) -> None:
    result = numbers["learning-rate"]
    highest = result["tried"][f"{learning_rate.RATES[-1]:g}"]["final_train_loss"]
    assert all(loss is None or loss > 0.95 * math.log(10) for loss in highest["per_seed"])
    assert None in highest["per_seed"] and highest["mean"] is None and highest["std"] is None
    low, high = result["near_best"]
    best = result["best_rate"]
    assert learning_rate.RATES[0] < low <= best <= high <= result["highest_rate_that_learns"] < learning_rate.RATES[-1]
    assert 1 <= result["above_it"]["diverged"] <= result["above_it"]["fail"] <= result["above_it"]["runs"]


def test_a_far_too_low_rate_learns_next_to_nothing(numbers: dict) -> None:
    first, *_, last = numbers["learning-rate"]["courses"][f"{learning_rate.RATES[0]:g}"]["mean"]
    assert abs(first - last) < 0.05


def test_seconds_grow_along_a_training(numbers: dict) -> None:
    for values in numbers["batch-size"]["batch_sizes"].values():
        seconds = values["best_by"]["images_to_target"]["seconds"]["mean"]
        assert seconds[0] > 0 and seconds == sorted(seconds)


def test_oriented_gradients_see_direction_not_contrast() -> None:
    upright = torch.zeros(1, 3, 32, 32)
    upright[..., 16:] = 1  # an upright edge: the grey value changes across
    lying = upright.transpose(2, 3)
    features = {name: representations.oriented_gradients(image) for name, image in (("|", upright), ("-", lying))}
    by_direction = {name: f.view(-1, representations.DIRECTIONS, 4).sum(dim=(0, 2)) for name, f in features.items()}
    assert by_direction["|"].nonzero().tolist() == [[0]] and by_direction["-"].nonzero().tolist() == [[4]]
    image = torch.rand(1, 3, 32, 32)
    before = representations.oriented_gradients(image)
    for changed in (0.5 * image - 3, -image):  # less contrast and light; the negative
        difference = representations.oriented_gradients(changed) - before
        assert difference.norm() < 0.1 * before.norm()


def test_ridge_regression_reads_the_class_where_it_can() -> None:
    labels = torch.arange(200) % 10
    telling = torch.eye(10)[labels] + 0.1 * torch.rand(200, 10)
    for features, low, high in ((telling, 1, 1), (torch.rand(200, 10), 0, 0.5)):
        statistics = representations.covariances(features, labels)
        assert low <= representations.ridge_accuracy(statistics, 0.01, features, labels) <= high


# Interruptions, and one experiment alone


def test_a_stopped_run_keeps_what_was_finished(whole_set: WholeSet) -> None:
    assert whole_set.files_after_stop == {"experiments.unfinished.json"}
    assert list(whole_set.kept["experiments"]) == list(EXPERIMENTS)[:-1]


def test_the_next_run_goes_on_without_repeating(whole_set: WholeSet) -> None:
    assert whole_set.printed.count("kept from the interrupted run") == len(EXPERIMENTS) - 1
    for name, kept in whole_set.kept["experiments"].items():
        assert whole_set.record["experiments"][name] == kept


def test_a_killed_run_goes_on_too(
    killed: tuple[Path, subprocess.Popen], study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, process = killed
    assert process.wait(timeout=300) == 9
    assert visible_files(folder) == {"experiments.unfinished.json"}
    kept = read_json(folder / "experiments.unfinished.json")["experiments"]["first"]
    measures = {"first": stop, "second": lambda study: {"finding": "done too"}}
    two = {name: (measure, lambda numbers: Figure()) for name, measure in measures.items()}
    monkeypatch.setattr(command, "EXPERIMENTS", two)
    run_experiments(study, folder)
    assert "kept from the interrupted run" in capsys.readouterr().out.splitlines()[1]
    record = read_json(folder / "experiments.json")
    assert record["experiments"]["first"] == kept and record["experiments"]["second"]["finding"] == "done too"
    assert "experiments.unfinished.json" not in visible_files(folder)


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


def test_only_leaves_an_interrupted_run_as_it_is(whole_set: WholeSet, study: Study, tmp_path: Path) -> None:
    write_json(tmp_path / "experiments.unfinished.json", whole_set.kept)
    run_experiments(Study(study.data, (1, 2, 3), SHARE, further=0), tmp_path, only="dropout")
    assert read_json(tmp_path / "experiments.unfinished.json") == whole_set.kept
    record = read_json(tmp_path / "experiments.json")
    assert list(record["experiments"]) == ["dropout"] and record["seeds"] == [1, 2, 3]
    of_seeds_0_to_2, of_seeds_1_to_3 = (
        numbers["experiments"]["dropout"]["p"]["0.5"]["tried"]["0.0003"]["final_validation_loss"]["per_seed"]
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
        run_experiments(Study(study.data, (5, 6, 7), SHARE), tmp_path, only)
    assert read_json(path) == whole_set.record


@pytest.mark.parametrize("content", ["", "[]", '{"experiments": {}}', "null"])
def test_a_damaged_file_is_named(study: Study, tmp_path: Path, content: str) -> None:
    (tmp_path / "experiments.json").write_text(content)
    with pytest.raises(InputError, match="experiments.json is damaged: delete it"):
        run_experiments(study, tmp_path, only="dropout")


def test_other_versions_are_named_with_the_experiment(
    whole_set: WholeSet, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = whole_set.record["experiments"]["dropout"]
    monkeypatch.setitem(EXPERIMENTS, "dropout", (lambda study: dict(measured), dropout.draw))
    write_json(tmp_path / "experiments.json", whole_set.record | {"versions": {"torch": "1.0"}})
    run_experiments(study, tmp_path, only="dropout")
    record = read_json(tmp_path / "experiments.json")
    assert record["versions"] == {"torch": "1.0"}
    assert record["experiments"]["dropout"]["versions"] == whole_set.record["versions"]


# The command line


def test_results_go_beside_those_of_main_by_default() -> None:
    """A student who repeats the measurements must not overwrite the pictures and numbers of answers.md."""
    beside = script.parse_options([]).out_dir
    assert parse_options([]).out_dir == beside / "experiments"
    assert PROJECT / "figures" not in [beside, *beside.parents]


def test_without_cifar10_the_message_is_that_of_main(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["--data-dir", str(tmp_path / "data"), "--out-dir", str(tmp_path / "out")]
    assert run_command(command.main, arguments, "") == 2
    message = capsys.readouterr().err
    assert run_command(script.main, ["--dataset", "cifar10", *arguments], "") == 2
    assert message == capsys.readouterr().err
    assert message.count("\n") == 1 and "CIFAR-10 is not in" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--only", "sigmoid"], ["--seed", "-1"], ["--seed", "one"], ["--data-dir", ""], ["--on", "dropout"]]
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert run_command(command.main, arguments, "") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and arguments[0] in message and arguments[-1] in message


def test_an_unknown_experiment_is_answered_with_all_names(capsys: pytest.CaptureFixture) -> None:
    run_command(command.main, ["--only", "sigmoid"], "")
    message = capsys.readouterr().err
    assert all(name in message for name in EXPERIMENTS)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # imported above, and run once more here
def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`python -m utils.experiments`, interrupted in its first experiment."""
    monkeypatch.setattr(data, "load_dataset", lambda choice, data_dir: load_synthetic())
    monkeypatch.setattr(representations, "measure", lambda study: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr(sys, "argv", ["utils.experiments", "--out-dir", str(tmp_path)])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may have been started without one
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("utils.experiments", run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    output = capsys.readouterr()
    assert output.out.startswith("Synthetic images (not CIFAR-10), seeds [0, 1, 2]")
    assert output.err == "stopped: finished experiments are kept; the same command goes on from there\n"
