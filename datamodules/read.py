"""Read files of records, each row with its place: CSV and TSV, JSON Lines and Parquet.

Training reads whole files, the commands that take requests and items read row by row, and both in
the same way. All but Parquet may be compressed by gzip (`.gz`). A record that is no row is listed
with its line and a reason. This chapter needs numpy and pyarrow alone.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from serve.arrays import Flags, Ints, to_arrow
from serve.errors import SchemaError, name_nearest, say

PARQUET = ".parquet"
JSON_LINES = (".jsonl", ".ndjson")
TEXTS = (".csv", ".tsv")
KINDS = ".csv, .tsv, .jsonl, .ndjson (.gz may follow), .parquet"
REPLACED = "\ufffd"  # stands for bytes that are not UTF-8
ROWS_AT_ONCE = 4096  # of a Parquet file or a table of texts
SAME_NAMES: Mapping[str, str] = MappingProxyType({})
_GZIP = ".gz"
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
_STAND_IN = "\x1f"  # replaces a delimiter of several bytes, which Arrow does not read
_BLOCK = 2**24  # bytes that Arrow parses at once: no record may be longer

Row = tuple[str, Any]  # the place of a row in its file, and its cells by our names


class BadRecord(NamedTuple):
    """A record that is no row."""

    line: int
    text: str
    reason: str


@dataclass(frozen=True)
class FileRecords:
    """The records of a whole file."""

    names: list[str]  # of all columns
    columns: dict[str, Any]  # Arrow columns, of JSON Lines lists
    lines: Ints  # (n,) line or record number of each row
    bad: list[BadRecord]
    is_text: bool = False  # cells are texts, null where empty
    is_broken: bool = False  # some bytes are not UTF-8; `REPLACED` stands for them


def kind_of(path: Path) -> str:
    """Return the suffix of a file, or of the one that is compressed in it."""
    name = path.name.lower().removesuffix(_GZIP)
    return Path(name).suffix


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of reading it."""
    try:
        yield
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        UnicodeDecodeError,
    ) as error:
        raise SchemaError(f"{path} cannot be read: {say(error)}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, or the one that is compressed in it."""
    is_packed = path.suffix.lower() == _GZIP
    with naming(path), gzip.open(path) if is_packed else path.open("rb") as file:
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
    if kind in JSON_LINES:
        rows = _read_json_rows(path)
    elif kind == PARQUET:
        rows = _read_parquet_rows(path, columns)
    else:
        rows = _read_text_rows(path, columns)
    return ((place, _rename(cells, columns)) for place, cells in rows)


def _read_json_rows(path: Path) -> Iterator[Row]:
    for line, record in read_objects(path):
        if isinstance(record, BadRecord):
            _refuse(path, record)
        yield f"line {line}", record


def _read_text_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    records = read_text(path)
    _check_names(path, records.names, columns)
    if records.is_broken:
        raise SchemaError(f"{path} cannot be read: it is not UTF-8")
    for bad in records.bad:
        _refuse(path, bad)
    line = iter(records.lines.tolist())
    table = pa.Table.from_arrays(list(records.columns.values()), records.names)
    for batch in table.to_batches(ROWS_AT_ONCE):
        for cells in batch.to_pylist():
            yield f"line {next(line)}", cells


def _read_parquet_rows(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with naming(path), pq.ParquetFile(path) as file:
        _check_names(path, file.schema_arrow.names, columns)
        number = 0
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for cells in _in_microseconds(batch).to_pylist():
                number += 1
                yield f"row {number}", cells


def _refuse(path: Path, bad: BadRecord) -> None:
    raise SchemaError(f"{path.name}, line {bad.line}: {bad.reason}: {bad.text[:40]!r}")


def _rename(cells: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Put cells under our names; another column that has such a name is hidden."""
    if not columns:
        return cells
    hidden = {*columns, *columns.values()}
    renamed = {name: cell for name, cell in cells.items() if name not in hidden}
    for ours, theirs in columns.items():
        if theirs in cells:
            renamed[ours] = cells[theirs]
    return renamed


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


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Cast timestamps to what Python holds: Arrow turns nanoseconds into objects of pandas."""
    schema = batch.schema
    for index, field in enumerate(schema):
        if pa.types.is_timestamp(field.type):
            kind = pa.timestamp("us", field.type.tz)
            schema = schema.set(index, field.with_type(kind))
    return batch.cast(schema, safe=False)


# ---- whole files


def read_parquet(path: Path, wanted: Collection[str]) -> FileRecords:
    """Read the columns of a Parquet file that are wanted and there."""
    with naming(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        table = file.read([name for name in names if name in wanted])
    columns = dict(zip(table.column_names, table.columns, strict=True))
    return FileRecords(names, columns, np.arange(1, len(table) + 1), [])


def read_json_lines(path: Path) -> FileRecords:
    """Read one object a line; an object without a key has None there."""
    rows: dict[int, dict[str, Any]] = {}
    bad: list[BadRecord] = []
    for line, record in read_objects(path):
        if isinstance(record, BadRecord):
            bad.append(record)
        else:
            rows[line] = record
    names = list(dict.fromkeys(chain.from_iterable(rows.values())))
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    return FileRecords(names, columns, np.array(list(rows), np.int64), bad)


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | BadRecord]]:
    """Read one object a line, with its line number.

    The standard reader keeps "007", 7 and integers above 2**53 apart within a column; Arrow's
    does not.
    """
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _read_object(number, line)


def _read_object(number: int, line: bytes) -> dict[str, Any] | BadRecord:
    reason = "not a JSON object"
    try:
        record = json.loads(line.decode("utf-8-sig"))
        if isinstance(record, dict):
            return record
    except UnicodeDecodeError:
        reason = "not UTF-8"
    except (ValueError, RecursionError):
        reason = "not JSON"
    return BadRecord(number, line.decode(errors="replace").strip(), reason)


def read_text(
    path: Path,
    names: Sequence[str] | None = None,
    delimiter: str | None = None,
    encoding: str = "utf-8",
) -> FileRecords:
    """Read a whole text file with delimiters, all cells as texts.

    Args:
        path: the file; one called `.tsv` has tabs.
        names: the columns, in order, if the file has no header line.
        delimiter: the text between cells; by default the first line shows it.
        encoding: "utf-8" or "latin-1".

    Returns:
        Rows with the line of each, and the records with too few or too many cells. A line without
        any cell is no record.

    Raises:
        SchemaError: the file has no first line, a quote is not closed, or a record is longer than
            16 MB.
    """
    with _opened(path) as file:
        text, is_broken = _decode(file.read(), encoding)
    is_tsv = kind_of(path) == ".tsv"
    delimiter = delimiter or ("\t" if is_tsv else _guess_delimiter(_first_line(text)))
    between = delimiter
    if len(delimiter.encode()) > 1:
        between = _STAND_IN
        text = text.replace(between, " ").replace(delimiter, between)
    header = _read_names(path, _first_line(text), between)
    columns = header if names is None else list(names)
    with naming(path):
        table, bad_rows = _parse(path, text, len(columns), between)
    breaks, is_bad = _count_breaks(table, bad_rows)
    if breaks.any():
        _check_quotes(path, text, between)
    lines = np.arange(1, len(breaks) + 1) + np.cumsum(breaks) - breaks
    bad = _describe_bad(bad_rows, lines[is_bad], between, delimiter)
    lines = lines[~is_bad]
    if between != delimiter:  # within quotes it was no delimiter
        restored = [
            pc.replace_substring(column, between, delimiter) for column in table.columns
        ]
        table = pa.table(restored, table.column_names)
    is_row = _find_filled(table)
    if names is None:
        is_row[0] = False
    table = table.filter(to_arrow(is_row))
    return FileRecords(
        columns,
        dict(zip(columns, table.columns, strict=True)),
        lines[is_row],
        bad,
        is_text=True,
        is_broken=is_broken,
    )


def _decode(data: bytes, encoding: str) -> tuple[str, bool]:
    """Return the text of a file, and whether some bytes were replaced."""
    is_broken = False
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        is_broken = True
    return text.removeprefix("\ufeff"), is_broken


def _first_line(text: str) -> str:
    return text[: text.find("\n") + 1 or None]


def _guess_delimiter(line: str) -> str:
    """Return two colons if they come before any other delimiter, else the most frequent one."""
    bare = _QUOTED.sub("", line)
    head = re.split(f"[{_DELIMITERS}]", bare, maxsplit=1)[0]
    return "::" if "::" in head else max(_DELIMITERS, key=bare.count)


def _read_names(path: Path, first: str, between: str) -> list[str]:
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=between), [])]
    if not any(cells):
        raise SchemaError(
            f"{path} is empty, or its first line is: expected at least one record"
        )
    return cells


