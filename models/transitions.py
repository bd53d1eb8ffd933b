"""What users take next after the items they have, pair by pair: correlations that have a direction.

With X (E, N) the histories before each event, in which one counts by exp(-decay * events after it), and Y (E, N) the
events themselves, B = (X'X + ridge I)^-1 X'Y predicts Y by X B with the least squares: the transitions of Choi et al.,
"Session-aware Linear Item-Item Models for Session-based Recommendation", WWW 2021. An item has the largest of its row.

Letters: E events, N items, n correlated items.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp

from evaluation.lapack import invert_regularised
from models.item_correlations import binary, order_by_popularity
from models.pair_correlations import PairCorrelations

DECAY, RIDGE = 1 / 3, 100.0
"""Validations of Amazon Beauty found .0789 with these (.0733 without), as much with a ridge of 30 (.0780) or a decay of
.7 (.0787), less with correlations that have no direction (.0779)."""
LEAST_COUNT = 0.02
"""Of an event in a history: what counts less is left out."""


def correlate_next(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], ridge: float, most: int, n_neighbours: int
) -> PairCorrelations:
    """Correlate the `most` popular items with what comes next, by the events of users in their order.

    Arguments as of `pair_correlations.correlate_pairs`, users ascending.
    """
    core = order_by_popularity(binary(user, item_row, shape))[:most]  # (n,)
    place_of = np.full(shape[1], -1)
    place_of[core] = np.arange(len(core))
    before, after = _lay_out(user, place_of[item_row], len(core))  # (E, n) each
    precision = invert_regularised((before.T @ before).toarray(), ridge)  # (n, n)
    following = (before.T @ after).T.tocsr()  # (n, n)
    transitions = np.ascontiguousarray((following @ precision).T)  # (n, n): the precision is symmetric
    np.fill_diagonal(transitions, 0)
    return PairCorrelations(transitions, np.ones(len(core), np.float32), core, shape[1], n_neighbours)


def _lay_out(user: np.ndarray, place: np.ndarray, n_items: int) -> tuple[sp.csr_array, sp.csr_array]:
    """Return the histories X and the events Y, (E, n) float32; an event's place is -1 where it is not correlated."""
    events, n_events = np.arange(len(user)), len(user)
    reach = 1 + math.floor(-math.log(LEAST_COUNT) / DECAY)
    rows, places, counts = [], [], []
    for distance in range(1, min(reach, n_events - 1) + 1):
        is_before = (user[distance:] == user[:-distance]) & (place[:-distance] >= 0)
        rows.append(events[distance:][is_before])
        places.append(place[:-distance][is_before])
        counts.append(np.full(len(rows[-1]), math.exp(-DECAY * (distance - 1)), np.float32))
    is_next = np.concatenate([[False], user[1:] == user[:-1]]) & (place >= 0)
    shape = (n_events, n_items)
    before = _sparse(np.concatenate(counts or [np.empty(0, np.float32)]), rows, places, shape)
    return before, _sparse(np.ones(int(is_next.sum()), np.float32), [events[is_next]], [place[is_next]], shape)


def _sparse(
    values: np.ndarray, rows: list[np.ndarray], places: list[np.ndarray], shape: tuple[int, int]
) -> sp.csr_array:
    where = (np.concatenate(rows or [np.empty(0, np.int64)]), np.concatenate(places or [np.empty(0, np.int64)]))
    return sp.csr_array((values, where), shape)
