"""The records of a CSV file, counted apart from the reader that types them.

DuckDB alone may lose rows after an unterminated quote without a word, and numbers records, not lines. A
second, independent reader says how many records there are and on which line of the file each begins.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from datamodules.config import STAND_IN, TableConfig
from serve.errors import SchemaError
from serve.packed_files import kind_suffix, open_text

_DELIMITERS = ",;\t|"
_DOUBLE = "::"
_QUOTED = re.compile(r'"[^"]*"')
_DELIMITER_OF_SUFFIX = {".tsv": "\t"}
LONGEST_CELL = 2**21
"""Characters, as many as DuckDB reads of a line. What is longer and of several lines is taken for an open quote;
`csv` takes 131,072 for too long, which a page of HTML may have."""
_END_NAMES = {"\n": "LF", "\r\n": "CR LF", "\r": "CR"}


@dataclass(frozen=True)
class CsvLayout:
    """How a delimited text file is laid out."""

    names: tuple[str, ...]
    delimiter: str
    encoding: str
    has_header: bool


@dataclass(frozen=True)
class CsvRecords:
    """The records in file order, blank lines included, the header left out."""

    first_line: np.ndarray
    """int64: the line of the file, from 1, on which the record begins."""
    is_blank: np.ndarray
    """bool: an empty line, which is no record."""
    too_long: dict[int, str]
    """Place from 0 of each record with more cells than columns -> its text."""


def read_layout(path: Path, table: TableConfig) -> CsvLayout:
    """Tell from the first record what of the layout is not declared.

    Raises:
        SchemaError: there is no first record, it is a header that cannot be decoded, or it has not as many
            cells as names are declared.
    """
    cells, delimiter = _read_first_record(path, table)
    if table.names is None:
        return CsvLayout(_read_names(path, cells), delimiter, table.encoding, has_header=True)
    if not cells:
        raise SchemaError(f"{path} is empty, or its first line is: expected a record")
    if len(cells) != len(table.names):
        raise SchemaError(
            f"{path}: {len(table.names)} names are declared, but line 1 has {len(cells)} cells between "
            f"{delimiter!r}; give one name for each, also for columns that are not used"
        )
    return CsvLayout(tuple(table.names), delimiter, table.encoding, has_header=False)


def _read_first_record(path: Path, table: TableConfig) -> tuple[list[str], str]:
    """Return the cells and the delimiter: as declared, that of the suffix, or the one that the first line shows."""
    known = table.delimiter or _DELIMITER_OF_SUFFIX.get(kind_suffix(path))
    try:
        with _open(path, table.encoding) as file:
            line = file.readline()
            delimiter = known or _guess_delimiter(line)
            file.seek(0)
            lines, between = _write_with_one_character(file, delimiter)
            cells = next(csv.reader(lines, delimiter=between), [])
            return _write_back(cells, delimiter), delimiter
    except csv.Error as error:
        raise SchemaError(f"{path} cannot be read: {error}") from error


def _guess_delimiter(line: str) -> str:
    """Return two colons where a line has them before any other delimiter, else the one that splits it most often.

    The first cell, an id or a name, has none within it; the last one of a film, its genres, has many.
    """
    bare = _QUOTED.sub("", line)
    first = min((place for place in map(bare.find, _DELIMITERS) if place >= 0), default=len(bare))
    return _DOUBLE if _DOUBLE in bare[:first] else max(_DELIMITERS, key=bare.count)


def _write_with_one_character(lines: Iterable[str], delimiter: str) -> tuple[Iterable[str], str]:
    """Return the lines with a delimiter of one character, as `csv` needs it, and that."""
    if len(delimiter) == 1:
        return lines, delimiter
    return (line.replace(STAND_IN, " ").replace(delimiter, STAND_IN) for line in lines), STAND_IN


def _write_back(cells: Iterable[str], delimiter: str) -> list[str]:
    """Return cells in which a quoted delimiter is what it was."""
    return list(cells) if len(delimiter) == 1 else [cell.replace(STAND_IN, delimiter) for cell in cells]


def _read_names(path: Path, cells: list[str]) -> tuple[str, ...]:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"{path}: the header is not UTF-8; save the file as UTF-8, or declare its encoding"
        ) from error
    if not any(cells):
        raise SchemaError(f"{path} is empty, or its first line is: expected a header and at least one record")
    return tuple(cell.strip() for cell in cells)


def _open(path: Path, encoding: str) -> TextIO:
    # bytes that are not UTF-8 are faults of their record alone, and a byte order mark is part of none
    return open_text(path, "utf-8-sig" if encoding == "utf-8" else encoding)


def find_records(path: Path, layout: CsvLayout) -> CsvRecords:
    """Find where each record begins.

    Raises:
        SchemaError: a quote is opened and not closed properly on its line or a later one, so that records
            cannot be told apart; the message names the last good line.
    """
    csv.field_size_limit(LONGEST_CELL)
    with _open(path, layout.encoding) as file:
        ends, is_blank, too_long = _scan(path, file, layout)
    start = int(layout.has_header)
    first_line = np.array([0, *ends[:-1]], np.int64) + 1
    return CsvRecords(
        first_line[start:],
        np.array(is_blank[start:], bool) & (len(layout.names) > 1),
        {place - start: text for place, text in too_long.items()},
    )


def _scan(path: Path, file: TextIO, layout: CsvLayout) -> tuple[list[int], list[bool], dict[int, str]]:
    """Return the last line of each record, whether it is blank, and those that are too long."""
    lines, between = _write_with_one_character(file, layout.delimiter)
    reader = csv.reader(lines, delimiter=between, strict=True)
    n_columns = len(layout.names)
    ends: list[int] = [0]
    is_blank: list[bool] = []
    too_long: dict[int, str] = {}
    good_end = 0  # of the last record before those whose quotes are wrong, which may be parts of one
    for record in _records(reader):
        if record is None and reader.line_num > ends[-1] + 1:
            raise SchemaError(
                f"{path}: the quote opened on line {good_end + 1} is not closed; the last good line is "
                f"{good_end}: close it, or double the quotes inside a quoted cell"
            )
        if record is not None:
            good_end = reader.line_num
            if len(record) > n_columns:
                too_long[len(is_blank)] = layout.delimiter.join(_write_back(record, layout.delimiter))
        ends.append(reader.line_num)
        is_blank.append(record == [])
    return ends[1:], is_blank, too_long


def _records(reader: Iterator[list[str]]) -> Iterator[list[str] | None]:
    """Go through the records; None stands for one whose quotes are wrong."""
    while True:
        try:
            yield from reader
            return
        except csv.Error:
            yield None


def find_mixed_end(path: Path, layout: CsvLayout) -> str | None:
    """Say which line ends in another way than the first; None if all, quoted ones aside, end alike."""
    first, n_quotes = "", 0
    with _open(path, layout.encoding) as file:
        for number, line in enumerate(file, start=1):
            n_quotes += line.count('"')
            end = line[len(line.rstrip("\r\n")) :]
            if n_quotes % 2 or not end:
                continue
            first = first or end
            if end != first:
                return f"line {number} ends in {_END_NAMES[end]}, the lines before it in {_END_NAMES[first]}"
    return None
