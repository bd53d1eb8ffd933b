"""The records of one file or frame before their cells are looked at, and which of its columns are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.reading.columns import Column
from datamodules.reading.rejects import reject_frame
from serve.errors import SchemaError, name_nearest


@dataclass(frozen=True)
class RawRecords:
    """What of one file, or of a frame at hand, became a row, and what did not."""

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


def find_columns(
    file: str, columns: tuple[Column, ...], available: Iterable[str]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the asked columns that are there, and the names of those that nobody asked for.

    Raises:
        SchemaError: a declared column is absent, or two are called alike.
    """
    names = list(available)
    for column in columns:
        count = names.count(column.source)
        if count > 1:
            raise SchemaError(f"{file}: {count} columns are called '{column.source}'; rename all but one")
        if column.is_declared and not count:
            nearest = name_nearest(column.source, names)
            raise SchemaError(f"{file}: column '{column.source}' is absent, {column.reason}; {nearest}")
    asked = {column.source for column in columns}
    found = tuple(column for column in columns if column.source in names)
    return found, tuple(name for name in names if name not in asked)


def take_frame(name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> RawRecords:
    """Take a data frame instead of a file; rows are numbered from 1."""
    if not isinstance(frame, pd.DataFrame):
        raise SchemaError(f"{name} is a {type(frame).__module__}.{type(frame).__name__}; allowed: a pandas DataFrame")
    if not len(frame):
        raise SchemaError(f"{name} is empty: expected at least one record")
    frame = frame.set_axis([str(column) for column in frame.columns], axis=1)  # numbers where there was no header
    found, dropped = find_columns(name, columns, frame.columns)
    taken = pd.DataFrame({column.name: _quieten(frame[column.source].reset_index(drop=True)) for column in found})
    lines = np.arange(1, len(frame) + 1)
    return RawRecords(name, found, taken, lines, no_rejects(name), len(frame), dropped, is_text=False)


def _quieten(cells: pd.Series) -> pd.Series:
    """Empty the cells that hold a NaN of decimals which signals: whatever looks at it raises."""
    if not types.is_object_dtype(cells.dtype):
        return cells
    is_signal = np.array([isinstance(cell, Decimal) and cell.is_snan() for cell in cells], bool)
    return cells.where(~is_signal, None) if is_signal.any() else cells


def no_rejects(file: str) -> pd.DataFrame:
    nothing = pd.Series([], dtype="str")
    return reject_frame(file, pd.Series([], dtype="int64"), nothing, nothing, nothing)
