"""Rank a tile of requests: what the index finds, joined with the owned items, scored one by one.

The result is exact: an item that is neither found nor scored one by one has k better ones in the index.
Letters: T requests of the tile, E remembered items, W columns of a vector, N items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serve.index import ItemIndex
from serve.pairs import Pairs, are_among, distinct_pairs, join_pairs, rank_pairs, spread_scores, to_ragged
from serve.top_k import Floats, Ints, dot_pairs
from serve.user_inputs import EncodedRequests

Lists = tuple[Floats, Ints]
"""Scores (T, k) falling, and item rows (T, k); equal scores order by row, -inf and -1 fill the end."""


@dataclass(frozen=True)
class Scored:
    """Requests with what the user tower says of them."""

    requests: EncodedRequests
    vectors: Floats
    """(T, W)."""
    memory: Floats
    """(E,) what each remembered item scores beyond the product of vectors."""


def rank_all(index: ItemIndex, scored: Scored, k: int) -> Lists:
    """Rank all items but the excluded and the hidden ones, owned or not."""
    requests, remembered = scored.requests, scored.requests.remembered
    masked = to_ragged(join_pairs(requests.excluded, remembered), len(requests))
    found = index.search(scored.vectors, k, masked)
    kept, memory = _leave_out(index, requests.excluded, remembered, scored.memory)
    return merge(found, kept, _score(index, scored.vectors, kept, memory), k)


def rank_novel(index: ItemIndex, scored: Scored, k: int) -> Lists:
    """Rank the items that are neither owned nor excluded."""
    requests = scored.requests
    masked = to_ragged(join_pairs(requests.excluded, requests.owned), len(requests))
    return index.search(scored.vectors, k, masked)


def rank_owned(index: ItemIndex, scored: Scored, k: int) -> Lists:
    """Rank the owned items but the excluded ones: `rank_all` without the others."""
    requests = scored.requests
    owned = distinct_pairs(requests.owned, len(index))
    memory = spread_scores(requests.remembered, scored.memory, owned, len(index))
    kept, memory = _leave_out(index, requests.excluded, owned, memory)
    return rank_pairs(kept, _score(index, scored.vectors, kept, memory), len(requests), k)


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


def _leave_out(index: ItemIndex, excluded: Pairs, pairs: Pairs, memory: Floats) -> tuple[Pairs, Floats]:
    """Return the pairs that are neither excluded nor of a hidden item, with their memory."""
    if index.is_hidden is not None:
        is_shown = ~index.is_hidden[pairs.rows]
        pairs, memory = pairs.take(is_shown), memory[is_shown]
    if not len(excluded):
        return pairs, memory
    is_kept = ~are_among(pairs, excluded, len(index))
    return pairs.take(is_kept), memory[is_kept]


def _score(index: ItemIndex, users: Floats, pairs: Pairs, memory: Floats) -> Floats:
    """Score pairs as the index would, plus the memory, (C,)."""
    return (dot_pairs(users, index.vectors, pairs.requests, pairs.rows) + memory).astype(np.float32)
