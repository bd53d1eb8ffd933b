"""Estimate item-item weights: EASE, next-item regression and GF-CF behind one interface.

Each estimator reads `Interactions` and returns a sparse matrix (N, N) with the top-k weights of each row: row j says
how much an item j of a history adds to the score of every other item (`serve.index`). `models.refine` mixes them: a
new estimator needs an entry in its `list_estimators` and an alpha in a `Plan`.

Letters: U users, N items, E events, n items whose weights are computed, c rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from evaluation.baselines import invert_regularised

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]

MAX_INVERTED = 16_000  # items of a matrix that is inverted, the most popular ones; the others get no weights from it
CHUNK = 2**24  # entries of a matrix that are dense at once
MAX_SPARSE = 0.02  # share of entries up to which a product with a sparse matrix is the faster one
MIN_EVENT_WEIGHT = (
    0.02  # events of a history that weigh less are left out of the regression
)
FILTER_WEIGHT = (
    0.3  # of the ideal low-pass filter beside the linear one, as in the paper
)
MIN_EIGENVALUE = (
    1e-5  # of the normalised interaction matrix, whose largest is 1; less is rounding
)


@dataclass(frozen=True, eq=False)
class Interactions:
    """Events of users, ordered by user and in each user's order."""

    user: Ints  # (E,) ascending
    item: Ints  # (E,) item rows
    is_target: NDArray[
        np.bool_
    ]  # (E,) whether an event is predicted; the others only stand in histories
    n_users: int
    n_items: int

    def matrix(self) -> sp.csr_array:
        """Return the binary interaction matrix, (U, N) float32."""
        shape = (self.n_users, self.n_items)
        matrix = sp.csr_array(
            (np.ones(len(self.user), np.float32), (self.user, self.item)), shape
        )  # sums duplicates
        matrix.data[:] = 1
        return matrix

    def only_targets(self) -> Interactions:
        """Leave out the events that only stand in histories."""
        kept = self.is_target
        return Interactions(
            self.user[kept], self.item[kept], kept[kept], self.n_users, self.n_items
        )

    def popular_items(self, most: int) -> Ints:
        """Return the rows of at most so many items, those of the most users first, (n,); at least one."""
        n_users = self.matrix().sum(axis=0)  # (N,)
        return np.argsort(-n_users, kind="stable")[
            : max(1, min(np.count_nonzero(n_users), most))
        ]


def ease(
    interactions: Interactions, top_k: int, ridge: float, most: int | None = None
) -> sp.csr_array:
    """Return the weights of EASE (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019).

    With P = (X'X + ridge I)^-1 of the interaction matrix X of the `most` popular items, G_ij = -P_ij / P_jj.
    """
    items = interactions.popular_items(most or MAX_INVERTED)
    matrix = interactions.matrix()[:, items]  # (U, n)
    precision = invert_regularised((matrix.T @ matrix).toarray(), ridge)  # (n, n)
    precision /= -precision.diagonal()
    return keep_largest(precision, items, interactions.n_items, top_k)


def ease_of_targets(
    interactions: Interactions, top_k: int, ridge: float
) -> sp.csr_array:
    """Return the weights of EASE from targets alone: what users viewed or rated low is no sign of what they like."""
    return ease(interactions.only_targets(), top_k, ridge)


def next_item(
    interactions: Interactions, top_k: int, ridge: float, decay: float
) -> sp.csr_array:
    """Return the weights of next-item regression (Choi et al., "Session-aware Linear Item-Item Models", WWW 2021).

    With X (E, N) the histories before each event, in which one weighs exp(-decay * events after it), and Y (E, N) the
    events themselves, G = (X'X + ridge I)^-1 X'Y.
    """
    items = interactions.popular_items(MAX_INVERTED)
    place = np.full(interactions.n_items, -1, np.int64)
    place[items] = np.arange(len(items))
    reach = max(2, 1 + math.floor(-math.log(MIN_EVENT_WEIGHT) / decay))
    together, following = _count_pairs(
        interactions, place[interactions.item], len(items), decay, reach
    )  # (n, n) both
    inverse = invert_regularised(together, ridge)  # (n, n)
    del together
    factor: Any = (
        following
        if following.nnz < MAX_SPARSE * len(items) ** 2
        else following.toarray()
    )  # (n, n)
    weights = np.ascontiguousarray(inverse @ factor)  # (n, n)
    return keep_largest(weights, items, interactions.n_items, top_k)


