"""What the items of a history add to the scores of single other items: the sparse part of a score.

    score(u, i) = u . v_i + sum over the items j of the history of w_j S_ji / sqrt(sum of w_j)

where w_j is exp(-decay * events after it), 1 in sets. In an order S_ji tells that i comes after j, in a set, and in an
order that says nothing (its decay is 0), that i goes together with j: how much j speaks for i.

Vectors of a low rank say what most items have in common. That two items which few have go together is said by no rank
that an index could hold, but by a number for the pair: each item keeps those of its nearest neighbours.

The files are arrays of numbers, `numpy.lib.format`, no pickle, and read where they are mapped: one entry a pair,
ordered by item, and where the entries of each item begin.
Letters: B requests, E events, N items, C terms of a sum.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.array_file import open_array
from serve.top_k import Floats, Ints

ENTRY = np.dtype([("neighbour", "<i4"), ("weight", "<f4")])
OFFSET = np.dtype("<i8")
_LARGEST = 1e30  # of a weight: sums of larger ones would overflow
_MOST_REQUESTS = 32  # whose sums are laid out at once


@dataclass(frozen=True, eq=False)
class Neighbours:
    """S of a catalogue of N items, row by row."""

    offsets: Ints
    """(N + 1,): item j has the entries from offsets[j] to offsets[j + 1]."""
    rows: NDArray[np.integer]
    """Neighbours, one of an entry."""
    weights: Floats
    """One of an entry."""
    decay: float = 0.0
    """An event counts by exp(-decay * events after it)."""

    @property
    def n_items(self) -> int:
        return len(self.offsets) - 1

    def scaled(self, weight: float) -> Neighbours:
        """Return S times a weight."""
        return replace(self, weights=(weight * self.weights).astype(np.float32))

    @classmethod
    def none(cls, n_items: int) -> Neighbours:
        """Return those of a catalogue whose items add nothing."""
        return cls(np.zeros(n_items + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def from_bytes(
        cls, offsets: NDArray[np.uint8], entries: NDArray[np.uint8], n_items: int, decay: float
    ) -> Neighbours:
        """View what `to_bytes` wrote.

        Raises:
            ValueError: other arrays, offsets that do not divide the entries among the items, rows outside the
                catalogue, or a weight that is no number or would overflow.
        """
        starts, pairs = open_array(offsets, OFFSET, n_axes=1), open_array(entries, ENTRY, n_axes=1)
        ends = (starts[0], starts[-1]) if len(starts) == n_items + 1 else None
        if ends != (0, len(pairs)) or (starts[1:] < starts[:-1]).any():
            raise ValueError(f"{len(starts)} offsets do not divide {len(pairs)} entries among {n_items} items")
        rows, weights = pairs["neighbour"], pairs["weight"]
        if len(rows) and (rows.min() < 0 or rows.max() >= n_items):
            raise ValueError(f"a row of 'neighbour' is outside 0 to {n_items - 1}")
        if not (np.abs(weights) <= _LARGEST).all():
            raise ValueError(f"a weight is not between -{_LARGEST:g} and {_LARGEST:g}")
        return cls(starts, rows, weights, decay)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Write offsets and entries."""
        entries = np.empty(len(self.rows), ENTRY)
        entries["neighbour"], entries["weight"] = self.rows, self.weights
        return _write(self.offsets.astype(OFFSET)), _write(entries)

    def of_histories(self, history_rows: Ints, lengths: Ints) -> Added | None:
        """Return what histories add; None where no item adds anything.

        Args:
            history_rows: (B, L) item rows, behind the first `lengths` of each anything. Items that came after the
                bundle have no neighbours.
            lengths: (B,).
        """
        if not len(self.rows):
            return None
        later = lengths[:, None] - 1 - np.arange(history_rows.shape[1])  # (B, L); below 0: padding
        counts = np.exp(-self.decay * np.arange(history_rows.shape[1]))  # (L,) of events, the last one first
        sums = np.concatenate([[1.0], counts.cumsum()])[lengths]  # (B,) the same however many others are asked with
        shares = counts[np.maximum(later, 0)] / np.sqrt(sums)[:, None]  # (B, L)
        is_known = (later >= 0) & (history_rows < self.n_items)  # (B, L)
        requests, places = is_known.nonzero()  # (E,) of the events whose item is known
        return Added(self, requests, history_rows[requests, places], shares[requests, places].astype(np.float32))


@dataclass(frozen=True, eq=False)
class Added:
    """What the E events of requests add to the scores of items, before it is summed: that may be much."""

    neighbours: Neighbours
    requests: Ints
    """(E,) ascending."""
    items: Ints
    """(E,)."""
    shares: Floats
    """(E,) times which an event adds what its item says."""

    def spread(self, requests: slice, n_items: int) -> NDArray[np.float64]:
        """Sum over the events of some requests, for a catalogue of at least N items: (n_items, requests).

        The terms of a sum are added in the order of the events: it depends on no other request.
        """
        n_requests = requests.stop - requests.start
        bounds = np.searchsorted(self.requests, np.arange(requests.start, requests.stop + 1))  # (requests + 1,)
        sums = np.empty((n_requests, n_items))
        for place in range(n_requests):  # one after the other: the terms of long histories take room
            sums[place] = self._sum(slice(bounds[place], bounds[place + 1]), n_items)
        return sums.T

    def _sum(self, events: slice, n_items: int) -> NDArray[np.float64]:
        """Sum over events of one request, (n_items,)."""
        offsets, items = self.neighbours.offsets, self.items[events]
        counts = offsets[items + 1] - offsets[items]  # (E,)
        ends = counts.cumsum()  # (E,)
        n_terms = int(ends[-1]) if len(ends) else 0
        entries = np.arange(n_terms) + np.repeat(offsets[items] - ends + counts, counts)  # (C,)
        terms = self.neighbours.weights[entries] * np.repeat(self.shares[events], counts)  # (C,)
        return np.bincount(self.neighbours.rows[entries], terms, n_items).astype(np.float64, copy=False)

    def of_pairs(self, requests: Ints, rows: Ints, n_items: int) -> NDArray[np.float64]:
        """Return the sum of each pair of a request and a row, in any order: as `spread` has it, bit for bit."""
        sums, n_requests = np.zeros(len(rows)), int(requests.max(initial=-1)) + 1
        for start in range(0, n_requests, _MOST_REQUESTS):
            stop = min(start + _MOST_REQUESTS, n_requests)
            is_here = (requests >= start) & (requests < stop)
            if is_here.any():
                spread = self.spread(slice(start, stop), n_items)  # (n_items, requests)
                sums[is_here] = spread[rows[is_here], requests[is_here] - start]
        return sums

    def take(self, place_of: Ints) -> Added:
        """Return the events of the requests that have a new place, which ascends with the old one; -1 is none."""
        is_kept = place_of[self.requests] >= 0
        places = place_of[self.requests[is_kept]]
        return Added(self.neighbours, places, self.items[is_kept], self.shares[is_kept])


def _write(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, (1, 0), allow_pickle=False)
    return file.getvalue()
