"""Turn the features of a side into integer codes and numbers: in training and in serving.

A side (user, item or context) becomes two matrices, laid out by `code_slices` and `value_slices`:

    codes   int64   (n, C)  `width` columns a feature of codes: 1, more of several values and texts
    values  float32 (n, V)  of number, date and vector the standardised entries, then 1.0 if missing
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serve.arrays import Doubles, Floats, Ints
from serve.kinds import LIMIT, Feature

# The key of the seconds that hours, weekdays, ... are taken from; no feature's name.
TIME = "the time of the request"

_KEY_FACTOR = 6364136223846793005  # odd, so that no key is lost (Knuth, TAOCP 2, 3.3.4)


@dataclass(frozen=True)
class EncodedFeatures:
    """The features of n rows of one side.

    Attributes:
        codes: (n, C), each within [0, n_codes) of its feature.
        values: (n, V), finite.
    """

    codes: Ints
    values: Floats

    def take(self, rows: Ints) -> EncodedFeatures:
        """Pick rows, in any order and as often as named."""
        codes = self.codes.take(rows, axis=0)
        return EncodedFeatures(codes, self.values.take(rows, axis=0))


def encode_features(
    features: Sequence[Feature],
    columns: Mapping[str, Any],
    n: int,
    timezone: str | None = None,
) -> EncodedFeatures:
    """Encode the features of one side.

    Args:
        features: the features of the side, in the order of the schema.
        columns: column -> n raw cells; an absent one is missing. `datetime` holds UTC seconds.
        n: number of rows.
        timezone: zone of naive dates, and of hours, weekdays, weeks and months.

    Raises:
        SchemaError: a cell is of another kind than its feature.
    """
    codes = [np.empty((n, 0), np.int64)]
    values = [np.empty((n, 0), np.float32)]
    for feature in features:
        column = columns.get(feature.column, [None] * n)
        # As an array a list ["a", True] would become two texts.
        if not isinstance(column, (list, tuple)):
            column = np.asarray(column)
        encoded = feature.encode(column, timezone)
        (values if feature.has_values else codes).append(encoded)

    return EncodedFeatures(
        np.concatenate(codes, axis=1), np.concatenate(values, axis=1)
    )


def keyed_by_name(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Let features be read by name, since two may share a column; derived ones from `TIME`."""
    return tuple(
        replace(feature, column=TIME if feature.is_derived else feature.name)
        for feature in features
    )


def encode_rows(
    features: Sequence[Feature], rows: Sequence[Mapping[str, Any]], timezone: str | None
) -> EncodedFeatures:
    """Encode rows, name -> value, of features `keyed_by_name`; an absent name is missing."""
    columns = {}
    for name in set().union(*rows):
        columns[name] = [row.get(name) for row in rows]
    return encode_features(features, columns, len(rows), timezone)


# ---- the columns of a side


def code_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each coded feature with its columns of `EncodedFeatures.codes`."""
    return _slices([feature for feature in features if not feature.has_values], 0)


def value_slices(features: Iterable[Feature]) -> list[tuple[Feature, slice]]:
    """Return each feature of numbers with its columns of `EncodedFeatures.values`, flag last."""
    return _slices([feature for feature in features if feature.has_values], 1)


def _slices(features: list[Feature], n_flags: int) -> list[tuple[Feature, slice]]:
    slices = []
    start = 0
    for feature in features:
        stop = start + feature.width + n_flags
        slices.append((feature, slice(start, stop)))
        start = stop

    return slices


# ---- ages and contexts


def age_values(features: Sequence[Feature], values: Floats, days: Doubles) -> Floats:
    """Turn the ages among values, which are at the end of the data, into those at later moments.

    Args:
        features: the features of the side.
        values: (..., V) as of `encode_features`.
        days: (...) from the end of the data to the moment.
    """
    aged = values.copy()
    for feature, columns in value_slices(features):
        if feature.is_date:
            later = (days / feature.scale).astype(np.float32)
            ages = np.clip(values[..., columns.start] + later, -LIMIT, LIMIT)
            is_missing = values[..., columns.stop - 1] == 1
            aged[..., columns.start] = np.where(is_missing, np.float32(0), ages)

    return aged


def context_keys(features: Sequence[Feature], codes: Ints) -> Ints:
    """Return a key of all single values of each context, the same in every schema.

    Args:
        features: the context features.
        codes: (n, C) as of `encode_features`.

    Returns:
        (n,) equal for equal contexts, 0 where nothing is known.
    """
    keys = np.zeros(len(codes), dtype=np.int64)
    for feature, columns in code_slices(features):
        if feature.vocabulary and feature.width == 1:
            # Modulo 2 ** 64.
            keys = keys * _KEY_FACTOR + feature.keys[codes[:, columns.start]]

    return keys


# ---- single-valued features as one list of Q categories, by which preferences are counted


def category_features(features: tuple[Feature, ...]) -> list[tuple[Feature, slice]]:
    """Return the single-valued features that have a vocabulary, with their code columns."""
    return [entry for entry in code_slices(features) if entry[0].is_categorical]


def count_categories(features: tuple[Feature, ...]) -> int:
    """Count the codes of all single-valued features: Q."""
    return sum(feature.n_codes for feature, _ in category_features(features))


def category_rows(features: tuple[Feature, ...], codes: Ints) -> Ints:
    """Number the codes of single-valued features among all categories.

    Args:
        features: the item features.
        codes: (N, C) as of `encode_features`.

    Returns:
        (N, F) within [0, Q), of F single-valued features.
    """
    columns = [np.zeros((len(codes), 0), dtype=np.int64)]
    first_category = 0
    for feature, columns_of_feature in category_features(features):
        columns.append(codes[:, columns_of_feature] + first_category)
        first_category += feature.n_codes

    return np.concatenate(columns, axis=1)
