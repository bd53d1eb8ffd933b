"""What items say of each other, pair by pair: numbers that a history adds to the scores of other items.

In a set they are EASE's, see `models.item_correlations`, where vectors keep what a low rank can say; in an order they
tell what comes next, see `models.transitions`, unless that order says nothing: then they are those of a set.

Letters: N items, n the most popular ones, r all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.item_correlations import order_by_popularity, partial_correlations, who_has_what
from models.outside_pairs import OutsidePairs, correlate_outside
from serve.index import Neighbours

USUAL = 256
"""Neighbours of an item that are tried beside the most that it may have. With 32 the validation of pairs of Amazon
Beauty found .0608, .0596 where it found .0598, .0592 with these (seeds 0, 1), but the test .0801, .0781 in place of
.0796, .0804: with partial correlations, before they were EASE's numbers."""
CHUNK = 512
"""Items whose neighbours are looked for at once."""


@dataclass(frozen=True)
class PairCorrelations:
    """What the most popular items say of each other, and they and the others."""

    numbers: np.ndarray
    """(n, n) float32: what an item of a history, a row, says of others."""
    rows: np.ndarray
    """(n,) where these items stand among all."""
    n_items: int
    outside: OutsidePairs | None = None
    """Of all others that anybody has; None: nothing is said of them."""

    def find_neighbours(self, n_neighbours: int) -> Neighbours:
        """Return the largest numbers of each item, whatever their sign.

        An item has fewer than `n_neighbours` where fewer of its numbers are not 0. One of the most popular has as many
        of these, and as many of the items outside that have it.
        """
        found = self._find_inside(n_neighbours)
        if self.outside is not None:
            found = found + self._find_outside(self.outside, n_neighbours)
        found.sort_indices()
        return Neighbours(found.indptr.astype(np.int64), found.indices, found.data)

    def _find_inside(self, n_neighbours: int) -> sp.csr_array:
        """Return the largest numbers of each of the most popular items, a row, among them, (N, N)."""
        most = min(n_neighbours, len(self.rows) - 1)
        sizes, rows, weights = np.zeros(self.n_items + 1, np.int64), [], []
        order = np.argsort(self.rows)
        for start in range(0, len(order), CHUNK):
            items = order[start : start + CHUNK]
            numbers = self.numbers[items]  # (chunk, n)
            largest = np.argpartition(-np.abs(numbers), most, axis=1)[:, :most]  # (chunk, most)
            told = np.take_along_axis(numbers, largest, 1)  # (chunk, most)
            sizes[1 + self.rows[items]] = np.count_nonzero(told, axis=1)
            rows.append(self.rows[largest[told != 0]])
            weights.append(told[told != 0])
        parts = (np.concatenate(weights), np.concatenate(rows), sizes.cumsum())
        return sp.csr_array(parts, (self.n_items, self.n_items))

    def _find_outside(self, outside: OutsidePairs, n_neighbours: int) -> sp.csr_array:
        """Return the strongest pairs of each item outside, and of those the largest numbers that tell it, (N, N)."""
        most = min(n_neighbours, outside.places.shape[1])
        others = np.repeat(outside.rows, most)  # (r * most,)
        inside = self.rows[outside.places[:, :most].ravel()]  # (r * most,)
        shape = (self.n_items, self.n_items)
        said = sp.csr_array((outside.said[:, :most].ravel(), (others, inside)), shape)
        numbers = outside.heard[:, :most].ravel()  # (r * most,)
        order = np.lexsort((-np.abs(numbers), inside))  # of an item that tells, the largest first
        numbers, inside, others = numbers[order], inside[order], others[order]  # (r * most,) each
        is_kept = np.arange(len(inside)) - np.searchsorted(inside, inside) < n_neighbours  # (r * most,)
        heard = sp.csr_array((numbers[is_kept], (inside[is_kept], others[is_kept])), shape)
        both: sp.csr_array = said + heard
        return both


def correlate_pairs(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], ridge: float, most: int
) -> PairCorrelations:
    """Correlate the `most` popular items of sets among themselves, and each other item with these.

    Arguments as of `item_correlations.factorise`.
    """
    matrix = who_has_what(user, item_row, shape)
    by_popularity = order_by_popularity(matrix)
    core, others = by_popularity[:most], np.sort(by_popularity[most:])
    inside = matrix[:, core]
    numbers, spread = partial_correlations(inside, ridge)  # (n, n), (n,)
    outside = correlate_outside(inside, matrix[:, others], others, numbers, spread, ridge) if len(others) else None
    numbers *= spread  # now EASE's: of the item that is told over that of the one that tells
    numbers /= spread[:, None]
    return PairCorrelations(numbers, core, shape[1], outside)
