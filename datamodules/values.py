"""Cells of a column as typed values: ids, times, dates, numbers, vectors, texts; and which are faults."""

from __future__ import annotations

import re
from collections.abc import Collection
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import pandas as pd
from pandas.api import types

from datamodules.config import COMMA_NUMBER, GROUPS, Column, TableConfig
from serve.clock import DAY, find_zone, to_local, to_seconds
from serve.encode import to_text
from serve.errors import SchemaError
from serve.kinds import Vector, read_vector

LISTS = (list, tuple, np.ndarray)
_EXACT_FLOAT = 2**53
INTEGER = r"0|-?[1-9][0-9]{0,18}"  # how an id that is a whole number is written: "007" is a text


class Cells(NamedTuple):
    """A typed column of n rows."""

    values: pd.Series
    faults: dict[str, np.ndarray]  # reason -> bool (n,): the rows at fault


def read_cells(
    column: Column,
    cells: pd.Series,
    timezone: str | None,
    is_text: bool,
    layout: TableConfig,
) -> Cells:
    """Type one column by its role; `is_text`: its file is a text; `layout`: how the table writes values."""
    plain = cells if column.role == "vector" else _to_plain(cells)
    is_mark = _is_one_of(plain, {mark.strip() for mark in layout.missing})
    plain = plain.mask(is_mark, None) if is_mark.any() else plain
    if column.role == "vector":
        return _read_vectors(plain, layout.decimal)
    if column.role == "id":
        return _read_ids(column, plain, is_text)
    if column.role in ("time", "date"):
        return _read_times(column, plain, timezone, layout.time_formats)
    if column.role in ("number", "order"):
        return _read_numbers(
            column, plain if layout.decimal == "." else _point_decimals(plain)
        )
    return _read_values(column, plain)


def unify_ids(columns: list[pd.Series]) -> list[pd.Series]:
    """Make the ids of one kind in several tables alike: integers only if they are in all."""
    return (
        columns
        if all(map(types.is_integer_dtype, columns))
        else [ids.astype("str") for ids in columns]
    )


def _to_plain(cells: pd.Series) -> pd.Series:
    """Turn categoricals, nullable kinds, decimals and lists into integers, floats, texts, times or plain objects."""
    dtype = cells.dtype
    if not types.is_object_dtype(dtype) and types.is_string_dtype(dtype):
        return cells.astype("str")
    if types.is_extension_array_dtype(dtype) and not isinstance(
        dtype, pd.DatetimeTZDtype
    ):
        cells = cells.astype(object)
    if not types.is_object_dtype(cells.dtype):
        return cells
    values = pd.Series(list(map(_to_plain_value, cells)), cells.index, dtype=object)
    values = values.where(values.notna(), None)
    kind = types.infer_dtype(values, skipna=True)
    if kind in ("string", "floating"):
        return values.astype("str" if kind == "string" else "float64")
    return values if values.isna().any() else values.infer_objects()


def _to_plain_value(value: object) -> object:
    """Return an integer for a decimal without a fraction, as databases write keys, and a tuple for a list."""
    if (
        isinstance(value, Decimal)
        and value.is_finite()
        and value == value.to_integral_value()
    ):
        return int(value)
    return tuple(value) if isinstance(value, LISTS) else value


def _is_one_of(cells: pd.Series, texts: Collection[str]) -> np.ndarray:
    if texts and isinstance(cells.dtype, pd.StringDtype):
        return cells.str.strip().isin(texts).to_numpy(bool)
    if texts and types.is_object_dtype(cells.dtype):
        return np.array(
            [isinstance(cell, str) and cell.strip() in texts for cell in cells], bool
        )
    return np.zeros(len(cells), bool)


def _is_missing(cells: pd.Series, texts: Collection[str] = ("",)) -> np.ndarray:
    """Return which cells are null or blank, or another text that says so."""
    return np.asarray(cells.isna().to_numpy(bool) | _is_one_of(cells, texts))


def _read_ids(column: Column, cells: pd.Series, is_text: bool) -> Cells:
    """Return int64 or texts; a missing id is 0 or blank, and a fault."""
    missing = _is_missing(cells)
    wrong = np.zeros(len(cells), bool)
    if cells.dtype == object:
        wrong = np.array(
            [
                not isinstance(one, (str, int, np.integer)) or isinstance(one, bool)
                for one in cells
            ],
            bool,
        )
        wrong &= ~missing
    elif (
        not (
            types.is_numeric_dtype(cells.dtype)
            or isinstance(cells.dtype, pd.StringDtype)
        )
        or cells.dtype == bool
    ):
        raise SchemaError(
            f"column '{column.source}' is {cells.dtype}; allowed for an id: integers or texts"
        )
    present = cells[~(missing | wrong)]
    integers = _to_integers(column, present, is_text)
    ids, blank = (present.astype("str"), "") if integers is None else (integers, 0)
    return Cells(
        ids.reindex(cells.index, fill_value=blank),
        {"missing": missing, "not an id": wrong},
    )


