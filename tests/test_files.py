"""utils/files.py: files are whole or absent, and one output folder belongs to one run."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.files import open_output_folder, replace_when_complete, write_json

PROJECT = Path(__file__).resolve().parent.parent


def test_a_file_is_replaced_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    with replace_when_complete(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_write_that_breaks_off_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    with pytest.raises(type(error)), replace_when_complete(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_json_can_be_read_back(tmp_path: Path) -> None:
    value = {"accuracy": 0.1, "none": None, "names": ["é", "b"]}
    write_json(tmp_path / "metrics.json", value)
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_never_holds_nan_or_infinity(tmp_path: Path, number: float) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": number})
    assert json.loads(path.read_text()) == {"loss": 1}
    assert os.listdir(tmp_path) == ["metrics.json"]


def test_an_output_folder_is_made_with_its_parents_and_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "er"
    open_output_folder(folder).release()
    (folder / "last.pt").write_text("old")
    (folder / ".last.pt.tmp").write_text("left by a kill")
    open_output_folder(folder).release()
    assert set(os.listdir(folder)) - {".lock"} == {"last.pt"}
    assert (folder / "last.pt").read_text() == "old"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError) as caught:
        open_output_folder(tmp_path / name)
    assert "--out-dir" in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


def test_two_runs_cannot_write_into_one_folder_and_a_kill_sets_it_free(tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys; from utils.files import open_output_folder;"
        "lock = open_output_folder(pathlib.Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=PROJECT,
    )
    with holder:
        assert holder.stdout.readline().strip() == b"locked"
        with pytest.raises(InputError, match=r"--out-dir: another run"):
            open_output_folder(tmp_path)
        holder.kill()
    open_output_folder(tmp_path).release()
