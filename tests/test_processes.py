"""main.py as a process: where almost nothing is there, with closed or full outputs, and in a notebook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import FILES, MINUTE, PROJECT, TINY, Process, end_of, read_json, visible_files

needs_unix = pytest.mark.skipif(sys.platform == "win32", reason="needs Unix")


@pytest.fixture(scope="module", autouse=True)
def unread(tmp_path_factory: pytest.TempPathFactory) -> subprocess.Popen:
    """A run whose output nobody reads, as in `python main.py | head`; it goes on while other tests run."""
    run = start(tmp_path_factory.mktemp("unread"), stdout=subprocess.PIPE)
    run.stdout.close()
    run.stdout = None
    return run


def start(out_dir: Path, *flags: str, **settings: object) -> subprocess.Popen:
    """Start Python anew for a dry run into `out_dir`."""
    command = [sys.executable, *flags, PROJECT / "main.py", *TINY, "--dry-run", "--out-dir", out_dir]
    return subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, **settings)


def use_one_core() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@needs_unix
def test_a_run_where_almost_nothing_is_there(tmp_path: Path) -> None:
    """No terminal, display, home or locale, one core, 20 columns, and each warning of ours is an error.

    A torchvision that does not fit torch, and a backend of matplotlib that is not installed.
    """
    (tmp_path / "file").touch()
    for name in ("current", "tmp", "broken"):
        (tmp_path / name).mkdir()
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "broken" / "torchvision.py").write_text(broken)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "file" / "home"),  # cannot be made, not even by root
        "TMPDIR": str(tmp_path / "tmp"),
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",  # a terminal that does not know the letters of the paths
        "COLUMNS": "20",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(tmp_path / "broken"),
        "MPLBACKEND": "no_such_backend",
    }
    modules = ["__main__", *(f"utils.{path.stem}" for path in (PROJECT / "utils").glob("*.py"))]
    run = start(
        tmp_path / "é",
        *(f"-Werror:::{module}" for module in modules),
        env=environment,
        cwd=tmp_path / "current",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=use_one_core,
    )
    code, _, err = end_of(run)
    assert code == 0 and "Traceback" not in err, err
    assert visible_files(tmp_path / "é" / "dry-run") == FILES
    assert os.listdir(tmp_path / "current") == []


def test_a_closed_pipe_ends_the_run_in_one_line(unread: subprocess.Popen) -> None:
    """Python adds nothing of its own at its end."""
    code, _, err = end_of(unread)
    assert code == 1
    assert err.startswith("error: ") and err.count("\n") == 1


def fill_standard_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_for_the_output_is_one_line(tmp_path: Path) -> None:
    run = Process(tmp_path, *TINY, prepare=fill_standard_output).end()
    assert run.code == 1
    assert run.err.startswith("error: ") and "space" in run.err and run.err.count("\n") == 1


def close_all_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.close(number)
        setattr(sys, name, None)  # as Python does where they are closed


@needs_unix
def test_without_standard_streams_a_run_is_silent(tmp_path: Path) -> None:
    """No file may get the number of a closed stream, and in it what was meant for the terminal."""
    run = Process(tmp_path, *TINY, "--epochs", 1, prepare=close_all_streams).end()
    assert (run.code, run.out, run.err) == (0, "", "")
    assert visible_files(run.folder) == FILES
    for name in ("last.pt", "best.pt"):
        torch.load(run.folder / name, weights_only=True)
    read_json(run.folder / "metrics.json")


def test_a_notebook_runs_it_again_and_again(tmp_path: Path) -> None:
    pytest.importorskip("ipykernel")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    run = f"%run {PROJECT / 'main.py'} {' '.join(map(str, TINY))} --dry-run --out-dir {tmp_path}"
    after = "import signal; print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)"
    cells = [f"{run} --seed -1", run, run, after]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=MINUTE, startup_timeout=MINUTE, allow_errors=True).execute()
    printed = ["".join(output.get("text", "") for output in cell.outputs) for cell in notebook.cells]
    assert "--seed" in printed[0] and "from 0 to" in printed[0]
    assert all("test     accuracy" in text and "metrics.json" in text for text in printed[1:3])
    assert printed[3] == "True\n"
