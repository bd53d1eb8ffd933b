"""The k best of approximate scores, exactly: a cut that is provably low enough, then exact scores above it.

The last bits of a float32 matrix product depend on the batch and on a vector's place in it. So it only chooses
contenders here; whoever calls scores these again exactly and lets `rank_contenders` order them. A score is
then a function of one user and one item: equal vectors score equal, and a batch answers as one by one.
Letters: T requests of a tile, N items, C contenders of all its requests.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_FEWEST_BLOCKS = 256  # fewer make the maximum of a block slow, more make the partition slow
_CHUNK = 2**15  # numbers; longer ones leave the cache, and equal scores make all items contenders
_LOWEST = np.finfo(np.float32).min  # above the -inf of an item that is not admissible


def find_contenders(approximate: Floats, k: int, slack: Floats) -> tuple[Ints, Ints]:
    """Find all items that can be among the k best.

    The items are dealt into blocks, at least 4 k of them. k block maxima are k items, so the k-th best maximum is a
    lower bound of the k-th best item: a pass over the scores, then a look into the few blocks whose maximum reaches it.

    Args:
        approximate: (N, T) scores in C order, -inf where an item is not admissible.
        k: at most N.
        slack: (T,) at least twice the largest error of a score.

    Returns:
        requests: (C,) columns of `approximate`, ascending.
        rows: (C,) its rows, ascending within a request; nothing that is -inf.
    """
    n_items, n_requests = approximate.shape
    n_blocks = min(n_items, max(4 * k, _FEWEST_BLOCKS))
    n_dealt = n_items // n_blocks * n_blocks
    # an item of each block and all requests side by side: a row of requests alone is too short to be fast
    dealt = approximate[:n_dealt].reshape(-1, n_blocks * n_requests)  # (depth, blocks * T)
    maxima = dealt.max(axis=0).reshape(n_blocks, n_requests)
    bound = np.partition(maxima, n_blocks - k, axis=0)[n_blocks - k]  # (T,)
    cut = np.maximum(bound - slack, _LOWEST)
    block, request = (maxima >= cut).nonzero()
    inside = dealt.take(block * n_requests + request, axis=1) >= cut[request]  # (depth, blocks that reach it)
    depth, place = inside.nonzero()
    left, left_request = (approximate[n_dealt:] >= cut).nonzero()
    rows = np.concatenate([depth * n_blocks + block[place], n_dealt + left])
    requests = np.concatenate([request[place], left_request])
    order = requests.argsort(kind="stable")
    return requests[order], rows[order]


def rank_contenders(requests: Ints, rows: Ints, scores: Floats, n_requests: int, k: int) -> tuple[Floats, Ints]:
    """Order the contenders of each request by score, then by row, and keep k.

    Args:
        requests: (C,) of the tile, ascending.
        rows: (C,) item rows, ascending within a request.
        scores: (C,) exact scores.
        n_requests: T.
        k: length of a list.

    Returns:
        scores: (T, k), filled up with -inf.
        rows: (T, k), filled up with -1.
    """
    starts = requests.searchsorted(np.arange(n_requests))
    place = (requests, np.arange(len(requests)) - starts[requests])
    width = max(k, int(place[1].max(initial=0)) + 1)
    # a short stable sort a request: one sort of all contenders by three keys takes three times as long
    falling = np.full((n_requests, width), np.inf, dtype=np.float32)
    listed = np.full((n_requests, width), -1, dtype=np.int64)
    falling[place], listed[place] = -scores, rows
    best = (np.arange(n_requests)[:, None], falling.argsort(axis=1, kind="stable")[:, :k])
    return -falling[best], listed[best]


def dot_pairs(left: Floats, right: Floats, left_rows: Ints, right_rows: Ints) -> NDArray[np.float64]:
    """Return the dot products of C pairs of rows in float64, each independent of the others, (C,)."""
    products = np.empty(len(left_rows), dtype=np.float64)
    left_double = left.astype(np.float64)
    chunk = max(1, _CHUNK // left.shape[1])
    for start in range(0, len(products), chunk):
        part = slice(start, start + chunk)
        terms = left_double.take(left_rows[part], axis=0)  # (chunk, D)
        terms *= right.take(right_rows[part], axis=0)
        terms.sum(axis=1, out=products[part])
    return products
