"""Features as callers give them, name -> value in each row, encoded by the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.encoding import EncodedFeatures, encode_features
from serve.requests import DERIVED
from serve.schema import Feature

TIME = "the time of the request"
"""Key of the UTC seconds that hours and weekdays are taken from; no name that a feature has."""


def keyed_by_name(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Let features be read by their names, since two may share a column; hours and weekdays from `TIME`."""
    return tuple(replace(feature, column=TIME if feature.kind in DERIVED else feature.name) for feature in features)


def encode_rows(
    features: Sequence[Feature], rows: Sequence[Mapping[str, Any]], timezone: str | None
) -> EncodedFeatures:
    """Encode one row per mapping; what a mapping does not have is missing.

    Raises:
        SchemaError: a number or vector that does not parse, is not finite or has another width.
    """
    given = set().union(*rows)
    columns = {
        name: [row.get(name) for row in rows] for name in (feature.column for feature in features) if name in given
    }
    return encode_features(features, columns, len(rows), timezone)
