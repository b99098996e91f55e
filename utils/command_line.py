"""The command line: types of options, streams and signals, one line for each foreseen failure."""

import argparse
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

from torch import OutOfMemoryError

from utils.errors import InputError, RunError


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line, without the usage text, and takes no abbreviated options."""

    def __init__(self, description: str) -> None:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def number(kind: type, low: float, high: float) -> Callable[[str], float]:
    """Return the converter for an option that takes an int or float (`kind`) from `low` to `high`."""

    def convert(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            noun = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {noun} from {low:,} to {high:,}")
        return value

    return convert


def folder_path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names no folder")
    return Path(text).absolute()


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def terminate(signal_number: int, frame: object) -> NoReturn:
    raise Terminated


def run_command(main: Callable[[list[str]], None], arguments: list[str], when_stopped: str) -> int:
    """Run `main` and return the exit code: 0, 2 for bad input, 1 for a failed run, 130 and 143 for a stopped one.

    Every foreseen failure is told in one line on standard error; `when_stopped` says how to go on. The interpreter is
    left as it was, so that a notebook can go on with it.
    """
    with usable_streams(), signal_handlers(terminate, signal.SIGTERM):
        try:
            main(arguments)
            sys.stdout.flush()
            return 0
        except InputError as error:
            code, message = 2, f"error: {error}"
        except RunError as error:
            code, message = 1, f"error: {error}"
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            code, message = 1, f"error: out of memory, try a smaller --batch-size ({error})"
        except OSError as error:
            code, message = 1, f"error: {error}: what was saved before stays as it is"
        except KeyboardInterrupt as stop:
            code = 143 if isinstance(stop, Terminated) else 130
            message = f"stopped: {when_stopped}"
        # One line, whatever the name of a path or the content of a foreign checkpoint.
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message), file=sys.stderr)
        drop_unwritten_output()
        return code


def drop_unwritten_output() -> None:
    """What a closed pipe or a full disk did not take, Python would try to write once more at its end, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; PyTorch has a class for that on some devices only."""
    phrases = ("DefaultCPUAllocator: ", "CUDA error: out of memory", "MPS backend out of memory")
    return isinstance(error, MemoryError | OutOfMemoryError) or any(phrase in str(error) for phrase in phrases)


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, standard output and error take any text, also where they are closed (`2>&-`, pythonw) or a notebook's."""
    with ExitStack() as stack:
        # In this order: no file that is opened later then gets the number of a closed stream, and what is meant for it.
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            stream = getattr(sys, name)
            if stream is None:
                stack.callback(setattr, sys, name, None)
                setattr(sys, name, stack.enter_context(open(os.devnull, mode)))
            elif mode == "w" and hasattr(stream, "reconfigure"):
                stack.callback(set_errors, stream, stream.errors)
                stream.reconfigure(errors="backslashreplace")  # a path may hold letters that the terminal does not know
        yield


def set_errors(stream: TextIOWrapper, errors: str) -> None:
    with suppress(OSError):  # the reader of a pipe may be gone
        stream.reconfigure(errors=errors)


@contextmanager
def signal_handlers(handler: Callable[[int, object], object], *numbers: int) -> Iterator[None]:
    """Inside, handle signals of these numbers. Python can do so in the main thread only; elsewhere nothing changes."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if in_main_thread}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: not set by Python


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end of the block."""
    received = []
    with signal_handlers(lambda *call: received.append(call), signal.SIGINT, signal.SIGTERM):
        yield
    for number, frame in received[:1]:
        handler = signal.getsignal(number)
        if callable(handler):  # a job in the background may ignore Ctrl-C
            handler(number, frame)