def _to_integers(column: Column, ids: pd.Series, is_text: bool) -> pd.Series | None:
    """Return int64 if the ids are integers, in a text file without leading zeros, and None if they are texts."""
    if isinstance(ids.dtype, pd.StringDtype) and not (
        is_text and len(ids) and ids.str.fullmatch(INTEGER).all()
    ):
        return None
    if types.is_float_dtype(ids.dtype) and not (
        ids.mod(1).eq(0).all() and ids.abs().max() < _EXACT_FLOAT
    ):
        raise SchemaError(
            f"column '{column.source}' holds fractions; allowed for an id: integers or texts"
        )
    is_beyond = types.is_unsigned_integer_dtype(ids.dtype) and bool(
        ids.gt(2**63 - 1).any()
    )  # would become negative
    is_mixed = ids.dtype == object and not (
        len(ids) and all(isinstance(cell, (int, np.integer)) for cell in ids)
    )
    if is_beyond or is_mixed:
        return None
    try:
        return ids.astype("int64")
    except (OverflowError, ValueError):  # beyond int64
        return None


def _read_times(
    column: Column, cells: pd.Series, timezone: str | None, formats: list[str]
) -> Cells:
    """Return int64 UTC seconds, or of dates ISO texts on the clocks of the zone, None where missing."""
    missing = _is_missing(cells)
    seconds, is_valid = _read_moments(
        column, _rewrite_times(cells, formats) if formats else cells, timezone
    )
    faults = {"not a time": ~is_valid & ~missing}
    for limit, name, is_beyond in (
        (column.low, "before", np.less),
        (column.high, "after", np.greater),
    ):
        if limit is not None:
            faults[f"{name} the limit {np.datetime64(int(limit), 's')}Z"] = (
                is_valid & is_beyond(seconds, limit)
            )
    if column.role == "time":
        return Cells(pd.Series(seconds, cells.index), {"missing": missing, **faults})
    local = to_local(seconds, find_zone(timezone))
    moments = local.astype("datetime64[s]")
    texts = np.where(
        local % DAY == 0,
        moments.astype("datetime64[D]").astype(str),
        moments.astype(str),
    )
    return Cells(
        pd.Series(texts.astype(object), cells.index)
        .where(is_valid, None)
        .astype("str"),
        faults,
    )


def _rewrite_times(cells: pd.Series, formats: list[str]) -> pd.Series:
    """Write the times that one of the formats fits, the first that does, in the form of ISO."""
    if types.is_integer_dtype(cells.dtype):  # 20240531
        cells = cells.astype("str")
    texts = pd.Series(
        [cell.strip() if isinstance(cell, str) else None for cell in cells],
        dtype=object,
    )
    written = cells.astype(object).to_numpy(copy=True)
    is_left = texts.notna().to_numpy(copy=True)
    for form in formats:
        has_zone = "%z" in form
        read = pd.to_datetime(
            texts[is_left], format=form, errors="coerce", utc=has_zone
        ).dropna()
        moments = (
            (read.dt.tz_localize(None) if has_zone else read)
            .to_numpy()
            .astype("datetime64[s]")
        )
        written[read.index] = [
            f"{moment}Z" if has_zone else moment
            for moment in moments.astype(str).tolist()
        ]
        is_left[read.index] = False
    return pd.Series(written, cells.index, dtype=object)


