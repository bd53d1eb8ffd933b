"""Which files a table is, and how each is read: by its suffix, before a `.gz` that may follow it."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa

from datamodules.config import TableConfig
from datamodules.reading.columns import Column
from datamodules.reading.csv_files import read_csv
from datamodules.reading.json_files import read_json_lines
from datamodules.reading.parquet_files import read_parquet
from datamodules.reading.raw_records import RawRecords
from serve.errors import SchemaError
from serve.packed_files import GZIP, UNPACKING_ERRORS, check_packing, is_packed, kind_suffix

_Read = Callable[[Path, tuple[Column, ...]], RawRecords]
_PARQUET = ".parquet"
_TYPED: dict[str, _Read] = {_PARQUET: read_parquet, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
_TEXT = (".csv", ".tsv")
_NEARLY = {
    ".json": ": if each line is one object, as in the dumps of Amazon's reviews, call the file .jsonl",
}
"""Suffixes that a file of an allowed kind may have -> what to do then."""
_NEVER_PACKED = {
    _PARQUET: "Parquet is compressed within; unpack it and name the file that comes out",
    ".tar": "an archive, of which no file is a table by itself; unpack it and name one of those that come out",
}
"""Suffixes that no `.gz` may follow -> why, and what to do."""


def read_raw(setting: str, table: TableConfig, columns: tuple[Column, ...]) -> list[RawRecords]:
    """Read the files of a table, in the order of their names.

    Args:
        setting: where the path is declared, for messages.
        table: path, which may be a pattern, and layout.
        columns: those to look for.

    Raises:
        SchemaError: the path is not set or names no file; a file is unreadable, not compressed as its name says, of
            an unknown suffix, lacks a declared column, or its records do not add up; there is no record at all.
    """
    files = [_read_file(path, table, columns) for path in _find_files(setting, table.path)]
    if not any(file.n_records for file in files):
        raise SchemaError(f"{table.path} is empty: expected at least one record")
    return files


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
        advice = f"correct {setting}" if path.is_absolute() else f"{setting} is relative to {Path.cwd()}"
        raise SchemaError(f"{path} {found}; {advice}")
    return files


def _read_file(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> RawRecords:
    try:
        check_packing(path, _name_kinds())
        read = _choose_reader(path, table)
        return read_csv(path, table, columns) if read is None else read(path, columns)
    except (duckdb.Error, pa.ArrowException, OSError, *UNPACKING_ERRORS) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}{_advise(path, error)}") from error


def _advise(path: Path, error: Exception) -> str:
    """Say what to do about a compressed file; of what follows the compressed parts, DuckDB allows less than gunzip."""
    if not is_packed(path) or not isinstance(error, (*UNPACKING_ERRORS, duckdb.IOException)):
        return ""
    return "; unpack it with gunzip and name the file that comes out; if gunzip fails too, fetch the file again"


def _choose_reader(path: Path, table: TableConfig) -> _Read | None:
    """Return what reads the file by its suffix; None for text."""
    suffix = kind_suffix(path)
    read = _TYPED.get(suffix)
    if suffix in _NEVER_PACKED and is_packed(path):
        raise SchemaError(f"{path}: {_NEVER_PACKED[suffix]}")
    if read is not None and table.declares_text:
        raise SchemaError(f"{path}: names, delimiter and encoding are those of a text file; take them out for {suffix}")
    if read is None and table.names is None and suffix not in _TEXT:
        raise SchemaError(
            f"{path}: unknown suffix '{suffix or path.suffix}'{_NEARLY.get(suffix, '')}; allowed: {_name_kinds()}, "
            "and any other for a text file without a header line whose columns are declared as 'names'"
        )
    return read


def _name_kinds() -> str:
    return f"{', '.join((*_TEXT, *_TYPED))} ({GZIP} may follow all but {_PARQUET})"
