"""The k best of a row of scores, exact, in one order that no tie can change."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from evaluation.targets import Ints

Scores = npt.NDArray[np.float32]

TILE_CELLS = 2**22
"""Of one matrix of scores: 16 MiB."""
CACHED_CELLS = 2**17
"""Ranked at once: small enough for the cache and for memory that is used again instead of mapped anew."""


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
    keys = _order_keys(np.where(np.isfinite(scores), scores, -np.inf))
    best = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)  # (B, k)
    items = best & 0xFFFFFFFF
    return np.where(np.isfinite(np.take_along_axis(scores, items, axis=1)), items, -1)


def _order_keys(scores: npt.NDArray[np.floating]) -> Ints:
    """Pack score and row into one integer that sorts by falling score, then by rising row, (B, N).

    The bits of a float32, read as an integer, sort like the float if those of negative numbers are flipped.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0 makes -0 and 0 one value
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (falling.astype(np.int64) << 32) | np.arange(scores.shape[1])
