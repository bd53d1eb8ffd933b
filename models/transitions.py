"""What users take next after the items they have, pair by pair: correlations that have a direction.

With X (E, N) the histories before each event, in which one counts by exp(-decay * events after it), and Y (E, N) the
events themselves, B = (X'X + ridge I)^-1 X'Y predicts Y by X B with the least squares: the transitions of Choi et al.,
"Session-aware Linear Item-Item Models for Session-based Recommendation", WWW 2021. An item has the largest of its row.

Letters: E events, e of a chunk, l of these, N items, n correlated items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from evaluation.baselines import invert_regularised
from models.item_correlations import order_by_popularity, who_has_what
from models.pair_correlations import PairCorrelations

LEAST_COUNT = 0.02
"""Of an event in a history: what counts less is left out."""
CHUNK = 2**24
"""Events of histories that are laid out at once."""
LEAST_SPARSE = 50
"""Entries of a matrix for each that is not zero, from which on a product with the others is shorter."""

Weigh = Callable[[int, np.ndarray], np.ndarray]
"""How many events one stands before another, and the other ones (l,) -> what each pair of them weighs (l,)."""


def correlate_next(
    user: np.ndarray,
    item_row: np.ndarray,
    is_target: np.ndarray,
    shape: tuple[int, int],
    ridge: float,
    decay: float,
    most: int,
) -> PairCorrelations:
    """Correlate the `most` popular items with what comes next, by the events of users in their order.

    Args:
        user: (E,) user of each event, ascending.
        item_row: (E,) item of each event.
        is_target: (E,) whether the event is to be predicted; all stand in histories.
        shape: (U, N).
        ridge: of the least squares.
        decay: of events in histories, above 0; two of them count however large it is.
        most: items.
    """
    core = order_by_popularity(who_has_what(user, item_row, shape))[:most]  # (n,)
    place_of = np.full(shape[1], -1, np.int32)
    place_of[core] = np.arange(len(core))
    events = _Events(user, place_of[item_row], len(core), decay)
    following = _sum_following(events, is_target)  # (n, n)
    # symmetric: its transpose lies in the order of C
    precision = invert_regularised(_sum_histories(events), ridge)  # (n, n)
    backwards = following @ precision.T  # (n, n), history in columns
    del following, precision
    transitions = np.ascontiguousarray(backwards.T)  # (n, n)
    np.fill_diagonal(transitions, 0)
    return PairCorrelations(transitions, core, shape[1])


@dataclass(frozen=True)
class _Events:
    """Events by users, in their order."""

    user: np.ndarray
    """(E,) ascending."""
    place: np.ndarray
    """(E,) of the item among those that are correlated; -1: it is not."""
    n_items: int
    decay: float

    @property
    def reach(self) -> int:
        """Return the most events of a history that count."""
        return max(2, 1 + math.floor(-math.log(LEAST_COUNT) / self.decay))

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield events (e,), so many that their histories fit in memory."""
        size = max(1, CHUNK // self.reach)
        for start in range(0, len(self.user), size):
            yield np.arange(start, min(start + size, len(self.user)), dtype=np.int32)

    def lay_out(self, events: np.ndarray, most: int, weigh: Weigh) -> sp.csr_array:
        """Return what at most `most` events before each of some weigh, by their items, (e, n) float32."""
        rows, places, weights = [], [], []
        for distance in range(1, most + 1):
            later = events[events >= distance]  # (l,)
            later = later[(self.user[later] == self.user[later - distance]) & (self.place[later - distance] >= 0)]
            rows.append(later - events[0])
            places.append(self.place[later - distance])
            weights.append(weigh(distance, later).astype(np.float32))
        where = (np.concatenate(rows), np.concatenate(places))
        return sp.csr_array((np.concatenate(weights), where), (len(events), self.n_items))

    def mark(self, events: np.ndarray, is_marked: np.ndarray) -> sp.csr_array:
        """Return the items of those of some events that are marked (e,), (n, e) float32."""
        is_marked = is_marked & (self.place[events] >= 0)  # (e,)
        columns = is_marked.nonzero()[0].astype(np.int32)  # (l,)
        where = (self.place[events[is_marked]], columns)
        return sp.csr_array((np.ones(len(columns), np.float32), where), (self.n_items, len(events)))


def _sum_following(events: _Events, is_target: np.ndarray) -> np.ndarray | sp.csr_array:
    """Return Y'X, (n, n): sparse where few pairs of items can follow each other."""

    def weigh(distance: int, later: np.ndarray) -> np.ndarray:
        return np.full(len(later), math.exp(-events.decay * (distance - 1)))  # (l,)

    def count(chunk: np.ndarray) -> sp.csr_array:
        told: sp.csr_array = events.mark(chunk, is_target[chunk]) @ events.lay_out(chunk, events.reach, weigh)  # (n, n)
        return told

    chunks, most_pairs = list(events.chunks()), len(events.user) * events.reach
    if len(chunks) == 1 and most_pairs * LEAST_SPARSE < events.n_items**2:
        return count(chunks[0])
    following = np.zeros((events.n_items, events.n_items), np.float32)  # (n, n)
    for chunk in chunks:
        _add(following, count(chunk))
    return following


def _add(summed: np.ndarray, more: sp.csr_array) -> None:
    """Add a product, which has no entry twice, to a matrix (n, n)."""
    rows = np.repeat(np.arange(len(summed), dtype=np.int32), np.diff(more.indptr))  # (entries,)
    summed[rows, more.indices] += more.data


def _sum_histories(events: _Events) -> np.ndarray:
    """Return X'X, (n, n).

    Two events stand together in the histories of all that come after both, as far as histories reach. So what they add
    is the sum of a geometric series, and every pair is looked at once.
    """
    ends = np.searchsorted(events.user, events.user, side="right")  # (E,)
    n_after = ends - np.arange(1, len(ends) + 1)  # (E,)
    shrinks = math.exp(-2 * events.decay)

    def weigh(distance: int, later: np.ndarray) -> np.ndarray:
        n_histories = np.minimum(n_after[later], events.reach - distance)  # (l,)
        return math.exp(-events.decay * distance) * (1 - shrinks**n_histories) / (1 - shrinks)  # type: ignore[no-any-return]

    pairs = np.zeros((events.n_items, events.n_items), np.float32)  # (n, n)
    for chunk in events.chunks():
        everything = np.ones(len(chunk), bool)  # (e,)
        _add(pairs, events.mark(chunk, everything) @ events.lay_out(chunk, events.reach - 1, weigh))
    of_itself = weigh(0, np.arange(len(ends)))  # (E,)
    inside = events.place >= 0  # (E,)
    gram = pairs + pairs.T  # (n, n)
    gram[np.diag_indices_from(gram)] += np.bincount(events.place[inside], of_itself[inside], events.n_items)
    return gram
