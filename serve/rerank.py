"""Dials of a list: how unlike each other its items are, how unlike the user's past, how new.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over a pool of the best items.
Scores and likenesses count in standard deviations of the pool, so that a dial means the same for
every model and user.

    worth(i) = score(i) - novelty * max over the past j of cos(i, j)
    next item = argmax of worth(i) - diversity * max over the items j above of cos(i, j)

Variants of a thing, such as sizes of one milk, are few in the first rows where the bundle limits
them, whatever the dials. Letters: N items, P candidates of one list, H items of a user's past, D
entries of a direction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from serve.arrays import Doubles, Flags, Floats, Ints, to_unit
from serve.catalogue import Column
from serve.cells import check_number
from serve.recommendations import Recommendations
from serve.recommender import RawRequest, Recommender
from serve.requests import Filters, Request, join_filters

# Items of a pool: at least so many, or so many times k up to a bound; never fewer than k.
POOL = 100
POOL_FACTOR = 10
MAX_POOL = 1000

MAX_PAST = 500  # latest events of a history that an item is compared with

# Column of the items that were first seen in the last days of the data, and how many days.
IS_NEW = "is_new"
NEW_DAYS = 28

FIRST_ROWS = 10  # of a list, where variants are few
_DEEP = 4  # times these rows are looked through for others

_ROUNDING = 1e-9  # of a share times positions
_MIN_SCALE = 1e-9  # values that vary less are equal


@dataclass(frozen=True)
class Dials:
    """0 leaves a list as it is; at 1 likeness weighs as much as the score.

    Attributes:
        diversity: weight of an item's likeness to those above it.
        novelty: weight of an item's likeness to the user's own past.
        new_share: of the first n positions of a list, at least so many times n have new items.
    """

    diversity: float = 0.0
    novelty: float = 0.0
    new_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no number from 0 to 1 by a `SchemaError`."""
        for name, value in vars(self).items():
            check_number(value, name, 0, 1)

    @property
    def policy(self) -> str:
        """Say how the order of a list comes about, for the log of what was shown."""
        parts = ["greedy"]
        for name, value in vars(self).items():
            if value:
                parts.append(f"{name}={value:g}")

        return " ".join(parts)


RECOMMENDED = Dials(diversity=0.2)  # about 1 % of NDCG@10 (docs/discovery.md)


def recommend(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    k: int = 10,
    repeats: Literal["allow", "exclude"] | None = None,
    dials: Dials = RECOMMENDED,
) -> Recommendations:
    """Rank the catalogue for each request, in the order of the dials.

    Filters hold. So does `at_most`, since it holds for every part of a pool; new items then come
    from the pool.

    Args:
        recommender: the bundle that answers.
        requests: B requests, as for `Recommender.recommend`.
        k: length of the lists.
        repeats: whether items of the history are listed; by default as the data says.
        dials: at 0, the lists are those of `Recommender.recommend`, to the bit, unless variants
            are limited.

    Returns:
        B lists with the scores of the model.
    """
    filter_viewed = None if repeats is None else repeats == "exclude"
    checked = recommender.check(requests)
    limits = [find_limit(recommender, request) for request in checked]
    is_plain = dials == Dials()
    if (is_plain and not any(limits)) or k < 1:  # which is refused
        return recommender.recommend(checked, k, filter_viewed)

    n_looked = max(k, _DEEP * FIRST_ROWS)
    size = n_looked
    if not is_plain:
        size = max(k, min(MAX_POOL, max(POOL, POOL_FACTOR * k)))
    pools = recommender.recommend(checked, size, filter_viewed)
    fresh = pools
    is_new = np.zeros(len(recommender.catalogue.index), np.bool_)
    if dials.new_share:
        is_new = find_new(recommender)
    if is_new.any():
        fresh = recommend_only(recommender, checked, k, filter_viewed, is_new)

    rows = np.full((len(checked), k), -1, np.int64)
    scores = np.zeros((len(checked), k), np.float32)
    for place, request in enumerate(checked):
        pool = _read_pool(pools, fresh, place)
        chosen = [*range(pool.size)]
        limit = limits[place]
        if not is_plain:
            worth, cost = _weigh(recommender, request, pool, dials)
            is_fresh = is_new[pool.rows]
            length = n_looked if limit else k
            chosen = _choose(pool, worth, cost, is_fresh, length, dials.new_share)
        if limit:
            chosen = _put_apart(chosen, pool.rows, *limit)
        chosen = chosen[:k]
        rows[place, : len(chosen)] = pool.rows[chosen]
        scores[place, : len(chosen)] = pool.scores[chosen]

    reason = pools.reason.copy()
    reason[rows[:, -1] >= 0] = None
    return Recommendations.from_lists(
        pools.user_id,
        rows,
        scores,
        item_ids=pools.item_ids,
        unknown_items=pools.unknown_items,
        user_id_type=pools.user_id_type,
        reason=reason,
        held_back=pools.held_back,
    )


def find_limit(recommender: Recommender, request: Request) -> tuple[Column, int] | None:
    """Return the column whose values few of the first rows share, and how many.

    None where the bundle limits nothing, or the request lists any or has a limit of its own.
    """
    own = dict((request.filters or Filters()).at_most)
    for name, most in recommender.bundle.manifest.facts.variants.items():
        if request.variants == "few" and name not in own:
            return recommender.admission.columns.read(name), most
    return None


