"""At most n items of a value: the greedy list that a walk down the complete ranking gives, without ranking it all.

The walk takes an item unless one of its values is full. Once a value is full no later item of it is taken, so
what remains is searched again without these. Each search gives the next items of the walk, and each but the last
fills a value; the list is exact.
An item without a value in a column is not limited by it; an item with many counts for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.filters.labels import Labels
from serve.top_k import Floats, Ints

Mask = NDArray[np.bool_]
Search = Callable[[Mask], tuple[Floats, Ints]]
"""Ranks for one request the best items among those not barred: scores and rows, -1 at the end if there are no more."""


@dataclass(frozen=True)
class Limit:
    """How many items of one list may share a value of a column."""

    labels: Labels
    most: int


class Walk:
    """The list of one request in the making."""

    def __init__(self, limits: Sequence[Limit], k: int) -> None:
        self._limits = limits
        self._k = k
        self._counts: list[dict[int, int]] = [{} for _ in limits]
        self._rows: list[int] = []
        self._scores: list[float] = []

    @property
    def is_complete(self) -> bool:
        return len(self._rows) == self._k

    def go_on(self, scores: Floats, rows: Ints) -> None:
        """Take what may be taken of the items that come next."""
        rows = rows[rows >= 0]  # there is nothing behind a -1
        values = zip(*(limit.labels.codes_of(rows) for limit in self._limits), strict=True)
        for score, row, codes in zip(scores.tolist(), rows.tolist(), values, strict=False):
            if self.is_complete:
                return
            self._meet(score, row, codes)

    def bar(self, barred: Mask) -> Mask:
        """Return what may not be listed any more: what is barred, taken, or of a value that is full, (N,)."""
        mask = barred.copy()
        mask[self._rows] = True
        for limit, counts in zip(self._limits, self._counts, strict=True):
            mask |= limit.labels.have([code for code, count in counts.items() if count >= limit.most])
        return mask

    def write(self, scores: Floats, rows: Ints) -> None:
        """Write the list over the (k,) entries given; -inf and -1 fill the end."""
        scores[:], rows[:] = -np.inf, -1
        scores[: len(self._rows)], rows[: len(self._rows)] = self._scores, self._rows

    def _meet(self, score: float, row: int, codes: Sequence[list[int]]) -> None:
        for limit, counts, values in zip(self._limits, self._counts, codes, strict=True):
            for value in values:
                if counts.get(value, 0) >= limit.most:
                    return
        for counts, values in zip(self._counts, codes, strict=True):
            for value in values:
                counts[value] = counts.get(value, 0) + 1
        self._rows.append(row)
        self._scores.append(score)


def complete(walk: Walk, search: Search, barred: Mask) -> None:
    """Search on until the list is complete or nothing more may be listed."""
    while not walk.is_complete:
        scores, rows = search(walk.bar(barred))
        walk.go_on(scores, rows)
        if not len(rows) or rows[-1] < 0:
            return
