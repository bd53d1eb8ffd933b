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


def hide_rows(encoded: EncodedFeatures, is_hidden: np.ndarray, features: tuple[Feature, ...]) -> EncodedFeatures:
    """Encode the marked rows as serving does where nothing is known of them."""
    missing = encode_features(features, {}, 1)
    codes = np.where(is_hidden[:, None], missing.codes, encoded.codes)
    return EncodedFeatures(codes, np.where(is_hidden[:, None], missing.values, encoded.values))
