"""Turn the cells of a column into typed values, and find the faults."""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.config import Column, TableConfig
from datamodules.read import REPLACED
from datamodules.rejects import (
    BARE,
    COMMA_NUMBER,
    CURRENCY,
    GROUPS,
    MONEY,
    OTHER_LENGTH,
    OUTLYING,
    PADDED,
    UNIT,
)
from serve.arrays import Flags, Ints, Ties
from serve.cells import Vector, read_vector, to_text
from serve.clock import DAY, find_zone, to_local, to_seconds
from serve.errors import SchemaError

LISTS = (list, tuple, np.ndarray)
MIN_VOID = 3 * 365 * DAY
LONGEST_COUNT = 100 * 365 * DAY  # seconds that numbered baskets fill at most
_EXACT_FLOAT = 2**53
_INTEGER = "(?:0|-?[1-9][0-9]{0,18})"  # "007" is a text
_SURE_LENGTH = 18  # letters of an integer that surely has 64 bits
_MAX_INTEGER = 2**63 - 1
_SWAPPED = str.maketrans(",'’.", "...,")  # from 1,234.5 to 1.234,5
# reserved column: 0 for an event that is evidence alone; absent: 1 for all
TARGET_WEIGHT = "weight as a target"


def is_set(interactions: pd.DataFrame) -> bool:
    """Return whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def find_ties(interactions: pd.DataFrame, declared: Ties) -> Ties:
    """Return how the events of one time are read: without times, only a set has ties."""
    return "simultaneous" if is_set(interactions) else declared


def date_baskets(interactions: pd.DataFrame) -> pd.DataFrame:
    """Date numbered baskets by their positions, a day apart from one to the next that is there.

    So popularity as of a moment and all that decays count in positions. Days are shorter where the
    positions would fill more than `LONGEST_COUNT`.
    """
    number = interactions["position"].rank(method="dense").astype("int64")
    step = max(min(DAY, LONGEST_COUNT // int(number.max())), 1)
    return interactions.drop(columns="position").assign(datetime=step * number)


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
        is_text: the cells come from a text file: canonical integers mean integers, and `REPLACED`
            stands for what is not UTF-8.
        layout: how the table writes missing values, decimals and times.

    Raises:
        SchemaError: the column as a whole cannot be of this role.
    """
    if column.role != "vector":
        cells = _to_plain(cells)
    marks = {"", *(mark.strip() for mark in layout.missing)}
    if column.role in ("number", "order"):
        marks |= {"nan", "NaN"}
    is_missing = cells.isna().to_numpy(bool) | _is_one_of(cells, marks)
    faults: dict[str, Flags] = {}

    if not column.may_be_empty:
        faults["missing"] = is_missing
    is_unset = is_missing
    if is_text and types.is_string_dtype(cells.dtype):
        texts = cells.astype("str")
        is_broken = texts.str.contains(REPLACED, regex=False).fillna(False)
        faults["not UTF-8"] = is_broken.to_numpy(bool)
        is_unset = is_missing | faults["not UTF-8"]

    if is_unset.any():
        cells = cells.mask(is_unset, None)
    if column.role == "vector":
        read = _read_vectors(cells, layout.decimal)
    elif column.role == "id":
        read = _read_ids(cells, is_text)
    elif column.role in ("time", "date"):
        read = _read_times(column, cells, timezone, layout.time_formats)
    elif column.role in ("number", "order"):
        read = _read_numbers(column, cells, layout.decimal)
    else:
        read = _read_values(column, cells)

    return Cells(read.values, faults | read.faults)


def unify_ids(columns: list[pd.Series]) -> list[pd.Series]:
    """Make the ids of one side in several tables alike: integers only if they are in all."""
    if all(map(types.is_integer_dtype, columns)):
        return columns
    return [ids.astype("str") for ids in columns]


def mark_shared(rows: pd.DataFrame, others: pd.DataFrame, columns: list[str]) -> Flags:
    """Mark the rows that equal one of the others in some columns, (n,)."""
    keys = pd.MultiIndex.from_frame(rows[columns])
    return np.asarray(keys.isin(pd.MultiIndex.from_frame(others[columns])))


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
    """Return an integer for a decimal without a fraction, a tuple for a list, a text for a UUID."""
    if isinstance(value, LISTS):
        return tuple(value)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else value
    return value


