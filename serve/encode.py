"""Turn feature columns into integer codes and numbers: the same code in training and in serving.

A side (user, item or context) becomes two matrices, whose layout `code_slices` and `value_slices` give:

    codes   int64   (n, C)  one column per categorical and calendar kind, `width` per kind with several values and text
    values  float32 (n, V)  per numeric, date and vector the standardised numbers, then 1.0 where they are missing
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Floats, Ints, is_missing_row
from serve.clock import DAY, day_of_week, hour_of_day, to_seconds
from serve.errors import SchemaError
from serve.kinds import Vector, hash_texts, read_vector
from serve.schema import DERIVED, FIRST_CODE, PADDING, SEVERAL, UNKNOWN, Feature

LIMIT = 10.0  # standardised values are clipped to +- this many times the scale of their feature
TIME = "the time of the request"  # key of the seconds that hours and weekdays are taken from; no feature's name

_HOURS = 24
_KEY_FACTOR = 6364136223846793005  # odd, so that no key is lost (Knuth, TAOCP 2, 3.3.4)
_FRACTIONS = (float, np.floating, Decimal)
_LISTS = (list, tuple, np.ndarray)


@dataclass(frozen=True)
class EncodedFeatures:
    """The features of n rows of one side."""

    codes: Ints  # (n, C), each within [0, n_codes) of its feature
    values: Floats  # (n, V), finite

    def take(self, rows: Ints) -> EncodedFeatures:
        """Pick rows, in any order and as often as named."""
        return EncodedFeatures(
            self.codes.take(rows, axis=0), self.values.take(rows, axis=0)
        )


# ---- cells as texts


def to_text(value: Any) -> str | None:
    """Write a value the one way vocabularies know it: 7, 7.0 and " 7 " are "7"; None, NaN and "" are None."""
    if isinstance(value, str):
        return value.strip() or None
    if value is None or type(value).__name__ in (
        "NAType",
        "NaTType",
    ):  # of pandas, which is not imported here
        return None
    if isinstance(value, (*_FRACTIONS, np.datetime64)) and value != value:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, _FRACTIONS) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).strip() or None


def split_cell(feature: Feature, cell: Any) -> list[str]:
    """Return the distinct values of a cell, a text with separators or a list of such texts.

    Of a `hierarchical` one, whose parts are the levels of one path, they are the paths to each level.
    """
    parts = cell if isinstance(cell, _LISTS) else (cell,)
    texts = (to_text(part) for part in parts)
    pieces = chain.from_iterable(
        text.split(feature.separator) for text in texts if text is not None
    )
    values = [piece.strip() for piece in pieces if piece.strip()]
    if feature.kind == "hierarchical":
        values = list(
            accumulate(values, f"{{}} {feature.separator.strip()} {{}}".format)
        )
    return list(dict.fromkeys(values))


def join_text(cell: Any) -> str | None:
    """Return the text of a `text` cell, which is a text or a list of texts: a line each."""
    if not isinstance(cell, _LISTS):
        return to_text(cell)
    return "\n".join(text for text in map(to_text, cell) if text is not None) or None


def write_cell(feature: Feature | None, cell: Any) -> str | None:
    """Write the cell of a column that a feature reads, or none does, as a text that is read as the cell was."""
    if feature is None or feature.kind not in SEVERAL:
        return join_text(cell)
    values = split_cell(feature, cell)
    return to_text(
        feature.separator.join(values)
        if feature.kind == "multi_categorical"
        else "".join(values[-1:])
    )


# ---- columns of numbers and vectors


def to_numbers(feature: Feature, values: Any) -> NDArray[np.float64]:
    """Read a numeric column as float64 (n,), NaN where missing; a `SchemaError` names a value that does not parse."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        numbers = values.astype(np.float64)
    else:
        numbers = np.array(
            [_to_number(feature, value) for value in values], dtype=np.float64
        )
    if np.isinf(numbers).any():
        raise SchemaError(
            f"feature '{feature.name}': a value is infinite; give a finite number or none"
        )
    return numbers


def _to_number(feature: Feature, value: Any) -> float:
    if to_text(value) is None:
        return np.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(
            f"feature '{feature.name}': '{str(value)[:40]}' is no number"
        ) from error


def to_days(feature: Feature, values: Any, timezone: str | None) -> NDArray[np.float64]:
    """Read a column of dates as days since 1970, (n,), NaN where missing; naive ones in the time zone."""
    texts = list(map(to_text, values))
    given = {
        text: place
        for place, text in enumerate(
            dict.fromkeys(text for text in texts if text is not None)
        )
    }
    seconds, is_valid = to_seconds(list(given), timezone)
    if not is_valid.all():
        got = list(given)[int(np.argmin(is_valid))][:40]
        raise SchemaError(
            f"feature '{feature.name}': '{got}' is no date; give one such as 2024-05-31"
        )
    days = np.append(seconds / DAY, np.nan)
    return np.asarray(
        days[[-1 if text is None else given[text] for text in texts]], np.float64
    )


