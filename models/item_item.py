"""Estimate item-item weights: EASE, next-item regression and cosines behind one interface.

An item-item matrix B says how much an item of a history adds to the score of every other item. The
second term of the score (`models.towers`) is

    sum over the items j of the history of w_j B[j, i]        B = sum over k of alpha_k B_k

with a weight w_j per event (`models.refine`). The matrices B_k come from estimators with one
interface: interactions in, the top-k weights of each row out, as a sparse matrix (N, N). With X the
binary interaction matrix (U, N), I the identity and lambda the strength of the ridge:

    EASE         B = I - P diag(P)^-1 with P = (X'X + lambda I)^-1: each item is predicted from all
                 others of its user by ridge regression (Steck, WWW 2019)
    next item    B = (H'H + lambda I)^-1 H'Y: each event, a row of Y, is predicted from the history
                 before it, a row of H, in which older events fade (Choi et al., WWW 2021), by
                 position or by time (Park et al., WSDM 2025)

    content      B = cosines of the items' features: an item that is like one of the history is
                 near in what both are, not only in who took them

The plateau filter is in a chapter of its own, `models.plateau`. `models.refine` chooses the alphas.
A new estimator needs an entry in its `list_estimators` and an alpha in a `Plan`.

Weights are published, and one between two items that a single user took would name that user. So
each estimator cuts its rows by `Interactions.cut`, which asks for enough users first.

Letters: U users, N items, E events, n items whose weights are computed, c rows of a chunk, l
pairs of events.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from evaluation.ease import ease_weights, invert_regularised
from evaluation.ranking import SHRINK, keep_largest_entries, multiply_items, tiles
from serve.arrays import Flags, Floats, Ints
from serve.events import Events

# Items of a matrix that is inverted, the most popular ones, and items of a catalogue up to which
# the others get no weights.
MAX_INVERTED = 16_000

# Items up to which the filter has its plateau, which compares all pairs of items.
MAX_COMPARED = 50_000

# Pairs of events that next-item regression counts, those of events far apart first left out; and
# items whose pairs with one item EASE counts where not all are inverted.
MAX_PAIRS = 2**27
MAX_PARTNERS = 256

CHUNK = 2**24  # entries of a matrix that are dense at once
# share of entries up to which a product with a sparse matrix is faster
MAX_SPARSE = 0.02
# events of a history that weigh less are left out of the regression, and all but the last ones
MIN_EVENT_WEIGHT = 0.02
MAX_REACH = 50
FADING = 86_400.0  # seconds in which events fade by time
# of the time span, in which events fade for the trend: a week of a year
TREND_SHARE = 0.02
# Shares of the time span in which popularity fades: a month, a week, half a week of a year; never.
TREND_SHARES = {"slow_trend": 0.08, "trend": TREND_SHARE, "fast_trend": 0.01}
ALL_TIME = 1e9
MAX_TRENDING = 512  # items with a trend


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events of users, ordered by user and in each user's order."""

    user: Ints  # (E,) ascending
    item: Ints  # (E,) item rows
    time: Ints  # (E,) seconds, all alike where they are not known
    # (E,) whether an event is predicted; the others only stand in histories
    is_target: Flags
    n_users: int
    n_items: int
    min_users: int = 1  # who took both items of a weight; 1: any pair may have one

    @cached_property
    def matrix(self) -> sp.csr_array:
        """The binary interaction matrix, (U, N) float32."""
        ones = np.ones(len(self.user), np.float32)
        cells = (self.user, self.item)
        matrix = sp.csr_array((ones, cells), (self.n_users, self.n_items))
        matrix.data[:] = 1  # duplicates were summed
        return matrix

    def cut(
        self,
        weights: Any,
        rows: Ints,
        top_k: int,
        columns: Ints | slice = slice(None),
    ) -> sp.csr_array:
        """Cut weights of items to the largest of each row, of pairs that enough users took.

        Args:
            weights: (c, n) dense or sparse weights.
            rows: (c,) the items of their rows.
            top_k: weights that are kept per row.
            columns: (n,) the items of their columns, by default all.
        """
        if self.min_users > 1:
            by_item = self.matrix[:, rows].T.tocsr()  # (c, U)
            common = (by_item @ self.matrix)[:, columns]  # (c, n)
            common.data = np.float32(common.data >= self.min_users)
            weights = common.multiply(weights).tocsr()  # (c, n)
            weights.eliminate_zeros()
        cut = keep_largest_entries if sp.issparse(weights) else largest_of_rows
        return cut(weights, top_k)

    def only_targets(self) -> Interactions:
        """Leave out the events that only stand in histories."""
        kept = self.is_target
        return replace(
            self,
            user=self.user[kept],
            item=self.item[kept],
            time=self.time[kept],
            is_target=kept[kept],
        )

    def find_later(self, distance: int) -> Ints:
        """Return the events that come so many events after one of the same user, (l,)."""
        is_one_user = self.user[distance:] == self.user[:-distance]
        return np.flatnonzero(is_one_user) + distance

    def fade(self, earlier: Ints, later: Ints) -> Any:
        """Return exp(-time) of the time between events, (l,) in units of `FADING`."""
        return np.exp((self.time[earlier] - self.time[later]) / FADING)

    def popular_items(self, n: int) -> Ints:
        """Return the rows of the n items with the most users, (n,); at least one item."""
        n_users = self.matrix.sum(axis=0)  # (N,)
        n = min(n, int(np.count_nonzero(n_users)))
        return np.argsort(-n_users, kind="stable")[: max(1, n)]