def _is_one_of(cells: pd.Series, texts: Collection[str]) -> Flags:
    if not types.is_string_dtype(cells.dtype):
        return np.zeros(len(cells), bool)
    return cells.astype("str").str.strip().isin(texts).to_numpy(bool)


def _is_any(cells: pd.Series, kinds: tuple[type, ...]) -> Flags:
    return np.array([isinstance(cell, kinds) for cell in cells], bool)


# ---- ids


def _read_ids(cells: pd.Series, is_text: bool) -> Cells:
    """Return int64 if all ids are integers, else texts; where there is none 0 or blank."""
    faults = {"not an id": np.zeros(len(cells), bool)}
    if isinstance(cells.dtype, pd.StringDtype):
        stripped = cells.str.strip()
        faults[PADDED] = (stripped.str.len() < cells.str.len()).to_numpy(bool)
        texts = stripped.dropna()
        if not is_text or not texts.str.fullmatch(_INTEGER).all():
            return Cells(stripped.fillna(""), faults)
        if texts.str.len().max() <= _SURE_LENGTH:
            return Cells(stripped.fillna("0").astype("int64"), faults)
    elif cells.dtype.kind == "i" and cells.min() >= -_MAX_INTEGER:
        return Cells(cells.astype("int64"), faults)

    return _read_mixed_ids(cells, is_text)


def _read_mixed_ids(cells: pd.Series, is_text: bool) -> Cells:
    """Do as `_read_ids` cell by cell."""
    plain = [_to_id(cell, is_text) for cell in cells]
    ids = pd.Series(plain, cells.index, dtype=object)
    is_id = ids.notna().to_numpy()
    values: pd.Series[Any]
    if types.infer_dtype(ids, skipna=True) == "integer":
        values = ids.where(is_id, 0).astype("int64")
    else:
        values = ids.where(is_id, "").astype("str")

    return Cells(values, {"not an id": cells.notna().to_numpy() & ~is_id})


def _to_id(cell: Any, is_text: bool) -> int | str | None:
    """Return an integer, or a text also of one beyond 64 bits; None for what is no id."""
    if isinstance(cell, str):
        cell = cell.strip()
        if not is_text or not re.fullmatch(_INTEGER, cell):
            return cell or None
        cell = int(cell)

    if isinstance(cell, float) and abs(cell) < _EXACT_FLOAT and cell.is_integer():
        cell = int(cell)
    if not isinstance(cell, (int, np.integer)) or isinstance(cell, bool):
        return None
    return int(cell) if abs(int(cell)) <= _MAX_INTEGER else str(cell)


# ---- times and dates


def _read_times(
    column: Column, cells: pd.Series, timezone: str | None, formats: list[str]
) -> Cells:
    """Return times as int64 UTC seconds, dates as ISO texts on the clocks of the zone."""
    seconds, is_valid = _read_moments(column, cells, timezone, formats)
    values = pd.Series(seconds, cells.index)
    if column.role == "date":
        local = to_local(seconds, find_zone(timezone))
        moments = local.astype("datetime64[s]")
        days = moments.astype("datetime64[D]")
        texts = np.where(local % DAY == 0, days.astype(str), moments.astype(str))
        dates = pd.Series(texts.astype(object), cells.index)
        values = dates.where(is_valid, None).astype("str")

    faults = {"not a time": ~is_valid & cells.notna().to_numpy()}
    faults |= _find_beyond(column, seconds, is_valid)

    if column.role == "time":
        is_good = is_valid & ~np.logical_or.reduce([*faults.values()])
        is_outlying = np.zeros(len(cells), bool)
        is_outlying[is_good] = _find_outlying(seconds[is_good], column)
        faults[OUTLYING] = is_outlying

    return Cells(values, faults)


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
    texts = cells.astype("str").str.strip()
    cells = cells.astype(object)

    for form in reversed(formats):
        has_zone = "%z" in form
        times = pd.to_datetime(texts, format=form, errors="coerce", utc=has_zone)
        moments = times.to_numpy("datetime64[s]").astype(str).astype(object)
        iso = pd.Series(moments + "Z" if has_zone else moments, cells.index)
        cells = cells.mask(times.notna(), iso)

    return cells


def _find_outlying(seconds: Ints, column: Column) -> Flags:
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

    for sign, limit in ((1, column.low), (-1, column.high)):  # early, late
        ordered = np.sort(sign * seconds)
        middle = ordered[tail : len(ordered) - tail]
        min_void = max(middle[-1] - middle[0], MIN_VOID)
        voids = np.flatnonzero(np.diff(ordered[: tail + 1]) >= min_void)
        if limit is None and len(voids):
            is_outlying |= sign * seconds <= ordered[voids[-1]]

    return is_outlying


