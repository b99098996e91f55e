"""What several test files share: looking at files and running main.py as a process."""

import json
import subprocess
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
MINUTE = 60  # seconds; no test waits longer for anything


def visible_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".lock"}


def contents(folder: Path) -> dict[Path, bytes]:
    """Return every file below the folder with what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def read_json(path: Path) -> dict:
    """Read plain JSON: NaN and infinities, which Python would take too, are an error."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} in {path}")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def end_of(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for the end of a process; return its exit code, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=MINUTE)
    finally:
        process.kill()
    return process.returncode, out, err
