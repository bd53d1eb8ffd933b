"""What training withholds at random, since requests come without it too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve.encoding import EncodedFeatures
from serve.schema import PADDING, UNKNOWN


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


def hide_rows(encoded: EncodedFeatures, is_hidden: np.ndarray) -> EncodedFeatures:
    """Encode the marked rows as if nothing were known of them."""
    codes, values = encoded.codes.copy(), encoded.values.copy()
    hidden = codes[is_hidden]
    codes[is_hidden] = np.where(hidden == PADDING, PADDING, UNKNOWN)
    values[is_hidden, 0::2] = 0.0
    values[is_hidden, 1::2] = 1.0
    return EncodedFeatures(codes, values)


def hide_all(like: EncodedFeatures, n: int) -> EncodedFeatures:
    """Encode n rows of which nothing is known, with the columns of `like`."""
    blank = EncodedFeatures(
        np.full((n, like.codes.shape[1]), UNKNOWN, dtype=np.int64),
        np.zeros((n, like.values.shape[1]), dtype=np.float32),
    )
    return hide_rows(blank, np.ones(n, dtype=bool))
