"""Read files of records, each row with its place: CSV and TSV, JSON Lines and Parquet.

Training reads whole files, the commands that take requests and items read row by row, in constant
memory, and both in the same way. All but Parquet may be compressed by gzip (`.gz`). A record that
is no row is listed with its line and a reason. This chapter needs numpy and pyarrow alone.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.arrays import Ints
from serve.errors import SchemaError, name_nearest, say

PARQUET = ".parquet"
JSON_LINES = (".jsonl", ".ndjson")
TEXTS = (".csv", ".tsv")
KINDS = ".csv, .tsv, .jsonl, .ndjson (.gz may follow), .parquet"
REPLACED = "\ufffd"  # stands for bytes that are not UTF-8
ROWS_AT_ONCE = 4096
SAME_NAMES: Mapping[str, str] = MappingProxyType({})
_GZIP = ".gz"
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
# replaces a delimiter of several letters, which the csv reader refuses
_STAND_IN = "\x1f"

csv.field_size_limit(2**24)  # letters of a cell

Row = tuple[str, Any]  # the place of a row in its file, and its cells by our names


class BadRecord(NamedTuple):
    """A record that is no row."""

    text: str
    reason: str


Reject = Callable[[int, BadRecord], None]  # takes the line and what stands there


@dataclass(frozen=True)
class FileRecords:
    """The records of a whole file."""

    names: list[str]  # of all columns
    columns: dict[str, Any]  # Arrow columns, of JSON Lines lists
    lines: Ints  # (n,) line or record number of each row
    bad: dict[int, BadRecord]  # line -> a record that is no row
    is_text: bool = False  # cells are texts, null where empty


def kind_of(path: Path) -> str:
    """Return the suffix of a file, or of the one that is compressed in it."""
    return Path(path.name.lower().removesuffix(_GZIP)).suffix


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of reading it."""
    try:
        yield
    except UnicodeError as error:
        raise SchemaError(
            f"{path} cannot be read: {say(error)}; save it in UTF-8, or declare its encoding"
        ) from error
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        csv.Error,
        zlib.error,
    ) as error:
        raise SchemaError(f"{path} cannot be read: {say(error)}") from error


@contextmanager
def _opened(path: Path, mode: str, **options: Any) -> Iterator[Any]:
    """Open a file, or the one that is compressed in it."""
    opener: Any = gzip.open if path.suffix.lower() == _GZIP else open
    with naming(path), opener(path, mode, **options) as file:
        yield file


# ---- row by row


def read_columns(option: str | None) -> Mapping[str, str]:
    """Parse an option such as "item_id=sku,price=cost" into our name -> name in the file."""
    columns: dict[str, str] = {}
    for part in option.split(",") if option else ():
        ours, _, theirs = map(str.strip, part.partition("="))
        if not ours or not theirs or ours in columns:
            raise SchemaError(
                f"columns: got '{part}'; expected NAME=COLUMN, each name once, with commas between"
            )
        columns[ours] = theirs

    return columns


def read_rows(path: Path, columns: Mapping[str, str] = SAME_NAMES) -> Iterator[Row]:
    """Read the rows of a file one by one; empty lines are no rows.

    Args:
        path: a file of one of `KINDS`; its suffix says which.
        columns: our name -> name in the file, where they differ.

    Returns:
        The place of each row, such as "line 3", and its cells by our names. Cells of CSV are
        texts, None if empty.

    Raises:
        SchemaError: at once if the file cannot be read, else at the first record that is no row.
    """
    kind = kind_of(path)
    if kind not in (*TEXTS, *JSON_LINES, PARQUET):
        raise SchemaError(f"{path.name}: cannot read '{kind}'; allowed: {KINDS}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    rows: Iterator[Row]
    if kind in JSON_LINES:
        records = read_objects(path, partial(_refuse, path))
        rows = ((f"line {line}", record) for line, record in records)
    elif kind == PARQUET:
        rows = _read_parquet_rows(path, columns)
    else:
        rows = _read_text_rows(path, columns)

    return ((place, _rename(cells, columns)) for place, cells in rows)


def _read_text_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    records = read_records(path, partial(_refuse, path))
    _, names = next(records)
    _check_names(path, names, columns)
    for line, cells in records:
        yield f"line {line}", dict(zip(names, cells, strict=True))


def _read_parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with naming(path), pq.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names, columns)
        batches = file.iter_batches(ROWS_AT_ONCE)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        for number, cells in enumerate(rows, start=1):
            yield f"row {number}", cells


