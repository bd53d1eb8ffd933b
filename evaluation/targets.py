"""What each test request should have found: its target items, as flat arrays with offsets.

A *request* asks for one ranked list: a user at a moment. Lists are int64 (B, K) item rows, best first; -1
fills a short list. B requests, K places, T targets in all, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ItemSets:
    """A set of items per request."""

    item_row: Ints
    """(T,) item rows, request after request; -1 is an item outside the catalogue."""
    offsets: Ints
    """(B + 1,) request b has the entries offsets[b] to offsets[b + 1]."""

    @classmethod
    def group(cls, request: Ints, item_row: Ints, n_requests: int) -> ItemSets:
        """Gather (request, item) pairs in any order; inside a request their order and repetitions stay."""
        order = np.argsort(request, kind="stable")
        counts = np.bincount(request, minlength=n_requests)
        return cls(item_row[order].astype(np.int64), _offsets(counts))

    @property
    def counts(self) -> Ints:
        """How many entries each request has, (B,)."""
        return np.diff(self.offsets)

    @property
    def request(self) -> Ints:
        """The request of every entry, (T,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def keep(self, kept: Bools) -> ItemSets:
        """Keep the entries of the mask `kept` (T,); requests stay, if need be without an entry."""
        counts = np.bincount(self.request[kept], minlength=len(self.offsets) - 1)
        return ItemSets(self.item_row[kept], _offsets(counts))

    def take(self, requests: Ints) -> ItemSets:
        """Return the sets of `requests`, in that order; one may be named twice."""
        counts = self.counts[requests]
        offsets = _offsets(counts)
        shift = np.repeat(self.offsets[requests] - offsets[:-1], counts)
        return ItemSets(self.item_row[np.arange(offsets[-1]) + shift], offsets)

    def contain(self, request: Ints, item_row: Ints) -> Bools:
        """Say for each pair whether the item is in the request's set; -1 never is."""
        width = 2 + max(item_row.max(initial=0), self.item_row.max(initial=0))
        held = np.append(np.sort(self.request * width + self.item_row), -1)  # -1 keeps it from being empty
        asked = request * width + item_row
        return np.asarray((held[np.searchsorted(held[:-1], asked)] == asked) & (item_row >= 0))


@dataclass(frozen=True)
class Targets:
    """What B test requests should find."""

    items: ItemSets
    """The target items, distinct inside a request. One outside the catalogue is -1: a miss that counts."""
    user: Ints
    """(B,) the user of each request."""

    def keep(self, kept: Bools) -> Targets:
        """Keep the target entries of the mask `kept` (T,)."""
        return Targets(self.items.keep(kept), self.user)


def hit_matrix(lists: Ints, targets: Targets) -> Bools:
    """Mark the places of each list that hold a target of its request, (B, K)."""
    request = np.arange(len(lists))[:, None]  # (B, 1)
    return targets.items.contain(request, lists)


def _offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