def _read_moments(
    column: Column, cells: pd.Series, timezone: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Read ISO times and epoch numbers: UTC seconds (n,), and which were read."""
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        cells = cells.dt.tz_convert("UTC").dt.tz_localize(None)
        timezone = None
    is_plain = types.is_datetime64_dtype(cells.dtype) or types.is_numeric_dtype(
        cells.dtype
    )
    moments = cells if is_plain else cells.astype(object).where(cells.notna(), None)
    try:
        return to_seconds(moments.to_numpy(), timezone)
    except SchemaError as error:
        is_compact = (
            cells.astype("str").str.fullmatch(r"(19|20)\d\d[01]\d[0-3]\d").mean() > 0.5
        )
        advice = (
            '; for dates such as 20240531 declare time_formats: ["%Y%m%d"]'
            if is_compact
            else ""
        )
        raise SchemaError(f"column '{column.source}': {error}{advice}") from error


def _point_decimals(cells: pd.Series) -> pd.Series:
    """Write texts of numbers with a decimal comma as programs do; what is none becomes no number at all."""

    def rewrite(cell: object) -> object:
        if not isinstance(cell, str) or not (text := cell.strip()):
            return cell
        return (
            re.sub(GROUPS, "", text).replace(",", ".")
            if re.fullmatch(COMMA_NUMBER, text)
            else "?"
        )

    is_text = isinstance(cells.dtype, pd.StringDtype) or cells.dtype == object
    return (
        pd.Series(list(map(rewrite, cells)), cells.index, dtype=object)
        if is_text
        else cells
    )


def _read_numbers(column: Column, cells: pd.Series) -> Cells:
    """Return float64, NaN where missing; an order of integers stays int64."""
    if not (
        types.is_numeric_dtype(cells.dtype)
        or isinstance(cells.dtype, pd.StringDtype)
        or cells.dtype == object
    ):
        raise SchemaError(
            f"column '{column.source}' is {cells.dtype}; allowed: numbers"
        )
    if cells.dtype == object:  # integers beside a gap stay such
        cells = pd.Series(
            [one if types.is_scalar(one) else "?" for one in cells],
            cells.index,
            dtype=object,
        )
    numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    missing = _is_missing(cells, ("", "nan", "NaN"))
    faults = {
        "not a number": numbers.isna().to_numpy() & ~missing,
        "not finite": np.isinf(numbers.to_numpy()),
        f"below the minimum {column.low}": numbers.lt(
            -np.inf if column.low is None else column.low
        ).to_numpy(),
        f"above the maximum {column.high}": numbers.gt(
            np.inf if column.high is None else column.high
        ).to_numpy(),
    }
    if not column.may_be_empty:
        faults["missing"] = missing
    if column.role == "order":
        exact = pd.to_numeric(cells[~np.logical_or.reduce([*faults.values()])])
        if types.is_integer_dtype(
            exact.dtype
        ):  # as floats, near ones of them would tie
            numbers = exact.reindex(numbers.index, fill_value=0)
    return Cells(numbers, faults)


def _read_values(column: Column, cells: pd.Series) -> Cells:
    """Return texts, or values as they are; a list is for kinds that take several values alone."""
    if cells.dtype != object:
        return Cells(
            _to_texts(cells) if column.role == "text" else _to_written(cells), {}
        )
    is_list = np.array([isinstance(cell, LISTS) for cell in cells], bool)
    if column.role == "category" and is_list.any():
        raise SchemaError(
            f"column '{column.source}', {column.reason} as categorical, holds lists such as "
            f"{str(cells[is_list].iloc[0])[:40]}; allowed: one value in each cell; declare multi_categorical or vector"
        )
    wrong = np.array([isinstance(cell, (dict, set, bytes)) for cell in cells], bool)
    wrong |= is_list & (column.role == "text")
    cells = cells.mask(wrong, None) if wrong.any() else cells
    return Cells(
        _to_texts(cells) if column.role == "text" else cells, {"not a value": wrong}
    )


def _to_written(cells: pd.Series) -> pd.Series:
    """Turn times, and fractions of 32 bits, into values that a column and an array of them write alike."""
    if types.is_datetime64_any_dtype(cells.dtype) or types.is_timedelta64_dtype(
        cells.dtype
    ):
        return _to_texts(cells.astype(object))
    if cells.dtype not in (np.float16, np.float32):
        return cells
    distinct, index = np.unique(cells.to_numpy(), return_inverse=True)
    return pd.Series(distinct.astype(str).astype(np.float64)[index], cells.index)


def _to_texts(cells: pd.Series) -> pd.Series:
    """Write each value the one way vocabularies know it."""
    return cells.map({value: to_text(value) for value in cells.unique()}).astype("str")


def _read_vectors(cells: pd.Series, decimal: str) -> Cells:
    """Return a `Vector` or None for each cell; with a decimal comma, blanks or semicolons stand between numbers."""
    faults: dict[str, np.ndarray] = {}
    vectors: list[Vector | None] = [None] * len(cells)
    places = np.flatnonzero(~_is_missing(cells))
    for row, cell in zip(places, cells.iloc[places], strict=True):
        if (
            decimal == "," and isinstance(cell, str) and "." not in cell
        ):  # as Python writes lists: 0.1, 0.2
            cell = cell.replace(",", ".").replace(";", " ")
        try:
            entries = read_vector(cell)
        except ValueError as error:
            faults.setdefault(str(error), np.zeros(len(cells), bool))[row] = True
        else:
            vectors[row] = None if entries is None else Vector(entries.tobytes())
    return Cells(pd.Series(vectors, cells.index, dtype=object), faults)