def _refuse(path: Path, line: int, bad: BadRecord) -> None:
    raise SchemaError(f"{path.name}, line {line}: {bad.reason}: {bad.text[:40]!r}")


def _rename(cells: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Put cells under our names; another column that has such a name is hidden."""
    if not columns:
        return cells
    theirs = columns.values()
    others = {name: cell for name, cell in cells.items() if name not in theirs}
    return others | {
        ours: cells[name] for ours, name in columns.items() if name in cells
    }


def _check_names(path: Path, names: Sequence[str], columns: Mapping[str, str]) -> None:
    if len(set(names)) < len(names):
        raise SchemaError(
            f"{path.name}: the columns are {names[:20]}; expected distinct names"
        )

    for theirs in columns.values():
        if theirs not in names:
            raise SchemaError(
                f"{path.name}: no column '{theirs}'; {name_nearest(theirs, names)}"
            )


# ---- whole files


def read_parquet(path: Path, wanted: Collection[str]) -> FileRecords:
    """Read the columns of a Parquet file that are wanted and there."""
    with naming(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        table = file.read([name for name in names if name in wanted])

    return number_rows(names, table)


def number_rows(names: list[str], table: pa.Table) -> FileRecords:
    """Number the rows of a table from 1; it may lack some of the columns of its file."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return FileRecords(names, columns, np.arange(1, len(table) + 1), {})


def read_json_lines(path: Path) -> FileRecords:
    """Read one object a line; an object without a key has None there."""
    bad: dict[int, BadRecord] = {}
    rows = dict(read_objects(path, bad.__setitem__))
    names = list(dict.fromkeys(chain.from_iterable(rows.values())))
    columns = {name: [row.get(name) for row in rows.values()] for name in names}

    return FileRecords(names, columns, np.array(list(rows), np.int64), bad)


def read_chunks(
    path: Path, wanted: Collection[str], n_rows: int, layout: Sequence[Any]
) -> Iterator[FileRecords]:
    """Read a Parquet or text file as `read_parquet` and `read_text` do, some rows at a time.

    Args:
        path: the file.
        wanted: the columns of a Parquet file that are read if they are there.
        n_rows: the most rows of a chunk.
        layout: of a text file, as of `read_text`.
    """
    if kind_of(path) == PARQUET:
        with naming(path), pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            there = [name for name in names if name in wanted]
            n_before = 0
            for batch in file.iter_batches(n_rows, columns=there):
                chunk = number_rows(names, pa.Table.from_batches([batch]))
                yield replace(chunk, lines=chunk.lines + n_before)
                n_before += len(batch)
        return

    bad: dict[int, BadRecord] = {}
    records = read_records(path, bad.__setitem__, "replace", *layout)
    _, names = next(records)
    while (rows := dict(islice(records, n_rows))) or bad:
        cells = zip(*rows.values(), strict=True) if rows else [()] * len(names)
        arrays = (pa.array(column, pa.string()) for column in cells)
        columns = dict(zip(names, arrays, strict=True))
        lines = np.array([*rows], np.int64)
        yield FileRecords(names, columns, lines, dict(bad), is_text=True)
        bad.clear()


def read_text(path: Path, *layout: Any) -> FileRecords:
    """Read a whole text file as `read_records` does; bytes that are not UTF-8 are `REPLACED`."""
    bad: dict[int, BadRecord] = {}
    records = read_records(path, bad.__setitem__, "replace", *layout)
    _, names = next(records)
    schema = pa.schema([(name, pa.string()) for name in names])
    lines: list[int] = []
    tables = [schema.empty_table()]
    while rows := dict(islice(records, ROWS_AT_ONCE)):
        lines.extend(rows)
        columns = zip(*rows.values(), strict=True)
        cells = [pa.array(column, pa.string()) for column in columns]
        tables.append(pa.Table.from_arrays(cells, schema=schema))

    in_file = list(zip(names, pa.concat_tables(tables).columns, strict=True))
    columns_by_name = dict(reversed(in_file))  # of those of one name the first

    return FileRecords(names, columns_by_name, np.array(lines, np.int64), bad, True)


# ---- the records of a file, one by one


def read_objects(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield one object a line, with its line number.

    The standard reader keeps "007", 7 and integers above 2**53 apart within a column; Arrow's
    does not.
    """
    with _opened(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            reason = "not a JSON object"
            record = None
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                reason = "not UTF-8"
            except (ValueError, RecursionError):
                reason = "not JSON"
            if isinstance(record, dict):
                yield number, record
            else:
                text = line.decode(errors="replace").strip()
                reject(number, BadRecord(text, reason))


def read_records(
    path: Path,
    reject: Reject,
    errors: str = "strict",
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> Iterator[tuple[int, list[Any]]]:
    """Read a text file with delimiters.

    Args:
        path: the file; one called `.tsv` has tabs.
        reject: takes records with too few or too many cells, and those of a stray quote.
        errors: what to do about other bytes, as of `open`.
        names: the columns, in order, if the file has no header line; one that begins with the
            first of them is skipped.
        delimiter: the text between cells; by default the first line shows it.
        encoding: one of `TableConfig.encoding`.

    Returns:
        The names of the columns, then the line of each row and its cells, None where empty. A line
        without any cell is no record.

    Raises:
        SchemaError: the file has no first line, or a quote is not closed.
    """
    encoding = encoding.replace("utf-8", "utf-8-sig")
    with _opened(path, "rt", encoding=encoding, errors=errors, newline="") as file:
        first = file.readline()
        if delimiter is None:
            is_tsv = kind_of(path) == ".tsv"
            delimiter = "\t" if is_tsv else _guess_delimiter(first)
        between = delimiter if len(delimiter) == 1 else _STAND_IN
        lines = (line.replace(delimiter, between) for line in chain([first], file))
        reader = csv.reader(lines, delimiter=between, strict=True)
        columns = names or [name.strip() for name in next(reader, [])]
        if not any(columns):
            raise SchemaError(
                f"{path} is empty, or its first line is: expected at least one record"
            )
        yield 0, list(columns)
        for line, cells in _read_cells(path, reader, reject):
            if names and line == 1 and cells[0].strip() == names[0]:
                continue
            row = [cell.replace(between, delimiter) or None for cell in cells]
            if len(row) == len(columns):
                yield line, row
            else:
                amount = "few" if len(row) < len(columns) else "many"
                text = delimiter.join(cells)
                reject(line, BadRecord(text, f"too {amount} columns"))


def _guess_delimiter(line: str) -> str:
    """Return two colons if they come before any other delimiter, else the most frequent one."""
    bare = _QUOTED.sub("", line)
    head = re.split(f"[{_DELIMITERS}]", bare, maxsplit=1)[0]
    return "::" if "::" in head else max(_DELIMITERS, key=bare.count)


def _read_cells(
    path: Path, reader: Any, reject: Reject
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line and the cells of each record; refuse a quote that is not closed."""
    cells: list[str] | None = []
    while cells is not None:
        before = reader.line_num
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if reader.line_num > before + 1:
                raise SchemaError(
                    f"{path}: the quote opened on line {before + 1} is not closed; the last good "
                    f"line is {before}"
                ) from error
            reject(before + 1, BadRecord("", str(error)))
            continue
        if cells and any(cells):
            yield before + 1, cells
