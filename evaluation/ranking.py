"""The k best of a row of scores, exact, in one order that no tie can change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from evaluation.targets import Bools, Ints

Scores = npt.NDArray[np.float32]

TILE_CELLS = 2**22
"""Of one matrix of scores: 16 MiB."""
CACHED_CELLS = 2**17
"""Ranked at once: small enough for the cache and for memory that is used again instead of mapped anew."""
BLOCKS = 8
"""Of a row, times k: fewer make more contenders, more a longer partition."""
LOWEST = np.finfo(np.float32).min
NOTHING = np.iinfo(np.int64).max
"""Sorts behind every score."""


def top_k(scores: Scores, k: int) -> Ints:
    """Return the items of the k best scores, best first; equal scores in the order of their rows.

    Non-finite scores are never listed; -1 fills what is left.

    Args:
        scores: (B, N).
        k: places of a list; may be more than N.

    Returns:
        (B, k) item rows.
    """
    lists = np.full((len(scores), k), -1, np.int64)
    n_rows, n_items = scores.shape
    found = min(k, n_items)
    for rows in tiles(n_rows, n_items, CACHED_CELLS):
        lists[rows, :found] = _rank(scores[rows], found)
    return lists


def tiles(n_rows: int, n_columns: int, cells: int = TILE_CELLS) -> Iterator[Ints]:
    """Cut rows into runs whose (rows, columns) matrix has at most `cells` cells, or a single row."""
    height = max(1, cells // max(1, n_columns))
    for start in range(0, n_rows, height):
        yield np.arange(start, min(start + height, n_rows))


def _rank(scores: Scores, k: int) -> Ints:
    if not scores.max() < np.inf:  # not true of NaN either
        scores = np.where(np.isfinite(scores), scores, -np.inf)
    is_contender = scores >= _lowest_listed(scores, k)[:, None]
    keys = _order_contenders(scores, is_contender, k)  # (B, at least k)
    best = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)  # (B, k)
    return np.where(best == NOTHING, -1, best & 0xFFFFFFFF)


def _order_contenders(scores: Scores, is_contender: Bools, k: int) -> Ints:
    """Return the keys of each row's contenders side by side, (B, W >= k); `NOTHING` where there are no more."""
    n_rows, n_items = scores.shape
    counts = np.count_nonzero(is_contender, axis=1)  # (B,)
    if counts.max() > n_items // 8:  # many equal scores: bringing them together takes longer than leaving them
        return np.where(is_contender, _order_keys(scores, np.arange(n_items)), NOTHING)
    row = np.repeat(np.arange(n_rows), counts)  # (C,)
    cell = np.flatnonzero(is_contender)  # (C,) row by row
    place = np.arange(len(cell)) - (np.cumsum(counts) - counts)[row]  # (C,) within its row
    keys = np.full((n_rows, max(k, counts.max())), NOTHING)
    keys[row, place] = _order_keys(scores.reshape(-1)[cell], cell - row * n_items)
    return keys


def _lowest_listed(scores: Scores, k: int) -> Scores:
    """Return a bound that at least k finite scores of each row reach, and few more, (B,).

    Where there are too few, or a list is much of a row, it is the lowest finite number. The k-th best of the maxima of
    disjoint blocks is such a bound: k of the scores are these maxima. A pass for the maxima and one that compares cost
    a seventh of a partition of all scores.
    """
    n_rows, n_items = scores.shape
    depth = n_items // (BLOCKS * k)
    if depth < 2:
        return np.full(n_rows, LOWEST)
    n_blocks = n_items // depth
    maxima = scores[:, : n_blocks * depth].reshape(n_rows, depth, n_blocks).max(axis=1)  # (B, blocks)
    bound = np.partition(maxima, n_blocks - k, axis=1)[:, n_blocks - k]
    return np.maximum(bound, LOWEST)


def _order_keys(scores: Scores, items: Ints) -> Ints:
    """Pack scores and items into integers that sort by falling score, then by rising item, in the form of both.

    The bits of a float32, read as an integer, sort like the float if those of negative numbers are flipped.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0 and 0 one value
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (falling.astype(np.int64) << 32) | items
