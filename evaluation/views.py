"""Three views of one model: everything, what users buy again, what is new to them.

all     nothing is excluded
repeat  the same ranking among the items a user already has; targets are those that are owned
novel   the same ranking among the other items; targets are those that are not owned
Where items may not be recommended again only `novel` exists; its owned targets then count as misses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from evaluation.ranking import Scores, tiles, top_k
from evaluation.targets import Bools, Ints, ItemSets, Targets
from serve.schema import Repeats

ScoreTile = Callable[[Ints], Scores]
"""Request numbers (b,) -> scores of the whole catalogue, float32 (b, N)."""


def view_targets(targets: Targets, owned: ItemSets, repeats: Repeats) -> dict[str, Targets]:
    """Return the targets of each view that exists under `repeats`."""
    if repeats == "exclude":
        return {"novel": targets}
    is_owned = find_owned(targets, owned)
    return {"all": targets, "repeat": targets.keep(is_owned), "novel": targets.keep(~is_owned)}


def find_owned(targets: Targets, owned: ItemSets) -> Bools:
    """Mark the targets that their user already has, (T,); lists without owned items cannot reach them."""
    return owned.contain(targets.items.request, targets.items.item_row)


def rank_views(score_tile: ScoreTile, owned: ItemSets, n_items: int, k: int, views: Iterable[str]) -> dict[str, Ints]:
    """Rank the whole catalogue for every request; each tile of scores serves all views.

    Args:
        score_tile: scores a run of requests; asked once per request.
        owned: the items each request's user already has.
        n_items: size of the catalogue.
        k: places of a list.
        views: names among `all`, `repeat`, `novel`.

    Returns:
        view -> lists (B, k).
    """
    owned = owned.keep(owned.item_row >= 0)
    n_requests = len(owned.offsets) - 1
    lists = {view: np.full((n_requests, k), -1, np.int64) for view in views}
    for requests in tiles(n_requests, n_items):
        scores = score_tile(requests)  # (b, N)
        owned_here = owned.take(requests)
        for view, filled in lists.items():
            filled[requests] = top_k(RESTRICTIONS[view](scores, owned_here), k)
    return lists


def _keep_all(scores: Scores, _: ItemSets) -> Scores:
    return scores


def _keep_owned(scores: Scores, owned: ItemSets) -> Scores:
    places = owned.request, owned.item_row
    kept = np.full_like(scores, -np.inf)
    kept[places] = scores[places]
    return kept


def _drop_owned(scores: Scores, owned: ItemSets) -> Scores:
    kept = scores.copy()
    kept[owned.request, owned.item_row] = -np.inf
    return kept


RESTRICTIONS: dict[str, Callable[[Scores, ItemSets], Scores]] = {
    "all": _keep_all,
    "repeat": _keep_owned,
    "novel": _drop_owned,
}
