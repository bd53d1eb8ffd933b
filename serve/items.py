"""`items.parquet`: the catalogue, one row per item vector: `item_id`, then columns to show and filter by."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.durable import name_file
from serve.errors import BundleError
from serve.layout import ITEMS
from serve.schema import IdType

_TYPES = {"integer": (pa.int64(),), "string": (pa.string(), pa.large_string())}


def write_items(items: pa.Table, path: Path) -> None:
    """Write the catalogue; row i is the item of vector i."""
    with name_file(path):
        pq.write_table(items, path, compression="zstd")


def read_items(content: np.ndarray, n_items: int, id_type: IdType) -> pa.Table:
    """Read the catalogue from the bytes of its file.

    Raises:
        BundleError: no Parquet file, another number of rows, or ids missing, twice or of another type.
    """
    try:
        # read_table would import pandas
        items = pq.ParquetFile(pa.py_buffer(content)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{ITEMS} is no Parquet file: {error}") from error
    if items.num_rows != n_items:
        raise BundleError(f"{ITEMS} has {items.num_rows} rows; expected {n_items}, one per item vector")
    if "item_id" not in items.column_names:
        raise BundleError(f"{ITEMS} has no column 'item_id'; it has {', '.join(items.column_names)}")
    ids = items.column("item_id")
    if ids.type not in _TYPES[id_type]:
        raise BundleError(f"{ITEMS}: item_id is {ids.type}; schema.json says {id_type}")
    if ids.null_count or len(ids.unique()) != n_items:
        raise BundleError(f"{ITEMS}: item_id has missing or equal values; expected {n_items} different ones")
    return items
