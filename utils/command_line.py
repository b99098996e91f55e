"""What stands around the walk on the command line: the types of options, and one line for each foreseen failure."""

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

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


def plain_options(options: argparse.Namespace) -> dict:
    """Return the options as a dictionary of plain data, as JSON and checkpoints need it."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}


class Terminated(KeyboardInterrupt):
    """The process was asked to end (SIGTERM)."""


def terminate(signal_number: int, frame: object) -> NoReturn:
    raise Terminated


def run_command(main: Callable[[list[str]], None], arguments: list[str], when_stopped: str) -> int:
    """Run `main` and return the exit code: 0, 2 for bad input, 1 for a failed run, 130 and 143 for a stopped one.

    Every foreseen failure is told in one line on standard error; `when_stopped` says how to go on.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where they were closed
        stream.reconfigure(errors="backslashreplace")  # a path may hold letters that the terminal does not know
    signal.signal(signal.SIGTERM, terminate)
    try:
        main(arguments)
        return 0
    except InputError as error:
        code, message = 2, f"error: {error}"
    except RunError as error:
        code, message = 1, f"error: {error}"
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):  # PyTorch has no class of its own on a CPU
            raise
        code, message = 1, f"error: out of memory, try a smaller --batch-size ({error})"
    except OSError as error:
        code, message = 1, f"error: {error}: what was saved before stays as it is"
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        message = f"stopped: {when_stopped}"
    # One line, whatever the name of a path or the content of a foreign checkpoint.
    print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message), file=sys.stderr)
    return code


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM to the end of the block."""
    received = []
    signals = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.signal(number, lambda *call: received.append(call)) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)
    for number, frame in received[:1]:
        handler = signal.getsignal(number)
        if callable(handler):  # a job in the background may ignore Ctrl-C
            handler(number, frame)
