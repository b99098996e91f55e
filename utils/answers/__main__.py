"""The evidence behind answers.md: measures small networks on CIFAR-10 and draws every picture of the page.

python -m utils.answers                            measure and draw everything into outputs/answers/
python -m utils.answers --only learning-rate       one measurement, or one drawing
python -m utils.answers --out-dir figures          the pictures and numbers of answers.md

All on the CPU in float32, on images that are not augmented. Lines are means over the seeds, bands their standard
deviation. Learning rates are chosen by training or validation numbers; only `representations` sees test images.
"""

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from utils.answers import activations, batch_size, dropout, functions, ideas, learning_rate, networks, representations
from utils.answers.study import Study
from utils.data import load_dataset
from utils.device import limit_threads
from utils.files import InputError, run_command, write_whole
from utils.recipe import OneLineParser, folder_path
from utils.report import versions
from utils.visualize import house_style, save_figure

import torch
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent.parent.parent
LAYERS = ["input", "hidden 1", "hidden 2", "output"]
DRAWINGS: dict[str, Callable[[], Figure]] = {
    "fields": ideas.draw_fields,
    "bends": ideas.draw_bends,
    "network-numbers": partial(networks.draw_numbers_network, **networks.EXAMPLE, bent="ReLU"),
    "computational-graph": networks.draw_computational_graph,
    "activations": functions.draw_activations,
    "network-4-6-4-3": partial(networks.draw_network, [4, 6, 4, 3], LAYERS, "The network of question 5: 4-6-4-3"),
    "fits": functions.draw_fits,
    "descent": functions.draw_descent,
    "dropout": networks.draw_dropout,
    "loops-and-searches": ideas.draw_loops_and_searches,
    "three-paths": functions.draw_three_paths,
    "ravine": functions.draw_ravine,
    "residuals": functions.draw_residuals,
    "network-two-hidden": partial(networks.draw_network, [3, 4, 4, 1], LAYERS, "Two hidden layers: 3-4-4-1"),
    "network-3-4-1": partial(networks.draw_network, [3, 4, 1], [*LAYERS[:2], LAYERS[3]], "One hidden layer: 3-4-1"),
    "sigmoid-numbers": partial(networks.draw_numbers_network, **networks.SIGMOID_EXAMPLE, bent="sigmoid"),
}
MODULES = (representations, activations, learning_rate, dropout, batch_size)
MEASUREMENTS = {module.__name__.rpartition(".")[2].replace("_", "-"): module for module in MODULES}


def main(arguments: list[str]) -> None:
    options = parse_options(arguments)
    names = [options.only] if options.only else [*DRAWINGS, *MEASUREMENTS]
    for name in names:
        if name in DRAWINGS:
            with house_style():
                save_figure(DRAWINGS[name](), options.out_dir / f"{name}.svg")
    measured = [name for name in MEASUREMENTS if name in names]  # once, also those that have a drawing of that name
    if measured:
        limit_threads()
        measure_all(Study(load_dataset("cifar10", options.data_dir)), measured, options.out_dir)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=folder_path, default=HERE / "data", help="where CIFAR-10 is, or will be")
    parser.add_argument("--out-dir", type=folder_path, default=HERE / "outputs" / "answers", help="for all files")
    parser.add_argument("--only", choices=[*DRAWINGS, *MEASUREMENTS], help="do this one, keep the others")
    return parser.parse_args(arguments)


def measure_all(study: Study, names: list[str], folder: Path) -> None:
    """Measure these, draw each into the folder, and put its numbers into experiments.json, beside those of others."""
    path = folder / "experiments.json"
    record = read_record(path)
    for name in names:
        started = time.perf_counter()
        numbers = MEASUREMENTS[name].measure(study)
        seconds = time.perf_counter() - started
        print(f"{name:16s} {seconds:6.1f} s", flush=True)
        with house_style():
            figure = MEASUREMENTS[name].draw(numbers)
            figure.suptitle(f"{study.data.title}: {name.replace('-', ' ')}")
            save_figure(figure, folder / f"experiment-{name}.png")
        record[name] = {"measured_with": describe_machine(study), "seconds": seconds, **numbers}
        write_whole(path, to_json(record).encode())


def read_record(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError:
        raise InputError(f"{path} is damaged: delete it") from None


def describe_machine(study: Study) -> dict:
    cpuinfo = Path("/proc/cpuinfo")  # on Linux nothing else knows the processor's name
    name = re.search("model name.*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    cpu = name[1] if name else platform.processor() or platform.machine()
    hardware = {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return {"dataset": study.data.name, "versions": versions(), "hardware": hardware, "precision": "float32"}


def to_json(record: dict) -> str:
    """Return JSON with numbers of five digits, and each list on one line."""
    short = json.loads(json.dumps(record, allow_nan=False), parse_float=lambda number: float(f"{float(number):.5g}"))
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(short, indent=1)) + "\n"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
