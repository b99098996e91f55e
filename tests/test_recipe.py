"""utils/recipe.py: each choice is a bounded field and an option; a wrong option is refused in one line."""

import argparse
import re
from dataclasses import Field, asdict, fields, replace
from pathlib import Path

from main import HERE, RECIPES
from utils.files import InputError
from utils.recipe import Recipe, option_name, parse_options

import pytest

NUMBERS = [choice for choice in fields(Recipe) if "low" in choice.metadata]


def parse(*arguments: str) -> tuple[argparse.Namespace, Recipe]:
    return parse_options([*arguments], "A program.", RECIPES, HERE)


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(*arguments)
    assert arguments[0] in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_each_field_is_an_option_that_changes_nothing_else() -> None:
    default = everything_else = RECIPES[0]
    other = {"model": RECIPES[-1].model, "optimizer": "adam", "parts": (0.3, 0.7), "crop_sizes": (30, 31, 31)}
    for choice in fields(Recipe):
        value = other.get(choice.name, choice.metadata.get("high"))
        texts = map(str, value) if isinstance(value, tuple) else [str(value)]
        expected = replace(default, **{choice.name: value}) if choice.name != "model" else RECIPES[-1]
        assert parse(option_name(choice.name), *texts)[1] == expected != default
        if choice.name != "model":
            everything_else = replace(everything_else, **{choice.name: value})
    printed = everything_else.options(default)  # these options make it again
    assert parse(*" ".join(printed).split())[1] == everything_else and len(printed) == len(fields(Recipe)) - 1


def test_help_tells_each_field_with_its_meaning_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    options, recipe = capsys.readouterr().out.split("\nrecipe:\n")
    assert len(re.findall(r"^  (?:-h, )?--", options, re.MULTILINE)) <= 12  # what to read first is short
    text = " ".join(recipe.split())
    for name, default in asdict(RECIPES[0]).items():
        described = text.split(f"--{name.replace('_', '-')} ", 1)[1].split(" --")[0]
        if name != "model":
            shown = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert re.search(rf"\(default: {re.escape(shown)}[ ),]", described), name
    assert all(choice.metadata["meaning"] in text for choice in fields(Recipe))


@pytest.mark.parametrize("choice", NUMBERS, ids=[choice.name for choice in NUMBERS])
def test_a_number_out_of_its_bounds_is_refused(choice: Field) -> None:
    count = len(choice.default) if isinstance(choice.default, tuple) else 1
    low, high = choice.metadata["low"], choice.metadata["high"]
    for bound in (low, high):
        parse(option_name(choice.name), *[str(bound)] * count)
    for value in (low - 1, high + 1, "nan", "inf", "ten", "", "1,5"):
        assert str(value) in refusal(option_name(choice.name), *[str(value)] * count)
    with pytest.raises(InputError, match=option_name(choice.name)):  # in main.py too
        Recipe(**{choice.name: (high + 1,) * count if count > 1 else high + 1})


@pytest.mark.parametrize(
    "arguments",
    [
        *(("--epochs", "1.5"), ("--epochs",), ("--epoch", "3"), ("--crop-sizes", "18", "26"), ("--learning-rate", "3")),
        *(("--model", "resnet"), ("--optimizer", "lion"), ("--dataset", "mnist"), ("--device", "tpu")),
        *(("--precision", "float16"), ("--threads", "0"), ("--data-dir", ""), ("--out-dir", " ")),
        *(("--resume", "--test-only"), ("--dry-run", "--resume"), ("--no-such-option",)),
    ],
)
def test_a_wrong_option_is_named_in_one_line(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    refusal(*arguments)
    assert capsys.readouterr() == ("", "")  # no usage text


def test_folders_are_meant_from_where_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    options, _ = parse()
    assert (options.data_dir, options.out_dir) == (HERE / "data", HERE / "outputs")
    for name in ("data_dir", "out_dir", "resume", "test_only"):
        for text, path in {"~/x": tmp_path / "home" / "x", "é ü/x": tmp_path / "é ü" / "x"}.items():
            assert getattr(parse(f"--{name.replace('_', '-')}={text}")[0], name) == path


def test_a_dry_run_has_one_epoch() -> None:
    assert parse("--dry-run", "--epochs", "100")[1].epochs == 1
