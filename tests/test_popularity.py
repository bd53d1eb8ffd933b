from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from evaluation.events import Events, as_binary, as_counts
from evaluation.popularity import fit_decayed_personal, fit_personal, fit_popularity, fit_recent_popularity
from evaluation.ranking import top_k

U, N, E = 5, 11, 60
DAY = 86_400


def make(seed: int) -> Events:
    rng = np.random.default_rng(seed)
    user = rng.integers(U - 1, size=E)  # the last user has no event
    return Events(user, rng.integers(8, size=E), rng.integers(0, 90 * DAY, E), U, N)


def rows(events: Events):
    return list(zip(events.user_row.tolist(), events.item_row.tolist(), events.time.tolist(), strict=True))


def order(weights: dict[int, float], popularity: Counter) -> list[int]:
    """Owned items by weight, the others after them; ties by popularity, then row."""
    return sorted(range(N), key=lambda item: (-weights.get(item, 0.0), -popularity[item], item))


def test_popularity_counts_events_or_users():
    events = make(0)
    by_event = Counter(item for _, item, _ in rows(events))
    by_user = Counter(item for _, item in {(user, item) for user, item, _ in rows(events)})
    for strength, counts in ((as_counts, by_event), (as_binary, by_user)):
        scores = fit_popularity(events, strength).score(np.array([3, 0]))
        assert top_k(scores, N).tolist() == [order({}, counts)] * 2


def test_recent_popularity_forgets_what_is_older():
    events = make(1)
    last = max(time for _, _, time in rows(events))
    for days, model in zip((7, 28), fit_recent_popularity(events, (7, 28), as_counts), strict=True):
        counts = Counter(item for _, item, time in rows(events) if time > last - days * DAY)
        assert top_k(model.score(np.array([2])), N)[0].tolist() == order({}, counts)


@pytest.mark.parametrize(("unit", "n_recent"), [(DAY, 7), (3600, 7 * 24)])
def test_a_week_holds_as_many_days_or_hours_as_it_has(unit, n_recent):
    events = Events(np.zeros(200, np.int64), np.arange(200), np.arange(200) * unit, 1, 200)
    (model,) = fit_recent_popularity(events, (7,), as_counts)
    assert np.flatnonzero(model.score(np.array([0]))[0]).tolist() == list(range(200 - n_recent, 200))


@pytest.mark.parametrize("seed", range(4))
def test_personal_frequency_puts_own_items_first(seed):
    events = make(seed)
    popularity = Counter(item for _, item, _ in rows(events))
    lists = top_k(fit_personal(events).score(np.arange(U)), N)
    for user in range(U):
        own = Counter(item for who, item, _ in rows(events) if who == user)
        assert lists[user].tolist() == order(own, popularity)


@pytest.mark.parametrize("seed", range(4))
def test_decay_weighs_recent_events_more(seed):
    events = make(seed)
    popularity = Counter(item for _, item, _ in rows(events))
    last = max(time for _, _, time in rows(events))
    for days, model in zip((1, 15), fit_decayed_personal(events, (1, 15)), strict=True):
        lists = top_k(model.score(np.arange(U)), N)
        for user in range(U):
            weights: Counter = Counter()
            for who, item, time in rows(events):
                weights[item] += math.exp((time - last) / (days * DAY)) if who == user else 0
            assert lists[user].tolist() == order(weights, popularity)


def test_decay_tells_long_past_events_apart():
    time = np.array([0, 1 * DAY, 3000 * DAY])
    events = Events(np.array([0, 0, 1]), np.array([2, 5, 4]), time, 2, 7)
    (model,) = fit_decayed_personal(events, (15,))
    assert top_k(model.score(np.array([0])), 3).tolist() == [[5, 2, 4]]
