"""Two baselines without any model of taste: what everybody has, and what this user has had before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from evaluation.events import Events, Strength, as_counts
from evaluation.metrics import Floats
from evaluation.ranking import Scores
from evaluation.targets import Ints

DAY = 86_400


@dataclass(frozen=True)
class Popularity:
    """The same scores for every user."""

    popularity: Scores
    """(N,)"""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        return np.tile(self.popularity, (len(user_row), 1))


@dataclass(frozen=True)
class PersonalFrequency:
    """The user's own items first, in the order of their (decayed) counts; then the others by popularity."""

    place: sparse.csr_array
    """(U, N) place of each owned item among the user's, 1 = the last: a whole number, so float32 keeps it."""
    popularity: Scores
    """(N,) below 1."""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        scores = np.tile(self.popularity, (len(user_row), 1))
        own = self.place[user_row].tocoo()
        scores[own.row, own.col] = own.data
        return scores


def fit_popularity(events: Events, strength: Strength) -> Popularity:
    """Rank items by the sum of their strengths over users."""
    return Popularity(events.popularity(strength))


def fit_recent_popularity(events: Events, days: Sequence[float], strength: Strength) -> Iterator[Popularity]:
    """Yield popularity within the last `days` before the last event, one after the other."""
    since_last = events.since_last()
    for window in days:
        yield fit_popularity(events.keep(since_last < window * DAY), strength)


def fit_personal(events: Events) -> PersonalFrequency:
    """Rank a user's items by how often they came."""
    return _order_own_items(events, np.ones(len(events.item_row)))


def fit_decayed_personal(events: Events, days: Sequence[float]) -> Iterator[PersonalFrequency]:
    """Yield personal frequencies whose events count exp(-recency / time constant), one per time constant."""
    since_last = events.since_last()
    for constant in days:
        yield _order_own_items(events, np.exp(-since_last / (constant * DAY)))


def _order_own_items(events: Events, weights: Floats) -> PersonalFrequency:
    """Give a user's items places by summed weight, then popularity, then row."""
    pairs, pair = np.unique(events.user_row * events.n_items + events.item_row, return_inverse=True)
    user, item = np.divmod(pairs, events.n_items)
    popularity = events.popularity(as_counts)
    order = np.lexsort((-item, popularity[item], np.bincount(pair, weights=weights), user))
    bounds = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=events.n_users))])
    place = np.empty(len(pairs), np.float32)
    place[order] = np.arange(len(pairs)) - bounds[user[order]] + 1
    return PersonalFrequency(
        sparse.csr_array((place, item, bounds), shape=(events.n_users, events.n_items)), popularity
    )