def gf_cf(
    interactions: Interactions, top_k: int, n_factors: int, seed: int
) -> sp.csr_array:
    """Return the positive weights of GF-CF (Shen et al., "How Powerful is Graph Convolution", CIKM 2021, equation 11).

    With X~ = diag(users)^-1/2 X diag(items)^-1/2, n the users of each item and V (N, K) the leading right singular
    vectors of X~, a history x scores x (X~'X~ + FILTER_WEIGHT diag(n^-1/2) V V' diag(n^1/2)).
    """
    matrix = interactions.matrix()
    per_user, per_item = (
        np.maximum(matrix.sum(axis=axis), 1.0).astype(np.float32) for axis in (1, 0)
    )  # (U,), (N,)
    scaled = (
        sp.diags_array(per_user**-0.5) @ matrix @ sp.diags_array(per_item**-0.5)
    ).tocsr()  # (U, N)
    vectors = singular_vectors(scaled, n_factors, seed)  # (N, K)
    root = np.sqrt(per_item)[:, None]  # (N, 1)
    rows = FILTER_WEIGHT * vectors / root  # (N, K), (K, N)
    columns = np.ascontiguousarray((vectors * root).T)
    users_of = scaled.T.tocsr()  # (N, U)
    everything = np.arange(interactions.n_items)
    parts = []
    for chunk in _chunks(interactions.n_items):
        weights = rows[chunk] @ columns + (users_of[chunk] @ scaled).toarray()  # (c, N)
        weights[np.arange(len(weights)), everything[chunk]] = 0
        parts.append(_largest_of_rows(np.maximum(weights, 0), top_k))
    stacked: sp.csr_array = sp.vstack(parts, format="csr")  # (N, N)
    return stacked


def singular_vectors(matrix: sp.csr_array, n_factors: int, seed: int) -> Floats:
    """Return the leading right singular vectors of a matrix (U, N), (N, K), the strongest first.

    K is `n_factors`, or fewer where singular values beyond are none; a vector's largest entry is positive.
    """
    rank = min(n_factors, min(matrix.shape) - 1)
    if rank < 1:
        return np.zeros((matrix.shape[1], 1), np.float32)
    _, values, right = svds(matrix, k=rank, random_state=seed)
    right = right[np.argsort(-values)][
        : max(1, np.count_nonzero(values**2 > MIN_EIGENVALUE))
    ]  # (K, N)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])  # (K,)
    return np.ascontiguousarray((right * signs[:, None]).T.astype(np.float32))


def keep_largest(
    weights: Floats, items: Ints, n_items: int, top_k: int
) -> sp.csr_array:
    """Return the weights (n, n) of some items with the largest absolute values of each row, as (N, N).

    The diagonal is dropped, and overwritten.
    """
    np.fill_diagonal(weights, 0)
    parts = sp.vstack(
        [_largest_of_rows(weights[chunk], top_k) for chunk in _chunks(len(items))],
        format="coo",
    )
    kept = sp.csr_array(
        (parts.data, (items[parts.row], items[parts.col])), (n_items, n_items)
    )
    kept.sort_indices()
    return kept


def _largest_of_rows(weights: Floats, top_k: int) -> sp.csr_array:
    """Return the entries of each row (c, N) with the largest absolute values, without zeros."""
    n_rows, n_items = weights.shape
    k = max(1, min(top_k, n_items - 1))
    columns = np.argpartition(-np.abs(weights), k - 1, axis=1)[:, :k]  # (c, k)
    kept = np.take_along_axis(weights, columns, 1).ravel()  # (c * k,)
    part = sp.csr_array(
        (kept, columns.ravel(), np.arange(n_rows + 1) * k), weights.shape
    )
    part.eliminate_zeros()
    part.sort_indices()
    return part


def _chunks(n_items: int) -> Iterator[slice]:
    width = max(1, CHUNK // max(n_items, 1))
    return (
        slice(start, min(start + width, n_items)) for start in range(0, n_items, width)
    )


def _count_pairs(
    interactions: Interactions, place: Ints, n: int, decay: float, reach: int
) -> tuple[Floats, sp.csr_array]:
    """Return X'X and X'Y of `next_item` for the items at the places (E,) 0 to n - 1, (n, n) both.

    Two events stand together in the histories of all that come after both, as far as histories reach: what these add is
    the sum of a geometric series, so that every pair of events is visited once.
    """
    user = interactions.user
    shrink = math.exp(-2 * decay)
    n_after = np.searchsorted(user, user, side="right") - np.arange(
        1, len(user) + 1
    )  # (E,)

    def histories(distance: int, later: Ints) -> Floats:
        n_histories = np.minimum(n_after[later], reach - distance)  # (l,)
        weights: Floats = (
            math.exp(-decay * distance) * (1 - shrink**n_histories) / (1 - shrink)
        )
        return weights

    def sum_pairs(earlier: Ints, later: Ints, weights: Floats) -> sp.csr_array:
        pairs = place[earlier], place[later]  # (l,) both
        return sp.coo_array(
            (weights.astype(np.float32), pairs), (n, n)
        ).tocsr()  # sums what comes several times

    inside = np.flatnonzero(place >= 0)  # (l,)
    together = sum_pairs(inside, inside, histories(0, inside))
    following: Any = sp.csr_array((n, n), dtype=np.float32)
    for distance in range(1, reach + 1):
        later = np.flatnonzero(user[distance:] == user[:-distance]) + distance  # (l,)
        later = later[(place[later] >= 0) & (place[later - distance] >= 0)]
        both = sum_pairs(later - distance, later, histories(distance, later))
        together = together + both + both.T
        weights = (
            math.exp(-decay * (distance - 1)) * interactions.is_target[later]
        )  # (l,)
        following = following + sum_pairs(later - distance, later, weights)
    return together.toarray(), following
