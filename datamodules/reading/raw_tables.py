"""Which files a table is, and how each is read: by its suffix."""

from __future__ import annotations

import glob
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

_TYPED = {".parquet": read_parquet, ".jsonl": read_json_lines, ".ndjson": read_json_lines}
_TEXT = (".csv", ".tsv")


def read_raw(setting: str, table: TableConfig, columns: tuple[Column, ...]) -> list[RawRecords]:
    """Read the files of a table, in the order of their names.

    Args:
        setting: where the path is declared, for messages.
        table: path, which may be a pattern, and layout.
        columns: those to look for.

    Raises:
        SchemaError: the path is not set or names no file; a file is unreadable, of an unknown suffix, lacks a
            declared column, or its records do not add up; there is no record at all.
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
    files = [file for file in map(Path, sorted(glob.glob(pattern))) if file.is_file()]
    if not files:
        found = "matches no file" if glob.escape(pattern) != pattern else "does not exist"
        raise SchemaError(f"{path} {found}; {setting} is relative to {Path.cwd()}")
    return files


def _read_file(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> RawRecords:
    suffix = path.suffix.lower()
    read = _TYPED.get(suffix)
    if read is not None and table.declares_text:
        raise SchemaError(f"{path}: names, delimiter and encoding are those of a text file; take them out for {suffix}")
    if read is None and table.names is None and suffix not in _TEXT:
        raise SchemaError(
            f"{path}: unknown suffix '{path.suffix}'; allowed: {', '.join((*_TEXT, *_TYPED))}, and any other for a "
            "text file without a header line whose columns are declared as 'names'"
        )
    try:
        return read_csv(path, table, columns) if read is None else read(path, columns)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
