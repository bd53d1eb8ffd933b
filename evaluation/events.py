"""Training events as the baselines read them, and how strongly they tie a user to an item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from evaluation.metrics import Floats
from evaluation.ranking import Scores
from evaluation.targets import Bools, Ints, ItemSets
from serve.errors import SchemaError

Strength = Callable[[Floats], Floats]
"""Counts of (user, item) pairs -> their strengths."""

_EARLIEST = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Events:
    """Interactions in any order; a pair may come many times."""

    user_row: Ints
    """(E,)"""
    item_row: Ints
    """(E,)"""
    time: Ints | None
    """(E,) seconds, or None where the data has no times."""
    n_users: int
    """Users have the rows 0 to n_users - 1, those without an event among them."""
    n_items: int

    def keep(self, kept: Bools) -> Events:
        """Keep the events of the mask `kept` (E,)."""
        time = None if self.time is None else self.time[kept]
        return Events(self.user_row[kept], self.item_row[kept], time, self.n_users, self.n_items)

    def find_taken(self) -> Ints:
        """Return the rows of the items that have events, ascending, (M,); the first one too, so that M is 1 or more."""
        return np.unique(np.append(self.item_row, 0))

    def renumber(self, items: Ints) -> Events:
        """Number the items `items` (M,), ascending, from 0 to M - 1; no other item may have an event."""
        return Events(self.user_row, np.searchsorted(items, self.item_row), self.time, self.n_users, len(items))

    def since_last(self) -> Ints:
        """Return for every event the seconds from it to the last of all, (E,).

        Raises:
            SchemaError: the data has no times.
        """
        if self.time is None:
            raise SchemaError("the interactions have no times: name their datetime column or leave this out")
        return np.asarray(self.time.max(initial=_EARLIEST) - self.time)

    def matrix(self, strength: Strength) -> sparse.csr_array:
        """Return the users' strengths of each item, (U, N)."""
        shape = (self.n_users, self.n_items)
        counts = sparse.csr_array((np.ones(len(self.item_row)), (self.user_row, self.item_row)), shape=shape)
        counts.sum_duplicates()
        counts.data = strength(counts.data)
        return counts

    def popularity(self, strength: Strength) -> Scores:
        """Return the sum of each item's strengths, scaled into [0, 1), (N,)."""
        total = np.asarray(self.matrix(strength).sum(axis=0)).ravel()
        return np.asarray(total / (total.max(initial=0) + 1), np.float32)

    def owned(self) -> ItemSets:
        """Return the distinct items of every user."""
        matrix = self.matrix(as_binary)
        return ItemSets(matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64))


def join_events(first: Events, second: Events) -> Events:
    """Put the events of two parts of one data set together."""
    time = None
    if first.time is not None and second.time is not None:
        time = np.concatenate([first.time, second.time])
    return Events(
        np.concatenate([first.user_row, second.user_row]),
        np.concatenate([first.item_row, second.item_row]),
        time,
        first.n_users,
        first.n_items,
    )


def as_binary(counts: Floats) -> Floats:
    return np.ones_like(counts)


def as_counts(counts: Floats) -> Floats:
    return counts


def as_logs(counts: Floats) -> Floats:
    """Return 1 + ln(count): the tenth purchase says less than the second."""
    return np.asarray(1 + np.log(counts))
