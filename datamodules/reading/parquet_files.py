"""Read the declared columns of a Parquet file."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq

from datamodules.reading.columns import Column
from datamodules.reading.duckdb_frames import quote_name, quote_path, to_frame
from datamodules.reading.raw_records import RawRecords, find_columns, no_rejects
from serve.errors import SchemaError


def read_parquet(path: Path, columns: tuple[Column, ...]) -> RawRecords:
    """Read one file; its records are numbered from 1.

    Raises:
        SchemaError: a declared column is absent, or not all records can be read.
    """
    names = pq.read_schema(path).names
    found, dropped = find_columns(str(path), columns, names)
    with duckdb.connect() as connection:
        records = connection.read_parquet(quote_path(path), hive_partitioning=False)
        # to DuckDB Price and price are one name, so that it calls the second one otherwise: the place tells them apart
        called = dict(zip(names, records.columns, strict=True))
        selected = ", ".join(f"{quote_name(called[column.source])} AS {quote_name(column.name)}" for column in found)
        frame = to_frame(records.project(selected))
    n_records = pq.read_metadata(path).num_rows
    if len(frame) != n_records:
        raise SchemaError(f"{path}: {len(frame)} of {n_records} records could be read; the file is damaged")
    lines = np.arange(1, n_records + 1)
    return RawRecords(str(path), found, frame, lines, no_rejects(str(path)), n_records, dropped, is_text=False)
