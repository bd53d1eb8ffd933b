"""Parse options, handle signals, set exit statuses and write terminal lines for all commands."""

from __future__ import annotations

import argparse
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

from serve.errors import SchemaError, name_nearest, say

FAULT = 2  # exit status after a fault of the options, the configuration or the data
_STOPPING = (signal.SIGTERM, signal.SIGINT)
_HOME = __name__.removesuffix("service.command_line")  # `bascule.` in the wheel
ENDED = frozenset(128 + number for number in _STOPPING)  # exit statuses after a signal

_CHOICE = re.compile(r"(.*invalid choice): '(.*)' \(choose from (.*)\)")


class _Parser(argparse.ArgumentParser):
    """A parser whose faults are one line."""

    def error(self, message: str) -> NoReturn:
        if wrong := _CHOICE.fullmatch(message):
            names = re.findall(r"[\w-]+", wrong[3])
            message = f"{wrong[1]}: '{wrong[2]}'; {name_nearest(wrong[2], names)}"
        raise SchemaError(f"{message}; see {self.prog} --help")


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Make a parser that raises SchemaError; the lines of its description stay as they are."""
    return _Parser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def run_command(work: Callable[[], None]) -> int:
    """Do the work of a command.

    Returns:
        The exit status: 0, or 2 after one line on stderr about a fault of options, files or data.

    Raises:
        SystemExit: 143 on SIGTERM, 130 on Ctrl-C.
    """
    try:
        with ending_on_signals():
            work()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {say(error)}\n")
        return FAULT

    return 0


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise SystemExit; a second one ends the process at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in _STOPPING:
            signal.signal(each, signal.SIG_DFL)
        raise SystemExit(128 + number)

    with handling(stop):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGTERM and Ctrl-C: for quick changes that must happen together."""
    with handling(signal.SIG_IGN):
        yield


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    """Install a handler for SIGTERM and Ctrl-C; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    previous = {number: signal.signal(number, handler) for number in _STOPPING}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def tabulate(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of records that have the same names."""
    rows = [list(records[0])]
    for record in records:
        rows.append(list(map(format_cell, record.values())))
    return align(rows)


def format_cell(value: Any) -> str:
    """Write a value of a table: fractions by 4 digits, None as nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def import_ours(name: str) -> Any:
    """Import a module of the packages beside `bascule`, which the wheel has inside `bascule`.

    Raises:
        ModuleNotFoundError: a library is missing; the message says what to install.
    """
    try:
        return import_module(f"{_HOME}{name}")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; this install only answers: install bascule with its dependencies"
        ) from error
