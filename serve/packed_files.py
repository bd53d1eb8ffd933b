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
_GZIP_START, _ZIP_START = b"\x1f\x8b", b"PK\x03\x04"
"""First bytes of what is compressed."""


def is_packed(path: Path) -> bool:
    """Tell by its name whether a file is compressed by gzip."""
    return path.suffix.lower() == GZIP


def kind_suffix(path: Path) -> str:
    """Return the suffix, in small letters, of a file or of the one that is compressed in it."""
    return (Path(path.stem) if is_packed(path) else path).suffix.lower()


def check_packing(path: Path, allowed: str) -> None:
    """Refuse a file that is compressed in another way than its name says.

    Args:
        path: of the file.
        allowed: kinds of files that are read, for messages.

    Raises:
        SchemaError: says what to do.
    """
    with path.open("rb") as file:
        start = file.read(len(_ZIP_START))
    if start == _ZIP_START:
        advice = "unpack it, or save a spreadsheet as CSV, and name the file that comes out"
        raise SchemaError(f"{path} is compressed by zip, as spreadsheets are; {advice}; allowed: {allowed}")
    is_gzip = start.startswith(_GZIP_START)
    if is_gzip and not is_packed(path):
        advice = f"let its name end in {GZIP} if one text file is in it, or else unpack it"
        raise SchemaError(f"{path} is compressed by gzip, which its name does not say; {advice}")
    if start and is_packed(path) and not is_gzip:
        raise SchemaError(f"{path} is not compressed by gzip, which its name says; take {GZIP} from its name")


def open_bytes(path: Path) -> gzip.GzipFile | BufferedReader:
    """Open a file for reading, or the one that is compressed in it."""
    return gzip.open(path) if is_packed(path) else path.open("rb")


def open_text(path: Path, encoding: str, errors: str = "surrogateescape") -> TextIO:
    """Do as `open_bytes`, decoded; line ends stay, and bytes that are no character become what `errors` says."""
    return TextIOWrapper(open_bytes(path), encoding=encoding, errors=errors, newline="")


@contextmanager
def name_damage(path: Path) -> Iterator[None]:
    """Make a SchemaError of what goes wrong while a file is unpacked."""
    try:
        yield
    except UNPACKING_ERRORS as error:
        raise SchemaError(f"{path.name}: cannot be unpacked: {error}; fetch the file again") from error
