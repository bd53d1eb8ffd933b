"""What users take next after the items they have, pair by pair: correlations that have a direction.

With X (E, N) the histories before each event, in which one counts by exp(-decay * events after it), and Y (E, N) the
events themselves, B = (X'X + ridge I)^-1 X'Y predicts Y by X B with the least squares: the transitions of Choi et al.,
"Session-aware Linear Item-Item Models for Session-based Recommendation", WWW 2021. An item has the largest of its row.

Letters: E events, e of a chunk, N items, n correlated items.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp

from evaluation.lapack import invert_regularised
from models.item_correlations import order_by_popularity, who_has_what
from models.pair_correlations import PairCorrelations

DECAY, RIDGE = 1 / 3, 100.0
"""The validation of Amazon Beauty, seed 0, found .0789 with these (.0733 without), .0780 with a ridge of 30, .0787 with
a decay of .7 in the request, .0779 with correlations that have no direction."""
LEAST_COUNT = 0.02
"""Of an event in a history: what counts less is left out."""
CHUNK = 2**20
"""Events whose histories are laid out at once."""
LEAST_SPARSE = 50
"""Entries of a matrix for each that is not zero, from which on a product with the others is shorter."""


def correlate_next(
    user: np.ndarray, item_row: np.ndarray, is_target: np.ndarray, shape: tuple[int, int], ridge: float, most: int
) -> PairCorrelations:
    """Correlate the `most` popular items with what comes next, by the events of users in their order.

    Args:
        user: (E,) user of each event, ascending.
        item_row: (E,) item of each event.
        is_target: (E,) whether the event is to be predicted; all stand in histories.
        shape: (U, N).
        ridge: of the least squares.
        most: items.
    """
    core = order_by_popularity(who_has_what(user, item_row, shape))[:most]  # (n,)
    place_of = np.full(shape[1], -1, np.int32)
    place_of[core] = np.arange(len(core))
    gram, following = _sum_products(user, place_of[item_row], is_target, len(core))  # (n, n) each
    precision = invert_regularised(gram, ridge)  # (n, n), symmetric: its transpose lies in the order of C
    is_sparse = following.nnz * LEAST_SPARSE < len(core) ** 2
    backwards = (following if is_sparse else following.toarray()) @ precision.T  # (n, n), history in columns
    del precision
    transitions = np.ascontiguousarray(backwards.T)  # (n, n)
    np.fill_diagonal(transitions, 0)
    return PairCorrelations(transitions, core, shape[1])


def _sum_products(
    user: np.ndarray, place: np.ndarray, is_target: np.ndarray, n_items: int
) -> tuple[np.ndarray, sp.csr_array]:
    """Return X'X and Y'X, (n, n) each; the place of an event is -1 where its item is not correlated."""
    shape = (n_items, n_items)
    gram = np.zeros(shape, np.float32)
    nothing = np.empty(0, np.int32)
    following = sp.csr_array((nothing.astype(np.float32), (nothing, nothing)), shape)
    for start in range(0, len(user), CHUNK):
        events = np.arange(start, min(start + CHUNK, len(user)), dtype=np.int32)  # (e,)
        before = _lay_out(user, place, events, n_items)  # (e, n)
        gram += (before.T @ before).toarray()
        is_next = is_target[events] & (place[events] >= 0)
        where = (place[events[is_next]], is_next.nonzero()[0])
        after = sp.csr_array((np.ones(len(where[0]), np.float32), where), (n_items, len(events)))  # (n, e)
        following += after @ before
    return gram, following


def _lay_out(user: np.ndarray, place: np.ndarray, events: np.ndarray, n_items: int) -> sp.csr_array:
    """Return the histories X before some events, (e, n) float32."""
    reach = 1 + math.floor(-math.log(LEAST_COUNT) / DECAY)
    rows, places, counts = [], [], []
    for distance in range(1, reach + 1):
        later = events[events >= distance]  # (l,)
        later = later[(user[later] == user[later - distance]) & (place[later - distance] >= 0)]
        rows.append(later - events[0])
        places.append(place[later - distance])
        counts.append(np.full(len(later), math.exp(-DECAY * (distance - 1)), np.float32))
    where = (np.concatenate(rows), np.concatenate(places))
    return sp.csr_array((np.concatenate(counts), where), (len(events), n_items))
