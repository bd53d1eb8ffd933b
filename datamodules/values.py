"""Turn the cells of a column into typed values, and find the faults."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.config import Column, TableConfig
from datamodules.rejects import COMMA_NUMBER, GROUPS, OTHER_LENGTH
from serve.arrays import Flags, Ints
from serve.cells import Vector, read_vector, to_text
from serve.clock import DAY, find_zone, to_local, to_seconds
from serve.errors import SchemaError

LISTS = (list, tuple, np.ndarray)
MIN_VOID = 3 * 365 * DAY
_EXACT_FLOAT = 2**53
_MAX_INTEGER = 2**63 - 1
_INTEGER = r"0|-?[1-9][0-9]{0,18}"  # "007" is a text


class Cells(NamedTuple):
    """A typed column of n rows."""

    values: pd.Series
    faults: dict[str, Flags]  # reason -> the rows at fault (n,)


def read_cells(
    column: Column,
    cells: pd.Series,
    timezone: str | None,
    is_text: bool,
    layout: TableConfig,
) -> Cells:
    """Type one column by its role.

    Args:
        column: its role, limits, and whether a cell may be empty.
        cells: (n,) cells as a file or data frame has them.
        timezone: IANA name by whose clocks naive times are read; None: UTC.
        is_text: the cells come from a text file, so canonical integers mean integers.
        layout: how the table writes missing values, decimals and times.

    Raises:
        SchemaError: the column as a whole cannot be of this role.
    """
    if column.role != "vector":
        cells = _to_plain(cells)
    is_missing = _is_one_of(cells, {mark.strip() for mark in layout.missing})
    if is_missing.any():
        cells = cells.mask(is_missing, None)
    if column.role == "vector":
        return _read_vectors(cells, layout.decimal)
    if column.role == "id":
        return _read_ids(column, cells, is_text)
    if column.role == "time":
        return _read_times(column, cells, timezone, layout.time_formats)
    if column.role == "date":
        return _read_dates(column, cells, timezone, layout.time_formats)
    if column.role in ("number", "order"):
        if layout.decimal == ",":
            cells = _point_decimals(cells)
        return _read_numbers(column, cells)
    return _read_values(column, cells)


def unify_ids(columns: list[pd.Series]) -> list[pd.Series]:
    """Make the ids of one side in several tables alike: integers only if they are in all."""
    if all(map(types.is_integer_dtype, columns)):
        return columns
    return [ids.astype("str") for ids in columns]


def join_frames(
    frames: Sequence[pd.DataFrame], columns: Sequence[Column]
) -> pd.DataFrame:
    """Put rows of the same columns below each other; those without rows have no say in a type."""
    filled = [frame for frame in frames if len(frame)]
    if not filled:
        return frames[0]
    joined = pd.concat(filled, ignore_index=True)
    for column in columns:
        if column.role == "id":
            ids = unify_ids([frame[column.name] for frame in filled])
            joined[column.name] = pd.concat(ids, ignore_index=True)
    return joined


# ---- cells of every kind


def _to_plain(cells: pd.Series) -> pd.Series:
    """Turn categoricals, nullable kinds, decimals and lists into plain values."""
    dtype = cells.dtype
    if not types.is_object_dtype(dtype) and types.is_string_dtype(dtype):
        return cells.astype("str")
    is_zoned = isinstance(dtype, pd.DatetimeTZDtype)
    if types.is_extension_array_dtype(dtype) and not is_zoned:
        cells = cells.astype(object)
    if not types.is_object_dtype(cells.dtype):
        return cells
    values = pd.Series(list(map(_to_plain_value, cells)), cells.index, dtype=object)
    values = values.where(values.notna(), None)
    kind = types.infer_dtype(values, skipna=True)
    if kind == "string":
        return values.astype("str")
    if kind == "floating":
        return values.astype("float64")
    return values if values.isna().any() else values.infer_objects()


def _to_plain_value(value: object) -> object:
    """Return an integer for a decimal without a fraction, and a tuple for a list."""
    if isinstance(value, LISTS):
        return tuple(value)
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else value
    return value


def _is_one_of(cells: pd.Series, texts: Collection[str]) -> Flags:
    if texts and isinstance(cells.dtype, pd.StringDtype):
        return cells.str.strip().isin(texts).to_numpy(bool)
    if texts and types.is_object_dtype(cells.dtype):
        is_one = [isinstance(cell, str) and cell.strip() in texts for cell in cells]
        return np.array(is_one, bool)
    return np.zeros(len(cells), bool)


def _is_missing(cells: pd.Series, texts: Collection[str] = ("",)) -> Flags:
    """Return which cells are null or blank, or another text that says so."""
    return np.asarray(cells.isna().to_numpy(bool) | _is_one_of(cells, texts))


def _is_any(cells: pd.Series, kinds: tuple[type, ...]) -> Flags:
    return np.array([isinstance(cell, kinds) for cell in cells], bool)


# ---- ids


def _read_ids(column: Column, cells: pd.Series, is_text: bool) -> Cells:
    """Return int64 or texts; a missing id is 0 or blank, and a fault."""
    is_missing = _is_missing(cells)
    is_wrong = np.zeros(len(cells), bool)
    if cells.dtype == object:
        is_wrong = ~_is_any(cells, (str, int, np.integer)) | _is_any(cells, (bool,))
        is_wrong &= ~is_missing
    elif cells.dtype == bool or not (
        types.is_numeric_dtype(cells.dtype) or types.is_string_dtype(cells.dtype)
    ):
        raise SchemaError(
            f"column '{column.source}' is {cells.dtype}; allowed for an id: integers or texts"
        )
    ids = cells[~(is_missing | is_wrong)]
    integers = _to_integers(column, ids, is_text)
    faults = {"missing": is_missing, "not an id": is_wrong}
    if integers is not None:
        return Cells(integers.reindex(cells.index, fill_value=0), faults)
    texts = ids.astype("str")
    return Cells(texts.reindex(cells.index, fill_value=""), faults)


def _to_integers(column: Column, ids: pd.Series, is_text: bool) -> pd.Series | None:
    """Return int64 if the ids are integers, in a text file without leading zeros, else None."""
    if types.is_float_dtype(ids.dtype):
        is_integer = not ids.mod(1).any() and ids.abs().max() < _EXACT_FLOAT
        if not is_integer:
            raise SchemaError(
                f"column '{column.source}' holds fractions; allowed for an id: integers or texts"
            )
    elif types.is_object_dtype(ids.dtype):
        is_integer = _is_any(ids, (int, np.integer)).all()
    elif types.is_string_dtype(ids.dtype):
        is_integer = is_text and ids.str.fullmatch(_INTEGER).all()
    else:
        is_integer = not (ids > _MAX_INTEGER).any()  # would become negative
    if not is_integer or (ids.empty and not types.is_integer_dtype(ids.dtype)):
        return None
    try:
        return ids.astype("int64")
    except (OverflowError, ValueError):  # beyond 64 bits
        return None


# ---- times and dates


def _read_times(
    column: Column, cells: pd.Series, timezone: str | None, formats: list[str]
) -> Cells:
    """Return int64 UTC seconds."""
    seconds, is_valid = _read_moments(column, cells, timezone, formats)
    is_missing = _is_missing(cells)
    faults = {"missing": is_missing, "not a time": ~is_valid & ~is_missing}
    faults |= _find_beyond(column, seconds, is_valid)
    return Cells(pd.Series(seconds, cells.index), faults)


def _read_dates(
    column: Column, cells: pd.Series, timezone: str | None, formats: list[str]
) -> Cells:
    """Return ISO texts on the clocks of the zone, None where missing."""
    seconds, is_valid = _read_moments(column, cells, timezone, formats)
    local = to_local(seconds, find_zone(timezone))
    moments = local.astype("datetime64[s]")
    days = moments.astype("datetime64[D]")
    texts = np.where(local % DAY == 0, days.astype(str), moments.astype(str))
    values = pd.Series(texts.astype(object), cells.index).where(is_valid, None)
    faults = {"not a time": ~is_valid & ~_is_missing(cells)}
    faults |= _find_beyond(column, seconds, is_valid)
    return Cells(values.astype("str"), faults)


def _read_moments(
    column: Column, cells: pd.Series, timezone: str | None, formats: list[str]
) -> tuple[Ints, Flags]:
    """Read times as UTC seconds (n,), and mark those that were read (n,)."""
    if formats:
        cells = _rewrite_times(cells, formats)
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
        timezone = None
    if types.is_string_dtype(cells.dtype):
        cells = cells.astype(object).where(cells.notna(), None)
    try:
        return to_seconds(cells.to_numpy(), timezone)
    except SchemaError as error:
        raise SchemaError(
            f"column '{column.source}': {error}; dates such as 20240531 need time_formats: "
            '["%Y%m%d"]'
        ) from error


def _rewrite_times(cells: pd.Series, formats: list[str]) -> pd.Series:
    """Write the times that one of the formats fits, the first that does, in the form of ISO."""
    if types.is_integer_dtype(cells.dtype):  # 20240531
        cells = cells.astype("str")
    texts = cells.astype(object).where(_is_any(cells, (str,)), None).str.strip()
    cells = cells.astype(object)
    for form in reversed(formats):
        has_zone = "%z" in form
        times = pd.to_datetime(texts, format=form, errors="coerce", utc=has_zone)
        moments = times.to_numpy("datetime64[s]").astype(str).astype(object)
        iso = pd.Series(moments + "Z" if has_zone else moments, cells.index)
        cells = cells.mask(times.notna(), iso)
    return cells


def find_outlying(seconds: Ints, column: Column) -> Flags:
    """Mark times that a void parts from nearly all others, unless a limit says which are right.

    Times in the outer 5 % are outliers if a gap of at least 3 years, and of the span of the middle
    90 %, separates them.

    Args:
        seconds: (n,) UTC seconds in any order.
        column: its limits.

    Returns:
        (n,) flags.
    """
    is_outlying = np.zeros(len(seconds), bool)
    tail = len(seconds) // 20
    if not tail:
        return is_outlying
    ordered = np.sort(seconds)
    middle = ordered[tail : len(ordered) - tail]
    is_void = np.diff(ordered) >= max(middle[-1] - middle[0], MIN_VOID)
    early_voids = np.flatnonzero(is_void[:tail])
    if len(early_voids) and column.low is None:
        is_outlying |= seconds <= ordered[early_voids[-1]]
    late_voids = np.flatnonzero(is_void[-tail:])
    if len(late_voids) and column.high is None:
        is_outlying |= seconds > ordered[len(is_void) - tail + late_voids[0]]
    return is_outlying


def _find_beyond(
    column: Column, values: np.ndarray, is_valid: Flags
) -> dict[str, Flags]:
    """Find values below the minimum and above the maximum, if any."""
    faults = {}
    if column.low is not None:
        is_below = is_valid & (values < column.low)
        faults[f"below the minimum {_write_limit(column, column.low)}"] = is_below
    if column.high is not None:
        is_above = is_valid & (values > column.high)
        faults[f"above the maximum {_write_limit(column, column.high)}"] = is_above
    return faults


def _write_limit(column: Column, limit: float) -> str:
    is_time = column.role in ("time", "date")
    return f"{np.datetime64(int(limit), 's')}Z" if is_time else str(limit)


# ---- numbers and vectors


def _point_decimals(cells: pd.Series) -> pd.Series:
    """Write numbers with a decimal point; a text that is none with a comma is no number then."""
    if types.is_numeric_dtype(cells.dtype):
        return cells
    return pd.Series(list(map(_point_decimal, cells)), cells.index, dtype=object)


def _point_decimal(cell: object) -> object:
    text = cell.strip() if isinstance(cell, str) else ""
    if not text:
        return cell
    if not re.fullmatch(COMMA_NUMBER, text):
        return "?"
    return re.sub(GROUPS, "", text).replace(",", ".")


def _read_numbers(column: Column, cells: pd.Series) -> Cells:
    """Return float64, NaN where missing; an order of integers stays int64: near ones would tie."""
    if cells.dtype == object:
        cells = cells.mask(_is_any(cells, (*LISTS, dict, set)), "?")
    elif types.is_datetime64_any_dtype(cells.dtype):
        raise SchemaError(
            f"column '{column.source}' is {cells.dtype}; allowed: numbers"
        )
    is_missing = _is_missing(cells, ("", "nan", "NaN"))
    numbers = pd.to_numeric(cells, errors="coerce")
    if column.role != "order":
        numbers = numbers.astype("float64")
    faults = {
        "not a number": numbers.isna().to_numpy() & ~is_missing,
        "not finite": np.isinf(numbers.to_numpy()),
    }
    faults |= _find_beyond(column, numbers.to_numpy(), ~is_missing)
    if not column.may_be_empty:
        faults["missing"] = is_missing
    return Cells(numbers, faults)


def _read_vectors(cells: pd.Series, decimal: str) -> Cells:
    """Return a `Vector` or None for each cell.

    With a decimal comma, blanks or semicolons stand between numbers.
    """
    faults: dict[str, Flags] = {}
    vectors: list[Vector | None] = [None] * len(cells)
    widths = np.zeros(len(cells), np.int64)  # 0: missing
    rows = np.flatnonzero(~_is_missing(cells))
    for row, cell in zip(rows, cells.iloc[rows], strict=True):
        has_point = not isinstance(cell, str) or "." in cell  # Python's 0.1, 0.2
        if decimal == "," and not has_point:
            cell = cell.replace(",", ".").replace(";", " ")
        try:
            entries = read_vector(cell)
        except ValueError as error:
            faults.setdefault(str(error), np.zeros(len(cells), bool))[row] = True
            continue
        if entries is not None:
            vectors[row] = Vector(entries.tobytes())
            widths[row] = len(entries)
    usual = np.bincount(widths[widths > 0]).argmax() if widths.any() else 0
    faults[OTHER_LENGTH] = (widths > 0) & (widths != usual)
    return Cells(pd.Series(vectors, cells.index, dtype=object), faults)


# ---- texts and other values


def _read_values(column: Column, cells: pd.Series) -> Cells:
    """Return texts, or values as they are; a list is for kinds that take several values alone."""
    if types.is_datetime64_any_dtype(cells.dtype):
        return Cells(_to_texts(cells.astype(object)), {})
    if cells.dtype == np.float32:  # 0.1 stays 0.1
        cells = cells.astype(str).astype("float64")
    is_wrong = np.zeros(len(cells), bool)
    if cells.dtype == object:
        is_list = _is_any(cells, LISTS)
        if column.role == "category" and is_list.any():
            example = str(cells[is_list].iloc[0])[:40]
            raise SchemaError(
                f"column '{column.source}', {column.reason} as categorical, holds lists such as "
                f"{example}; "
                "allowed: one value in each cell; declare multi_categorical or vector"
            )
        is_wrong = _is_any(cells, (dict, set, bytes))
        if column.role == "text":
            is_wrong |= is_list
        cells = cells.mask(is_wrong, None)
    values = _to_texts(cells) if column.role == "text" else cells
    return Cells(values, {"not a value": is_wrong})


def _to_texts(cells: pd.Series) -> pd.Series:
    """Write each value the one way vocabularies know it."""
    texts = {value: to_text(value) for value in cells.unique()}
    return cells.map(texts).astype("str")
