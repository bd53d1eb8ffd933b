"""Read the declared columns of a table's files: CSV, JSON Lines and Parquet, each record a row or a reject."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from datamodules.config import Column, TableConfig
from serve.errors import SchemaError, name_nearest

MAX_VALUE = 200
"""Characters of a value in the list of rejects."""
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_KINDS = ".csv, .tsv, .jsonl, .ndjson, .parquet, each also with .gz after it"
_DELIMITERS = ",;\t|"
_STAND_IN = "\x1f"
"""In the place of a delimiter of several bytes, which pyarrow does not read."""
_REPLACED = "\ufffd"
"""In the place of bytes that are not UTF-8."""
_BLOCK = 2**24
"""Bytes that pyarrow parses at once: no record may be longer."""


@dataclass(frozen=True)
class Records:
    """The records of one file or data frame: rows of raw cells, and those that are no rows."""

    file: str
    columns: tuple[Column, ...]
    """Those of the asked ones that are there."""
    frame: pd.DataFrame
    """Named as ours; cells of a text file are texts still."""
    lines: np.ndarray
    """int64 (n,): line or record number of each row of the frame."""
    rejects: pd.DataFrame
    dropped: tuple[str, ...]
    """Columns that nobody asked for."""
    is_text: bool
    """Every cell is text because the file is, so a column of canonical integers means integers."""

    @property
    def n_records(self) -> int:
        return len(self.frame) + len(self.rejects)


def read_files(setting: str, table: TableConfig, columns: tuple[Column, ...]) -> list[Records]:
    """Read the files of a table, in the order of their names.

    Args:
        setting: where the path is declared, for messages.
        table: path, which may be a pattern, and layout.
        columns: those to look for.

    Raises:
        SchemaError: the path names no file; a file is unreadable, of an unknown suffix, lacks a declared column, or its
            records do not add up; there is no record at all.
    """
    files = [_read_file(path, table, columns) for path in _find_files(setting, table.path)]
    if not any(file.n_records for file in files):
        raise SchemaError(f"{table.path} is empty: expected at least one record")
    return files


def take_frame(name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> Records:
    """Take a data frame instead of a file; rows are numbered from 1."""
    if not isinstance(frame, pd.DataFrame):
        raise SchemaError(f"{name} is a {type(frame).__module__}.{type(frame).__name__}; allowed: a pandas DataFrame")
    if not len(frame):
        raise SchemaError(f"{name} is empty: expected at least one record")
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)  # numbers where there was no header
    found, dropped = _find_columns(name, columns, frame.columns)
    taken = pd.DataFrame({column.name: frame[column.source].reset_index(drop=True) for column in found})
    return Records(name, found, taken, np.arange(1, len(frame) + 1), make_rejects(name), dropped, is_text=False)


def make_rejects(
    file: str,
    lines: Collection[int] = (),
    column: str | None = None,
    values: Collection[Any] = (),
    reason: str | list[str] = "",
) -> pd.DataFrame:
    """Make the rejects of one file; `reason` is that of all, or a list."""
    texts = [None if pd.api.types.is_scalar(value) and pd.isna(value) else str(value)[:MAX_VALUE] for value in values]
    columns = {"file": file, "line": np.array(lines, np.int64), "column": column, "value": texts, "reason": reason}
    return pd.DataFrame(columns).astype({"file": "str", "column": "str", "value": "str", "reason": "str"})


def _find_columns(
    file: str, columns: tuple[Column, ...], available: Iterable[str]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the asked columns that are there, and the names of those that nobody asked for."""
    names = list(available)
    for column in columns:
        count = names.count(column.source)
        if count > 1:
            raise SchemaError(f"{file}: {count} columns are called '{column.source}'; rename all but one")
        if column.reason and not count:
            nearest = name_nearest(column.source, names)
            raise SchemaError(f"{file}: column '{column.source}' is absent, {column.reason}; {nearest}")
    asked = {column.source for column in columns}
    found = tuple(column for column in columns if column.source in names)
    return found, tuple(name for name in names if name not in asked)


def _find_files(setting: str, pattern: str | None) -> list[Path]:
    if pattern is None:
        raise SchemaError(f"{setting} is not set: give a CSV, TSV, JSON Lines or Parquet file")
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; {setting} takes a file, or a pattern such as {path / '*.parquet'}")
    files = [file for file in map(Path, sorted({*glob.glob(pattern, recursive=True)})) if file.is_file()]
    if not files:
        found = "matches no file" if glob.escape(pattern) != pattern else "does not exist"
        raise SchemaError(f"{path} {found}; {setting} is relative to {Path.cwd()}")
    return files


