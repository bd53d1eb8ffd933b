"""Turn feature columns into integer codes and numbers: the same code in training and in serving.

A side (user, item or context) becomes two matrices, whose layout `code_slices` and `value_slices` give:

    codes   int64   (n, C)  one column per categorical and calendar kind, `width` per multi_categorical and text
    values  float32 (n, V)  per numeric and vector the standardised numbers, then 1.0 where they are missing
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.clock import day_of_week, hour_of_day
from serve.errors import SchemaError
from serve.ngrams import encode_texts
from serve.schema import FIRST_CODE, PADDING, UNKNOWN, Feature
from serve.vectors import Vector, is_missing_row, read_vector, stack_vectors

LIMIT = 10.0
"""Standardised values are clipped to +- this many times the scale of their feature."""

_HOURS = 24
_FRACTIONS = (float, np.floating, Decimal)
_LISTS = (list, tuple, np.ndarray)
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
        return EncodedFeatures(self.codes.take(rows, axis=0), self.values.take(rows, axis=0))


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
    parts = cell if isinstance(cell, _LISTS) else (cell,)
    texts = (to_text(part) for part in parts)
    pieces = chain.from_iterable(text.split(separator) for text in texts if text is not None)
    return list(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))


def join_text(cell: Any) -> str | None:
    """Return the text of a `text` cell, which is a text or a list of texts: a line each."""
    if not isinstance(cell, _LISTS):
        return to_text(cell)
    return "\n".join(text for text in map(to_text, cell) if text is not None) or None


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


def to_vectors(feature: Feature, values: Any) -> NDArray[np.float32]:
    """Read a vector column as float32 (n, W), NaN where missing.

    Args:
        feature: of W entries.
        values: n cells as `read_vector` reads them, or a matrix (n, W) as returned.

    Raises:
        SchemaError: a vector that does not parse, is not finite or has another width.
    """
    if not (isinstance(values, np.ndarray) and values.ndim == 2):
        return stack_vectors([_to_vector(feature, value) for value in values], feature.width)
    _check_width(feature, values.shape[1])
    matrix: NDArray[np.float32] = values.astype(np.float32)
    if np.isinf(matrix).any() or np.isnan(matrix[~is_missing_row(matrix)]).any():
        raise SchemaError(f"feature '{feature.name}': an entry is not finite; give numbers, or a row of NaN if missing")
    return matrix


def code_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each coded feature with its columns of `EncodedFeatures.codes`."""
    return _slices([(feature, feature.width) for feature in features if not feature.has_values])


def value_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each numeric and vector feature with its columns of `EncodedFeatures.values`; the last is the flag."""
    return _slices([(feature, feature.width + 1) for feature in features if feature.has_values])


def encode_features(
    features: Sequence[Feature],
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
        SchemaError: a column of another length, a number or vector that does not parse or is not finite, or a
            vector of another width.
    """
    coded, valued = code_slices(features), value_slices(features)
    codes = np.full((n, coded[-1][1].stop if coded else 0), PADDING, dtype=np.int64)
    values = np.zeros((n, valued[-1][1].stop if valued else 0), dtype=np.float32)
    for feature, place in coded:
        codes[:, place] = encode_codes(feature, _column(columns, feature, n), n, timezone)
    for feature, place in valued:
        values[:, place] = encode_values(feature, _column(columns, feature, n), n)
    return EncodedFeatures(codes, values)


def encode_codes(feature: Feature, values: Any, n: int, timezone: str | None) -> NDArray[np.int64]:
    """Return (n, width) codes of n raw values, or of None: missing in every row."""
    if feature.kind in _SEVERAL:
        return _SEVERAL[feature.kind](feature, [None] * n if values is None else values)
    if values is None:
        return np.full((n, 1), UNKNOWN, dtype=np.int64)
    if feature.kind in _CALENDAR:
        return _encode_calendar(feature, values, timezone)[:, None]
    return _look_up(feature, values)[:, None]


def encode_values(feature: Feature, values: Any, n: int) -> NDArray[np.float32]:
    """Return (n, width + 1) numbers and missing flag of n raw values, or of None: missing in every row."""
    return _encode_numbers(feature, values, n) if feature.is_numeric else _encode_vectors(feature, values, n)


def _slices(widths: list[tuple[Feature, int]]) -> list[tuple[Feature, slice]]:
    stops = accumulate(width for _, width in widths)
    return [(feature, slice(stop - width, stop)) for (feature, width), stop in zip(widths, stops, strict=True)]


def _column(columns: Mapping[str, Any], feature: Feature, n: int) -> Any:
    """Return n values or None; a list stays one, since as an array ["a", True] would become two texts."""
    values = columns.get(feature.column)
    if values is None:
        return None
    if len(values) != n:
        raise SchemaError(f"column '{feature.column}' has {len(values)} values; expected {n}, one a row")
    return values if isinstance(values, (list, tuple)) else np.asarray(values)


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
    codes = _calendar_codes(feature.vocabulary)[_CALENDAR[feature.kind](seconds, timezone)]
    return np.where(is_known, codes, UNKNOWN)


@lru_cache(maxsize=64)
def _calendar_codes(vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the code of each hour or weekday, kept since a request must not pay for it."""
    codes = {text: FIRST_CODE + index for index, text in enumerate(vocabulary)}
    return np.array([codes.get(str(number), UNKNOWN) for number in range(_HOURS)], dtype=np.int64)


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


def _encode_texts(feature: Feature, cells: Any) -> NDArray[np.int64]:
    """Return (n, width) codes of n-grams, each once a row, PADDING at the end."""
    return encode_texts(list(map(join_text, cells)), feature.width, feature.buckets)


def _encode_vectors(feature: Feature, values: Any, n: int) -> NDArray[np.float32]:
    """Return (n, W + 1): standardised entries, missing flag."""
    if values is None:
        return np.concatenate([np.zeros((n, feature.width)), np.ones((n, 1))], axis=1).astype(np.float32)
    vectors = to_vectors(feature, values)
    is_missing = is_missing_row(vectors)
    with np.errstate(over="ignore"):
        standard = np.clip(vectors / np.float32(feature.scale), -LIMIT, LIMIT)
    standard[is_missing] = 0.0
    return np.column_stack([standard, is_missing]).astype(np.float32)


def _to_vector(feature: Feature, value: Any) -> NDArray[np.float32] | None:
    if not isinstance(value, (Vector, *_LISTS)) and to_text(value) is None:
        return None
    try:
        vector = read_vector(value)
    except ValueError as error:
        raise SchemaError(f"feature '{feature.name}': {error}: {str(value)[:40]}") from error
    if vector is not None:
        _check_width(feature, len(vector))
    return vector


def _check_width(feature: Feature, width: int) -> None:
    if width != feature.width:
        raise SchemaError(
            f"feature '{feature.name}': a vector of {width} numbers; expected {feature.width}, as in the training data"
        )


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
    if isinstance(value, Decimal):  # a signalling NaN cannot be compared
        return value.is_nan()
    return isinstance(value, (*_FRACTIONS, np.datetime64)) and bool(value != value)


_SEVERAL: dict[str, Callable[[Feature, Any], NDArray[np.int64]]] = {
    "multi_categorical": _encode_cells,
    "text": _encode_texts,
}