def to_vectors(feature: Feature, values: Any) -> Floats:
    """Read a vector column, cells as of `read_vector` or a matrix, as float32 (n, W), NaN where missing."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        given = values.astype(np.float32)
        if (
            given.shape[1] != feature.width
            or not np.isfinite(given[~is_missing_row(given)]).all()
        ):
            raise SchemaError(
                f"feature '{feature.name}': vectors of another width than {feature.width}, or not finite"
            )
        return given
    matrix = np.full((len(values), feature.width), np.nan, dtype=np.float32)
    for row, value in enumerate(values):
        try:
            is_missing = (
                not isinstance(value, (Vector, *_LISTS)) and to_text(value) is None
            )
            vector = None if is_missing else read_vector(value)
        except ValueError as error:
            raise SchemaError(
                f"feature '{feature.name}': {error}: '{str(value)[:40]}'"
            ) from error
        if vector is not None and len(vector) != feature.width:
            raise SchemaError(
                f"feature '{feature.name}': a vector of {len(vector)} numbers; expected {feature.width}"
            )
        matrix[row] = np.nan if vector is None else vector
    return matrix


# ---- sides


def code_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each coded feature with its columns of `EncodedFeatures.codes`."""
    return _slices(
        [(feature, feature.width) for feature in features if not feature.has_values]
    )


def value_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each feature that has values with its columns of `EncodedFeatures.values`; the last is the flag."""
    return _slices(
        [(feature, feature.width + 1) for feature in features if feature.has_values]
    )


def _slices(widths: list[tuple[Feature, int]]) -> list[tuple[Feature, slice]]:
    stops = accumulate(width for _, width in widths)
    return [
        (feature, slice(stop - width, stop))
        for (feature, width), stop in zip(widths, stops, strict=True)
    ]


def encode_features(
    features: Sequence[Feature],
    columns: Mapping[str, Any],
    n: int,
    timezone: str | None = None,
) -> EncodedFeatures:
    """Encode the features of one side: feature column -> n raw values, all missing where it is absent.

    `datetime` holds UTC seconds; hours and weekdays are taken in the time zone.
    """
    codes = [np.empty((n, 0), np.int64)]
    values = [np.empty((n, 0), np.float32)]
    for feature in features:
        column = columns.get(feature.column)
        if column is None:
            column = [None] * n
        elif len(column) != n:
            raise SchemaError(
                f"column '{feature.column}' has {len(column)} values; expected {n}, one a row"
            )
        elif not isinstance(
            column, (list, tuple)
        ):  # as an array ["a", True] would become two texts
            column = np.asarray(column)
        if feature.has_values:
            values.append(_encode_values(feature, column, timezone))
        else:
            codes.append(
                _ENCODERS.get(feature.kind, _encode_calendar)(feature, column, timezone)
            )
    return EncodedFeatures(
        np.concatenate(codes, axis=1), np.concatenate(values, axis=1)
    )


def keyed_by_name(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Let features be read by their names, since two may share a column; hours and weekdays from `TIME`."""
    return tuple(
        replace(feature, column=TIME if feature.kind in DERIVED else feature.name)
        for feature in features
    )


def encode_rows(
    features: Sequence[Feature], rows: Sequence[Mapping[str, Any]], timezone: str | None
) -> EncodedFeatures:
    """Encode rows of features `keyed_by_name`, given as name -> value; a name that a row lacks is missing."""
    columns = {name: [row.get(name) for row in rows] for name in set().union(*rows)}
    return encode_features(features, columns, len(rows), timezone)


