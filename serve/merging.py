"""Rank a tile of requests: what the index finds, joined with the owned items, scored one by one.

The result is exact: an item that is neither found nor scored one by one has k better ones in the index.
Letters: T requests of the tile, E remembered items, W columns of a vector, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve.index import ItemIndex
from serve.neighbours import Added
from serve.pairs import (
    Pairs,
    RequestItems,
    are_among,
    distinct_pairs,
    join_pairs,
    rank_pairs,
    spread_scores,
    to_ragged,
)
from serve.top_k import Floats, Ints, dot_pairs

Lists = tuple[Floats, Ints]
"""Scores (T, k) falling, and item rows (T, k); equal scores order by row, -inf and -1 fill the end."""
Barred = NDArray[np.bool_] | None
"""(N,) the items that none of the requests may be given."""


@dataclass(frozen=True)
class Scored:
    """Requests with what the user tower says of them."""

    items: RequestItems
    vectors: Floats
    """(T, W)."""
    memory: Floats
    """(E,) what each remembered item scores beyond the product of vectors and what is added."""
    added: Added | None = None
    """What the items of the histories add to the scores of others; None: nothing."""

    def __len__(self) -> int:
        return len(self.vectors)

    def take(self, places: Ints) -> Scored:
        """Return some of the requests, in ascending order."""
        place_of = np.full(len(self), -1, dtype=np.int64)
        place_of[places] = np.arange(len(places))
        memory = self.memory[self.items.remembered.of_requests(place_of)]
        return Scored(self.items.move(place_of), self.vectors[places], memory, self.added and self.added.take(place_of))


Rank = Callable[[ItemIndex, Scored, int, Barred], Lists]
LeftOut = tuple[Literal["excluded", "owned"], ...]


@dataclass(frozen=True)
class View:
    """Which items are ranked."""

    rank: Rank
    left_out: LeftOut | None
    """Which items of a request are not listed; None where a list has no length to fall short of."""


def rank_all(index: ItemIndex, scored: Scored, k: int, barred: Barred = None) -> Lists:
    """Rank all items but the excluded, barred and hidden ones, owned or not."""
    excluded, remembered = scored.items.excluded, scored.items.remembered
    masked = to_ragged(join_pairs(excluded, remembered), len(scored))
    found = index.search(scored.vectors, k, masked, barred, scored.added)
    kept, memory = _leave_out(index, excluded, barred, remembered, scored.memory)
    return merge(found, kept, _score(index, scored, kept, memory), k)


def rank_novel(index: ItemIndex, scored: Scored, k: int, barred: Barred = None) -> Lists:
    """Rank the items that are neither owned nor excluded nor barred."""
    masked = to_ragged(join_pairs(scored.items.excluded, scored.items.owned), len(scored))
    return index.search(scored.vectors, k, masked, barred, scored.added)


def rank_owned(index: ItemIndex, scored: Scored, k: int, barred: Barred = None) -> Lists:
    """Rank the owned items but the excluded and barred ones: `rank_all` without the others."""
    owned = distinct_pairs(scored.items.owned, len(index))
    memory = spread_scores(scored.items.remembered, scored.memory, owned, len(index))
    kept, memory = _leave_out(index, scored.items.excluded, barred, owned, memory)
    return rank_pairs(kept, _score(index, scored, kept, memory), len(scored), k)


ALL = View(rank_all, ("excluded",))
NOVEL = View(rank_novel, ("excluded", "owned"))
OWNED = View(rank_owned, None)


def merge(found: tuple[Floats, Ints], owned: Pairs, scores: Floats, k: int) -> tuple[Floats, Ints]:
    """Merge the lists of the index with owned items, of which none is in a list.

    Args:
        found: scores (T, k or fewer) and rows, -1 where there is no item.
        owned: C pairs.
        scores: (C,) of the owned items.
        k: length of a list.

    Returns:
        scores and rows (T, k) as of `rank_contenders`: equal scores order by row, -inf and -1 fill the end.
    """
    n_requests, length = found[1].shape
    listed = Pairs(np.arange(n_requests).repeat(length), found[1].ravel())  # no item is ranked as it comes: last
    return rank_pairs(join_pairs(listed, owned), np.concatenate([found[0].ravel(), scores]), n_requests, k)


def _leave_out(index: ItemIndex, excluded: Pairs, barred: Barred, pairs: Pairs, memory: Floats) -> tuple[Pairs, Floats]:
    """Return the pairs that are neither excluded, nor barred, nor of a hidden item, with their memory."""
    for mask in (index.is_hidden, barred):
        if mask is not None:
            is_kept = ~mask[pairs.rows]
            pairs, memory = pairs.take(is_kept), memory[is_kept]
    if not len(excluded):
        return pairs, memory
    is_kept = ~are_among(pairs, excluded, len(index))
    return pairs.take(is_kept), memory[is_kept]


def _score(index: ItemIndex, scored: Scored, pairs: Pairs, memory: Floats) -> Floats:
    """Score pairs as the index would, plus the memory, (C,)."""
    scores = dot_pairs(scored.vectors, index.vectors, pairs.requests, pairs.rows)
    if scored.added is not None:
        scores += scored.added.of_pairs(pairs.requests, pairs.rows, len(index))
    return (scores + memory).astype(np.float32)
