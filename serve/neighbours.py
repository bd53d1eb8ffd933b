"""What the items of a history add to the scores of single other items: the sparse part of a set's score.

    score(u, i) = u . v_i + sum over the items j of the history of S_ji / sqrt(their number)

Vectors of a low rank say what most items have in common. That two items which few have go together is said by no rank
that an index could hold, but by a number for the pair: each item keeps those of its nearest neighbours.

The file is an array of numbers, `numpy.lib.format`, no pickle: one entry a pair, ordered by item.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.added import NOTHING_ADDED, Added
from serve.top_k import Floats, Ints

ENTRY = np.dtype([("item", "<i4"), ("neighbour", "<i4"), ("weight", "<f4")])


@dataclass(frozen=True, eq=False)
class Neighbours:
    """S of a catalogue of N items, row by row."""

    offsets: Ints
    """(N + 1,): item j has the entries from offsets[j] to offsets[j + 1]."""
    rows: Ints
    """(C,) neighbours."""
    weights: Floats
    """(C,)."""

    @property
    def n_items(self) -> int:
        return len(self.offsets) - 1

    def scaled(self, weight: float) -> Neighbours:
        """Return S times a weight."""
        return Neighbours(self.offsets, self.rows, (weight * self.weights).astype(np.float32))

    @classmethod
    def none(cls, n_items: int) -> Neighbours:
        """Return those of a catalogue whose items add nothing."""
        return cls(np.zeros(n_items + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def from_bytes(cls, content: NDArray[np.uint8], n_items: int) -> Neighbours:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: another array, rows outside the catalogue or out of order, or a weight that is not finite.
        """
        head = io.BytesIO(content[:1024].tobytes())
        np.lib.format.read_magic(head)
        shape, _, dtype = np.lib.format.read_array_header_1_0(head)
        if dtype != ENTRY or len(shape) != 1:
            raise ValueError(f"it holds {dtype} {shape}; expected one row of {ENTRY}")
        entries = content[head.tell() :].view(ENTRY)
        if len(entries) != shape[0]:
            raise ValueError(f"it holds {len(entries)} entries; its header says {shape[0]}")
        items, rows = entries["item"].astype(np.int64), entries["neighbour"].astype(np.int64)
        weights = entries["weight"].astype(np.float32)
        for name, values in (("item", items), ("neighbour", rows)):
            if len(values) and (values.min() < 0 or values.max() >= n_items):
                raise ValueError(f"a row of '{name}' is outside 0 to {n_items - 1}")
        if (np.diff(items) < 0).any():
            raise ValueError("its items are not in ascending order")
        if not np.isfinite(weights).all():
            raise ValueError("a weight is not finite")
        return cls(np.searchsorted(items, np.arange(n_items + 1)), rows, weights)

    def to_bytes(self) -> bytes:
        """Write the entries."""
        entries = np.empty(len(self.rows), ENTRY)
        entries["item"] = np.repeat(np.arange(self.n_items), np.diff(self.offsets))
        entries["neighbour"], entries["weight"] = self.rows, self.weights
        file = io.BytesIO()
        np.lib.format.write_array(file, entries, (1, 0), allow_pickle=False)
        return file.getvalue()

    def add_up(self, history_rows: Ints, lengths: Ints) -> Added:
        """Return what histories add.

        Args:
            history_rows: (B, L) item rows, behind the first `lengths` of each anything. Items that came after the
                bundle have no neighbours.
            lengths: (B,).

        Returns:
            The terms of B requests.
        """
        if not len(self.rows):
            return NOTHING_ADDED
        is_known = (np.arange(history_rows.shape[1]) < lengths[:, None]) & (history_rows < self.n_items)
        requests, places = is_known.nonzero()  # (E,) of the events whose item is known
        items = history_rows[requests, places]  # (E,)
        counts = self.offsets[items + 1] - self.offsets[items]  # (E,)
        ends = counts.cumsum()  # (E,)
        entries = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
            self.offsets[items] - ends + counts, counts
        )  # (C,)
        owners = np.repeat(requests, counts)  # (C,)
        share = 1 / np.sqrt(np.maximum(lengths, 1))  # (B,)
        return Added(owners, self.rows[entries], (self.weights[entries] * share[owners]).astype(np.float32))
