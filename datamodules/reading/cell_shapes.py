"""Cells of a kind that no cell of their column may be: lists and objects out of place, among others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.reading.columns import Column
from serve.request_values import is_writable

LISTS = (list, tuple, np.ndarray)
_NESTED = (*LISTS, dict, set)
_BYTES = (bytes, bytearray)
_Cleared = tuple[pd.Series, dict[str, np.ndarray]]


def clear_misshapen(column: Column, cells: pd.Series) -> _Cleared:
    """Empty the cells that the typing of their column could not even look at.

    Columns of one plain type pass at once; numbers, times and vectors are looked at one by one when they are typed.

    Returns:
        The cells, and reason -> bool (n,): the rows at fault.
    """
    if column.role not in ("id", "text", "category", "value"):
        return cells, {}
    cells = _unpack(cells)
    if not types.is_object_dtype(cells.dtype):
        return cells, {}
    cells, torn = _clear_torn(cells)
    if column.role == "id":
        cells, faults = _clear_ids(cells)
        return cells, {**torn, **faults}
    cells, bare = _clear(cells, _BYTES, "bytes, not a text")
    cells, nested = _clear_nested(column, cells)
    return cells, {**torn, **bare, **nested}


def _clear_torn(cells: pd.Series) -> _Cleared:
    """Refuse texts that no file can hold, alone or in a list."""
    is_torn = np.array([_is_torn(cell) for cell in cells], bool)
    return (cells.mask(is_torn, None), {"half of a surrogate pair": is_torn}) if is_torn.any() else (cells, {})


def _is_torn(cell: Any) -> bool:
    if isinstance(cell, LISTS):
        return any(map(_is_torn, cell))
    return isinstance(cell, str) and not is_writable(cell)


def _unpack(cells: pd.Series) -> pd.Series:
    """Return the objects that a categorical or Arrow's type of them stands for; other columns as they are."""
    dtype = cells.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        is_packed = types.is_object_dtype(dtype.categories.dtype)
    else:
        is_packed = isinstance(dtype, pd.ArrowDtype) and dtype.kind == "O"
    return cells.astype(object).where(cells.notna(), None) if is_packed else cells


def _clear_nested(column: Column, cells: pd.Series) -> _Cleared:
    if column.role == "text":
        return _clear(cells, _NESTED, "not a text")
    if column.role == "category":
        return _clear(cells, _NESTED, "not a value")
    cells, faults = _clear(cells, (dict, set), "not a value or a list of values")
    for reason, wrong in (("a list of lists", _NESTED), ("a list of bytes, not of texts", _BYTES)):
        is_wrong = np.array([isinstance(cell, LISTS) and _holds(cell, wrong) for cell in cells], bool)
        if is_wrong.any():
            cells, faults = cells.mask(is_wrong, None), {**faults, reason: is_wrong}
    return cells, faults


def _clear_ids(cells: pd.Series) -> _Cleared:
    """Refuse lists, truth values and, among integers or texts, fractions; a blank text becomes a gap."""
    cells = cells.where(cells.notna(), None)
    kinds = set(map(type, cells))
    if str in kinds:
        is_blank = np.array([isinstance(cell, str) and not cell.strip() for cell in cells], bool)
        cells = cells.mask(is_blank, None)
    fractions = (float,) if kinds & {int, str} else ()  # alone they may be integers that a gap has widened
    return _clear(cells, (*_NESTED, bool, np.bool_, *fractions), "not an id")


def _clear(cells: pd.Series, wrong: tuple[type, ...], reason: str) -> _Cleared:
    if not any(issubclass(kind, wrong) for kind in set(map(type, cells))):
        return cells, {}
    is_wrong = np.array([isinstance(cell, wrong) for cell in cells], bool)
    return cells.mask(is_wrong, None), {reason: is_wrong}


def _holds(values: Any, wrong: tuple[type, ...]) -> bool:
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OS":
        return values.ndim > 1
    return any(issubclass(kind, wrong) for kind in set(map(type, values)))
