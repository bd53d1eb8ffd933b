"""Dials of a list: how unlike each other its items are, how unlike the user's own past, how many of them are new.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) over a pool of the best items. Scores and likenesses
are standardised within the pool of each request, so that a dial means the same for every model and user. Letters: P
items of a pool, H of a user's past, D entries of a direction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.columns import to_numpy
from serve.discovery.reasons import complete_request
from serve.errors import SchemaError
from serve.index import Floats, Ints, Mask
from serve.recommendations import Answer, Recommendations
from serve.recommender import RawRequest, Recommender
from serve.requests import Filters, Request, show

Numbers = NDArray[np.float64]

POOL, POOL_FACTOR, MAX_POOL = 100, 10, 1000  # items of a pool: so many, or so many times k up to a bound; never below k
MAX_PAST = 500  # latest events of a history that an item is compared with
IS_NEW, NEW_DAYS = "is_new", 28  # column of items that were first seen in the last days of the data, and how many
FULL = 1.0  # standard deviations of the score that one of likeness weighs at a dial of 1
_ROUNDING = 1e-9  # of a share times places


@dataclass(frozen=True)
class Dials:
    """0 leaves a list as it is."""

    diversity: float = 0.0  # weight of an item's likeness to those above it
    novelty: float = 0.0  # weight of an item's likeness to the user's own past
    new_share: float = 0.0  # of the first n places of a list, so many times n at least are of new items

    def __post_init__(self) -> None:
        """Refuse what is no number from 0 to 1."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise SchemaError(f"{field.name} is {show(value)}; expected a number from 0 to 1")

    @property
    def policy(self) -> str:
        """Say how the order of a list comes about, for the log of what was shown."""
        turned = [f"{name}={value:g}" for name, value in vars(self).items() if value]
        return " ".join(("greedy", *turned))


RECOMMENDED = Dials(diversity=0.2)  # about 1 % of NDCG@10 (docs/discovery.md)


def recommend(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    k: int = 10,
    repeats: Literal["allow", "exclude"] | None = None,
    dials: Dials = RECOMMENDED,
) -> Recommendations:
    """Do as `Recommender.recommend` with lists that the dials order; scores stay those of the model.

    An item of a list is admitted by the filters, and `at_most` holds, as for any part of a pool for which it holds.
    """
    filter_viewed, asked = None if repeats is None else repeats == "exclude", recommender.check(requests)
    if dials == Dials():
        return recommender.recommend(asked, k, filter_viewed)
    size = max(k, min(MAX_POOL, max(POOL, POOL_FACTOR * k)))
    pools = recommender.recommend(asked, size, filter_viewed)
    listed = np.full((len(asked), k), -1, np.int64)
    scores = np.full((len(asked), k), -np.inf, np.float32)
    fresh = _recommend_new(recommender, asked, k, filter_viewed, dials)
    for place, (request, pool) in enumerate(zip(asked, pools, strict=True)):
        candidates = _Candidates.of(recommender, request, pool, None if fresh is None else fresh.of(place), dials)
        chosen = candidates.choose(k, dials)
        listed[place, : len(chosen)], scores[place, : len(chosen)] = candidates.rows[chosen], candidates.scores[chosen]
    return Recommendations.from_lists(
        [one.user_id for one in asked],
        listed,
        scores,
        item_ids=pools.item_ids,
        unknown_items=pools.unknown_items,
        user_id_type=pools.user_id_type,
        reasons={place: pools.reason[place] for place in np.flatnonzero(listed[:, -1] < 0).tolist()},
    )


def find_new(recommender: Recommender) -> Mask:
    """Tell which items are new, (N,): first seen in the last days of the data, or put live since."""
    table = recommender.catalogue.table
    is_new = np.arange(len(table)) >= len(recommender.bundle.items)
    if IS_NEW in table.column_names and pa.types.is_boolean(table.schema.field(IS_NEW).type):
        is_new |= to_numpy(table.column(IS_NEW).fill_null(False).cast(pa.uint8())) > 0
    return is_new


def _recommend_new(
    recommender: Recommender, requests: list[Request], k: int, filter_viewed: bool | None, dials: Dials
) -> Recommendations | None:
    """Rank the new items alone, for requests whose filters do not bound how many may share a value."""
    is_new = find_new(recommender) if dials.new_share else np.zeros(1, np.bool_)
    if not is_new.any():
        return None
    ids = recommender.catalogue.item_ids.ids[is_new].tolist()
    return recommender.recommend([_only(one, ids) for one in requests], k, filter_viewed)


