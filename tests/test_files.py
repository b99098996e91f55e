"""utils/files.py: files are whole or absent, and one output folder belongs to one run."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from utils import files
from utils.files import output_folder, remove_temporary_files, replace_when_complete, warn_if_held, write_json

import pytest
from helpers import MINUTE, PROJECT, visible_files
from utils.errors import InputError


def write(path: Path, text: str) -> None:
    with replace_when_complete(path) as temporary:
        temporary.write_text(text)


def test_a_file_is_replaced_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    with replace_when_complete(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["last.pt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_broken_off_write_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old")
    with pytest.raises(type(error)), replace_when_complete(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_new_content_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut between the two steps must leave one of them."""
    path, steps = tmp_path / "last.pt", []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        steps.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        steps.append(("replace", os.stat(source).st_ino))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write(path, "new")
    inode = path.stat().st_ino
    assert steps == [("fsync", inode), ("replace", inode)]


# Files that another program holds


class Holder:
    """Makes renames and removals fail as on Windows, while another program holds what they name."""

    def __init__(self, name: str, times: float) -> None:
        self.name = name
        self.times = times

    def wrap(self, action: Callable) -> Callable:
        def held(*paths: object, **more: object) -> object:
            if self.times > 0 and any(isinstance(p, str | Path) and self.name in Path(p).name for p in paths):
                self.times -= 1
                raise PermissionError(errno.EACCES, "Access is denied", str(paths[0]))
            return action(*paths, **more)

        return held


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], None]:
    """Return a function that holds the files whose names contain a text, for a number of attempts."""

    def hold(name: str, times: float) -> None:
        holder = Holder(name, times)
        for action in ("replace", "rename", "unlink", "remove", "rmdir"):
            monkeypatch.setattr(os, action, holder.wrap(getattr(os, action)))

    monkeypatch.setattr(files, "PATIENCE", 0.2)
    return hold


def test_a_file_held_for_a_moment_is_replaced(tmp_path: Path, hold: Callable) -> None:
    hold("last.pt", 3)
    write(tmp_path / "last.pt", "new")
    assert (tmp_path / "last.pt").read_text() == "new"


def test_a_file_held_for_ever_is_named(tmp_path: Path, hold: Callable) -> None:
    (tmp_path / "last.pt").write_text("old")
    hold("last.pt", math.inf)
    with pytest.raises(PermissionError) as caught:
        write(tmp_path / "last.pt", "new")
    assert caught.value.filename == str(tmp_path / "last.pt")
    assert (tmp_path / "last.pt").read_text() == "old"


def test_a_figure_held_for_ever_costs_one_warning(
    tmp_path: Path, hold: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    hold("curves.png", math.inf)
    with output_folder(tmp_path):
        for _ in range(2):
            with warn_if_held(tmp_path / "curves.png"):
                write(tmp_path / "curves.png", "new")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and str(tmp_path / "curves.png") in warning and "Access is denied" in warning


def test_only_a_held_file_is_a_mere_warning(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), warn_if_held(tmp_path / "curves.png"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_what_kills_left_is_removed_though_held(tmp_path: Path, hold: Callable) -> None:
    (tmp_path / ".last.pt.0123.tmp").write_text("left by a kill")
    (tmp_path / ".unpacked.tmp").mkdir()
    (tmp_path / "last.pt").write_text("old")
    hold(".tmp", 2)
    remove_temporary_files(tmp_path)
    assert os.listdir(tmp_path) == ["last.pt"]


# JSON


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


# The output folder


def test_an_output_folder_is_made_and_keeps_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "er"
    with output_folder(folder):
        (folder / "last.pt").write_text("old")
        (folder / ".last.pt.0123.tmp").write_text("left by a kill")
    with output_folder(folder):
        assert visible_files(folder) == {"last.pt"}
        assert (folder / "last.pt").read_text() == "old"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(InputError) as caught, output_folder(tmp_path / name):
        pass
    assert "--out-dir" in str(caught.value) and str(tmp_path / name) in str(caught.value)
    assert (tmp_path / "file").read_text() == "precious"


def test_two_runs_exclude_each_other_and_a_kill_sets_free(tmp_path: Path) -> None:
    hold = (
        "import pathlib, sys; from utils.files import output_folder\n"
        "with output_folder(pathlib.Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT) as holder:
        assert holder.stdout.readline().strip() == b"locked"
        with pytest.raises(InputError, match=r"--out-dir: another run"), output_folder(tmp_path):
            pass
        holder.kill()
        holder.wait(MINUTE)
    with output_folder(tmp_path):
        pass


@pytest.mark.parametrize("ending", [ValueError, KeyboardInterrupt, SystemExit])
def test_no_ending_leaves_a_folder_locked(tmp_path: Path, ending: type[BaseException]) -> None:
    with pytest.raises(ending), output_folder(tmp_path):
        raise ending
    with output_folder(tmp_path):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="Windows always has locks")
@pytest.mark.parametrize("name", ["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EINVAL", "EIO", "EACCES", "EPERM", "EAGAIN"])
def test_without_locks_a_run_says_so_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    import fcntl

    def refuse(*arguments: object) -> None:
        raise OSError(getattr(errno, name), "no locks")

    for function in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, function, refuse)
    with output_folder(tmp_path):
        (tmp_path / "last.pt").write_text("written")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and str(tmp_path) in warning
