"""Files that are whole or absent, and folders that belong to one run at a time."""

import errno
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import InputError

try:
    import fcntl
except ImportError:  # Windows, where every file system has locks
    fcntl = None

PATIENCE = 2.0  # seconds
HELD = (errno.EACCES, errno.EPERM, errno.EBUSY)  # the errors for a file that another program holds
warned_of: set[Path] = set()  # files of this run that another program holds


def retry_while_held(action: Callable[[], object]) -> None:
    """Call `action`, which renames or removes something; if another program holds it, try again for two seconds.

    Windows refuses to rename or remove what a virus scanner, a synchronizer or a viewer holds.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            action()
            return
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > give_up:
                raise
        time.sleep(0.05)


@contextmanager
def replace_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes the place of `path` only if the block ends without an error.

    The new content is on the disk before the old one is gone: a power cut leaves one of the two.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        retry_while_held(lambda: os.replace(temporary, path))
    except OSError as error:
        if error.errno and str(error.filename) in ("None", str(temporary)):
            raise OSError(error.errno, error.strerror, str(path)) from None  # the name that the user knows
        raise
    finally:
        with suppress(OSError):  # the next run removes it
            retry_while_held(lambda: temporary.unlink(missing_ok=True))


@contextmanager
def warn_if_held(path: Path) -> Iterator[None]:
    """If another program holds `path`, print one warning and go on: for files that can be made again."""
    try:
        yield
    except OSError as error:
        if error.errno not in HELD:
            raise
        if path not in warned_of:
            print(f"WARNING: cannot replace {path} ({error.strerror}): does another program hold it?", file=sys.stderr)
        warned_of.add(path)


def write_json(path: Path, value: dict) -> None:
    """Write `value` as JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    text = json.dumps(value, indent=2, allow_nan=False)
    with replace_when_complete(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextmanager
def output_folder(folder: Path) -> Iterator[Path]:
    """Make `folder`, try to write in it, and keep other runs out of it until the block ends, however it ends.

    Raises InputError if the folder cannot be written or another run is using it.
    """
    warned_of.clear()
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try_to_write(folder)
            is_locked = stack.enter_context(locked(folder, wait=False))
            if is_locked:
                remove_temporary_files(folder)
        except Timeout:
            problem = f"another run is writing to {folder}: wait for it or choose another --out-dir"
            raise InputError(f"--out-dir: {problem}") from None
        except OSError as error:
            problem = f"cannot write to {folder} ({error.strerror}): choose another --out-dir"
            raise InputError(f"--out-dir: {problem}") from None
        if not is_locked:
            print(f"WARNING: {folder} cannot be locked here: start no second run into it", file=sys.stderr)
        yield folder


def try_to_write(folder: Path) -> None:
    path = folder / ".write-test"
    with replace_when_complete(path) as temporary:
        temporary.write_text("", encoding="utf-8")
    retry_while_held(lambda: path.unlink(missing_ok=True))


@contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Keep other processes out of `folder` until the block ends.

    Yields False, without a lock, where the file system has none. Raises filelock.Timeout if another process has locked
    the folder and this one is not to wait.
    """
    if not has_locks(folder):
        yield False
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise
        print(f"another run is writing to {folder}: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield True
    finally:
        lock.release()


def has_locks(folder: Path) -> bool:
    """Try a lock on a file that no other process knows: FileLock could not tell a refusal from another run."""
    if fcntl is None:
        return True
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def remove_temporary_files(folder: Path) -> None:
    """Remove what killed runs left. Only for a locked folder: another run may be writing these files."""
    for path in folder.glob(".*.tmp"):
        remove = shutil.rmtree if path.is_dir() else os.unlink
        retry_while_held(partial(remove, path))
