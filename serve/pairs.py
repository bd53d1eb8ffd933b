"""Pairs of a request and an item, flat: what is owned, excluded, remembered or a contender."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.index import Ragged
from serve.top_k import Floats, Ints, rank_contenders


@dataclass(frozen=True)
class Pairs:
    """C pairs of a request of the tile and an item row, in any order unless it is said."""

    requests: Ints
    rows: Ints

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: NDArray[np.generic]) -> Pairs:
        return Pairs(self.requests[index], self.rows[index])

    def keys(self, n_items: int) -> Ints:
        """Return one number per pair, in the order of request and row."""
        return self.requests * n_items + self.rows

    def of_request(self, place: int) -> Ints:
        """Return the rows of a request."""
        rows: Ints = self.rows[self.requests == place]
        return rows

    def of_requests(self, place_of: Ints) -> NDArray[np.bool_]:
        """Tell which pairs are of requests that have a new place; -1 is none."""
        kept: NDArray[np.bool_] = place_of[self.requests] >= 0
        return kept

    def move(self, place_of: Ints) -> Pairs:
        """Return the pairs of the requests that have a new place, with this place."""
        kept = self.take(self.of_requests(place_of))
        return Pairs(place_of[kept.requests], kept.rows)


NO_PAIRS = Pairs(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class RequestItems:
    """The items that T requests bring."""

    remembered: Pairs
    """Those that the memory scores, ordered by request and row; none where repeats are not allowed."""
    owned: Pairs
    """All events of each history whose item is known."""
    excluded: Pairs
    """Those of the exclude lists that are known."""

    def move(self, place_of: Ints) -> RequestItems:
        """Return those of the requests that have a new place; see `Pairs.move`."""
        return RequestItems(self.remembered.move(place_of), self.owned.move(place_of), self.excluded.move(place_of))


def join_pairs(*parts: Pairs) -> Pairs:
    """Put pairs one after another."""
    some = [part for part in parts if len(part)]
    if len(some) < 2:
        return some[0] if some else NO_PAIRS
    return Pairs(np.concatenate([part.requests for part in some]), np.concatenate([part.rows for part in some]))


def distinct_pairs(pairs: Pairs, n_items: int) -> Pairs:
    """Return each pair once, ordered by request and row."""
    return Pairs(*np.divmod(np.unique(pairs.keys(n_items)), n_items))


def to_ragged(pairs: Pairs, n_requests: int) -> Ragged:
    """Return the rows of each request, as the index takes exclusions; a pair may be there more than once."""
    order = pairs.requests.argsort(kind="stable")
    offsets = np.zeros(n_requests + 1, dtype=np.int64)
    np.bincount(pairs.requests, minlength=n_requests).cumsum(out=offsets[1:])
    return pairs.rows[order], offsets


def are_among(pairs: Pairs, others: Pairs, n_items: int) -> NDArray[np.bool_]:
    """Tell which pairs are among others, (C,)."""
    if not len(others):
        return np.zeros(len(pairs), dtype=np.bool_)
    return np.isin(pairs.keys(n_items), others.keys(n_items))


def spread_scores(known: Pairs, scores: Floats, pairs: Pairs, n_items: int) -> Floats:
    """Return the score of each of C pairs, 0 for a pair that is not among the known.

    Args:
        known: ordered by request and row, all of them among `pairs`.
        scores: of the known.
        pairs: ordered by request and row.
        n_items: N.
    """
    spread = np.zeros(len(pairs), dtype=np.float32)
    spread[np.searchsorted(pairs.keys(n_items), known.keys(n_items))] = scores
    return spread


def rank_pairs(pairs: Pairs, scores: Floats, n_requests: int, k: int) -> tuple[Floats, Ints]:
    """Order each request's pairs by score, then by row, and keep k; padded as `rank_contenders` does."""
    order = np.lexsort((pairs.rows, pairs.requests))
    return rank_contenders(pairs.requests[order], pairs.rows[order], scores[order], n_requests, k)