def _parse(
    path: Path, text: str, n_columns: int, between: str
) -> tuple[pa.Table, list[pa_csv.InvalidRow]]:
    """Return all rows, a header's too, and the records with another number of cells."""
    bad: list[pa_csv.InvalidRow] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    names = [f"c{index}" for index in range(n_columns)]
    reading = pa_csv.ReadOptions(
        use_threads=False, block_size=_BLOCK, column_names=names
    )
    parsing = pa_csv.ParseOptions(
        delimiter=between,
        newlines_in_values=True,
        ignore_empty_lines=False,
        invalid_row_handler=skip,
    )
    converting = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        table = pa_csv.read_csv(io.BytesIO(text.encode()), reading, parsing, converting)
    except pa.ArrowInvalid:
        _check_quotes(path, text, between)
        raise
    return table, bad


def _count_breaks(
    table: pa.Table, bad: Collection[pa_csv.InvalidRow]
) -> tuple[Ints, Flags]:
    """Count the line breaks within the cells of each record, (n,), and mark bad ones, (n,)."""
    is_bad = np.zeros(len(table) + len(bad), bool)
    is_bad[[row.number - 1 for row in bad]] = True
    breaks = np.zeros(len(is_bad), np.int64)
    breaks[is_bad] = [row.text.strip("\r\n").count("\n") for row in bad]
    for column in table.columns:
        counts = pc.count_substring(column, "\n").to_numpy()  # NaN for an empty cell
        breaks[~is_bad] += np.nan_to_num(counts).astype(np.int64)
    return breaks, is_bad


def _find_filled(table: pa.Table) -> Flags:
    """Return which rows hold any cell, (n,): an empty line is read as empty cells."""
    is_filled = np.zeros(len(table), bool)
    for column in table.columns:
        is_filled |= column.is_valid().to_numpy()
    return is_filled


def _describe_bad(
    rows: Collection[pa_csv.InvalidRow], lines: Ints, between: str, delimiter: str
) -> list[BadRecord]:
    bad = []
    for row, line in zip(rows, lines.tolist(), strict=True):
        amount = "few" if row.actual_columns < row.expected_columns else "many"
        text = row.text.replace(between, delimiter).strip()
        bad.append(BadRecord(line, text, f"too {amount} columns"))
    return bad


def _check_quotes(path: Path, text: str, between: str) -> None:
    """Refuse a quote that is not closed: Arrow would take the records after it into one cell."""
    csv.field_size_limit(_BLOCK)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    is_over = False
    while not is_over:
        end = reader.line_num
        try:
            is_over = next(reader, None) is None
        except csv.Error as error:
            if reader.line_num > end + 1:
                raise SchemaError(
                    f"{path}: the quote opened on line {end + 1} is not closed; the last good "
                    f"line is {end}"
                ) from error