def _read_file(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> Records:
    suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
    is_typed = suffix == ".parquet" or suffix in _JSON_SUFFIXES
    if is_typed and (table.names, table.delimiter, table.encoding) != (None, None, "utf-8"):
        raise SchemaError(f"{path}: names, delimiter and encoding are those of a text file; take them out for {suffix}")
    if not is_typed and table.names is None and suffix not in (".csv", ".tsv"):
        advice = ": if each line is one object, call the file .jsonl" if suffix == ".json" else ""
        raise SchemaError(
            f"{path}: unknown suffix '{suffix}'{advice}; allowed: {_KINDS}, and any other for a text file without a "
            "header line whose columns are declared as 'names'"
        )
    try:
        if suffix == ".parquet":
            return _read_parquet(path, columns)
        data = _read_bytes(path)
        if suffix in _JSON_SUFFIXES:
            return _read_json_lines(path, data, columns)
        return _read_csv(path, data, table, columns, "\t" if suffix == ".tsv" else None)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}; fetch or write it again") from error


def _read_bytes(path: Path) -> bytes:
    """Return the content of a file, or of the one that gzip packed in it, without a byte order mark."""
    data = path.read_bytes()
    if data.startswith(_ZIP):
        raise SchemaError(f"{path} is packed by zip, as spreadsheets are; save it as CSV; allowed: {_KINDS}")
    data = gzip.decompress(data) if data.startswith(_GZIP) else data
    return data.removeprefix(codecs.BOM_UTF8)


def _read_parquet(path: Path, columns: tuple[Column, ...]) -> Records:
    """Read one file; its records are numbered from 1."""
    with path.open("rb") as stream:
        is_packed = stream.read(2) == _GZIP
    file = pq.ParquetFile(io.BytesIO(_read_bytes(path)) if is_packed else path)
    found, dropped = _find_columns(str(path), columns, file.schema_arrow.names)
    table = file.read(columns=[column.source for column in found]).select([column.source for column in found])
    table = table.rename_columns([column.name for column in found]).replace_schema_metadata(None)
    # a column of integers with a gap would become floats, and an id above 2**53 another one
    frame = table.to_pandas(integer_object_nulls=True)
    lines = np.arange(1, len(frame) + 1)
    return Records(str(path), found, frame, lines, make_rejects(str(path)), dropped, is_text=False)


def _read_json_lines(path: Path, data: bytes, columns: tuple[Column, ...]) -> Records:
    """Read one object a line; an absent key is a missing value, and a blank line is no record.

    The standard reader goes line by line, since it alone keeps "007", 7 and integers above 2**53 apart in one column.
    """
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    reasons: list[str] = []
    lines: list[int] = []
    bad_lines: list[int] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        record = _read_object(line)
        if isinstance(record, str):
            bad_lines.append(number)
            texts.append(line.decode(errors="replace").strip())
            reasons.append(record)
        else:
            rows.append(record)
            lines.append(number)
    keys = dict.fromkeys(key for row in rows for key in row)
    found, dropped = _find_columns(str(path), columns, keys) if rows else (columns, ())
    cells = {column.name: [row.get(column.source) for row in rows] for column in found}
    frame = pd.DataFrame({name: pd.Series(values, dtype=object) for name, values in cells.items()})
    rejects = make_rejects(str(path), bad_lines, None, texts, reasons)
    return Records(str(path), found, frame, np.array(lines, np.int64), rejects, dropped, is_text=False)


def _read_object(line: bytes) -> dict[str, Any] | str:
    """Return the object of a line, or why there is none."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


@dataclass(frozen=True)
class _CsvLayout:
    """How a delimited text file is laid out."""

    names: tuple[str, ...]
    delimiter: str
    between: str
    """What stands for the delimiter in the data: itself, or one character for several."""
    has_header: bool


def _read_csv(path: Path, data: bytes, table: TableConfig, columns: tuple[Column, ...], known: str | None) -> Records:
    """Read one file, all cells as text; a record with too few or too many cells is a reject.

    Args:
        path: of the file.
        data: its content.
        table: what is declared of its layout.
        columns: those to look for.
        known: the delimiter that the suffix says.
    """
    data, is_broken = _to_utf8(data, table.encoding)
    layout, data = _find_layout(path, data, table, known)
    found, dropped = _find_columns(str(path), columns, layout.names)
    cells, bad = _parse(path, data, layout, [layout.names.index(column.source) for column in found])
    frame = cells.rename_columns([column.name for column in found]).to_pandas()
    numbers = np.array([row.number for row in bad], np.int64) - 1 - layout.has_header
    all_lines = _find_lines(path, data, layout, len(frame) + len(bad))
    lines, is_good = np.delete(all_lines, numbers), np.ones(len(frame), bool)
    texts = [row.text.replace(layout.between, layout.delimiter).strip() for row in bad]
    reasons = [f"too {'few' if row.actual_columns < row.expected_columns else 'many'} columns" for row in bad]
    rejects = [make_rejects(str(path), all_lines[numbers], None, texts, reasons)]
    for column in found:
        if layout.between != layout.delimiter:  # within quotes it was no delimiter
            frame[column.name] = frame[column.name].str.replace(layout.between, layout.delimiter, regex=False)
        if is_broken:
            is_new = frame[column.name].str.contains(_REPLACED, regex=False).fillna(False).to_numpy(bool) & is_good
            values = frame.loc[is_new, column.name]
            rejects.append(make_rejects(str(path), lines[is_new], column.source, values, "not UTF-8"))
            is_good &= ~is_new
    rows = frame[is_good].reset_index(drop=True)
    return Records(str(path), found, rows, lines[is_good], pd.concat(rejects), dropped, is_text=True)


def _to_utf8(data: bytes, encoding: str) -> tuple[bytes, bool]:
    """Return the data as UTF-8, bytes that are none replaced by `_REPLACED`, and whether there were such."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return data.decode(encoding, errors="replace").encode(), True
    return (data if encoding == "utf-8" else text.encode()), False


