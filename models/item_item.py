"""Estimate item-item weights: EASE, next-item regression and a plateau filter behind one interface.

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
    plateau      B = D^-b (V diag(h(v)) V' + .3 V V' + rest) D^b: S is X with rows and columns
                 divided by the roots of their sums, V its leading right singular vectors, v their
                 squared singular values, D the sums of the columns. The curve h rises to a plateau
                 at a half, so that strong tastes do not drown the others (Kim et al., SIGIR 2025)

`models.refine` chooses the alphas. A new estimator needs an entry in its `list_estimators` and an
alpha in a `Plan`.

Letters: U users, N items, E events, n items whose weights are computed, c rows of a chunk, K
singular vectors, l pairs of events.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from datamodules.datamodule import InteractionsDataModule
from evaluation.baselines import SHRINK
from evaluation.ease import ease_weights, invert_regularised
from evaluation.ranking import keep_largest_entries, multiply_items, tiles
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
# The plateau filter: weight of the ideal low-pass filter beside the curve; power of the sums of
# columns; value of phi times the weakest squared singular value, and the largest phi.
LOW_PASS = 0.3
SKEW = 0.3
BEND = 1 / 3
MAX_FLATNESS = 30.0

# Singular vectors that are iterated beside those that are kept, and iterations.
SPARE_VECTORS = 32
ITERATIONS = 6

# of the time span, in which events fade for the trend: a week of a year
TREND_SHARE = 0.02
MAX_TRENDING = 512  # items with a trend

# Of the squared singular values of S, whose largest is 1: smaller ones are rounding errors.
MIN_EIGENVALUE = 1e-5


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

    def matrix(self) -> sp.csr_array:
        """Return the binary interaction matrix, (U, N) float32."""
        ones = np.ones(len(self.user), np.float32)
        cells = (self.user, self.item)
        matrix = sp.csr_array((ones, cells), (self.n_users, self.n_items))
        matrix.data[:] = 1  # duplicates were summed
        return matrix

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
        n_users = self.matrix().sum(axis=0)  # (N,)
        n = min(n, int(np.count_nonzero(n_users)))
        return np.argsort(-n_users, kind="stable")[: max(1, n)]


def read_interactions(data: InteractionsDataModule) -> Interactions:
    """Read the events of a training."""
    events, weights = data.sample_events()
    is_target = weights > 0  # (E,)
    return Interactions(
        events.segments,
        events.item_row,
        events.time,
        is_target,
        len(data.sequences.user_ids),
        len(data.catalogue),
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
    matrix = interactions.matrix()[:, items]  # (U, n)
    weights = ease_weights((matrix.T @ matrix).toarray(), ridge)  # (n, n)
    of_core = keep_largest(weights, items, interactions.n_items, top_k)  # (N, N)
    del weights
    if interactions.n_items <= max_dense:
        return of_core

    gram = multiply_items(
        interactions.matrix(), MAX_PARTNERS, lambda counts, row, column: counts
    )  # (N, N)
    return add_rest(of_core, items, gram, gram, ridge, top_k)


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
    of_core = keep_largest(weights, items, interactions.n_items, top_k)  # (N, N)
    del inverse, factor, weights
    if interactions.n_items <= max_dense:
        return of_core

    together, following = _count_pairs(
        interactions, interactions.item, interactions.n_items, decay, floor
    )  # (N, N) both
    return add_rest(of_core, items, together, following, ridge, top_k)


def plateau_filter(
    interactions: Interactions,
    top_k: int,
    n_factors: int,
    seed: int,
    max_dense: int = MAX_COMPARED,
) -> sp.csr_array:
    """Return the weights of a filter of the graph of users and items whose curve has a plateau.

    A component of S'S with the squared singular value v is weighed by `bend(v)` where it is one of
    the K strongest, else by slope * v, the chord of the curve: no polynomial is needed.

    Args:
        interactions: E events of U users with N items.
        top_k: weights that are kept per row.
        n_factors: singular vectors that follow the curve.
        seed: of the start of the decomposition.
        max_dense: items of a catalogue above which only the linear filter S'S is left.

    Returns:
        (N, N) sparse weights: row j holds what an item j of a history adds to the other items.

    Source: Kim et al., "Graph Spectral Filtering with Chebyshev Interpolation for Recommendation",
    SIGIR 2025; the linear and the ideal filter are those of GF-CF (Shen et al., CIKM 2021).
    """
    n_items = interactions.n_items
    matrix = interactions.matrix()  # (U, N)
    per_user = np.maximum(matrix.sum(axis=1), 1.0).astype(np.float32)  # (U,)
    per_item = np.maximum(matrix.sum(axis=0), 1.0).astype(np.float32)  # (N,)

    by_user = sp.diags_array(per_user**-0.5) @ matrix  # (U, N)
    scaled = (by_user @ sp.diags_array(per_item**-0.5)).tocsr()  # (U, N)
    if n_items > max_dense:
        return multiply_items(
            scaled, top_k, lambda weights, row, column: weights * (row != column)
        )

    squares, vectors = leading_vectors(scaled, n_factors, seed)  # (K,), (N, K)
    curve = bend(squares)  # (K,)
    slope = curve[0] / squares[0]
    gains = curve + LOW_PASS - slope * squares  # (K,)

    skew = per_item**SKEW  # (N,)
    targets = scaled @ sp.diags_array(skew)  # (U, N)
    sources = (sp.diags_array(slope / skew) @ scaled.T).tocsr()  # (N, U)
    rows = vectors * gains / skew[:, None]  # (N, K)
    columns = (vectors * skew[:, None]).T  # (K, N)
    parts = []
    for chunk in tiles(n_items, n_items, CHUNK):
        linear = (sources[chunk] @ targets).toarray()  # (c, N)
        weights = rows[chunk] @ columns + linear  # (c, N)
        weights[np.arange(len(chunk)), chunk] = 0
        parts.append(_largest_of_rows(weights, top_k))

    return sp.csr_array(sp.vstack(parts))


def item_knn(interactions: Interactions, top_k: int) -> sp.csr_array:
    """Return the cosines of items by their users, less where these are few, (N, N).

    Source: Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001.
    """
    matrix = interactions.matrix()  # (U, N)
    norms = np.sqrt(matrix.sum(axis=0))  # (N,)

    def divide(products: Floats, rows: Ints, columns: Ints) -> Floats:
        cosines = products / (norms[rows] * norms[columns] + SHRINK)
        return np.asarray(cosines * (rows != columns), np.float32)

    return multiply_items(matrix, top_k, divide)


def bend(squares: Floats) -> Floats:
    """Return the curve h(x) = .5 - .5 sign(x) |x|^phi at x = 1 - 2 v of squared singular values v.

    The curve rises from 0 to a plateau at a half, and to 1 at the strongest component. By its phi
    the weakest of the components (K,), which rise, has come about half of the way to the plateau.
    """
    flatness = np.clip(BEND / squares[0], 1, MAX_FLATNESS)
    place = 1 - 2 * squares  # (K,)
    curve: Floats = 0.5 - 0.5 * np.sign(place) * np.abs(place) ** flatness  # (K,)
    return curve


def leading_vectors(
    matrix: sp.csr_array, n_factors: int, seed: int
) -> tuple[Floats, Floats]:
    """Find leading right singular vectors of a matrix (U, N) by subspace iteration.

    Returns:
        (K,) squared singular values, the smallest first, and (N, K) vectors: K is `n_factors` or
        the rank, whichever is lower.

    Source: Halko, Martinsson and Tropp, "Finding Structure with Randomness", SIAM Review 2011,
    algorithm 4.4.
    """
    width = min(n_factors + SPARE_VECTORS, matrix.shape[1])
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((matrix.shape[1], width), np.float32)  # (N, width)
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(matrix.T @ (matrix @ basis))[0]  # (N, width)

    projected = matrix @ basis  # (U, width)
    squares, turns = np.linalg.eigh(projected.T @ projected)  # (width,) ascending
    n_kept = np.clip(np.count_nonzero(squares > MIN_EIGENVALUE), 1, n_factors)
    kept = np.maximum(squares[-n_kept:], MIN_EIGENVALUE)  # (K,)
    # multiplied once more, so that items without users have exact zeros
    vectors = matrix.T @ (matrix @ (basis @ turns[:, -n_kept:])) / kept  # (N, K)
    return kept, vectors


def add_rest(
    of_core: sp.csr_array,
    core: Ints,
    gram: sp.csr_array,
    following: sp.csr_array,
    ridge: float,
    top_k: int,
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
        parts.append(keep_largest_entries(left.tocsr() + of_core[rows], top_k))

    stacked: sp.csr_array = sp.vstack(parts, format="csr")  # (N, N)
    stacked.eliminate_zeros()
    return stacked


def keep_largest(
    weights: NDArray[Any], items: Ints, n_items: int, top_k: int
) -> sp.csr_array:
    """Return the weights (n, n) of some items with the largest absolute values of each row, (N, N).

    The diagonal is dropped, and overwritten.
    """
    np.fill_diagonal(weights, 0)
    chunks = tiles(len(items), len(items), CHUNK)
    parts = [_largest_of_rows(weights[chunk], top_k) for chunk in chunks]
    stacked = sp.vstack(parts, format="coo")  # (n, n)
    cells = (items[stacked.row], items[stacked.col])
    largest = sp.csr_array((stacked.data, cells), (n_items, n_items))
    largest.sort_indices()
    return largest


def _largest_of_rows(weights: NDArray[Any], top_k: int) -> sp.csr_array:
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
