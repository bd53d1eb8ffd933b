"""Turn feature columns into integer codes and numbers: the same code in training and in serving.

A side (user, item or context) becomes two matrices, whose layout `code_slices` and `value_slices` give:

    codes   int64   (n, C)  one column per categorical and calendar kind, `width` per multi_categorical
    values  float32 (n, V)  two columns per numeric: the standardised value, then 1.0 where it is missing
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.clock import day_of_week, hour_of_day
from serve.errors import SchemaError
from serve.schema import PADDING, UNKNOWN, Feature

LIMIT = 10.0
"""Standardised values are clipped to +- this many standard deviations."""

_HOURS = 24
_FRACTIONS = (float, np.floating, Decimal)
_CALENDAR: dict[str, Callable[[NDArray[np.int64], str | None], NDArray[np.int64]]] = {
    "hour_of_day": hour_of_day,
    "day_of_week": day_of_week,
}


@dataclass(frozen=True)
class EncodedFeatures:
    """The features of n rows of one side."""

    codes: NDArray[np.int64]
    """(n, C), each within [0, n_codes) of its feature."""
    values: NDArray[np.float32]
    """(n, V), finite."""

    def take(self, rows: NDArray[np.int64]) -> EncodedFeatures:
        """Pick rows, in any order and as often as named."""
        return EncodedFeatures(self.codes[rows], self.values[rows])


def to_text(value: Any) -> str | None:
    """Write a value the one way vocabularies know it: 7, 7.0 and " 7 " are "7"; None, NaN and "" are None."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or _is_missing(value):
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, _FRACTIONS) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).strip() or None


def split_cell(cell: Any, separator: str) -> list[str]:
    """Return the distinct values of a `multi_categorical` cell, which is a text with separators or a list.

    Values of a list are split as well, so that a list and its joined text mean the same.
    """
    parts = cell if isinstance(cell, (list, tuple, np.ndarray)) else (cell,)
    texts = (to_text(part) for part in parts)
    pieces = chain.from_iterable(text.split(separator) for text in texts if text is not None)
    return list(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))


def to_numbers(feature: Feature, values: Any) -> NDArray[np.float64]:
    """Read a numeric column as float64 (n,), NaN where missing.

    Raises:
        SchemaError: a value that does not parse or is infinite.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        numbers = values.astype(np.float64)
    else:
        numbers = np.array([_to_number(feature, value) for value in values], dtype=np.float64)
    if np.isinf(numbers).any():
        raise SchemaError(f"feature '{feature.name}': a value is infinite; give a finite number or none")
    return numbers


def code_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each coded feature with its columns of `EncodedFeatures.codes`."""
    return _slices([(feature, feature.width) for feature in features if not feature.is_numeric])