def read_interactions(
    events: Events, weights: Floats, n_users: int, n_items: int, min_users: int = 1
) -> Interactions:
    """Read the events of a training, whose weights (E,) are 0 where they are no target."""
    return Interactions(
        events.segments,
        events.item_row,
        events.time,
        weights > 0,
        n_users,
        n_items,
        min_users,
    )


def ease(
    interactions: Interactions,
    top_k: int,
    ridge: float,
    max_items: int = MAX_INVERTED,
    max_dense: int = MAX_INVERTED,
) -> sp.csr_array:
    """Return the weights of EASE, B = I - P diag(P)^-1 with P = (X'X + ridge I)^-1.

    Args:
        interactions: E events of U users with N items.
        top_k: weights that are kept per row.
        ridge: lambda, the strength of the ridge.
        max_items: the most popular items, which X is limited to.
        max_dense: items of a catalogue above which the others get weights, too: `add_rest`.

    Returns:
        (N, N) sparse weights: row j holds what an item j of a history adds to the other items.

    Source: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
    """
    items = interactions.popular_items(max_items)  # (n,)
    matrix = interactions.matrix[:, items]  # (U, n)
    weights = ease_weights((matrix.T @ matrix).toarray(), ridge)  # (n, n)
    of_core = keep_largest(weights, items, interactions, top_k)  # (N, N)
    del weights
    if interactions.n_items <= max_dense:
        return of_core

    gram = multiply_items(
        interactions.matrix, MAX_PARTNERS, lambda counts, row, column: counts
    )  # (N, N)
    return add_rest(of_core, items, gram, gram, ridge, top_k, interactions)


def next_item(
    interactions: Interactions,
    top_k: int,
    ridge: float,
    decay: float,
    max_items: int = MAX_INVERTED,
    max_dense: int = MAX_INVERTED,
    floor: float = 1.0,
) -> sp.csr_array:
    """Return the weights of next-item regression, B = (H'H + ridge I)^-1 H'Y.

    An event of a history weighs exp(-decay * events after it) (floor + (1 - floor) exp(-age)) in H,
    (E, N). Its age is that at the event that is predicted, in units of `FADING`.

    Args:
        interactions: E events of U users with N items.
        top_k: weights that are kept per row.
        ridge: lambda, the strength of the ridge.
        decay: by which events fade with their positions.
        max_items: the most popular items, which H and Y are limited to.
        max_dense: items of a catalogue above which the others get weights, too: `add_rest`.
        floor: what time leaves of the weight of an event; 1: time does not count.

    Returns:
        (N, N) sparse weights: row j holds what an item j of a history adds to the next item.

    Source: Choi et al., "Session-aware Linear Item-Item Models for Session-based Recommendation",
    WWW 2021; time as in Park et al., "Temporal Linear Item-Item Model for Sequential
    Recommendation", WSDM 2025, with a sum in place of its maximum.
    """
    items = interactions.popular_items(max_items)  # (n,)
    positions = np.full(interactions.n_items, -1, np.int64)  # (N,)
    positions[items] = np.arange(len(items))
    position = positions[interactions.item]  # (E,)

    together, following = _count_pairs(
        interactions, position, len(items), decay, floor
    )  # (n, n) both
    inverse = invert_regularised(together.toarray(), ridge)  # (n, n)
    del together

    is_sparse = following.nnz < MAX_SPARSE * len(items) ** 2
    factor: Any = following if is_sparse else following.toarray()  # (n, n)
    weights = np.ascontiguousarray(inverse @ factor)  # (n, n)
    of_core = keep_largest(weights, items, interactions, top_k)  # (N, N)
    del inverse, factor, weights
    if interactions.n_items <= max_dense:
        return of_core

    together, following = _count_pairs(
        interactions, interactions.item, interactions.n_items, decay, floor
    )  # (N, N) both
    return add_rest(of_core, items, together, following, ridge, top_k, interactions)


