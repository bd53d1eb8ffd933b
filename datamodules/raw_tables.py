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
from datamodules.config import TableConfig
from datamodules.csv_records import CsvLayout, CsvRecords, find_mixed_end, find_records, read_layout
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


def read_raw(name: str, table: TableConfig, columns: tuple[Column, ...]) -> RawTable:
    """Read the file of a table: text or Parquet, by its suffix.

    Args:
        name: of the table, for messages.
        table: path and layout.
        columns: those to look for.

    Raises:
        SchemaError: the path is not set, the file is missing, empty, unreadable or of an unknown suffix, it
            lacks a declared column, or its records do not add up.
    """
    if table.path is None:
        raise SchemaError(f"data.{name}.path is not set: give a CSV or Parquet file")
    path = Path(table.path)
    is_text = _is_text(path, table)
    if not path.is_file():
        raise SchemaError(f"{path} does not exist; paths are relative to {Path.cwd()}")
    try:
        return _check_filled(_read_text(path, table, columns) if is_text else _read_parquet(path, columns))
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _is_text(path: Path, table: TableConfig) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".parquet" and table.declares_text:
        raise SchemaError(f"{path}: names, delimiter and encoding are those of a text file; take them out for Parquet")
    if table.names is None and suffix not in (".csv", ".tsv", ".parquet"):
        raise SchemaError(
            f"{path}: unknown suffix '{path.suffix}'; allowed: .csv, .tsv, .parquet, and any other for a "
            "text file without a header line whose columns are declared as 'names'"
        )
    return suffix != ".parquet"


def take_frame(name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> RawTable:
    """Take a data frame instead of a file; rows are numbered from 1."""
    found, dropped = _find_columns(name, columns, [str(column) for column in frame.columns])
    taken = pd.DataFrame({column.name: frame[column.source].reset_index(drop=True) for column in found})
    lines = np.arange(1, len(frame) + 1)
    return _check_filled(RawTable(name, found, taken, lines, _no_rejects(name), len(frame), dropped, is_text=False))


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


def _read_text(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> RawTable:
    layout = read_layout(path, table)
    found, dropped = _find_columns(str(path), columns, layout.names)
    records = find_records(path, layout)
    try:
        frame, faults = _select_text(path, layout, found)
        places = _conserve(path, records, faults.index.to_numpy(), len(frame))
    except (duckdb.Error, SchemaError) as error:
        mixed = find_mixed_end(path, layout)
        if mixed is None:
            raise
        raise SchemaError(f"{path}: {mixed}; save the file with one kind of line end") from error
    # empty cells after the last column are no fault to DuckDB
    is_long = np.isin(places, list(records.too_long))
    faults = pd.concat([faults, _list_too_long(records, places[is_long])])
    rejects = reject_frame(
        str(path),
        pd.Series(records.first_line[faults.index]),
        *(faults[name].reset_index(drop=True) for name in ("column", "value", "reason")),
    )
    kept, lines = frame[~is_long].reset_index(drop=True), records.first_line[places[~is_long]]
    n_records = len(kept) + len(rejects)
    return RawTable(str(path), found, kept, lines, rejects, n_records, dropped, is_text=True)


def _list_too_long(records: CsvRecords, places: np.ndarray) -> pd.DataFrame:
    texts = [records.too_long[place] for place in places]
    return pd.DataFrame({"column": None, "value": texts, "reason": "too many columns"}, places, dtype=object)


def _select_text(path: Path, layout: CsvLayout, columns: tuple[Column, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read texts, and the faults that DuckDB finds: column, value, reason, by the place of the record.

    Names are replaced by their position, since a file may use any name twice.
    """
    where = [layout.names.index(column.source) for column in columns]
    selected = ", ".join(f"c{at} AS {_quote(column.name)}" for at, column in zip(where, columns, strict=True))
    types = ", ".join(f"c{at}: 'VARCHAR'" for at in range(len(layout.names)))
    source = (
        f"FROM read_csv($path, columns = {{{types}}}, delim = $delimiter, quote = '\"', escape = '\"', "
        "comment = '', header = $header, encoding = $encoding, auto_detect = false, store_rejects = true, "
        "rejects_limit = 0)"
    )
    options = {
        "path": str(path),
        "delimiter": layout.delimiter,
        "header": layout.has_header,
        "encoding": layout.encoding,
    }
    with duckdb.connect() as connection:
        frame = _to_frame(connection.sql(source, params=options).project(selected))
        return frame, _list_faults(connection, layout)


def _list_faults(connection: duckdb.DuckDBPyConnection, layout: CsvLayout) -> pd.DataFrame:
    rejected = connection.sql("FROM reject_errors").df().sort_values(["line", "column_idx"])
    faults = rejected.drop_duplicates("line")
    names = {f"c{position}": name for position, name in enumerate(layout.names)}
    return pd.DataFrame(
        {
            "column": faults["column_name"].map(names),
            "value": faults["csv_line"].str.strip(),
            "reason": faults["error_type"].map(lambda kind: _REASONS.get(kind, str(kind).lower())),
        }
    ).set_axis(faults["line"].to_numpy(np.int64) - 1 - layout.has_header)  # DuckDB counts a header as line 1


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
            raise SchemaError(f"{file}: column '{column.source}' is absent; {name_nearest(column.source, names)}")
    asked = {column.source for column in columns}
    found = tuple(column for column in columns if column.source in names)
    return found, tuple(name for name in names if name not in asked)


def _conserve(path: Path, records: CsvRecords, rejected: np.ndarray, n_kept: int) -> np.ndarray:
    """Return the place of each kept row; refuse a file of which a record is neither kept nor rejected."""
    is_kept = ~records.is_blank
    is_kept[rejected] = False
    if np.count_nonzero(is_kept) == n_kept and not records.is_blank[rejected].any():
        return np.flatnonzero(is_kept)
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
