"""Which files a table is, and how each is read: by its suffix."""

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

_Read = Callable[[Path, tuple[Column, ...]], RawRecords]
_TYPED: dict[str, _Read] = {".parquet": read_parquet, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
_TEXT = (".csv", ".tsv")
_NEARLY = {
    ".json": ": if each line is one object, as in the dumps of Amazon's reviews, call the file .jsonl",
}
"""Suffixes that a file of an allowed kind may have -> what to do then."""
_PACKED = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PK\x03\x04": "compressed by zip, as spreadsheets are; unpack it, or save a spreadsheet as CSV,",
}
"""First bytes -> what such a file is, and what to do."""


def read_raw(setting: str, table: TableConfig, columns: tuple[Column, ...]) -> list[RawRecords]:
    """Read the files of a table, in the order of their names.

    Args:
        setting: where the path is declared, for messages.
        table: path, which may be a pattern, and layout.
        columns: those to look for.

    Raises:
        SchemaError: the path is not set or names no file; a file is unreadable, compressed, of an unknown suffix,
            lacks a declared column, or its records do not add up; there is no record at all.
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
        _check_unpacked(path)
        read = _choose_reader(path, table)
        return read_csv(path, table, columns) if read is None else read(path, columns)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _check_unpacked(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(max(map(len, _PACKED)))
    for first, what in _PACKED.items():
        if start.startswith(first):
            raise SchemaError(f"{path} is {what} and name the file that comes out; allowed: {_name_kinds()}")


def _choose_reader(path: Path, table: TableConfig) -> _Read | None:
    """Return what reads the file by its suffix; None for text."""
    suffix = path.suffix.lower()
    read = _TYPED.get(suffix)
    if read is not None and table.declares_text:
        raise SchemaError(f"{path}: names, delimiter and encoding are those of a text file; take them out for {suffix}")
    if read is None and table.names is None and suffix not in _TEXT:
        raise SchemaError(
            f"{path}: unknown suffix '{path.suffix}'{_NEARLY.get(suffix, '')}; allowed: {_name_kinds()}, and any other "
            "for a text file without a header line whose columns are declared as 'names'"
        )
    return read


def _name_kinds() -> str:
    return ", ".join((*_TEXT, *_TYPED))
