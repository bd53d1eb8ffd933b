"""Exact ranking of rows of scores in one order that no tie can change, and the views that lists are judged in.

The views are all items, `repeat`, those that the user has, and `novel`, the others. Where items may not be recommended
again only `novel` exists; its owned targets then count as misses.
Letters: B requests, b requests of a tile, N items, K places of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from evaluation.metrics import ItemSets, Targets
from serve.arrays import Flags, Ints
from serve.schema import Repeats

Scores = npt.NDArray[np.float32]
ScoreRows = Callable[
    [Ints], Scores
]  # rows (b,) of users or requests -> scores of the whole catalogue, (b, N)

TILE_CELLS = (
    2**22
)  # of one matrix of scores, 16 MiB, and of those ranked at once in the cache
CACHED_CELLS = 2**17
NOTHING = np.iinfo(np.int64).max  # sorts behind every score


def tiles(n_rows: int, n_columns: int, cells: int = TILE_CELLS) -> Iterator[Ints]:
    """Cut rows into runs whose (rows, columns) matrix has at most `cells` cells, or a single row."""
    height = max(1, cells // max(1, n_columns))
    for start in range(0, n_rows, height):
        yield np.arange(start, min(start + height, n_rows))


def top_k(scores: Scores, k: int) -> Ints:
    """Return the rows of the k best scores of each row (B, N), (B, k), best first, equal ones in their order.

    Scores that are not finite are never listed; -1 fills the places that are left.
    """
    n_rows, n_items = scores.shape
    lists = np.full((n_rows, k), -1, np.int64)
    found = min(k, n_items)
    for rows in tiles(n_rows, n_items, CACHED_CELLS):
        some = scores[rows]  # (b, N)
        keys = np.where(
            np.isfinite(some), _order_keys(some, np.arange(n_items)), NOTHING
        )  # (b, N)
        best = np.sort(
            np.partition(keys, found - 1, axis=1)[:, :found], axis=1
        )  # (b, found)
        lists[rows, :found] = np.where(best == NOTHING, -1, best & 0xFFFFFFFF)
    return lists


def _order_keys(scores: Scores, items: Ints) -> Ints:
    """Pack scores and items into integers that sort by falling score, then by rising item.

    The bits of a float32, read as an integer, sort like the float if those of negative numbers are flipped.
    """
    bits = (scores + np.float32(0)).view(np.int32)  # + 0 makes -0 and 0 one value
    falling = ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))
    return (falling.astype(np.int64) << 32) | items


def view_targets(
    targets: Targets, owned: ItemSets, repeats: Repeats
) -> dict[str, Targets]:
    """Return the targets of each view that exists under `repeats`."""
    if repeats == "exclude":
        return {"novel": targets}
    is_owned = find_owned(targets, owned)
    return {
        "all": targets,
        "repeat": targets.keep(is_owned),
        "novel": targets.keep(~is_owned),
    }


def find_owned(targets: Targets, owned: ItemSets) -> Flags:
    """Mark the targets that their user already has, (T,); lists without owned items cannot reach them."""
    return owned.contain(targets.items.request, targets.items.item_row)


def rank_views(
    score: ScoreRows, owned: ItemSets, n_items: int, k: int, views: Iterable[str]
) -> dict[str, Ints]:
    """Rank the whole catalogue for every request, view -> (B, k); each tile of scores serves all views."""
    owned = owned.keep(owned.item_row >= 0)
    n_requests = len(owned.offsets) - 1
    lists = {view: np.full((n_requests, k), -1, np.int64) for view in views}
    for requests in tiles(n_requests, n_items):
        scores = score(requests)  # (b, N)
        own = owned.take(requests)
        is_owned = np.zeros(scores.shape, np.bool_)
        is_owned[own.request, own.item_row] = True
        for view, filled in lists.items():
            kept = (
                scores
                if view == "all"
                else np.where(
                    is_owned == (view == "repeat"), scores, np.float32(-np.inf)
                )
            )
            filled[requests] = top_k(kept, k)
    return lists