def _find_beyond(
    column: Column, values: np.ndarray, is_valid: Flags
) -> dict[str, Flags]:
    """Find values below the minimum and above the maximum, if any."""
    faults = {}
    for limit, is_beyond, name in (
        (column.low, np.less, "below the minimum"),
        (column.high, np.greater, "above the maximum"),
    ):
        if limit is not None:
            is_time = column.role in ("time", "date")
            shown = f"{np.datetime64(int(limit), 's')}Z" if is_time else limit
            faults[f"{name} {shown}"] = is_valid & is_beyond(values, limit)

    return faults


# ---- numbers and vectors


def _point_decimal(cell: object) -> object:
    """Write a number with a decimal point; a text that is none with a comma is no number then."""
    if not isinstance(cell, str):
        return cell
    if not re.fullmatch(COMMA_NUMBER, cell.strip()):
        return "?"
    return re.sub(GROUPS, "", cell).replace(",", ".")


def _read_amounts(column: Column, texts: pd.Series, decimal: str) -> pd.Series:
    """Return the numbers of cells that hold one beside a currency, by the index of the cells.

    Several currencies are refused by a `SchemaError`.
    """
    texts = texts[texts.str.fullmatch(MONEY)]
    units = texts.str.extract(UNIT)[0].replace("€", "EUR").unique()
    if len(units) > 1:
        raise SchemaError(
            f"column '{column.source}' holds amounts in {' and '.join(units)}; convert them to "
            "one currency, as by a `query`"
        )
    amounts = texts.str.replace(MONEY, BARE, regex=True)
    if decimal == ".":
        amounts = amounts.str.translate(_SWAPPED)
    amounts = amounts.map(_point_decimal)
    return pd.to_numeric(amounts, errors="coerce").astype("float64")


def _read_numbers(column: Column, cells: pd.Series, decimal: str) -> Cells:
    """Return float64, NaN where missing; an order of integers stays int64: near ones would tie."""
    if types.is_datetime64_any_dtype(cells.dtype):
        raise SchemaError(
            f"column '{column.source}' is {cells.dtype}; allowed: numbers"
        )

    is_set = cells.notna().to_numpy()
    if cells.dtype == object:
        cells = cells.mask(_is_any(cells, (*LISTS, dict, set)), "?")
    pointed = cells.map(_point_decimal) if decimal == "," else cells
    values = pd.to_numeric(pointed, errors="coerce")
    is_unread = is_set & values.isna().to_numpy()

    if column.role != "order":
        amounts = _read_amounts(column, cells[is_unread].astype("str"), decimal)
        values = values.astype("float64").fillna(amounts)
    numbers = values.to_numpy()
    faults = {
        CURRENCY: is_unread & ~np.isnan(numbers),
        "not a number": is_set & np.isnan(numbers),
        "not finite": np.isinf(numbers),
    }
    return Cells(values, faults | _find_beyond(column, numbers, is_set))


def _read_vectors(cells: pd.Series, decimal: str) -> Cells:
    """Return a `Vector` or None for each cell.

    With a decimal comma, blanks or semicolons stand between numbers.
    """
    faults: dict[str, Flags] = {}
    vectors: list[Vector | None] = [None] * len(cells)
    widths = np.zeros(len(cells), np.int64)  # 0: missing

    for row in np.flatnonzero(cells.notna()):
        cell = cells.iloc[row]
        # a text with a point is Python's 0.1, 0.2
        if decimal == "," and isinstance(cell, str) and "." not in cell:
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
    faults = {}
    if cells.dtype == np.float32:  # 0.1 stays 0.1
        cells = cells.astype(str).astype("float64")
    if cells.dtype == object:
        is_list = _is_any(cells, LISTS)
        faults["a list"] = is_list & (column.role != "value")
        faults["not a value"] = _is_any(cells, (dict, set, bytes))
        cells = cells.mask(faults["a list"] | faults["not a value"], None)

    if column.role == "text" or types.is_datetime64_any_dtype(cells.dtype):
        cells = cells.astype(object)
        # each value is written the one way that vocabularies know it
        texts = {value: to_text(value) for value in cells.unique()}
        cells = cells.map(texts).astype("str")

    return Cells(cells, faults)
