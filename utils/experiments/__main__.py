"""The measured evidence behind answers.md: small networks on CIFAR-10, each comparison over at least three seeds.

python -m utils.experiments                        measure and draw everything into outputs/experiments/
python -m utils.experiments --only learning-rate   one of them
python -m utils.experiments --out-dir figures      the pictures and numbers of answers.md

All on the CPU in float32, on images that are not augmented. Lines are means over the seeds, bands their standard
deviation; of two means whose difference is not larger than both deviations together, neither is called better.
Learning rates are chosen by training or validation numbers. Only `representations` sees test images, after training.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

from utils.command_line import OneLineParser, folder_path, number, run_command
from utils.data import load_dataset
from utils.device import limit_threads
from utils.errors import InputError
from utils.experiments import activations, batch_size, dropout, learning_rate, optimizers, overfitting, representations
from utils.experiments.study import Study, find_edges
from utils.files import output_folder, retry_while_held, write_json
from utils.report import versions
from utils.visualize import house_style, save_figure

import torch
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent.parent.parent
SEEDS = 3  # of a comparison, if it does not ask for more: --seed and those after it
EXPERIMENTS: dict[str, tuple[Callable[[Study], dict], Callable[[dict], Figure]]] = {
    "representations": (representations.measure, representations.draw),
    "activations": (activations.measure, activations.draw),
    "overfitting": (overfitting.measure, overfitting.draw),
    "learning-rate": (learning_rate.measure, learning_rate.draw),
    "dropout": (dropout.measure, dropout.draw),
    "batch-size": (batch_size.measure, batch_size.draw),
    "optimizers": (optimizers.measure, optimizers.draw),
}


def main(arguments: list[str]) -> None:
    options = parse_options(arguments)
    limit_threads()
    data = load_dataset("cifar10", options.data_dir)
    study = Study(data, tuple(range(options.seed, options.seed + SEEDS)))
    run_experiments(study, options.out_dir, options.only)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=folder_path, default=HERE / "data", help="where CIFAR-10 is, or will be downloaded to")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="the first of the seeds")
    add("--out-dir", type=folder_path, default=HERE / "outputs" / "experiments", help="for figures and numbers")
    add("--only", choices=list(EXPERIMENTS), help="measure this one anew, keep the numbers of the others")
    return parser.parse_args(arguments)


def run_experiments(study: Study, folder: Path, only: str | None = None) -> None:
    """Measure all experiments, or `only` one of them, then draw them into the folder and write experiments.json there.

    What has been measured is kept in experiments.unfinished.json, from which an interrupted run goes on.
    Raises InputError if the folder holds numbers of another data set or of other seeds.
    """
    with output_folder(folder):
        measure_and_draw(study, folder, only)


def measure_and_draw(study: Study, folder: Path, only: str | None) -> None:
    complete, unfinished = folder / "experiments.json", folder / "experiments.unfinished.json"
    run = describe_study(study)
    record = read_record(complete if only else unfinished, run)
    measured = record["experiments"]
    names = [only] if only else list(EXPERIMENTS)
    hardware = f"{run['hardware']['cpu']}, {run['hardware']['threads']} threads"
    print(f"{study.data.title}, seeds {list(study.seeds)}, {hardware}", flush=True)
    for name in names:
        if name in measured and not only:
            print(f"{name:16s} kept from the interrupted run", flush=True)
            continue
        # Where the others were measured with other versions or hardware, this one names its own.
        measured[name] = measure_experiment(name, study) | {
            fact: run[fact] for fact in run if run[fact] != record[fact]
        }
        if not only:
            write_json(unfinished, record)
        print(f"{name:16s} {measured[name]['seconds']:6.1f} s   {measured[name]['finding']}", flush=True)
    for name in names:
        save_figure(draw_experiment(name, measured[name], study.data.title), folder / f"experiment-{name}.png")
    record["experiments"] = {name: measured[name] for name in EXPERIMENTS if name in measured}
    write_json(complete, record)
    if not only:
        retry_while_held(unfinished.unlink)


def describe_study(study: Study) -> dict:
    """Return what experiments.json records besides the numbers."""
    return {
        "dataset": study.data.name,
        "seeds": list(study.seeds),
        "versions": versions(),
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "precision": "float32",
        "device": "cpu",
    }


def cpu_name() -> str:
    """Return the processor's name, which on Linux only /proc tells."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read_record(path: Path, run: dict) -> dict:
    """Read the numbers of an earlier run; where there are none, begin a record with what is known of this `run`.

    Raises InputError if the file is damaged, or of another data set or of other seeds.
    """
    if not path.exists():
        return {**run, "experiments": {}}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier = {fact: record[fact] for fact in run}
        record["experiments"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"--out-dir: {path} is damaged: delete it") from None
    different = [
        f"{fact} {earlier[fact]}, not {run[fact]}" for fact in ("dataset", "seeds") if earlier[fact] != run[fact]
    ]
    if different:
        raise InputError(f"--out-dir: {path} is of {'; '.join(different)}: delete it or choose another --out-dir")
    return record


def measure_experiment(name: str, study: Study) -> dict:
    """Return the numbers of an experiment; where a search ended at an edge, its finding, and so its figure, says so."""
    started = time.perf_counter()
    measure, _ = EXPERIMENTS[name]
    numbers = measure(study)
    edges = find_edges(numbers)
    if edges:
        numbers["finding"] += f"; best at the edge of what was tried: {', '.join(edges)}"
    return numbers | {"edges": edges, "seconds": time.perf_counter() - started}


@house_style()
def draw_experiment(name: str, numbers: dict, dataset: str) -> Figure:
    _, draw = EXPERIMENTS[name]
    figure = draw(numbers)
    figure.suptitle(f"{dataset}: {numbers['finding']}", wrap=True)
    return figure


if __name__ == "__main__":
    goes_on = "finished experiments are kept; the same command goes on from there"
    sys.exit(run_command(main, sys.argv[1:], goes_on))