def _only(request: Request, ids: list[str | int]) -> Request:
    filters = request.filters or Filters()
    allowed = set(ids if filters.only is None else filters.only)
    kept = tuple(one for one in ids if one in allowed)
    return replace(request, filters=replace(filters, only=() if filters.at_most else kept))


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The pool of one request, best first, and behind it new items that only their share of the places can list."""

    rows: Ints  # (P,)
    scores: Floats  # (P,)
    n_pool: int
    is_new: Mask  # (P,)
    directions: Floats  # (P, D), of length 1 or 0
    past: Floats  # (H, D)

    @classmethod
    def of(
        cls, recommender: Recommender, request: Request, pool: Answer, fresh: Answer | None, dials: Dials
    ) -> _Candidates:
        catalogue = recommender.catalogue
        rows, scores, n_pool = catalogue.item_ids.find(pool.item_id), pool.score, len(pool.item_id)
        is_new = find_new(recommender)[rows] if dials.new_share else np.zeros(n_pool, np.bool_)
        if fresh is not None:
            more = catalogue.item_ids.find(fresh.item_id)
            is_more = ~np.isin(more, rows)
            rows, scores = np.append(rows, more[is_more]), np.append(scores, fresh.score[is_more])
            is_new = np.append(is_new, np.ones(is_more.sum(), np.bool_))
        past = np.empty(0, np.int64)
        if dials.novelty and (history := complete_request(recommender, request).history) is not None:
            past = catalogue.item_ids.find(history.item_id[-MAX_PAST:])
        return cls(
            rows, scores, n_pool, is_new, _directions(recommender, rows), _directions(recommender, past[past >= 0])
        )

    def choose(self, k: int, dials: Dials) -> list[int]:
        """Return the places of the items to list, in order."""
        if not self.n_pool:
            return []
        worth = _standardise(self.scores, self.scores[: self.n_pool])
        if dials.novelty and len(self.past):
            familiar = (self.directions @ self.past.T).max(axis=1)
            worth -= FULL * dials.novelty * _standardise(familiar, familiar[: self.n_pool])
        centre, scale = _pair_moments(self.directions[: self.n_pool])
        nearest, is_left = np.full(len(self.rows), -np.inf), np.ones(len(self.rows), np.bool_)
        chosen: list[int] = []
        for place in range(1, 1 + min(k, self.n_pool)):
            is_due = is_left & self.is_new & (self.is_new[chosen].sum() < int(place * dials.new_share + _ROUNDING))
            if is_due.any():
                best = int(np.where(is_due, self.scores, -np.inf).argmax())
            else:
                value = worth - FULL * dials.diversity * nearest if chosen else worth
                best = int(np.where(is_left, value, -np.inf)[: self.n_pool].argmax())
            chosen.append(best)
            is_left[best] = False
            nearest = np.maximum(nearest, (self.directions @ self.directions[best] - centre) / scale)
        return chosen


def _directions(recommender: Recommender, rows: Ints) -> Floats:
    vectors = recommender.catalogue.index.vectors[rows, : recommender.taste_dim]
    directions: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return directions


def _standardise(values: Floats, pool: Floats) -> Numbers:
    """Measure values in standard deviations of a pool from its mean."""
    of_pool = pool.astype(np.float64)
    scale = of_pool.std()
    standard: Numbers = (values - of_pool.mean()) / (scale if scale > 1e-9 else 1.0)
    return standard


def _pair_moments(directions: Floats) -> tuple[float, float]:
    """Return mean and standard deviation of the cosines of all pairs of different directions, without the pairs."""
    exact, n_pairs = directions.astype(np.float64), max(1, len(directions) * (len(directions) - 1))
    lengths = (exact**2).sum(axis=1)
    mean = (exact.sum(axis=0) ** 2).sum() - lengths.sum()
    square = ((exact.T @ exact) ** 2).sum() - (lengths**2).sum()
    mean, variance = mean / n_pairs, square / n_pairs - (mean / n_pairs) ** 2
    return float(mean), float(np.sqrt(variance)) if variance > 1e-12 else 1.0
