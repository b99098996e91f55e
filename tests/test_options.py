"""The options of main.py: what they default to, which values they take, and that no value leads anywhere else."""

import argparse
import random
import re
from contextlib import suppress
from pathlib import Path

import main
from main import RECIPES, parse_options
from utils.data import load_dataset
from utils.files import output_folder
from utils.visualize import plot_curves

import pytest
import torch
from helpers import FILES, PROJECT, TINY, contents, run_script, visible_files
from utils.errors import InputError


def test_default_folders_lie_beside_main_py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_options([])
    assert options.data_dir == PROJECT / "data" and options.out_dir == PROJECT / "outputs"
    assert parse_options(["--out-dir", "here"]).out_dir == tmp_path / "here"


@pytest.mark.parametrize("model", RECIPES)
def test_the_recipe_is_that_of_the_network(model: str) -> None:
    options = vars(parse_options(["--model", model]))
    assert options | RECIPES[model] == options
    for name, value in (("width", 2), ("epochs", 16)):  # changes nothing else
        assert vars(parse_options(["--model", model, f"--{name}", str(value)])) == options | {name: value}


def test_a_dry_run_has_one_epoch() -> None:
    assert parse_options(["--dry-run", "--epochs", "100"]).epochs == 1


@pytest.fixture
def help_text(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_option_with_its_default(help_text: str) -> None:
    text = " ".join(help_text.split())
    for name, default in vars(parse_options([])).items():
        described = text.rsplit(f"--{name.replace('_', '-')} ", 1)[1]
        described = re.split(r" --\w", described)[0]
        if not isinstance(default, bool | Path):
            assert re.search(rf"default: .*{re.escape(str(default))}\b", described), name


def test_help_keeps_the_recipe_apart(help_text: str) -> None:
    """What to read first is short."""
    options, recipe = help_text.split("\nrecipe:\n")
    options = re.findall(r"^  (?:-h, )?--([\w-]+)", options.split("\noptions:\n")[1], re.MULTILINE)
    assert 1 < len(options) <= 12
    named = {name.replace("-", "_") for name in re.findall(r"^  --([\w-]+)", recipe, re.MULTILINE)}
    assert named == set(RECIPES["convnet"])


# Values that are refused

ABSENT_DEVICE = "mps" if torch.cuda.is_available() else "cuda"
BAD_OPTIONS = [
    *(("--epochs", value) for value in ("0", "-1", "1.5", "nan", "inf", "ten", "", "1e99")),
    *(("--batch-size", value) for value in ("0", "-5", "2.5", "100000")),
    *(("--lr", value) for value in ("0", "-0.1", "nan", "inf", "fast", "1e99")),
    *(("--width", value) for value in ("0", "-1", "nan", "inf", "1e9", "wide")),
    *(("--weight-decay", value) for value in ("-1", "nan", "inf")),
    *(("--label-smoothing", value) for value in ("-0.1", "1", "nan")),
    *(("--seed", value) for value in ("-1", "0.5", "99999999999999999999")),
    *(("--device", value) for value in ("tpu", "", ABSENT_DEVICE)),
    *((option, value) for option in ("--data-dir", "--out-dir") for value in ("", " ")),
    *(("--dataset", "mnist"), ("--model", "resnet"), ("--precision", "float16")),
    *(("--epoch", "3"), ("--learning-rate", "3"), ("--resume", "--test-only")),
]


@pytest.mark.parametrize(("option", "value"), BAD_OPTIONS)
def test_a_wrong_option_is_named_with_its_value(option: str, value: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_options([option, value])
    assert option in str(caught.value) and value in str(caught.value) and "\n" not in str(caught.value)


NUMBERS = [
    *("0", "-0", "-1", "0.5", "1e-400", "1e400", "9" * 5000, "nan", "-nan", "inf", "-inf", "Infinity", "0x10", "1_0"),
    *("1,5", "½", "٣"),
]
TEXTS = [
    *("", " ", "None", "True", "[]", "%s", "{}", "$(id)", "*", "-", "--", "--lr", "'", '"', "two words", "é", "漢字"),
    *("🙂", "a\nb", "\x1b[2J", "\udcff", "a" * 1000, "../..", "~", "a/b/c", "link", "link/a"),
]
OPTIONS = [
    *("--dataset", "--data-dir", "--out-dir", "--model", "--width", "--epochs", "--batch-size", "--lr"),
    *("--weight-decay", "--label-smoothing", "--seed", "--device", "--precision"),
]
RANGES = {
    "width": (0.05, 8),
    "epochs": (1, 10_000),
    "batch_size": (1, 50_000),
    "lr": (1e-9, 1e6),
    "weight_decay": (0, 1),
    "label_smoothing": (0, 0.99),
    "seed": (0, 2**32 - 1),
}


def assert_is_refused_or_in_range(arguments: list[str]) -> None:
    with suppress(InputError):
        options = vars(parse_options(arguments))
        assert all(low <= options[name] <= high for name, (low, high) in RANGES.items()), arguments
        assert all(options[name].is_absolute() for name in ("data_dir", "out_dir"))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_value_is_refused_or_in_range(option: str) -> None:
    for value in NUMBERS + TEXTS:
        assert_is_refused_or_in_range([option, value])


def test_options_are_refused_or_in_range_together() -> None:
    generator = random.Random(0)
    for _ in range(100):
        chosen = generator.sample(OPTIONS, 3)
        values = [generator.choice([*NUMBERS, *TEXTS, "1", "0.1", "synthetic", "mlp", "cpu"]) for _ in chosen]
        assert_is_refused_or_in_range([text for pair in zip(chosen, values, strict=True) for text in pair])


# Folders of any name


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with home, temporary and (deep inside) current folder, in which there is a symbolic link to another."""
    for name, variable in (("home", "HOME"), ("tmp", "TMPDIR")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "linked").mkdir()
    current = tmp_path / "a" / "b" / "c"
    current.mkdir(parents=True)
    (current / "link").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(current)
    return tmp_path


def use_as_data_folder(options: argparse.Namespace) -> None:
    load_dataset("cifar10", options.data_dir)


def use_as_output_folder(options: argparse.Namespace) -> None:
    with output_folder(options.out_dir / "synthetic"):
        pass


@pytest.mark.parametrize(("option", "use"), [("--data-dir", use_as_data_folder), ("--out-dir", use_as_output_folder)])
def test_no_folder_name_leads_to_a_file_elsewhere(places: Path, option: str, use: object) -> None:
    before = contents(places)
    for value in TEXTS:
        with suppress(InputError):
            use(parse_options([option, value]))
        assert contents(places) == before, value


def test_a_run_works_in_a_folder_of_any_name(places: Path, quick_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "plot_curves", plot_curves)  # one real figure
    folder = Path("link") / ("two words é 漢 🙂 %s {0} $HOME 'quoted\" new\nline \udcff " + "a" * 100)
    assert run_script(folder, *TINY, "--dry-run").code == 0
    assert visible_files(places / "linked" / folder.name / "dry-run") == FILES
    refused = run_script(folder, *TINY, "--dry-run", "--resume", "--seed", 1)
    assert refused.code == 2 and refused.err.startswith("error: ") and refused.err[:-1].isprintable()
    assert [path for path in contents(places) if (places / "linked") not in path.parents] == []
