"""Text files compressed by gzip: `events.csv.gz` is read as the file in it, unpacked nowhere."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import TextIO

from serve.errors import SchemaError

GZIP = ".gz"
UNPACKING_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
"""Of a damaged file, or one that was cut off."""


def is_packed(path: Path) -> bool:
    """Tell by its name whether a file is compressed by gzip."""
    return path.suffix.lower() == GZIP


def kind_suffix(path: Path) -> str:
    """Return the suffix, in small letters, of a file or of the one that is compressed in it."""
    return (Path(path.stem) if is_packed(path) else path).suffix.lower()


def open_bytes(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file for reading, or the one that is compressed in it."""
    return gzip.open(path) if is_packed(path) else path.open("rb")


def open_text(path: Path, encoding: str, errors: str = "surrogateescape") -> TextIO:
    """Do as `open_bytes`, decoded; line ends stay, and bytes that are no character become lone surrogates."""
    return TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Make a SchemaError of what goes wrong while a file is unpacked."""
    try:
        yield
    except UNPACKING_ERRORS as error:
        advice = "fetch it again, or take .gz from its name if it is not compressed"
        raise SchemaError(f"{path.name}: cannot be unpacked: {error}; {advice}") from error
