"""Read the declared columns of a delimited text file, all cells as text, and name every record that is no row."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from datamodules.config import TableConfig
from datamodules.reading.columns import Column
from datamodules.reading.csv_records import CsvLayout, CsvRecords, find_mixed_end, find_records, read_layout
from datamodules.reading.duckdb_frames import quote_name, quote_path, to_frame
from datamodules.reading.raw_records import RawRecords, find_columns
from datamodules.reading.rejects import reject_frame
from serve.errors import SchemaError
from serve.packed_files import is_packed

_REASONS = {
    "MISSING COLUMNS": "too few columns",
    "TOO MANY COLUMNS": "too many columns",
    "INVALID ENCODING": "not UTF-8",
    "UNQUOTED VALUE": "a quote is not closed properly",
    "LINE SIZE OVER MAXIMUM": "the line is too long",
}


def read_csv(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> RawRecords:
    """Read one file of a table.

    Args:
        path: of the file.
        table: its layout.
        columns: those to look for.

    Raises:
        SchemaError: a declared column is absent, the layout is another, or the records do not add up.
    """
    layout = read_layout(path, table)
    found, dropped = find_columns(str(path), columns, layout.names)
    records = find_records(path, layout)
    try:
        frame, faults = _select(path, layout, found)
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
    return RawRecords(str(path), found, kept, lines, rejects, n_records, dropped, is_text=True)


def _list_too_long(records: CsvRecords, places: np.ndarray) -> pd.DataFrame:
    texts = [records.too_long[place] for place in places]
    return pd.DataFrame({"column": None, "value": texts, "reason": "too many columns"}, places, dtype=object)


def _select(path: Path, layout: CsvLayout, columns: tuple[Column, ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read texts, and the faults that DuckDB finds: column, value, reason, by the place of the record.

    Names are replaced by their position, since a file may use any name twice.
    """
    where = [layout.names.index(column.source) for column in columns]
    selected = ", ".join(f"c{at} AS {quote_name(column.name)}" for at, column in zip(where, columns, strict=True))
    types = ", ".join(f"c{at}: 'VARCHAR'" for at in range(len(layout.names)))
    source = (
        f"FROM read_csv($path, columns = {{{types}}}, delim = $delimiter, quote = '\"', escape = '\"', "
        "comment = '', header = $header, encoding = $encoding, compression = $compression, "
        "auto_detect = false, store_rejects = true, rejects_limit = 0)"
    )
    options = {
        "path": quote_path(path),
        "delimiter": layout.delimiter,
        "header": layout.has_header,
        "encoding": layout.encoding,
        "compression": "gzip" if is_packed(path) else "none",
    }
    with duckdb.connect() as connection:
        frame = to_frame(connection.sql(source, params=options).project(selected))
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


def _conserve(path: Path, records: CsvRecords, rejected: np.ndarray, n_kept: int) -> np.ndarray:
    """Return the place of each kept row; refuse a file of which a record is neither kept nor rejected."""
    is_kept = ~records.is_blank
    there = rejected[rejected < len(is_kept)]  # where line ends are mixed DuckDB may count more lines than there are
    is_kept[there] = False
    is_told = len(there) == len(rejected) and not records.is_blank[there].any()
    if is_told and np.count_nonzero(is_kept) == n_kept:
        return np.flatnonzero(is_kept)
    last_good = records.first_line[there].min(initial=records.first_line[-1] + 1) - 1
    raise SchemaError(
        f"{path}: {np.count_nonzero(~records.is_blank):,} records counted, but {n_kept:,} read and "
        f"{len(rejected):,} rejected; the last good line is {last_good}: look for a stray quote after it"
    )
