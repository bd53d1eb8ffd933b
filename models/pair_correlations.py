"""How items of a set go together, pair by pair: see `models.item_correlations`, of which a low rank keeps vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.item_correlations import binary, order_by_popularity, partial_correlations
from serve.neighbours import Neighbours

USUAL = 256
"""Neighbours of an item that are tried beside the most that it may have. With 32 the validation of pairs of Amazon
Beauty found .0608, .0596 where it found .0598, .0592 with these (seeds 0, 1), but the test .0801, .0781 in place of
.0796, .0804."""
CHUNK = 512
"""Items whose neighbours are looked for at once."""


@dataclass(frozen=True)
class PairCorrelations:
    """Partial correlations of the most popular items, or covariances as of `Factors`."""

    correlations: np.ndarray
    """(n, n) float32."""
    spread: np.ndarray
    """(n,) float32, as of `Factors`."""
    rows: np.ndarray
    """(n,) where these items stand among all."""
    n_items: int
    most: int
    """Neighbours that an item may have."""

    def find_neighbours(self, power: float, n_neighbours: int) -> Neighbours:
        """Return the largest numbers of each item, whatever their sign, with the spread to a power as of `Factors`.

        Fewer than `n_neighbours` of each where it may not have as many, or there are not.
        """
        scale = self.spread**power  # (n,)
        most = min(n_neighbours, self.most, len(scale) - 1)
        offsets, found, weights = np.zeros(self.n_items + 1, np.int64), [], []
        offsets[1 + self.rows] = most
        order = np.argsort(self.rows)
        for start in range(0, len(order), CHUNK):
            items = order[start : start + CHUNK]
            numbers = self.correlations[items] * (scale[items, None] * scale)  # (chunk, n)
            largest = np.sort(np.argpartition(-np.abs(numbers), most, axis=1)[:, :most], axis=1)  # (chunk, most)
            found.append(self.rows[largest])
            weights.append(np.take_along_axis(numbers, largest, 1))
        told = np.concatenate(weights).ravel().astype(np.float32)  # (n most,)
        return Neighbours(offsets.cumsum(), np.concatenate(found).ravel(), told)


def correlate_pairs(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], ridge: float, most: int, n_neighbours: int
) -> PairCorrelations:
    """Correlate the `most` popular items, as arguments of `item_correlations.factorise`.

    Each of them may have `n_neighbours`.
    """
    matrix = binary(user, item_row, shape)
    core = order_by_popularity(matrix)[:most]
    correlations, spread = partial_correlations(matrix[:, core], ridge)
    return PairCorrelations(correlations, spread / spread.mean(), core, shape[1], n_neighbours)
