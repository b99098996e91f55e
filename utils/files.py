"""Files that are whole or absent, lines that are printed, and one line and an exit code for each foreseen failure."""

import errno
import json
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn, TypeVar

from torch import OutOfMemoryError
from tqdm import tqdm

PATIENCE = 2.0  # seconds
HELD = (errno.EACCES, errno.EPERM, errno.EBUSY)  # the errors for a file that another program holds
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of file systems that cannot promise when a file is on the disk
Result = TypeVar("Result")


class InputError(Exception):
    """Something that the user gave cannot be used: an option, a file or a folder (exit code 2)."""


class RunError(Exception):
    """The run itself failed, for instance because the loss became NaN (exit code 1)."""


class WriteError(RunError):
    """A file cannot be written."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.is_held = error.errno in HELD
        advice = ": does another program hold it?" if self.is_held else ""
        super().__init__(f"cannot write {path} ({error.strerror}){advice}")


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def retry_while_held(action: Callable[[], Result]) -> Result:
    """Return what `action` returns; if another program holds its file, try again for two seconds.

    Windows refuses to read, rename or remove what a virus scanner, a synchronizer or a viewer holds.
    """
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in HELD or time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that takes the place of `path` only when it is complete and on the disk. Raises WriteError."""
    temporary = path.with_name(f".{secrets.token_hex(4)}.tmp")  # not longer than any name of a run
    try:
        path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have removed it while the run went on
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            sync(file.fileno())
        retry_while_held(lambda: os.replace(temporary, path))
    except OSError as error:
        raise WriteError(path, error) from None
    finally:
        with suppress(OSError):
            retry_while_held(lambda: temporary.unlink(missing_ok=True))


def make_folder(path: Path, option: str) -> None:
    """Make a folder and those above it. Raises InputError, or RunError if the disk is full."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_problem(option, path, error) from None


def write_problem(option: str, path: Path, error: OSError) -> Exception:
    """Return the exception for a folder that an option names and that cannot be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"cannot write to {path} ({error.strerror})")
    is_no_folder = os.path.lexists(path) and not path.is_dir()
    reason = "it is a file, or a link to nothing" if is_no_folder else error.strerror
    return InputError(f"{option}: cannot write to {path} ({reason}): choose another folder")


def sync(file_number: int) -> None:
    try:
        os.fsync(file_number)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def write_or_warn(path: Path, content: bytes) -> None:
    """Do as `write_whole`, but only warn if another program holds the file: for what can be made again."""
    try:
        write_whole(path, content)
    except WriteError as error:
        if not error.is_held:
            raise
        warn_once(f"WARNING: {error}")


def to_json(value: dict) -> bytes:
    """Return `value` as JSON. Raises ValueError for NaN and infinities, which JSON does not have."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def say(text: str = "") -> None:
    """Print a line. Raises RunError where nobody takes it: a closed pipe, a full disk."""
    try:
        print(text, flush=True)
    except OSError as error:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())  # what was not taken, Python would try to print once more at its end
        os.close(null)
        raise RunError(f"cannot print ({error.strerror})") from None


def warn(text: str) -> None:
    """Print one line on standard error, whatever a path or a foreign file brings into the text."""
    with suppress(OSError):  # where standard error takes nothing, nobody can be told
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr, flush=True)


warn_once = cache(warn)


def progress_bar(iterable: Iterable | None = None, **look: object) -> tqdm:
    """Return a bar on standard error that vanishes when it is done, and only where that is a terminal."""
    is_terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    return tqdm(iterable, leave=False, disable=not is_terminal, **look)


def run_command(main: Callable[[list[str]], None], arguments: list[str]) -> int:
    """Run `main` and return the exit code: 0, 2 for bad input, 1 for a failed run, 130 and 143 for a stopped one.

    Every foreseen failure is told in one line on standard error.
    """
    prepare_streams()
    in_main_thread = threading.current_thread() is threading.main_thread()  # the only one that may handle signals
    earlier = signal.signal(signal.SIGTERM, terminate) if in_main_thread else None
    try:
        main(arguments)
        return 0
    except InputError as error:
        code, message = 2, f"error: {error}"
    except RunError as error:
        code, message = 1, f"error: {error}"
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        code, message = 1, f"error: out of memory, try a smaller --batch-size ({error})"
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        message = f"stopped: {stop}" if str(stop) else "stopped"
    finally:
        if earlier is not None:  # in a notebook, the process goes on
            signal.signal(signal.SIGTERM, earlier)
    warn(message)
    return code


def terminate(signal_number: int, frame: object) -> NoReturn:
    raise Terminated


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; PyTorch has a class for that on some devices only."""
    phrases = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "MPS backend out of memory")
    return isinstance(error, MemoryError | OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)


def prepare_streams() -> None:
    """Let standard output and error take any text, also where they are closed (`2>&-`, pythonw) or a notebook's."""
    # In this order: no file that is opened later then gets the number of a closed stream, and what is meant for it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for as long as the process
        elif mode == "w" and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # a path may hold letters unknown to a terminal