def _parse(path: Path, data: bytes, layout: _CsvLayout, places: list[int]) -> tuple[pa.Table, list[pa_csv.InvalidRow]]:
    """Return the columns at the given places as texts, and the records that have not as many cells as names.

    Columns are read by their place, since a file may use any name twice.
    """
    bad: list[pa_csv.InvalidRow] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    names = [f"c{place}" for place in range(len(layout.names))]
    asked = [f"c{place}" for place in places]
    reading = pa_csv.ReadOptions(
        use_threads=False, block_size=_BLOCK, column_names=names, skip_rows_after_names=int(layout.has_header)
    )
    parsing = pa_csv.ParseOptions(delimiter=layout.between, newlines_in_values=True, invalid_row_handler=skip)
    converting = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(asked, pa.string()),
        include_columns=asked,
        null_values=[""],
        strings_can_be_null=True,
    )
    try:
        return pa_csv.read_csv(io.BytesIO(data), reading, parsing, converting), bad
    except pa.ArrowInvalid:
        _scan_lines(path, data, layout)  # says which quote is not closed, if that is why
        raise


def _find_layout(path: Path, data: bytes, table: TableConfig, known: str | None) -> tuple[_CsvLayout, bytes]:
    """Return the layout, what is not declared of it guessed from the first line, and the data as pyarrow reads it."""
    first = data[: data.find(b"\n") + 1 or None].decode()
    delimiter = table.delimiter or known or _guess_delimiter(first)
    between = delimiter if len(delimiter.encode()) == 1 else _STAND_IN
    if between != delimiter:
        data = data.replace(between.encode(), b" ").replace(delimiter.encode(), between.encode())
    cells = next(csv.reader(_open_text(data), delimiter=between), [])
    cells = [cell.replace(between, delimiter).strip() for cell in cells]
    if not any(cells):
        raise SchemaError(f"{path} is empty, or its first line is: expected at least one record")
    if table.names is not None and len(cells) != len(table.names):
        raise SchemaError(
            f"{path}: {len(table.names)} names are declared, but line 1 has {len(cells)} cells between "
            f"{delimiter!r}; give one name for each, also for columns that are not used"
        )
    if table.names is None and _REPLACED in "".join(cells):
        raise SchemaError(f"{path}: the header is not UTF-8; save the file as UTF-8, or declare its encoding")
    return _CsvLayout(tuple(table.names or cells), delimiter, between, table.names is None), data


def _guess_delimiter(line: str) -> str:
    """Return two colons where a line has them before any other delimiter, else the one that splits it most often.

    The first cell, an id or a name, has none within it; the last one of a film, its genres, has many.
    """
    first = min((place for place in map(line.find, _DELIMITERS) if place >= 0), default=len(line))
    return "::" if "::" in line[:first] else max(_DELIMITERS, key=line.count)


def _open_text(data: bytes) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")


def _find_lines(path: Path, data: bytes, layout: _CsvLayout, n_records: int) -> np.ndarray:
    """Return the line on which each record after the header begins, (n_records,).

    Where there are as many lines as records, each is one. Otherwise some are blank, or records go over several lines:
    the standard reader finds where they begin, and that an open quote swallowed none.
    """
    start = int(layout.has_header)
    if data.rstrip(b"\r\n").count(b"\n") + 1 == n_records + start:
        return np.arange(n_records, dtype=np.int64) + 1 + start
    lines = _scan_lines(path, data, layout)[start:]
    if len(lines) != n_records:
        raise SchemaError(f"{path}: {len(lines):,} records counted, but {n_records:,} read: mend its quotes")
    return np.array(lines, np.int64)


def _scan_lines(path: Path, data: bytes, layout: _CsvLayout) -> list[int]:
    """Return the line on which each record begins, the header's too.

    Raises:
        SchemaError: a quote is not closed, so that records cannot be told apart.
    """
    csv.field_size_limit(_BLOCK)
    reader = csv.reader(_open_text(data), delimiter=layout.between, strict=True)
    lines: list[int] = []
    end = 0
    while (record := _next_record(reader)) is not None:
        if record is False and reader.line_num > end + 1:
            raise SchemaError(
                f"{path}: the quote opened on line {end + 1} is not closed; the last good line is {end}: close it, or "
                "double the quotes inside a quoted cell"
            )
        if record != []:
            lines.append(end + 1)
        end = reader.line_num
    return lines


def _next_record(reader: Any) -> Any:
    """Return the next record, False for one whose quotes are wrong, None at the end."""
    try:
        return next(reader, None)
    except csv.Error:
        return False
