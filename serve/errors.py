"""The two errors of Bascule, both `ValueError`, so that a caller may catch either name.

SchemaError: a table, a request or a configuration does not fit the declaration.
BundleError: a bundle folder is incomplete, altered or put together from two.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MAX_NAMES = 20  # listed in a message


class SchemaError(ValueError):
    """Data does not fit the declaration; the message says what was got, what is allowed and what to do."""


class BundleError(ValueError):
    """A bundle cannot be trusted or read; the message names the file."""


def name_nearest(got: str, allowed: Iterable[str]) -> str:
    """Say which allowed name is meant, or list them all: the tail of an error about an unknown name."""
    names = sorted(allowed)
    near = difflib.get_close_matches(got, names, n=1)
    shown = [*names[:MAX_NAMES], *(["and others"] if len(names) > MAX_NAMES else [])]
    return (
        f"did you mean '{near[0]}'?"
        if near
        else f"allowed: {', '.join(shown) or 'none'}"
    )


def say(error: Exception) -> str:
    """Put an error into one line; a fault of the system is named by its file and reason, without its number."""
    if isinstance(error, OSError) and error.strerror:
        paths = [
            str(path) for path in (error.filename, error.filename2) if path is not None
        ]
        return " ".join(": ".join([*paths, error.strerror]).split())
    return " ".join(str(error).split())
