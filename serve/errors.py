"""The two errors of Bascule, both `ValueError`, so that a caller may catch either name.

SchemaError: a table, a request or a configuration does not fit the declaration.
BundleError: a bundle folder is incomplete, altered or put together from two.
"""

from __future__ import annotations

import difflib
import os
import reprlib
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

MAX_NAMES = 20  # listed in a message
MAX_SHOWN = 40  # characters of a value in a message: requests come from strangers


class SchemaError(ValueError):
    """Data does not fit the declaration; the message says what was got and what to do."""


class SchemaErrors(SchemaError):
    """Several faults at once: a line that counts them, and a line each."""

    def __init__(self, faults: Sequence[str]) -> None:
        head = f"{len(faults)} faults, each with its remedy:"
        super().__init__("\n- ".join([head, *faults] if len(faults) > 1 else faults))


class BundleError(ValueError):
    """A bundle cannot be trusted or read; the message names the file."""


def name_nearest(name: str, allowed: Iterable[str]) -> str:
    """End a message about an unknown name: propose the nearest name, or list those allowed.

    Args:
        name: the name that nobody knows.
        allowed: all names that would do.

    Example:
        >>> name_nearest("prise", ["price", "brand"])
        "did you mean 'price'?"
    """
    names = sorted(allowed)
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        return f"did you mean '{nearest[0]}'?"

    shown = names[:MAX_NAMES]
    if len(names) > MAX_NAMES:
        shown.append("and others")
    return f"allowed: {', '.join(shown) or 'none'}"


def say_missing(path: str, setting: str) -> str:
    """Say that a path leads nowhere, and which file beside it may be meant."""
    file = Path(path)
    folder = file if file.is_dir() else file.parent
    nearest = f"there is no folder {folder}"
    if folder.is_dir():
        nearest = name_nearest(file.name, os.listdir(folder))
    return f"{path} matches no file; {setting} is relative to {os.getcwd()}; {nearest}"


def show(value: object) -> str:
    """Describe a value for a message, with its type: escaped, and cut to `MAX_SHOWN` characters."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer of more than 64 bits"
    return f"{reprlib.repr(value)[:MAX_SHOWN]} ({type(value).__name__})"


def say(error: Exception) -> str:
    """Put an error into one line, several faults into one each.

    An error of the system becomes its file and reason.
    """
    message = str(error)
    if isinstance(error, SchemaErrors):
        return message
    if isinstance(error, OSError) and error.strerror:
        names = [str(error.filename)] if error.filename is not None else []
        message = ": ".join([*names, error.strerror])

    return " ".join(message.split())


def import_extra(module: str, extra: str) -> Any:
    """Import a module that an extra of this package installs, or say how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; install it with: pip install 'bascule[{extra}]'"
        ) from error