def item_knn(interactions: Interactions, top_k: int) -> sp.csr_array:
    """Return the cosines of items by their users, less where these are few, (N, N).

    Source: Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001.
    """
    matrix = interactions.matrix  # (U, N)
    norms = np.sqrt(matrix.sum(axis=0))  # (N,)

    def divide(products: Floats, rows: Ints, columns: Ints) -> Floats:
        cosines = products / (norms[rows] * norms[columns] + SHRINK)
        is_kept = (rows != columns) & (products >= interactions.min_users)
        return np.asarray(cosines * is_kept, np.float32)

    return multiply_items(matrix, top_k, divide)


def add_rest(
    of_core: sp.csr_array,
    core: Ints,
    gram: sp.csr_array,
    following: sp.csr_array,
    ridge: float,
    top_k: int,
    interactions: Interactions,
) -> sp.csr_array:
    """Add the weights of all other items to those of a regression between the most popular ones.

    A pair with an item outside of the core gets (F - G B)_ji / (G_jj + ridge): what the core's
    weights B leave of F, by one step of Jacobi's method for (G + ridge I) B = F.

    Args:
        of_core: (N, N) weights B between the items of the core.
        core: (n,) the items whose matrix was inverted.
        gram: (N, N) products G of histories, H'H or X'X.
        following: (N, N) products F of histories and targets, H'Y or X'X.
        ridge: the strength of the ridge.
        top_k: weights that are kept per row.
        interactions: cut them.
    """
    n_items = gram.shape[0]
    is_rest = np.ones(n_items, np.bool_)  # (N,)
    is_rest[core] = False
    steps = 1 / (gram.diagonal() + ridge)  # (N,)
    parts = []
    for rows in tiles(n_items, top_k * gram.nnz // n_items, CHUNK):
        wanted = following[rows]  # (c, N)
        predicted = (gram[rows] @ of_core).multiply(wanted.astype(bool))  # (c, N)
        left = (wanted - predicted).tocoo()  # (c, N)
        row = rows[left.row]  # (pairs,)
        is_added = (is_rest[row] | is_rest[left.col]) & (row != left.col)  # (pairs,)
        left.data *= steps[row] * is_added
        weights = left.tocsr() + of_core[rows]  # (c, N)
        parts.append(interactions.cut(weights, rows, top_k))

    stacked: sp.csr_array = sp.vstack(parts, format="csr")  # (N, N)
    stacked.eliminate_zeros()
    return stacked


def keep_largest(
    weights: NDArray[Any], items: Ints, interactions: Interactions, top_k: int
) -> sp.csr_array:
    """Return the weights (n, n) of some items with the largest absolute values of each row, (N, N).

    The diagonal is dropped, and overwritten.
    """
    np.fill_diagonal(weights, 0)
    chunks = tiles(len(items), len(items), CHUNK)
    parts = [
        interactions.cut(weights[chunk], items[chunk], top_k, items) for chunk in chunks
    ]
    stacked = sp.vstack(parts, format="coo")  # (n, n)
    cells = (items[stacked.row], items[stacked.col])
    n_items = interactions.n_items
    largest = sp.csr_array((stacked.data, cells), (n_items, n_items))
    largest.sort_indices()
    return largest


def largest_of_rows(weights: NDArray[Any], top_k: int) -> sp.csr_array:
    """Return the entries of each row (c, N) with the largest absolute values, without zeros."""
    n_rows, n_items = weights.shape
    k = max(1, min(top_k, n_items - 1))
    columns = np.argpartition(-np.abs(weights), k - 1, axis=1)[:, :k]  # (c, k)
    values = np.take_along_axis(weights, columns, 1).ravel()  # (c * k,)
    bounds = np.arange(n_rows + 1) * k  # (c + 1,)
    largest = sp.csr_array((values, columns.ravel(), bounds), weights.shape)
    largest.eliminate_zeros()
    largest.sort_indices()

    return largest


def _count_pairs(
    interactions: Interactions, position: Ints, n: int, decay: float, floor: float
) -> tuple[sp.csr_array, sp.csr_array]:
    """Return H'H and H'Y of `next_item`, (n, n) both.

    Two events stand together in the histories of all events that come after both, as far as
    histories reach. By time they weigh (floor + (1 - floor) q x) (floor + (1 - floor) x) there,
    with q = exp(-time between both) and x = exp(-time after the later one). The powers of x are
    summed for each event alone, so that every pair of events is visited once. The position (E,) of
    an event's item among the n items is -1 elsewhere.
    """
    n_events = len(interactions.user)
    reach = 1 + math.floor(-math.log(MIN_EVENT_WEIGHT) / decay)
    reach = max(2, min(reach, MAX_REACH, MAX_PAIRS // max(1, n_events)))
    fading = 1 - floor
    # sums of x to the power of 0, 1, 2 over the histories that hold an event
    sums = np.zeros((3, n_events), np.float32)  # (3, E)

    def add_history(n_after: int) -> None:
        predicted = interactions.find_later(n_after)  # (l,)
        last = predicted - n_after  # (l,)
        x = interactions.fade(last, predicted)  # (l,)
        weight = math.exp(-2 * decay * (n_after - 1))
        sums[:, last] += weight * np.stack([np.ones_like(x), x, x**2])

    def sum_histories(distance: int, later: Ints, between: Any) -> Any:
        zeroth, first, second = sums[:, later]  # (l,) each
        total = floor**2 * zeroth
        total += floor * fading * (1 + between) * first
        total += fading**2 * between * second
        return math.exp(-decay * distance) * total  # (l,)

    def sum_pairs(earlier: Ints, later: Ints, weights: Any) -> sp.csr_array:
        cells = (position[earlier], position[later])  # (l,) both
        pairs = sp.coo_array((weights.astype(np.float32), cells), (n, n))
        return pairs.tocsr()  # sums duplicates

    together: Any = sp.csr_array((n, n), dtype=np.float32)
    following: Any = sp.csr_array((n, n), dtype=np.float32)

    # Events that are farther apart are together in fewer histories.
    for distance in range(reach, 0, -1):
        later = interactions.find_later(distance)  # (l,)
        is_inside = (position[later] >= 0) & (position[later - distance] >= 0)  # (l,)
        later = later[is_inside]  # (l,)
        earlier = later - distance  # (l,)
        between = interactions.fade(earlier, later)  # (l,)

        both = sum_pairs(earlier, later, sum_histories(distance, later, between))
        together = together + both + both.T  # (n, n)

        weight = math.exp(-decay * (distance - 1))
        by_time = floor + fading * between  # (l,)
        of_targets = weight * by_time * interactions.is_target[later]  # (l,)
        following = following + sum_pairs(earlier, later, of_targets)  # (n, n)
        add_history(reach - distance + 1)

    inside = np.flatnonzero(position >= 0)  # (l,)
    alone = sum_histories(0, inside, np.ones(len(inside)))  # (l,)
    return together + sum_pairs(inside, inside, alone), following


def list_trends(
    events: Events, n_items: int, has_datetime: bool
) -> dict[str, Callable[[], sp.csr_array]]:
    """Return the estimators of popularity, (1, N) each: of all events, and of late ones by date."""
    trend = partial(find_trend, events, n_items)
    trends: dict[str, Callable[[], sp.csr_array]] = {
        "popularity": partial(trend, ALL_TIME)
    }
    if has_datetime:
        for name, share in TREND_SHARES.items():
            trends[name] = partial(trend, share)

    return trends


def find_trend(
    events: Events, n_items: int, share: float = TREND_SHARE
) -> sp.csr_array:
    """Return by how much popular items stand out, (1, N), if events fade by a share of the time."""
    fading = max(share * np.ptp(events.time), 1.0)  # seconds
    age = (events.time.max() - events.time) / fading  # (E,)
    recent = np.log1p(np.bincount(events.item_row, np.exp(-age), n_items))  # (N,)
    least = np.sort(recent)[-min(MAX_TRENDING, n_items)]
    trend = np.maximum(recent - least, 0)  # (N,)
    return sp.csr_array(trend.astype(np.float32)[None])