def _put_apart(
    chosen: Sequence[int], rows: Ints, column: Column, most: int
) -> list[int]:
    """Return places of a pool in order, variants that are too many behind the first rows."""
    counts: Counter[int] = Counter()
    first: list[int] = []
    over: list[int] = []
    values = column.first_codes(rows[chosen]).tolist()
    for place, value in zip(chosen, values, strict=True):
        if len(first) == FIRST_ROWS:
            break
        counts[value] += 1
        is_over = value >= 0 and counts[value] > most
        (over if is_over else first).append(place)

    n_looked = len(first) + len(over)
    return [*first, *over, *chosen[n_looked:]]


def find_new(recommender: Recommender) -> Flags:
    """Tell which items are new, (N,): first seen in the last days, or put live since."""
    columns = recommender.admission.columns
    is_new = np.arange(len(columns)) >= len(recommender.bundle.items)
    if IS_NEW in columns.names:
        column = columns.read(IS_NEW)
        if column.holds == "true or false":
            is_new |= column.are_true()

    return is_new


def recommend_only(
    recommender: Recommender,
    requests: Iterable[Request],
    k: int,
    filter_viewed: bool | None,
    is_listed: Flags,
) -> Recommendations:
    """Rank some items alone.

    The lists of requests that bound how many items share a value are empty.

    Args:
        recommender: the bundle that answers.
        requests: B checked requests.
        k: length of the lists.
        filter_viewed: leave out the items of the history; by default as the data says.
        is_listed: (N,) the items to rank.
    """
    ids = recommender.catalogue.item_ids.ids[is_listed]
    among = Filters(only=tuple(ids.tolist()))
    narrowed = []
    for request in requests:
        filters = join_filters(request.filters or Filters(), among)
        if filters.at_most:
            filters = Filters(only=())
        narrowed.append(replace(request, filters=filters))

    return recommender.recommend(narrowed, k, filter_viewed)


@dataclass(frozen=True)
class _Pool:
    """The candidates of one list: `size` best items, then new ones that are not among them."""

    rows: Ints  # (P,)
    scores: Floats  # (P,)
    size: int


def _read_pool(pools: Recommendations, fresh: Recommendations, place: int) -> _Pool:
    rows, scores = _read_list(pools, place)
    if fresh is pools:
        return _Pool(rows, scores, len(rows))
    new_rows, new_scores = _read_list(fresh, place)
    is_more = ~np.isin(new_rows, rows)
    return _Pool(
        rows=np.append(rows, new_rows[is_more]),
        scores=np.append(scores, new_scores[is_more]),
        size=len(rows),
    )


def _read_list(lists: Recommendations, place: int) -> tuple[Ints, Floats]:
    entries = slice(lists.offsets[place], lists.offsets[place + 1])
    return lists.item_row[entries], lists.score[entries]


def _weigh(
    recommender: Recommender, request: Request, pool: _Pool, dials: Dials
) -> tuple[Doubles, Doubles]:
    """Weigh the candidates of a list.

    Returns:
        The worth of each but for those above it, (P,), and what its likeness to another costs,
        (P, P).
    """
    vectors = recommender.catalogue.index.vectors[:, : recommender.taste_dim]
    directions = to_unit(vectors[pool.rows])  # (P, D)
    best = slice(pool.size)
    worth = _standardise(pool.scores, pool.scores[best])
    history = recommender.profiles.complete(request).history
    if dials.novelty and history is not None:
        past = recommender.catalogue.item_ids.find(history.item_id[-MAX_PAST:])
        past = past[past >= 0]  # (H,)
        if len(past):
            familiar = (directions @ to_unit(vectors[past]).T).max(axis=1)
            worth -= dials.novelty * _standardise(familiar, familiar[best])

    likeness = directions @ directions.T
    is_pair = ~np.eye(pool.size, dtype=np.bool_)
    pairs = likeness[best, best][is_pair]
    return worth, dials.diversity * _standardise(likeness, pairs)


def _standardise(values: Floats, pool: Floats) -> Doubles:
    """Measure values in standard deviations of a pool from its mean."""
    if not len(pool):
        return values.astype(np.float64)
    mean = pool.mean(dtype=np.float64)
    scale = pool.std(dtype=np.float64)
    return np.asarray((values - mean) / (scale if scale > _MIN_SCALE else 1.0))


def _choose(
    pool: _Pool,
    worth: Doubles,
    cost: Doubles,
    is_new: Flags,
    k: int,
    new_share: float,
) -> list[int]:
    """Return the candidates to list, in order.

    Those behind the best come only where the share of new items wants them.
    """
    chosen: list[int] = []
    is_best = np.arange(len(worth)) < pool.size
    is_left = np.ones(len(worth), np.bool_)
    highest_cost = np.zeros(len(worth))

    for position in range(1, min(k, pool.size) + 1):
        value: Floats | Doubles = pool.scores
        is_open = is_left & is_new
        n_new = np.count_nonzero(is_new[chosen])
        if n_new >= int(position * new_share + _ROUNDING) or not is_open.any():
            value = worth - highest_cost
            is_open = is_left & is_best
        place = int(np.where(is_open, value, -np.inf).argmax())
        is_left[place] = False
        highest_cost = np.maximum(highest_cost, cost[place]) if chosen else cost[place]
        chosen.append(place)

    return chosen
