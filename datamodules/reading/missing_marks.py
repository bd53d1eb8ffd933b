"""Texts that are declared to stand for a missing value, such as NA."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.reading.raw_records import RawRecords


def empty_marks(raw: RawRecords, marks: Collection[str]) -> RawRecords:
    """Empty the cells whose whole text, spaces around it aside, is one of the marks."""
    if not marks:
        return raw
    texts = {mark.strip() for mark in marks}
    emptied = {name: _empty(cells, texts) for name, cells in raw.frame.items()}
    return replace(raw, frame=pd.DataFrame(emptied, raw.frame.index))


def _empty(cells: pd.Series, marks: Collection[str]) -> pd.Series:
    is_mark = _is_mark(cells, marks)
    return cells.mask(is_mark, None) if is_mark.any() else cells


def _is_mark(cells: pd.Series, marks: Collection[str]) -> np.ndarray:
    if types.is_object_dtype(cells.dtype):
        return np.array([isinstance(cell, str) and cell.strip() in marks for cell in cells], bool)
    if isinstance(cells.dtype, pd.CategoricalDtype):
        values = cells.cat.categories
        return cells.isin(values[_is_mark(values.to_series(), marks)]).to_numpy(bool)
    if types.is_string_dtype(cells.dtype):
        return cells.str.strip().isin(marks).to_numpy(bool)
    return np.zeros(len(cells), bool)
