"""Cells of a column as typed values: ids, times, numbers, vectors, texts, and which cells are faults."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.config import Column
from serve.clock import to_seconds
from serve.encode import Vector, read_vector, to_text
from serve.errors import SchemaError
from serve.requests import INTEGER

LISTS = (list, tuple, np.ndarray)
_EXACT_FLOAT = 2**53
_MAX_INTEGER = np.iinfo(np.int64).max
_NO_NUMBER = "no number"


@dataclass(frozen=True)
class Cells:
    """A typed column of n rows."""

    values: pd.Series
    faults: dict[str, np.ndarray] = field(default_factory=dict)
    """Reason -> bool (n,): the rows at fault."""


def read_cells(
    column: Column, cells: pd.Series, timezone: str | None, is_text: bool, marks: Collection[str] = ()
) -> Cells:
    """Type one column by its role.

    Args:
        column: what is declared of it.
        cells: raw values of n rows.
        timezone: of naive times.
        is_text: the column is text because its file is.
        marks: texts that stand for a missing value.

    Raises:
        SchemaError: the column as a whole is of a kind that its role does not allow.
    """
    plain = _empty_marks(cells if column.role == "vector" else _to_plain(cells), marks)
    if column.role == "vector":
        return _read_vectors(plain)
    if column.role == "id":
        return _read_ids(column, plain, is_text)
    if column.role == "time":
        return _read_times(column, plain, timezone)
    if column.role in ("number", "order"):
        return _read_numbers(column, plain)
    return _read_values(column, plain)


def unify_ids(columns: list[pd.Series]) -> list[pd.Series]:
    """Make the ids of one kind in several tables alike: integers only if they are in all."""
    if all(types.is_integer_dtype(ids) for ids in columns):
        return columns
    return [ids.astype("str") for ids in columns]


def find_odd_ids(cells: pd.Series) -> pd.Series:
    """Return the first cells of the texts that few among integer ids are, such as a line of totals; else none.

    For the sake of one, all ids of the column are texts.
    """
    distinct = cells.dropna().astype("str").drop_duplicates()
    distinct = distinct[distinct.str.strip() != ""]
    odd = distinct[~distinct.str.fullmatch(INTEGER.pattern)]
    return odd if len(odd) <= max(1, len(distinct) // 100) and len(distinct) - len(odd) >= 10 else odd[:0]


def _to_plain(cells: pd.Series) -> pd.Series:
    """Turn categoricals, nullable kinds and lists into integers, floats, texts, times or plain objects."""
    dtype = cells.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        has_room = types.is_float_dtype(dtype.categories.dtype) or not cells.isna().any()  # as integers have not
        return _to_plain(cells.astype(dtype.categories.dtype if has_room else object))
    if not types.is_object_dtype(dtype) and types.is_string_dtype(dtype):
        return cells.astype("str")
    if types.is_extension_array_dtype(dtype) and types.is_float_dtype(dtype):
        return pd.Series(cells.to_numpy(na_value=np.nan), cells.index)
    if types.is_extension_array_dtype(dtype) and not isinstance(dtype, pd.DatetimeTZDtype):
        cells = cells.astype(object).where(cells.notna(), None)
    if not types.is_object_dtype(cells.dtype):
        return cells
    cells = cells if cells.isna().any() else cells.infer_objects()
    kind = types.infer_dtype(cells, skipna=True)
    if kind == "string":
        return cells.astype("str")
    if kind == "decimal":
        return _narrow_decimals(cells)
    if cells.dtype == object and any(issubclass(one, LISTS) for one in set(map(type, cells))):
        values = [tuple(cell) if isinstance(cell, LISTS) else cell for cell in cells]
        return pd.Series(values, cells.index, dtype=object)
    return cells


def _narrow_decimals(cells: pd.Series) -> pd.Series:
    """Turn decimals without a fraction, as databases write keys, into integers."""
    present = cells.dropna()
    if not all(cell.is_finite() and cell == cell.to_integral_value() for cell in present):
        return cells
    integers = pd.Series(list(map(int, present)), present.index, dtype=object)
    return integers.infer_objects() if len(present) == len(cells) else integers.reindex(cells.index)


def _empty_marks(cells: pd.Series, marks: Collection[str]) -> pd.Series:
    """Empty the cells whose whole text, spaces around it aside, is one of the marks."""
    is_mark = _is_one_of(cells, {mark.strip() for mark in marks}) if marks else np.zeros(0, bool)
    return cells.mask(is_mark, None) if is_mark.any() else cells


def _is_one_of(cells: pd.Series, texts: Collection[str]) -> np.ndarray:
    if isinstance(cells.dtype, pd.StringDtype):
        return cells.str.strip().isin(texts).to_numpy(bool)
    if types.is_object_dtype(cells.dtype):
        return np.array([isinstance(cell, str) and cell.strip() in texts for cell in cells], bool)
    return np.zeros(len(cells), bool)


def _is_missing(cells: pd.Series, texts: Collection[str] = ("",)) -> np.ndarray:
    """Return which cells are null or blank, or another text that says so."""
    missing: np.ndarray = cells.isna().to_numpy(bool) | _is_one_of(cells, texts)
    return missing


def _read_ids(column: Column, cells: pd.Series, is_text: bool) -> Cells:
    """Return int64 or texts; a missing id is 0 or blank, and a fault."""
    missing = _is_missing(cells)
    wrong = np.zeros(len(cells), bool)
    if cells.dtype == object:
        wrong = np.array([not isinstance(cell, (str, int, np.integer)) or isinstance(cell, bool) for cell in cells])
        wrong &= ~missing
    elif not (types.is_numeric_dtype(cells.dtype) or isinstance(cells.dtype, pd.StringDtype)) or cells.dtype == bool:
        raise SchemaError(f"column '{column.source}' is {cells.dtype}; allowed for an id: integers or texts")
    present = cells[~(missing | wrong)]
    integers = _to_integers(column, present, is_text)
    if integers is None:
        ids = present.astype("str").reindex(cells.index, fill_value="")
    else:
        ids = integers.reindex(cells.index, fill_value=0)
    return Cells(ids, {"missing": missing, "not an id": wrong})


def _to_integers(column: Column, ids: pd.Series, is_text: bool) -> pd.Series | None:
    """Return int64 if the ids are integers, None if they are texts.

    Texts of a text file are integers if each is written the one way an int64 is, without leading zeros.
    """
    if isinstance(ids.dtype, pd.StringDtype) and not (
        is_text and len(ids) and ids.str.fullmatch(INTEGER.pattern).all()
    ):
        return None
    if types.is_unsigned_integer_dtype(ids.dtype) and ids.gt(_MAX_INTEGER).any():  # the cast would make it negative
        return None
    if types.is_float_dtype(ids.dtype) and not (ids.mod(1).eq(0).all() and ids.abs().max() < _EXACT_FLOAT):
        raise SchemaError(f"column '{column.source}' holds fractions; allowed for an id: integers or texts")
    if ids.dtype == object and (not len(ids) or any(isinstance(cell, str) for cell in ids)):
        return None
    try:
        return ids.astype("int64")
    except (OverflowError, ValueError):  # beyond int64
        return None


def _read_times(column: Column, cells: pd.Series, timezone: str | None) -> Cells:
    """Return int64 UTC seconds."""
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        moments, timezone = cells.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy(), None
    elif types.is_datetime64_dtype(cells.dtype) or types.is_numeric_dtype(cells.dtype):
        moments = cells.to_numpy()
    else:
        moments = cells.astype(object).where(cells.notna(), None).to_numpy()
    try:
        seconds, is_valid = to_seconds(moments, timezone)
    except SchemaError as error:
        raise SchemaError(f"column '{column.source}': {error}") from error
    missing = _is_missing(cells)
    return Cells(pd.Series(seconds, cells.index), {"missing": missing, "not a time": ~is_valid & ~missing})


def _read_numbers(column: Column, cells: pd.Series) -> Cells:
    """Return float64, NaN where missing; an order of integers stays int64."""
    if not (types.is_numeric_dtype(cells.dtype) or isinstance(cells.dtype, pd.StringDtype) or cells.dtype == object):
        raise SchemaError(f"column '{column.source}' is {cells.dtype}; allowed: numbers")
    if cells.dtype == object:
        scalars = [cell if types.is_scalar(cell) else _NO_NUMBER for cell in cells]
        cells = pd.Series(scalars, cells.index, dtype=object)  # integers beside a gap stay such
    numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    missing = _is_missing(cells, ("", "nan", "NaN"))
    faults = {
        "not a number": numbers.isna().to_numpy() & ~missing,
        "not finite": np.isinf(numbers.to_numpy()),
        f"below the minimum {column.low}": numbers.lt(-np.inf if column.low is None else column.low).to_numpy(),
        f"above the maximum {column.high}": numbers.gt(np.inf if column.high is None else column.high).to_numpy(),
    }
    if not column.may_be_empty:
        faults["missing"] = missing
    if column.role == "order":
        exact = pd.to_numeric(cells[~np.logical_or.reduce([*faults.values()])])
        if types.is_integer_dtype(exact.dtype):  # as floats, near ones of them would tie
            numbers = exact.reindex(numbers.index, fill_value=0)
    return Cells(numbers, faults)


def _read_values(column: Column, cells: pd.Series) -> Cells:
    """Return texts, or values as they are; a list is for kinds that take several values alone."""
    if cells.dtype == object:
        is_list = np.array([isinstance(cell, LISTS) for cell in cells], bool)
        if column.role == "category" and is_list.any():
            raise SchemaError(
                f"column '{column.source}', {column.reason} as categorical, holds lists such as "
                f"{str(cells[is_list].iloc[0])[:40]}; allowed: one value in each cell; declare the kind "
                "multi_categorical for several values, or vector for the numbers of an embedding"
            )
        wrong = np.array([isinstance(cell, (dict, set, bytes)) for cell in cells], bool)
        wrong |= is_list & (column.role == "text")
        cells = cells.mask(wrong, None) if wrong.any() else cells
        return Cells(_to_texts(cells) if column.role == "text" else cells, {"not a value": wrong})
    return Cells(_to_texts(cells) if column.role == "text" else _to_written(cells))


def _to_written(cells: pd.Series) -> pd.Series:
    """Turn values that a column and an array write in different ways, such as 0.1 in 32 bits and times, into others."""
    if types.is_datetime64_any_dtype(cells.dtype) or types.is_timedelta64_dtype(cells.dtype):
        return _to_texts(cells.astype(object))
    values = cells.to_numpy()
    if values.dtype in (np.float16, np.float32):
        distinct, index = np.unique(values, return_inverse=True)
        return pd.Series(distinct.astype(str).astype(np.float64)[index], cells.index)
    return cells


def _to_texts(cells: pd.Series) -> pd.Series:
    """Write each value the one way vocabularies know it."""
    texts = {value: to_text(value) for value in cells.unique()}
    return cells.map(texts).astype("str")


def _read_vectors(cells: pd.Series) -> Cells:
    """Return a `Vector` or None for each cell."""
    faults: dict[str, np.ndarray] = {}
    vectors: list[Vector | None] = [None] * len(cells)
    places = np.flatnonzero(~_is_missing(cells))
    for row, cell in zip(places, cells.iloc[places], strict=True):
        try:
            entries = read_vector(cell)
        except ValueError as error:
            faults.setdefault(str(error), np.zeros(len(cells), bool))[row] = True
        else:
            vectors[row] = None if entries is None else Vector.pack(entries)
    return Cells(pd.Series(vectors, cells.index, dtype=object), faults)
