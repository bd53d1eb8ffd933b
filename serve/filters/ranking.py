"""Rank requests that have filters: those that share them together, each list as exact as without filters.

Letters: T requests of a tile, N items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from serve.filters.admission import Admission, Mask
from serve.filters.filters import Filters
from serve.filters.spread import Limit, Walk, complete
from serve.index import ItemIndex
from serve.merging import Lists, Rank, Scored

_DEPTH = 4  # lists that each search of a walk is deep


def rank_filtered(
    rank: Rank, admission: Admission, filters: Sequence[Filters | None], index: ItemIndex, scored: Scored, k: int
) -> Lists:
    """Rank a tile of requests.

    Args:
        rank: how requests without filters are ranked.
        admission: of the catalogue.
        filters: of each of T requests.
        index: of the catalogue.
        scored: T requests.
        k: length of a list, at most N.

    Returns:
        As `rank`.

    Raises:
        SchemaError: filters that do not fit the columns.
    """
    scores = np.empty((len(scored), k), dtype=np.float32)
    rows = np.empty((len(scored), k), dtype=np.int64)
    for one, places in _group(filters).items():
        part = scored if len(places) == len(scored) else scored.take(places)
        barred = None if one is None else admission.bar(one)
        limits = [] if one is None else admission.limit(one)
        if barred is not None and limits:
            scores[places], rows[places] = _rank_spread(partial(rank, index), part, limits, barred, k)
        else:
            scores[places], rows[places] = rank(index, part, k, barred)
    return scores, rows


def _rank_spread(
    rank: Callable[[Scored, int, Mask], Lists], scored: Scored, limits: Sequence[Limit], barred: Mask, k: int
) -> Lists:
    """Rank requests under limits: one search for all of them, then on for each whose list is not complete."""
    depth = min(_DEPTH * k, len(barred))
    found = rank(scored, depth, barred)
    scores, rows = np.empty((len(scored), k), np.float32), np.empty((len(scored), k), np.int64)
    for place in range(len(scored)):
        walk = Walk(limits, k)
        walk.go_on(found[0][place], found[1][place])
        if found[1][place, -1] >= 0 and not walk.is_complete:
            complete(walk, partial(_rank_one, rank, scored.take(np.array([place])), depth), barred)
        walk.write(scores[place], rows[place])
    return scores, rows


def _rank_one(rank: Callable[[Scored, int, Mask], Lists], scored: Scored, depth: int, barred: Mask) -> Lists:
    scores, rows = rank(scored, depth, barred)
    return scores[0], rows[0]


def _group(filters: Sequence[Filters | None]) -> dict[Filters | None, NDArray[np.int64]]:
    """Return the places of each distinct filter."""
    places: dict[Filters | None, list[int]] = {}
    for place, one in enumerate(filters):
        places.setdefault(one, []).append(place)
    return {one: np.array(where, dtype=np.int64) for one, where in places.items()}
