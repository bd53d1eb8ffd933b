"""Events of many users as flat arrays: the form in which histories travel in training and in serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Events:
    """Segment b, `offsets[b]:offsets[b + 1]`, holds the events of one user or request, oldest first.

    Shapes: `offsets` (B + 1,), every other array (E,).
    """

    item_row: Ints
    time: Ints
    """UTC seconds; 0 where the data has no time."""
    event: Ints
    """Code of the event type; 1 = unknown or none."""
    weight: Floats
    """As in the table, not standardised."""
    offsets: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Ints:
        """Events per segment, (B,)."""
        return np.diff(self.offsets)

    def segments(self) -> Ints:
        """Return the segment of each event, (E,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def between(self, start: Ints, stop: Ints) -> Events:
        """Take the events `start[b]:stop[b]` (positions in the flat arrays) as segment b."""
        counts = stop - start
        offsets = np.concatenate([[0], np.cumsum(counts)])
        flat = np.repeat(start - offsets[:-1], counts) + np.arange(offsets[-1])
        return Events(self.item_row[flat], self.time[flat], self.event[flat], self.weight[flat], offsets)

    def last(self, length: int) -> Events:
        """Keep the last `length` events of each segment."""
        stop = self.offsets[1:]
        return self.between(np.maximum(self.offsets[:-1], stop - length), stop)
