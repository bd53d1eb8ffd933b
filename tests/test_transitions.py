"""What users take next, against least squares by dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

from models import transitions
from models.pair_correlations import PairCorrelations
from models.transitions import correlate_next

N = 13
DECAY, RIDGE = 1 / 3, 100.0


def draw(seed: int, longest: int) -> list[list[int]]:
    """Draw the items of users, in order; of two in three the next one is the one after in the catalogue."""
    rng = np.random.default_rng(seed)
    users = []
    for length in rng.integers(1, longest + 1, 70):
        items = [int(rng.integers(N))]
        while len(items) < length:
            items.append((items[-1] + 1) % N if rng.random() < 2 / 3 else int(rng.integers(N)))
        users.append(items)
    return users


def fit(users: list[list[int]], core: list[int], wanted: range, decay: float) -> np.ndarray:
    """Predict each next item that is wanted from those before it, one history after the other."""
    before, after = [], []
    for items in users:
        for place in range(1, len(items)):
            history, following = np.zeros(N), np.zeros(N)
            for distance, item in enumerate(reversed(items[:place])):
                if distance < 2 or np.exp(-decay * distance) >= 0.02:  # what counts less is left out
                    history[item] += np.exp(-decay * distance)
            following[items[place]] = items[place] in wanted
            before.append(history[core])
            after.append(following[core])
    ridge = np.sqrt(RIDGE) * np.eye(len(core))
    found = np.linalg.lstsq(np.vstack([before, ridge]), np.vstack([after, 0 * ridge]), rcond=None)[0]
    np.fill_diagonal(found, 0)
    return found


def correlate(users: list[list[int]], most: int, wanted: range = range(N), decay: float = DECAY) -> PairCorrelations:
    user, items = np.repeat(np.arange(len(users)), [len(items) for items in users]), np.concatenate(users)
    return correlate_next(user, items, np.isin(items, wanted), (len(users), N), RIDGE, decay, most)


def test_items_that_nobody_took_are_not_inverted():
    users = draw(4, 12)
    found = correlate([[item - (item in {5, 11}) for item in items] for items in users], 100)
    assert sorted(found.rows.tolist()) == [row for row in range(N) if row not in {5, 11}]


@pytest.mark.parametrize("least_sparse", [0, 10**6], ids=["sparse", "dense"])
@pytest.mark.parametrize("chunk", [85, 10**7])
@pytest.mark.parametrize(
    ("longest", "most", "wanted", "decay"),
    [
        (12, N, N, DECAY),
        (12, 8, N, DECAY),
        (40, N, N, DECAY),
        (12, N, 9, DECAY),
        (40, 8, N, 0.05),
        (12, N, 9, 2.0),
        (9, 8, N, 5.0),
    ],
)
def test_transitions_are_the_least_squares_of_what_comes_next(
    monkeypatch, longest, most, wanted, decay, chunk, least_sparse
):
    monkeypatch.setattr(transitions, "CHUNK", chunk)
    monkeypatch.setattr(transitions, "LEAST_SPARSE", least_sparse)
    users = draw(4, longest)
    made = correlate(users, most, range(wanted), decay)
    assert len(set(made.rows.tolist())) == most
    expected = fit(users, made.rows.tolist(), range(wanted), decay)
    assert np.abs(made.numbers - expected).max() <= 1e-5 * np.abs(expected).max()


def test_an_item_has_those_that_come_after_it():
    neighbours = correlate(draw(1, 12), N).find_neighbours(1)
    assert np.diff(neighbours.offsets).tolist() == [1] * N
    assert neighbours.rows.tolist() == [(item + 1) % N for item in range(N)]
    assert (neighbours.weights > 0).all()


@pytest.mark.parametrize("users", [[[3]], [[3], [4]], [[3, 4]]], ids=["one event", "one each", "one pair"])
def test_hardly_any_events_give_finite_transitions(users):
    made = correlate(users, N)
    assert np.isfinite(made.numbers).all()
    assert (np.abs(made.numbers) > 0).sum() == (len(users[0]) > 1)
