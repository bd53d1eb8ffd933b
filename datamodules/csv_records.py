"""The records of a CSV file, counted apart from the reader that types them.

DuckDB alone may lose rows after an unterminated quote without a word, and numbers records, not lines. A
second, independent reader says how many records there are and on which line of the file each begins.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from serve.errors import SchemaError

_DELIMITERS = ",;\t|"


@dataclass(frozen=True)
class CsvHeader:
    names: tuple[str, ...]
    delimiter: str


@dataclass(frozen=True)
class CsvRecords:
    """What follows the header, in file order, blank lines included."""

    first_line: np.ndarray
    """int64: the line of the file, from 1, on which the record begins."""
    is_blank: np.ndarray
    """bool: an empty line, which is no record."""


def read_header(path: Path) -> CsvHeader:
    """Read the names of the columns and tell the delimiter: the one that splits the first line most often."""
    try:
        # bytes that are not UTF-8 may follow in the records, where they are faults of their own
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            line = file.readline()
            delimiter = max(_DELIMITERS, key=line.count)
            file.seek(0)
            names = next(csv.reader(file, delimiter=delimiter), [])
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise SchemaError(f"{path}: the header is not UTF-8; save the file as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise SchemaError(f"{path} cannot be read: {error}") from error
    if not any(names):
        raise SchemaError(f"{path} is empty: expected a header and at least one record")
    return CsvHeader(tuple(name.strip() for name in names), delimiter)


def find_records(path: Path, header: CsvHeader) -> CsvRecords:
    """Find where each record begins.

    Raises:
        SchemaError: a quote is opened and not closed properly on its line or a later one, so that records
            cannot be told apart; the message names the last good line.
    """
    # Latin-1 decodes any byte, and a delimiter, quote or line end is never part of another UTF-8 letter
    with path.open(encoding="latin-1", newline="") as file:
        ends, is_blank = _scan(path, file, header)
    lines = np.array(ends, np.int64)
    first_line = np.concatenate([[1], lines[:-1] + 1])
    return CsvRecords(first_line[1:], np.array(is_blank[1:], bool) & (len(header.names) > 1))


def _scan(path: Path, file: TextIO, header: CsvHeader) -> tuple[list[int], list[bool]]:
    """Return the last line of each record, the header's first, and whether it is blank."""
    reader = csv.reader(file, delimiter=header.delimiter, strict=True)
    ends: list[int] = []
    is_blank: list[bool] = []
    for record in _records(reader):
        if record is None and reader.line_num > (ends[-1] if ends else 0) + 1:
            raise SchemaError(
                f"{path}: the quote opened on line {ends[-1] + 1} is not closed; the last good line is "
                f"{ends[-1]}: close it, or double the quotes inside a quoted cell"
            )
        ends.append(reader.line_num)
        is_blank.append(record == [])
    return ends, is_blank


def _records(reader: Iterator[list[str]]) -> Iterator[list[str] | None]:
    """Go through the records; None stands for one whose quotes are wrong."""
    while True:
        try:
            yield from reader
            return
        except csv.Error:
            yield None