def value_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each numeric feature with its two columns of `EncodedFeatures.values`."""
    return _slices([(feature, 2) for feature in features if feature.is_numeric])


def encode_features(
    features: Iterable[Feature],
    columns: Mapping[str, Any],
    n: int,
    timezone: str | None = None,
) -> EncodedFeatures:
    """Encode the features of one side.

    Args:
        features: the side's features, in their order.
        columns: feature column -> n raw values (list, numpy array or data frame column). `datetime` holds UTC
            seconds. A column that is absent is missing in every row.
        n: the number of rows.
        timezone: where hours and weekdays are taken.

    Raises:
        SchemaError: a column of another length, or a number that does not parse or is infinite.
    """
    features = tuple(features)
    coded, numeric = code_slices(features), value_slices(features)
    codes = np.full((n, coded[-1][1].stop if coded else 0), PADDING, dtype=np.int64)
    values = np.zeros((n, 2 * len(numeric)), dtype=np.float32)
    for feature, columns_of in coded:
        codes[:, columns_of] = _encode_codes(feature, _column(columns, feature, n), n, timezone)
    for feature, columns_of in numeric:
        values[:, columns_of] = _encode_numbers(feature, _column(columns, feature, n), n)
    return EncodedFeatures(codes, values)


def _slices(widths: list[tuple[Feature, int]]) -> list[tuple[Feature, slice]]:
    slices, stop = [], 0
    for feature, width in widths:
        slices.append((feature, slice(stop, stop + width)))
        stop += width
    return slices


def _column(columns: Mapping[str, Any], feature: Feature, n: int) -> Any:
    """Return n values or None; a list stays one, since as an array ["a", True] would become two texts."""
    values = columns.get(feature.column)
    if values is None:
        return None
    if len(values) != n:
        raise SchemaError(f"column '{feature.column}' has {len(values)} values; expected {n}, one a row")
    return values if isinstance(values, (list, tuple)) else np.asarray(values)


def _encode_codes(feature: Feature, values: Any, n: int, timezone: str | None) -> NDArray[np.int64]:
    """Return (n, width) codes."""
    if feature.kind == "multi_categorical":
        return _encode_cells(feature, [None] * n if values is None else values)
    if values is None:
        return np.full((n, 1), UNKNOWN, dtype=np.int64)
    if feature.kind in _CALENDAR:
        return _encode_calendar(feature, values, timezone)[:, None]
    return _look_up(feature, values)[:, None]


def _look_up(feature: Feature, values: Any) -> NDArray[np.int64]:
    """Return (n,) codes; numbers through their distinct values, which are few."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        distinct, index = np.unique(values, return_inverse=True)
        return _look_up(feature, list(distinct))[index]
    code_of = feature.codes.get
    return np.array([code_of(to_text(value), UNKNOWN) for value in values], dtype=np.int64)  # type: ignore[arg-type]


def _encode_calendar(feature: Feature, values: Any, timezone: str | None) -> NDArray[np.int64]:
    numbers = to_numbers(feature, values)
    is_known = ~np.isnan(numbers)
    seconds = np.where(is_known, numbers, 0).astype(np.int64)
    table = np.array([feature.codes.get(str(number), UNKNOWN) for number in range(_HOURS)])
    return np.where(is_known, table[_CALENDAR[feature.kind](seconds, timezone)], UNKNOWN)


def _encode_cells(feature: Feature, cells: Any) -> NDArray[np.int64]:
    """Return (n, width) codes, each once a row, PADDING at the end."""
    seen: dict[str, list[int]] = {}

    def encode(cell: Any) -> list[int]:
        if not isinstance(cell, str):
            return _encode_cell(feature, cell)
        if cell not in seen:
            seen[cell] = _encode_cell(feature, cell)
        return seen[cell]

    codes = chain.from_iterable(map(encode, cells))
    flat = np.fromiter(codes, dtype=np.int64, count=len(cells) * feature.width)
    return flat.reshape(len(cells), feature.width)


def _encode_cell(feature: Feature, cell: Any) -> list[int]:
    texts = split_cell(cell, feature.separator)
    codes = list(dict.fromkeys(feature.codes.get(text, UNKNOWN) for text in texts)) or [UNKNOWN]
    return (codes + [PADDING] * feature.width)[: feature.width]


def _encode_numbers(feature: Feature, values: Any, n: int) -> NDArray[np.float32]:
    """Return (n, 2): standardised value, missing flag."""
    numbers = np.full(n, np.nan) if values is None else to_numbers(feature, values)
    is_missing = np.isnan(numbers)
    with np.errstate(over="ignore"):  # the ends of float64 overflow to what is clipped anyway
        standard = np.clip((numbers - feature.mean) / feature.scale, -LIMIT, LIMIT)
    return np.stack([np.where(is_missing, 0.0, standard), is_missing], axis=1).astype(np.float32)


def _to_number(feature: Feature, value: Any) -> float:
    if to_text(value) is None:
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"feature '{feature.name}': '{str(value)[:40]}' is no number") from error


def _is_missing(value: Any) -> bool:
    """Tell NaN and NaT, which differ from themselves, and NA of pandas, which is not imported here."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, (*_FRACTIONS, np.datetime64)) and bool(value != value)
