"""What single items score for a request beyond the product of vectors, before it is summed.

Letters: T requests of a tile, N items, C terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.top_k import Floats, Ints


@dataclass(frozen=True)
class Added:
    """C terms of requests and item rows; the terms of one pair count together."""

    requests: Ints
    """(C,) ascending."""
    rows: Ints
    values: Floats

    def bound(self, n_requests: int) -> NDArray[np.float64]:
        """Return the most that is added to an item of each request, or taken from it, (T,)."""
        return _sum(self.requests, np.abs(self.values), n_requests)

    def spread(self, requests: slice, n_items: int) -> NDArray[np.float64] | None:
        """Sum the terms of some requests, (N, T); None where there are none.

        A sum is of the terms of one pair in their order: it depends on no other request.
        """
        start, stop = np.searchsorted(self.requests, [requests.start, requests.stop])
        if start == stop:
            return None
        n_requests, part = requests.stop - requests.start, slice(start, stop)
        cells = self.rows[part] * n_requests + self.requests[part] - requests.start
        return _sum(cells, self.values[part], n_items * n_requests).reshape(n_items, n_requests)

    def of_pairs(self, requests: Ints, rows: Ints, n_items: int) -> NDArray[np.float64]:
        """Return the sum of each pair of a request and a row, (any,)."""
        pairs, place = np.unique(self.requests * n_items + self.rows, return_inverse=True)
        sums = _sum(place, self.values, len(pairs))
        wanted = requests * n_items + rows
        found = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
        if not len(pairs):
            return np.zeros(len(wanted))
        return np.where(pairs[found] == wanted, sums[found], 0.0)

    def take(self, place_of: Ints) -> Added:
        """Return the terms of the requests that have a new place, which ascends with the old one; -1 is none."""
        is_kept = place_of[self.requests] >= 0
        return Added(place_of[self.requests[is_kept]], self.rows[is_kept], self.values[is_kept])


def _sum(places: Ints, values: Floats, n_places: int) -> NDArray[np.float64]:
    return np.bincount(places, values, n_places).astype(np.float64, copy=False)  # of whole numbers where there are none


NOTHING_ADDED = Added(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))
