"""Dials of a list: how unlike each other its items are, how unlike the user's own past, how many of them are new.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over a pool of the best items. Scores and likenesses
count in standard deviations of the pool, so that a dial means the same for every model and user. Letters: P items of
a pool, H of a user's past, D entries of a direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Doubles, Flags, Floats, Ints, to_numpy
from serve.reasons import complete_request
from serve.recommendations import Recommendations
from serve.recommender import RawRequest, Recommender
from serve.requests import Filters, Request, check_number, join_filters

POOL = 100  # items of a pool: so many, or so many times k up to a bound; never below k
POOL_FACTOR = 10
MAX_POOL = 1000
MAX_PAST = 500  # latest events of a history that an item is compared with
IS_NEW = "is_new"  # column of items that were first seen in the last days of the data, and how many
NEW_DAYS = 28
_ROUNDING = 1e-9  # of a share times places


@dataclass(frozen=True)
class Dials:
    """0 leaves a list as it is; at 1 likeness weighs as much as the score."""

    diversity: float = 0.0  # weight of an item's likeness to those above it
    novelty: float = 0.0  # weight of an item's likeness to the user's own past
    new_share: float = 0.0  # of the first n places of a list, so many times n at least are of new items

    def __post_init__(self) -> None:
        """Refuse what is no number from 0 to 1."""
        for name, value in vars(self).items():
            check_number(value, name, 0, 1)

    @property
    def policy(self) -> str:
        """Say how the order of a list comes about, for the log of what was shown."""
        return " ".join(
            (
                "greedy",
                *(f"{name}={value:g}" for name, value in vars(self).items() if value),
            )
        )


RECOMMENDED = Dials(diversity=0.2)  # about 1 % of NDCG@10 (docs/discovery.md)


def recommend(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    k: int = 10,
    repeats: Literal["allow", "exclude"] | None = None,
    dials: Dials = RECOMMENDED,
) -> Recommendations:
    """Do as `Recommender.recommend` with lists in the order of the dials; scores stay those of the model.

    Filters hold, `at_most` too, as for every part of a pool for which it holds: there new items come from the pool.
    """
    filter_viewed = None if repeats is None else repeats == "exclude"
    asked = recommender.check(requests)
    if dials == Dials() or k < 1:  # which is refused
        return recommender.recommend(asked, k, filter_viewed)
    pools = fresh = recommender.recommend(
        asked, max(k, min(MAX_POOL, max(POOL, POOL_FACTOR * k))), filter_viewed
    )
    is_new = (
        find_new(recommender)
        if dials.new_share
        else np.zeros(len(recommender.catalogue), np.bool_)
    )
    if is_new.any():
        fresh = recommend_only(recommender, asked, k, filter_viewed, is_new)
    listed = np.full((len(asked), k), -1, np.int64)
    scores = np.zeros((len(asked), k), np.float32)
    for place, request in enumerate(asked):
        (rows, values), (more, more_values) = (
            _list(found, place) for found in (pools, fresh)
        )
        n_pool = len(rows)
        is_more = ~np.isin(more, rows)
        rows = np.append(rows, more[is_more])
        values = np.append(values, more_values[is_more])
        worth, likeness = _weigh(recommender, request, rows, values, n_pool, dials)
        chosen = _choose(
            worth,
            likeness,
            values,
            is_new[rows],
            n_pool,
            (min(k, n_pool), dials.new_share),
        )
        listed[place, : len(chosen)] = rows[chosen]
        scores[place, : len(chosen)] = values[chosen]
    return Recommendations.from_lists(
        [one.user_id for one in asked],
        listed,
        scores,
        item_ids=pools.item_ids,
        unknown_items=pools.unknown_items,
        user_id_type=pools.user_id_type,
        reasons={
            place: pools.reason[place]
            for place in np.flatnonzero(listed[:, -1] < 0).tolist()
        },
    )


def find_new(recommender: Recommender) -> Flags:
    """Tell which items are new, (N,): first seen in the last days of the data, or put live since."""
    table = recommender.catalogue.table
    is_new = np.arange(len(table)) >= len(recommender.bundle.items)
    if IS_NEW in table.column_names and pa.types.is_boolean(
        table.schema.field(IS_NEW).type
    ):
        is_new |= to_numpy(table.column(IS_NEW).fill_null(False).cast(pa.uint8())) > 0
    return is_new


def recommend_only(
    recommender: Recommender,
    requests: Iterable[Request],
    k: int,
    filter_viewed: bool | None,
    is_listed: Flags,
) -> Recommendations:
    """Rank some items alone; the lists of requests that bound how many items share a value are empty."""
    among = Filters(only=tuple(recommender.catalogue.item_ids.ids[is_listed].tolist()))
    nothing = Filters(only=())
    given = ((one, one.filters or Filters()) for one in requests)
    only = [
        replace(one, filters=nothing if its.at_most else join_filters(its, among))
        for one, its in given
    ]
    return recommender.recommend(only, k, filter_viewed)


def _list(found: Recommendations, place: int) -> tuple[Ints, Floats]:
    entries = slice(found.offsets[place], found.offsets[place + 1])
    return found.item_row[entries], found.score[entries]


def _weigh(
    recommender: Recommender,
    request: Request,
    rows: Ints,
    scores: Floats,
    n_pool: int,
    dials: Dials,
) -> tuple[Doubles, Doubles]:
    """Return the worth of items but for those above them, (P,), and what likeness to another costs, (P, P)."""
    directions = _directions(recommender, rows)
    pool = slice(n_pool)
    worth = _standardise(scores, scores[pool])
    if dials.novelty and (history := complete_request(recommender, request).history):
        past = recommender.catalogue.item_ids.find(history.item_id[-MAX_PAST:])
        if len(past := past[past >= 0]):
            familiar = (directions @ _directions(recommender, past).T).max(axis=1)
            worth -= dials.novelty * _standardise(familiar, familiar[pool])
    likeness = directions @ directions.T
    pairs = likeness[pool, pool][~np.eye(n_pool, dtype=np.bool_)]
    return worth, dials.diversity * _standardise(likeness, pairs)


def _choose(
    worth: Doubles,
    likeness: Doubles,
    scores: Floats,
    is_new: Flags,
    n_pool: int,
    places: tuple[int, float],
) -> list[int]:
    """Return the items to list, in order; those behind the pool come only where the share of new ones wants them."""
    chosen: list[int] = []
    nearest = np.full(len(worth), -np.inf)
    is_left = np.ones(len(worth), np.bool_)
    for place in range(1, places[0] + 1):
        is_due = (
            is_left
            & is_new
            & (is_new[chosen].sum() < int(place * places[1] + _ROUNDING))
        )
        is_open = is_due if is_due.any() else is_left & (np.arange(len(worth)) < n_pool)
        value: NDArray[Any] = (
            scores if is_due.any() else worth - nearest if chosen else worth
        )
        best = int(np.where(is_open, value, -np.inf).argmax())
        chosen.append(best)
        is_left[best] = False
        nearest = np.maximum(nearest, likeness[best])
    return chosen


def _directions(recommender: Recommender, rows: Ints) -> Floats:
    vectors = recommender.catalogue.index.vectors[rows, : recommender.taste_dim]
    directions: Floats = vectors / np.maximum(
        np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12
    )
    return directions


def _standardise(values: Floats, pool: Floats) -> Doubles:
    """Measure values in standard deviations of a pool from its mean."""
    mean, scale = (
        (pool.mean(dtype=np.float64), pool.std(dtype=np.float64))
        if len(pool)
        else (0.0, 0.0)
    )
    return np.asarray((values - mean) / (scale if scale > 1e-9 else 1.0), np.float64)
