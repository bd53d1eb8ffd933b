"""Features as callers give them, name -> value in each row, encoded by the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.encoding import (
    EncodedFeatures,
    code_slices,
    encode_codes,
    encode_features,
    encode_values,
    value_slices,
)
from serve.requests import DERIVED
from serve.schema import Feature

TIME = "the time of the request"
"""Key of the UTC seconds that hours and weekdays are taken from; no name that a feature has."""


def keyed_by_name(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Let features be read by their names, since two may share a column; hours and weekdays from `TIME`."""
    return tuple(replace(feature, column=TIME if feature.kind in DERIVED else feature.name) for feature in features)


class RowEncoder:
    """Encode the rows of one side; a feature that no row gives costs nothing."""

    def __init__(self, features: Sequence[Feature], timezone: str | None) -> None:
        """Lay out the features.

        Args:
            features: of the side, as of the schema.
            timezone: where hours and weekdays are taken.
        """
        features = keyed_by_name(features)
        self._coded, self._valued = code_slices(features), value_slices(features)
        self._missing = encode_features(features, {}, 1, timezone)
        self._timezone = timezone

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> EncodedFeatures:
        """Encode one row per mapping of names, and `TIME`, to values; what a mapping does not have is missing.

        Raises:
            SchemaError: a number or vector that does not parse, is not finite or has another width.
        """
        n, given = len(rows), set().union(*rows)
        codes, values = self._missing.codes.repeat(n, axis=0), self._missing.values.repeat(n, axis=0)
        for feature, place in self._coded:
            if feature.column in given:
                codes[:, place] = encode_codes(feature, _read(feature, rows), n, self._timezone)
        for feature, place in self._valued:
            if feature.column in given:
                values[:, place] = encode_values(feature, _read(feature, rows), n)
        return EncodedFeatures(codes, values)


def _read(feature: Feature, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [row.get(feature.column) for row in rows]
