"""Read the declared columns of a table as they are: CSV or Parquet through DuckDB, or a frame at hand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.columns import Column
from datamodules.csv_records import CsvHeader, CsvRecords, find_records, read_header
from datamodules.rejects import reject_frame
from serve.errors import SchemaError, name_nearest

_REASONS = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "INVALID ENCODING": "not UTF-8",
    "UNQUOTED VALUE": "a quote is not closed properly",
    "LINE SIZE OVER MAXIMUM": "the line is too long",
}


@dataclass(frozen=True)
class RawTable:
    """One table before its cells are looked at."""

    file: str
    columns: tuple[Column, ...]
    """Those of the asked ones that are there."""
    frame: pd.DataFrame
    """Named as ours; texts of a CSV file are texts still."""
    lines: np.ndarray
    """int64 (n,): line or record number of each row of the frame."""
    rejects: pd.DataFrame
    """Records that are no rows."""
    n_records: int
    dropped: tuple[str, ...]
    is_text: bool
    """Every cell is text because the file is, so a column of canonical integers means integers."""


def read_raw(path: Path, columns: tuple[Column, ...]) -> RawTable:
    """Read a file by its suffix.

    Raises:
        SchemaError: the file is missing, empty, unreadable or of an unknown suffix, lacks a declared column,
            or its records do not add up.
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise SchemaError(f"{path}: unknown suffix '{path.suffix}'; allowed: {', '.join(readers)}")
    if not path.is_file():
        raise SchemaError(f"{path} does not exist; paths are relative to {Path.cwd()}")
    try:
        table = reader(path, columns)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    return _check_filled(table)


def take_frame(name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> RawTable:
    """Take a data frame instead of a file; rows are numbered from 1."""
    found, dropped = _find_columns(name, columns, [str(column) for column in frame.columns])
    taken = pd.DataFrame({column.name: frame[column.source].reset_index(drop=True) for column in found})
    lines = np.arange(1, len(frame) + 1)
    return _check_filled(
        RawTable(name, found, taken, lines, _no_rejects(name), len(frame), dropped, is_text=False)
    )


def _read_parquet(path: Path, columns: tuple[Column, ...]) -> RawTable:
    found, dropped = _find_columns(str(path), columns, pq.read_schema(path).names)
    selected = ", ".join(f"{_quote(column.source)} AS {_quote(column.name)}" for column in found)
    with duckdb.connect() as connection:
        frame = _to_frame(connection.read_parquet(str(path)).project(selected))
    n_records = pq.read_metadata(path).num_rows
    if len(frame) != n_records:
        raise SchemaError(f"{path}: {len(frame)} of {n_records} records could be read; the file is damaged")
    lines = np.arange(1, n_records + 1)
    return RawTable(str(path), found, frame, lines, _no_rejects(str(path)), n_records, dropped, is_text=False)


def _read_csv(path: Path, columns: tuple[Column, ...]) -> RawTable:
    header = read_header(path)
    found, dropped = _find_columns(str(path), columns, header.names)
    records = find_records(path, header)
    with duckdb.connect() as connection:
        frame = _select_csv(connection, path, header, found)
        rejected = connection.sql("FROM reject_errors").df()
    faults = rejected.sort_values(["line", "column_idx"]).drop_duplicates("line")
    at = faults["line"].to_numpy(np.int64) - 2  # counted from 1, and the header is the first
    lines = _conserve(path, records, at, len(frame))
    names = {f"c{position}": name for position, name in enumerate(header.names)}
    rejects = reject_frame(
        str(path),
        pd.Series(records.first_line[at]),
        faults["column_name"].map(names).reset_index(drop=True),
        faults["csv_line"].str.strip().reset_index(drop=True),
        faults["error_type"].map(lambda kind: _REASONS.get(kind, str(kind).lower())).reset_index(drop=True),
    )
    n_records = len(frame) + len(rejects)
    return RawTable(str(path), found, frame, lines, rejects, n_records, dropped, is_text=True)


def _select_csv(
    connection: duckdb.DuckDBPyConnection, path: Path, header: CsvHeader, columns: tuple[Column, ...]
) -> pd.DataFrame:
    """Read texts; names are replaced by their position, since a file may use any name twice."""
    where = [header.names.index(column.source) for column in columns]
    selected = ", ".join(f"c{at} AS {_quote(column.name)}" for at, column in zip(where, columns, strict=True))
    types = ", ".join(f"c{at}: 'VARCHAR'" for at in range(len(header.names)))
    source = (
        f"FROM read_csv($path, columns = {{{types}}}, delim = $delimiter, quote = '\"', escape = '\"', "
        "comment = '', header = true, auto_detect = false, store_rejects = true, rejects_limit = 0)"
    )
    records = connection.sql(source, params={"path": str(path), "delimiter": header.delimiter})
    return _to_frame(records.project(selected))


def _to_frame(relation: duckdb.DuckDBPyRelation) -> pd.DataFrame:
    # a column of integers with a gap would become floats, and an id above 2**53 another one
    frame: pd.DataFrame = relation.to_arrow_table().to_pandas(integer_object_nulls=True)
    return frame


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _find_columns(
    file: str, columns: tuple[Column, ...], available: Iterable[str]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the asked columns that are there, and the names of those that nobody asked for."""
    names = list(available)
    for column in columns:
        count = names.count(column.source)
        if count > 1:
            raise SchemaError(f"{file}: {count} columns are called '{column.source}'; rename all but one")
        if column.is_declared and not count:
            raise SchemaError(
                f"{file}: column '{column.source}' is absent; {name_nearest(column.source, names)}"
            )
    asked = {column.source for column in columns}
    found = tuple(column for column in columns if column.source in names)
    return found, tuple(name for name in names if name not in asked)


def _conserve(path: Path, records: CsvRecords, rejected: np.ndarray, n_kept: int) -> np.ndarray:
    """Return the line of each kept row; refuse a file of which a record is neither kept nor rejected."""
    is_kept = ~records.is_blank
    is_kept[rejected] = False
    if np.count_nonzero(is_kept) == n_kept and not records.is_blank[rejected].any():
        kept: np.ndarray = records.first_line[is_kept]
        return kept
    last_good = records.first_line[rejected].min(initial=records.first_line[-1] + 1) - 1
    raise SchemaError(
        f"{path}: {np.count_nonzero(~records.is_blank):,} records counted, but {n_kept:,} read and "
        f"{len(rejected):,} rejected; the last good line is {last_good}: look for a stray quote after it"
    )


def _check_filled(table: RawTable) -> RawTable:
    if table.n_records == 0:
        raise SchemaError(f"{table.file} is empty: expected at least one record")
    return table


def _no_rejects(file: str) -> pd.DataFrame:
    nothing = pd.Series([], dtype="str")
    return reject_frame(file, pd.Series([], dtype="int64"), nothing, nothing, nothing)
