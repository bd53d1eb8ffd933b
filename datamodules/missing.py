"""What training withholds at random, since requests come without it too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve.encoding import EncodedFeatures, encode_features
from serve.schema import Feature


@dataclass(frozen=True)
class Withheld:
    """Shares of training targets that are predicted without a part of what is known."""

    history: float = 0.05
    """Without any history."""
    user: float = 0.10
    """Without demographics."""
    context: float = 0.15
    """Without request context."""
    time: float = 0.15
    """Without the time of the request: recency counts from the user's last event."""


def encode_missing(features: tuple[Feature, ...]) -> EncodedFeatures:
    """Encode one row of which nothing is known, as serving does."""
    return encode_features(features, {}, 1)


def hide_rows(encoded: EncodedFeatures, is_hidden: np.ndarray, missing: EncodedFeatures) -> EncodedFeatures:
    """Put the one row of `missing` in the place of the marked ones."""
    is_hidden = is_hidden[:, None]
    codes = np.where(is_hidden, missing.codes, encoded.codes) if encoded.codes.size else encoded.codes
    values = np.where(is_hidden, missing.values, encoded.values) if encoded.values.size else encoded.values
    return EncodedFeatures(codes, values)
