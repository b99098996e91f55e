"""python -m utils.answers: what it writes, one item alone, wrong options."""

import json
from pathlib import Path

import utils.answers.__main__ as command
from utils.answers import representations
from utils.answers.study import Study
from utils.data import load_synthetic
from utils.files import run_command

import pytest
from matplotlib.image import imread


@pytest.fixture(scope="module")
def study() -> Study:
    """A hundredth of the images and epochs, one value in each search."""
    return Study(load_synthetic(), share=0.01, most_values=1)


@pytest.fixture(scope="module")
def measured(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representations, "CELL", 8)  # fewer features: for 1,764 weights one waits long
        command.measure_all(study, list(command.MEASUREMENTS), folder)
    return folder


def read_record(folder: Path) -> dict:
    return json.loads((folder / "experiments.json").read_text(encoding="utf-8"))


def test_every_measurement_has_a_picture_its_numbers_and_what_made_them(measured: Path) -> None:
    record = read_record(measured)
    assert list(record) == list(command.MEASUREMENTS)
    for name, entry in record.items():
        image = imread(measured / f"experiment-{name}.png")
        assert image.shape[1] >= 800 and image.std() > 0.05, name
        made_with = entry["measured_with"]
        assert made_with["dataset"] == "synthetic" and made_with["hardware"]["threads"] > 0
        assert {"python", "torch", "numpy"} <= made_with["versions"].keys()


def test_one_measurement_alone_keeps_the_others_and_gives_the_same(measured: Path, study: Study) -> None:
    before = read_record(measured)
    command.measure_all(study, ["dropout"], measured)
    after = read_record(measured)
    for record in (before, after):
        record["dropout"].pop("seconds")
    assert after == before


def test_one_drawing_alone_needs_no_images(tmp_path: Path) -> None:
    arguments = ["--only", "residuals", "--data-dir", str(tmp_path / "none"), "--out-dir", str(tmp_path / "out")]
    assert run_command(command.main, arguments) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["residuals.svg"]


def test_a_damaged_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "experiments.json").write_text("{")

    def measure(arguments: list[str]) -> None:
        command.measure_all(Study(load_synthetic()), ["dropout"], tmp_path)

    assert run_command(measure, []) == 2
    assert "experiments.json is damaged: delete it" in capsys.readouterr().err


def test_results_do_not_overwrite_those_of_the_page_by_default() -> None:
    assert command.parse_options([]).out_dir.parts[-2:] == ("outputs", "answers")