def _look_up(feature: Feature, values: Any, timezone: str | None) -> Ints:
    """Return (n, 1) codes; numbers through their distinct values, which are few."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        distinct, index = np.unique(values, return_inverse=True)
        return _look_up(feature, list(distinct), timezone)[index]
    code_of = feature.codes.get
    codes = [code_of(to_text(value), UNKNOWN) for value in values]  # type: ignore[arg-type]
    return np.array(codes, dtype=np.int64)[:, None]


def _encode_calendar(feature: Feature, values: Any, timezone: str | None) -> Ints:
    """Return (n, 1) codes of hours or weekdays."""
    numbers = to_numbers(feature, values)
    is_known = ~np.isnan(numbers)
    seconds = np.where(is_known, numbers, 0).astype(np.int64)
    place = (hour_of_day if feature.kind == "hour_of_day" else day_of_week)(
        seconds, timezone
    )
    codes = np.array(
        [feature.codes.get(str(number), UNKNOWN) for number in range(_HOURS)],
        dtype=np.int64,
    )
    return np.where(is_known, codes[place], UNKNOWN)[:, None]


def _encode_cells(feature: Feature, cells: Any, timezone: str | None) -> Ints:
    """Return (n, width) codes of cells with several values, each once a row, PADDING at the end."""

    def encode(cell: Any) -> list[int]:
        found = (feature.codes.get(text, UNKNOWN) for text in split_cell(feature, cell))
        return ((list(dict.fromkeys(found)) or [UNKNOWN]) + [PADDING] * feature.width)[
            : feature.width
        ]

    texts = {cell for cell in cells if isinstance(cell, str)}
    known = {cell: encode(cell) for cell in texts}
    rows = [known[cell] if isinstance(cell, str) else encode(cell) for cell in cells]
    return np.array(rows, dtype=np.int64).reshape(len(rows), feature.width)


def _encode_values(feature: Feature, values: Any, timezone: str | None) -> Floats:
    """Return (n, width + 1) standardised numbers, vectors, or ages at the end of the data, and missing flag."""
    if feature.kind == "date":
        entries: NDArray[Any] = -to_days(feature, values, timezone)[
            :, None
        ]  # the end is part of the mean
    else:
        entries = (
            to_numbers(feature, values)[:, None]
            if feature.is_numeric
            else to_vectors(feature, values)
        )
    is_missing = np.isnan(entries).all(axis=1)
    mean, scale = (
        entries.dtype.type(number) for number in (feature.mean, feature.scale)
    )
    with np.errstate(
        over="ignore"
    ):  # the ends of the range overflow to what is clipped anyway
        standard = np.clip((entries - mean) / scale, -LIMIT, LIMIT)
    standard[is_missing] = 0.0
    return np.column_stack([standard, is_missing]).astype(np.float32)


def age_values(
    features: Sequence[Feature], values: Floats, days: NDArray[np.float64]
) -> Floats:
    """Turn the ages among values (..., V), which are at the end of the data, into those so many days later, (...)."""
    aged = values
    for feature, columns in value_slices(features):
        if feature.kind == "date":
            aged = values.copy() if aged is values else aged
            ages = values[..., columns.start] + (days / feature.scale).astype(
                np.float32
            )
            is_missing = values[..., columns.stop - 1] == 1
            aged[..., columns.start] = np.where(
                is_missing, np.float32(0), np.clip(ages, -LIMIT, LIMIT)
            )
    return aged


def context_keys(features: Sequence[Feature], codes: Ints) -> Ints:
    """Return a key (n,) of all single values of contexts (n, C): equal for equal contexts, 0 where nothing is known."""
    keys = np.zeros(len(codes), dtype=np.int64)
    for feature, columns in code_slices(features):
        if feature.vocabulary and feature.width == 1:
            keys = (
                keys * _KEY_FACTOR + feature.keys[codes[:, columns.start]]
            )  # modulo 2 ** 64
    return keys


# ---- hashed text: words, pairs of neighbouring words, then n-grams of letters (Bojanowski et al. 2017)


def encode_texts(feature: Feature, cells: Any, timezone: str | None = None) -> Ints:
    """Code the tokens of texts, (n, width): each bucket once a row, then PADDING; UNKNOWN where there is no token."""
    texts = list(map(join_text, cells))
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    codes = np.full((len(place), feature.width), PADDING, dtype=np.int64)
    for row, buckets in zip(
        codes, hash_texts(place, feature.width, feature.buckets), strict=True
    ):
        row[: len(buckets) or 1] = [
            bucket + FIRST_CODE for bucket in buckets
        ] or UNKNOWN
    return codes[np.array([place[text] for text in texts], dtype=np.int64)]


_ENCODERS: dict[str, Callable[[Feature, Any, str | None], Ints]] = {
    "categorical": _look_up,
    **dict.fromkeys(SEVERAL, _encode_cells),
    "text": encode_texts,
}


# ---- single-valued item features as one list of Q categories, by which preferences are counted


def category_features(features: tuple[Feature, ...]) -> list[tuple[Feature, slice]]:
    """Return the single-valued features that have a vocabulary, with their code columns."""
    return [
        (feature, columns)
        for feature, columns in code_slices(features)
        if feature.kind == "categorical"
    ]


def count_categories(features: tuple[Feature, ...]) -> int:
    """Count the codes of all single-valued features: Q."""
    return sum(feature.n_codes for feature, _ in category_features(features))


def category_rows(features: tuple[Feature, ...], codes: Ints) -> Ints:
    """Number the codes (N, C) of single-valued features among all categories: (N, F) int64 within [0, Q)."""
    columns = []
    offset = 0
    for feature, place in category_features(features):
        columns.append(codes[:, place.start] + offset)
        offset += feature.n_codes
    return (
        np.stack(columns, axis=1)
        if columns
        else np.zeros((len(codes), 0), dtype=np.int64)
    )
