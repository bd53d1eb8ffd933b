"""Events of many users as flat arrays: the form in which histories travel in training and in serving."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def counts(self) -> Ints:
        """Events per segment, (B,)."""
        return self.offsets[1:] - self.offsets[:-1]

    def segments(self) -> Ints:
        """Return the segment of each event, (E,)."""
        return self._segments

    @cached_property
    def _segments(self) -> Ints:
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def is_first_of_time(self) -> NDArray[np.bool_]:
        """Which events are the first at their time in their segment, (E,)."""
        is_first = np.ones(len(self.time) + 1, dtype=bool)
        np.not_equal(self.time[1:], self.time[:-1], out=is_first[1:-1])
        is_first[self.offsets[:-1]] = True  # empty segments at the end begin one past the events
        return is_first[:-1]

    def between(self, start: Ints, stop: Ints) -> Events:
        """Take the events `start[b]:stop[b]` (positions in the flat arrays) as segment b."""
        return self.pick(spans(start, stop), np.concatenate([[0], np.cumsum(stop - start)]))

    def pick(self, places: Ints, offsets: Ints) -> Events:
        """Take events by their place in the flat arrays, as the segments that `offsets` says."""
        return Events(self.item_row[places], self.time[places], self.event[places], self.weight[places], offsets)

    def last(self, length: int) -> Events:
        """Keep the last `length` events of each segment."""
        if len(self.item_row) <= length or self.counts.max(initial=0) <= length:
            return self
        stop = self.offsets[1:]
        return self.between(np.maximum(self.offsets[:-1], stop - length), stop)


def spans(start: Ints, stop: Ints) -> Ints:
    """Return the places `start[b]:stop[b]` of all b one after the other."""
    counts = stop - start
    ends = np.cumsum(counts)
    places: Ints = np.repeat(start - ends + counts, counts) + np.arange(counts.sum())
    return places
