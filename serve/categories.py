"""Single-valued item features as one list of categories: what a user's preferences are counted by."""

from __future__ import annotations

import numpy as np

from serve.encoding import code_slices
from serve.events import Ints
from serve.schema import Feature


def category_features(features: tuple[Feature, ...]) -> list[tuple[Feature, slice]]:
    """Return the single-valued features that have a vocabulary, with their code columns."""
    return [(feature, columns) for feature, columns in code_slices(features) if feature.kind == "categorical"]


def count_categories(features: tuple[Feature, ...]) -> int:
    """Count the codes of all single-valued features: Q."""
    return sum(feature.n_codes for feature, _ in category_features(features))


def category_rows(features: tuple[Feature, ...], codes: Ints) -> Ints:
    """Number each item's code of each single-valued feature among all categories.

    Args:
        features: of the item side.
        codes: (N, C) encoded items.

    Returns:
        (N, F) int64 within [0, Q).
    """
    columns, offset = [], 0
    for feature, place in category_features(features):
        columns.append(codes[:, place.start] + offset)
        offset += feature.n_codes
    return np.stack(columns, axis=1) if columns else np.zeros((len(codes), 0), dtype=np.int64)
