"""The output folder: made and locked before the first batch, and files in it that are whole or absent."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # comes with torch

from utils.errors import InputError


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only if the block ends without an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno and not error.filename:
            error.filename = str(path)  # a full disk does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    """Write `value` as JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with replace_when_complete(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def open_output_folder(folder: Path) -> FileLock:
    """Make `folder`, try to write in it and lock it until the process ends, however it ends.

    Raises InputError if the folder cannot be written or another run is using it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
        for left_by_a_kill in folder.glob(".*.tmp"):
            left_by_a_kill.unlink()
        with replace_when_complete(folder / ".write-test") as temporary:
            temporary.write_text("", encoding="utf-8")
        (folder / ".write-test").unlink()
    except Timeout:
        raise InputError(
            f"--out-dir: another run is writing to {folder}: wait for it or choose another --out-dir"
        ) from None
    except OSError as error:
        raise InputError(f"--out-dir: cannot write to {folder} ({error.strerror}): choose another --out-dir") from None
    return lock
