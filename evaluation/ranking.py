"""Exact ranking of scores in one order that no tie changes, and the views that lists are judged in.

The view `all` ranks all items, `repeat` those that the user owns, `novel` the others. Where items
may not be recommended again only `novel` exists; its owned targets then count as misses.

Letters: B requests, b requests of a tile, N items, K slots of a list, T targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy import sparse

from evaluation.metrics import ItemSets, Targets
from serve.arrays import Flags, Floats, Ints, Repeats

# Maps rows (b,) of users or requests to scores of the whole catalogue, (b, N).
ScoreRows = Callable[[Ints], Floats]

TILE_CELLS = 2**22  # cells of one matrix of scores: 16 MiB
CACHED_CELLS = 2**17  # cells that are ranked at once, within the cache
# Added to the product of the norms of two items, so that a cosine over few users counts less.
SHRINK = 10.0
NOTHING = np.iinfo(np.int64).max  # sorts behind every score


def tiles(n_rows: int, n_columns: int, cells: int = TILE_CELLS) -> Iterator[Ints]:
    """Cut rows into runs whose (rows, columns) matrix has at most `cells` cells, or one row."""
    height = max(1, cells // max(1, n_columns))
    for start in range(0, n_rows, height):
        yield np.arange(start, min(start + height, n_rows))


def multiply_items(
    matrix: sparse.csr_array,
    k: int,
    rescale: Callable[..., Floats],
    cut: Callable[..., sparse.csr_array] | None = None,
) -> sparse.csr_array:
    """Return the largest products of the columns of a matrix (U, N), k of each, (N, N).

    Args:
        matrix: the columns.
        k: products that are kept of each column; no zeros.
        rescale: changes products, given them and their rows and columns.
        cut: keeps the products of a tile (b, N), given it and its rows; by default the largest.
    """
    n_items = matrix.shape[1]
    n_pairs = (np.diff(matrix.indptr) ** 2).sum() // n_items  # of an item
    by_item = matrix.T.tocsr()  # (N, U)
    parts = []
    for rows in tiles(n_items, n_pairs):
        tile = (by_item[rows] @ matrix).tocoo()  # (b, N)
        tile.data = rescale(tile.data, rows[tile.row], tile.col)
        scaled = tile.tocsr()
        kept = keep_largest_entries(scaled, k) if cut is None else cut(scaled, rows)
        parts.append(kept)

    products: sparse.csr_array = sparse.vstack(parts, format="csr")  # (N, N)
    products.eliminate_zeros()
    return products


def keep_largest_entries(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """Keep the k entries of each row with the largest absolute values; of equal ones the first."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))  # (entries,)
    # The bits of positive floats are in their order.
    bits = np.abs(matrix.data).astype(np.float32).view(np.int32)  # (entries,)
    order = np.argsort((row << 32) - bits, kind="stable")  # (entries,)
    rank = np.arange(len(row)) - matrix.indptr[row]  # (entries,)
    kept = np.sort(order[rank < k])
    cells = (row[kept], matrix.indices[kept])
    return sparse.csr_array((matrix.data[kept], cells), matrix.shape)


def top_k(scores: Floats, k: int) -> Ints:
    """Rank the items of each row.

    Args:
        scores: (B, N) scores; those that are not finite are never listed.
        k: slots of a list.

    Returns:
        (B, k) item rows, best first and equal scores by rising item row; -1 fills empty slots.
    """
    n_rows, n_items = scores.shape
    lists = np.full((n_rows, k), -1, np.int64)  # (B, k)
    k = min(k, n_items)

    for rows in tiles(n_rows, n_items, CACHED_CELLS):
        tile = scores[rows]  # (b, N)
        # The bits of a float32, read as an integer, sort like the float if those of negative
        # numbers are flipped: a key sorts by falling score, then by rising item.
        bits = (tile + np.float32(0)).view(np.int32)  # + 0 makes -0 and 0 one value
        rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # (b, N)
        packed = (~rising.astype(np.int64) << 32) | np.arange(n_items)  # (b, N)
        keys = np.where(np.isfinite(tile), packed, NOTHING)  # (b, N)
        best = np.partition(keys, k - 1, axis=1)[:, :k]  # (b, k)
        best.sort(axis=1)
        lists[rows, :k] = np.where(best == NOTHING, -1, best & 0xFFFFFFFF)

    return lists


def view_targets(
    targets: Targets, owned: ItemSets, repeats: Repeats
) -> dict[str, Targets]:
    """Return the targets of each view that exists under `repeats`."""
    if repeats == "exclude":
        return {"novel": targets}
    is_owned = find_owned(targets, owned)  # (T,)
    return {
        "all": targets,
        "repeat": targets.keep(is_owned),
        "novel": targets.keep(~is_owned),
    }


def find_owned(targets: Targets, owned: ItemSets) -> Flags:
    """Mark the targets that their user owns, (T,): lists without owned items miss them."""
    return owned.contain(targets.items.request, targets.items.item_row)


def rank_views(
    score: ScoreRows, owned: ItemSets, n_items: int, k: int, views: Iterable[str]
) -> dict[str, Ints]:
    """Rank the whole catalogue for every request; each tile of scores serves all views.

    Args:
        score: scorer of the catalogue by request.
        owned: items that the user of each request owns, -1 for items outside of the catalogue.
        n_items: N.
        k: slots of a list.
        views: names of the views to rank.

    Returns:
        The lists of each view, (B, k) item rows as `top_k` returns them.
    """
    owned = owned.keep(owned.item_row >= 0)
    n_requests = len(owned.offsets) - 1
    lists = {view: np.full((n_requests, k), -1, np.int64) for view in views}  # (B, k)

    for requests in tiles(n_requests, n_items):
        scores = score(requests)  # (b, N)
        own = owned.take(requests)
        is_owned = np.zeros(scores.shape, np.bool_)  # (b, N)
        is_owned[own.request, own.item_row] = True

        for view, ranked in lists.items():
            allowed = scores  # (b, N)
            if view != "all":
                is_in_view = is_owned == (view == "repeat")  # (b, N)
                allowed = np.where(is_in_view, scores, np.float32(-np.inf))  # (b, N)
            ranked[requests] = top_k(allowed, k)

    return lists
