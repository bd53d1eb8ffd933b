"""What DuckDB reads, as frames whose integers stay what they are."""

from __future__ import annotations

import glob
from pathlib import Path

import duckdb
import pandas as pd


def to_frame(relation: duckdb.DuckDBPyRelation) -> pd.DataFrame:
    # a column of integers with a gap would become floats, and an id above 2**53 another one
    frame: pd.DataFrame = relation.to_arrow_table().to_pandas(integer_object_nulls=True)
    return frame


def quote_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def quote_path(path: Path) -> str:
    """Name one file: DuckDB would read each that a pattern matches."""
    return glob.escape(str(path))
