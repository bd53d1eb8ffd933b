"""From the cells of a column to typed values, and which cells are faults."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.reading.columns import Column
from serve.clock import to_seconds
from serve.encoding import to_text
from serve.errors import SchemaError
from serve.request_values import INTEGER
from serve.vectors import Vector, read_vector

_EXACT_FLOAT = 2**53
_MOST = np.iinfo(np.int64).max
_TOO_LARGE = 2**1023  # for a float


@dataclass(frozen=True)
class Cells:
    """A typed column of n rows."""

    values: pd.Series
    faults: dict[str, np.ndarray] = field(default_factory=dict)
    """Reason -> bool (n,): the rows at fault."""


def read_cells(column: Column, cells: pd.Series, timezone: str | None, is_text: bool) -> Cells:
    """Type one column by its role.

    Args:
        column: what is declared of it.
        cells: raw values of n rows.
        timezone: of naive times.
        is_text: the column is text because its file is.

    Raises:
        SchemaError: the column as a whole is of a kind that its role does not allow.
    """
    if column.role == "vector":
        return _read_vectors(column, cells)
    plain = _to_plain(cells)
    if column.role == "id":
        return _read_ids(column, plain, is_text)
    if column.role == "time":
        return _read_times(column, plain, timezone)
    if column.role in ("number", "order"):
        return _read_numbers(column, plain)
    return Cells(_to_texts(plain) if column.role == "text" else _to_values(plain))


def unify_ids(columns: list[pd.Series]) -> list[pd.Series]:
    """Make the ids of one kind in several tables alike: integers only if they are in all."""
    if all(types.is_integer_dtype(ids) for ids in columns):
        return columns
    return [ids.astype("str") for ids in columns]


def _to_plain(cells: pd.Series) -> pd.Series:
    """Turn categoricals, nullable kinds and lists into integers, floats, texts, times or plain objects."""
    dtype = cells.dtype
    meant = dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype
    if isinstance(meant, (pd.IntervalDtype, pd.PeriodDtype)):  # nothing but pandas knows these
        return _to_texts(cells.astype(object))
    if isinstance(dtype, pd.CategoricalDtype):
        has_room = types.is_float_dtype(meant) or not cells.isna().any()  # as integers have not for a gap
        return _to_plain(cells.astype(meant if has_room else object))
    if not types.is_object_dtype(dtype) and types.is_string_dtype(dtype):
        return cells.astype("str")
    if isinstance(dtype, (pd.Float32Dtype, pd.Float64Dtype, pd.ArrowDtype)) and types.is_float_dtype(dtype):
        return pd.Series(cells.to_numpy(na_value=np.nan), cells.index)
    if types.is_extension_array_dtype(dtype) and not isinstance(dtype, pd.DatetimeTZDtype):
        cells = cells.astype(object).where(cells.notna(), None)
        cells = cells if cells.isna().any() else cells.infer_objects()
    if not types.is_object_dtype(cells.dtype):
        return cells
    kind = types.infer_dtype(cells, skipna=True)
    if kind == "string":
        return cells.astype("str")
    if kind == "decimal":
        return _narrow_decimals(cells)
    values = [tuple(cell) if isinstance(cell, (list, np.ndarray)) else cell for cell in cells]
    return pd.Series(values, cells.index, dtype=object)


def _to_values(cells: pd.Series) -> pd.Series:
    """Turn values that are written in one way in a column and in another in an array of it into such as are not.

    0.1 in 32 bits is 0.10000000149011612 in one of them, and a moment has a T in its middle or has not.
    """
    if types.is_datetime64_any_dtype(cells.dtype) or types.is_timedelta64_dtype(cells.dtype):
        return _to_texts(cells.astype(object))
    values = cells.to_numpy()
    if values.dtype in (np.float16, np.float32):
        distinct, index = np.unique(values, return_inverse=True)
        return pd.Series(distinct.astype(str).astype(np.float64)[index], cells.index)
    return cells


def _narrow_decimals(cells: pd.Series) -> pd.Series:
    """Turn decimals without a fraction, as databases write keys, into integers."""
    present = cells.dropna()
    if not all(cell.is_finite() and cell == cell.to_integral_value() for cell in present):
        return cells
    integers = pd.Series(list(map(int, present)), present.index, dtype=object)
    return integers.infer_objects() if len(present) == len(cells) else integers.reindex(cells.index)


def _is_missing(cells: pd.Series, texts: Collection[str] = ("",)) -> np.ndarray:
    """Return which cells are null or blank, or another text, in lower case, that says so."""
    missing: np.ndarray = cells.isna().to_numpy(bool)
    if isinstance(cells.dtype, pd.StringDtype):
        missing = missing | cells.str.strip().str.lower().isin(texts).to_numpy(bool)
    elif types.is_object_dtype(cells.dtype):
        missing = missing | np.array([isinstance(cell, str) and cell.strip().lower() in texts for cell in cells], bool)
    return missing


def _to_texts(cells: pd.Series) -> pd.Series:
    """Write each value the one way vocabularies know it."""
    texts = {value: to_text(value) for value in cells.unique()}
    return cells.map(texts).astype("str")


def _read_ids(column: Column, cells: pd.Series, is_text: bool) -> Cells:
    """Return int64 or texts; a missing id is 0 or blank, and a fault."""
    missing = _is_missing(cells)
    present = cells[~missing]
    integers = _to_integers(column, present, is_text)
    if integers is None:
        ids = present.astype("str").reindex(cells.index, fill_value="")
    else:
        ids = integers.reindex(cells.index, fill_value=0)
    return Cells(ids, {"missing": missing})


def _to_integers(column: Column, ids: pd.Series, is_text: bool) -> pd.Series | None:
    """Return int64 if the ids are integers, None if they are texts.

    Texts of a text file are integers if each is written the one way an int64 is, without leading zeros.
    """
    if types.is_unsigned_integer_dtype(ids.dtype) and ids.gt(_MOST).any():  # the cast would make it negative
        return None
    kind = "string" if isinstance(ids.dtype, pd.StringDtype) else types.infer_dtype(ids)
    if kind == "string" and not (is_text and len(ids) and ids.str.fullmatch(INTEGER.pattern).all()):
        return None
    if kind == "empty" or (kind == "mixed-integer" and ids.map(lambda cell: isinstance(cell, (int, str))).all()):
        return None
    is_whole = kind == "floating" and ids.mod(1).eq(0).all() and ids.abs().max() < _EXACT_FLOAT
    if kind not in ("string", "integer") and not is_whole:
        raise SchemaError(f"column '{column.source}' is {kind}; allowed for an id: integers or texts")
    try:
        return ids.astype("int64")
    except (OverflowError, ValueError):  # beyond int64
        return None


def _read_vectors(column: Column, cells: pd.Series) -> Cells:
    """Return a `Vector` or None for each cell.

    Raises:
        SchemaError: two vectors have different widths.
    """
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
    _check_widths(column, vectors)
    return Cells(pd.Series(vectors, cells.index, dtype=object), faults)


def _check_widths(column: Column, vectors: list[Vector | None]) -> None:
    widths = {row: len(vector) for row, vector in enumerate(vectors) if vector is not None}
    first = next(iter(widths.values()), 0)
    for row, width in widths.items():
        if width != first:
            raise SchemaError(
                f"column '{column.source}': the vector of record {row + 1} has {width} numbers, the first one {first}; "
                "all vectors of a column have one width"
            )


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
    is_numeric = types.is_numeric_dtype(cells.dtype) and not types.is_complex_dtype(cells.dtype)
    if not (is_numeric or isinstance(cells.dtype, pd.StringDtype) or cells.dtype == object):
        raise SchemaError(f"column '{column.source}' is {cells.dtype}; allowed: numbers")
    tame = _tame(cells) if cells.dtype == object else cells
    numbers = pd.to_numeric(tame, errors="coerce").astype("float64")
    missing = _is_missing(cells, ("", "nan"))
    faults = {
        "not a number": numbers.isna().to_numpy() & ~missing,
        "not finite": np.isinf(numbers.to_numpy()),
        f"below the minimum {column.low}": numbers.lt(-np.inf if column.low is None else column.low).to_numpy(),
        f"above the maximum {column.high}": numbers.gt(np.inf if column.high is None else column.high).to_numpy(),
    }
    if not column.may_be_empty:
        faults["missing"] = missing
    if column.role == "order":
        numbers = _keep_integers(numbers, tame[~np.logical_or.reduce([*faults.values()])])
    return Cells(numbers, faults)


def _keep_integers(numbers: pd.Series, good: pd.Series) -> pd.Series:
    """Return numbers as integers if the good ones are: as floats, which the others make them, near ones would tie."""
    exact = pd.to_numeric(good)
    return exact.reindex(numbers.index, fill_value=0) if types.is_integer_dtype(exact.dtype) else numbers


def _tame(cells: pd.Series) -> pd.Series:
    """Let no cell be one that pandas stops at, however wrong cells are to be treated."""

    def read(cell: object) -> object:
        if isinstance(cell, (complex, tuple, dict, set)):  # lists are tuples here
            return "no number"
        return math.inf if isinstance(cell, int) and abs(cell) >= _TOO_LARGE else cell

    return pd.Series([read(cell) for cell in cells], cells.index, dtype=object)  # integers beside a gap stay such
