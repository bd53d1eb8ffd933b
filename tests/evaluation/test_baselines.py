"""Baselines equal dense formulas and plain loops."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import evaluation.baselines
import evaluation.ease
import evaluation.ranking
import numpy as np
import pytest
from evaluation.baselines import (
    BACK,
    NEAR_NOTHING,
    SHRINK,
    TIE_BREAK,
    as_binary,
    as_counts,
    as_logs,
    choose_baselines,
    fit_baselines,
    fit_decayed_personal,
    fit_itemknn,
    fit_personal,
    fit_popularity,
    fit_transitions,
    fit_used,
)
from evaluation.ease import fit_ease, invert_regularised
from evaluation.holdout import Events
from evaluation.ranking import tiles, top_k
from serve.clock import DAY

U, N, E = 5, 11, 60


def make(n_users=U, n_items=N, n_events=E, seed=0) -> Events:
    """Draw events; the last user and the last two items have none."""
    rng = np.random.default_rng(seed)
    user, item = (
        rng.integers(n_users - 1, size=n_events),
        rng.integers(n_items - 2, size=n_events),
    )
    return Events(user, item, rng.integers(0, 90 * DAY, n_events), n_users, n_items)


def rows(events: Events):
    return list(
        zip(
            events.user_row.tolist(),
            events.item_row.tolist(),
            events.time.tolist(),
            strict=True,
        )
    )


def count_densely(events: Events) -> np.ndarray:
    counts = np.zeros((events.n_users, events.n_items))
    np.add.at(counts, (events.user_row, events.item_row), 1)
    return counts


def order(weights: dict[int, float], popularity: Counter) -> list[int]:
    """Owned items by weight, the others after them; ties by popularity, then row."""
    return sorted(range(N), key=lambda item: (-weights.get(item, 0.0), -popularity[item], item))


def test_popularity_counts_events_or_users():
    events = make()
    by_event = Counter(item for _, item, _ in rows(events))
    by_user = Counter(item for _, item in {(user, item) for user, item, _ in rows(events)})
    for strength, counts in ((as_counts, by_event), (as_binary, by_user)):
        assert (
            top_k(fit_popularity(events, strength)(np.array([3, 0])), N).tolist()
            == [order({}, counts)] * 2
        )


@pytest.mark.parametrize("days", [None, 1, 15])
@pytest.mark.parametrize("seed", range(3))
def test_personal_frequency_puts_own_items_first_and_decay_weighs_recent_ones_more(seed, days):
    events = make(seed=seed)
    popularity = Counter(item for _, item, _ in rows(events))
    last = max(time for _, _, time in rows(events))
    score = fit_personal(events) if days is None else next(fit_decayed_personal(events, (days,)))
    lists = top_k(score(np.arange(U)), N)
    for user in range(U):
        weights: Counter = Counter()
        for who, item, time in rows(events):
            weight = 1 if days is None else math.exp((time - last) / (days * DAY))
            weights[item] += weight if who == user else 0
        assert lists[user].tolist() == order(weights, popularity)


def score_itemknn_naively(events: Events, k: int, binary: bool) -> np.ndarray:
    """Sum, item by item, the cosines to the k nearest of everything the user has."""
    counts = count_densely(events)
    popularity = counts.sum(axis=0) / (counts.sum(axis=0).max() + 1)
    counts = (counts > 0) * 1.0 if binary else counts
    scores = np.zeros(counts.shape)
    for owned in range(N):
        norms = np.linalg.norm(counts[:, owned]) * np.linalg.norm(counts, axis=0)
        cosines = counts[:, owned] @ counts / (norms + SHRINK)
        for other in sorted(range(N), key=lambda item: (-np.float32(cosines[item]), item))[:k]:
            scores[:, other] += counts[:, owned] * cosines[other]
    return np.where(scores > 0, scores, popularity - 1)


@pytest.mark.parametrize(("strength", "binary"), [(as_counts, False), (as_binary, True)])
@pytest.mark.parametrize("seed", range(3))
def test_itemknn_equals_a_plain_loop(seed, strength, binary, monkeypatch):
    monkeypatch.setattr(
        evaluation.ranking, "tiles", lambda rows, columns: tiles(rows, columns, 3 * N)
    )
    events, users = make(n_events=30, seed=seed), np.array([4, 0, 2])
    for k, score in zip((2, 3, 400), fit_itemknn(events, (2, 3, 400), strength), strict=True):
        assert score(users) == pytest.approx(
            score_itemknn_naively(events, k, binary)[users], abs=1e-6
        )


def score_ease_naively(events: Events, regularisation: float) -> np.ndarray:
    """Solve one least-squares problem per item, its own weight held at zero: the definition of the model."""
    counts = count_densely(events)
    strengths = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
    scores = np.zeros_like(strengths)
    for item in range(events.n_items):
        others = np.delete(strengths, item, axis=1)
        gram = others.T @ others + regularisation * np.eye(events.n_items - 1)
        scores[:, item] = others @ np.linalg.solve(gram, others.T @ strengths[:, item])
    return scores


@pytest.mark.parametrize(("n_users", "n_items"), [(7, 11), (13, 6)], ids=["dual", "primal"])
def test_both_forms_of_ease_solve_the_regressions(n_users, n_items, monkeypatch):
    monkeypatch.setattr(
        evaluation.ease,
        "tiles",
        lambda rows, columns: tiles(rows, columns, 3 * columns),
    )
    one = Events(
        np.array([n_users - 1]), np.array([2]), np.array([0]), n_users, n_items
    )  # a user of one item
    events, users = (
        make(n_users, n_items, 6 * n_users).join(one),
        np.array([3, 0, n_users - 1]),
    )
    for value, score in zip(
        (0.5, 3.0, 30.0), fit_ease(events, (0.5, 3.0, 30.0), as_logs), strict=True
    ):
        assert score(users) == pytest.approx(score_ease_naively(events, value)[users], abs=2e-5)


@pytest.mark.parametrize(("n_users", "n_items"), [(7, 11), (13, 6)])
@pytest.mark.parametrize("fit", [fit_ease, fit_itemknn])
def test_strangers_get_what_is_popular(fit, n_users, n_items):
    events = make(n_users, n_items)
    (score,) = fit(events, (3.0,), as_binary)
    popular = np.bincount(events.item_row, minlength=n_items)
    scores = score(np.array([n_users - 1]))[0]
    assert np.argsort(scores, kind="stable").tolist() == np.argsort(popular, kind="stable").tolist()


@pytest.mark.parametrize("n_users", [U, 40])
@pytest.mark.parametrize(("fit", "of_others"), [(fit_itemknn, NEAR_NOTHING), (fit_ease, 0.0)])
def test_items_without_events_change_no_score(fit, of_others, n_users):
    def fit_logs(events, values):
        return fit(events, values, as_logs)

    used = np.array([0, 3, 5, 6, 11, 12, 15, 16, 18])
    listed = make(n_users, len(used) + 2, seed=3)
    listed = replace(listed, item_row=used[listed.item_row], n_items=23)
    users = np.arange(n_users)
    scorers = list(fit_used(fit_logs, of_others, listed, (3, 20)))
    assert len(scorers) == 2
    for score, of_all in zip(scorers, fit_logs(listed, (3, 20)), strict=True):
        strangers = np.diff(listed.owned().offsets) == 0
        assert score(users) == pytest.approx(of_all(users), abs=2e-6)
        assert (np.delete(score(users)[~strangers], used, axis=1) == of_others).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "small"), [(7, 5), (11, 4096)])
def test_inverse_and_matrix_are_the_identity(dtype, n, small, monkeypatch):
    monkeypatch.setattr(evaluation.ease, "SMALL", small)
    factors = np.random.default_rng(n).standard_normal((n, 3)).astype(dtype)
    inverse = invert_regularised(factors @ factors.T, 0.5)
    assert inverse.dtype == dtype
    assert inverse @ (factors @ factors.T + 0.5 * np.eye(n, dtype=dtype)) == pytest.approx(
        np.eye(n), abs=1e-4
    )


def walk_naively(histories: list[list[int]]) -> np.ndarray:
    """Step from item to item with plain matrices; a history is what its user had, oldest first."""
    counts = np.zeros((N, N))
    for history in histories:
        for item, following in pairwise(history):
            counts[item, following] += 1
            counts[following, item] += BACK
    chances = counts / (counts.sum(axis=1, keepdims=True) + 1)
    popularity = np.bincount(np.concatenate(histories).astype(int), minlength=N)
    scores = np.tile(TIE_BREAK * popularity / (popularity.max() + 1), (len(histories), 1))
    for user, history in enumerate(histories):
        for item, walkers in zip(reversed(history), (2, 1), strict=False):
            scores[user] += walkers * (chances[item] + chances[item] @ chances)
    return scores


def test_transitions_walk_from_the_last_two_items():
    events = make(n_events=30)
    histories: list[list[int]] = [[] for _ in range(U)]
    for user, item, _ in rows(events):
        histories[user].append(item)
    users = np.array([4, 0, 2])
    scores = fit_transitions(events)(users)
    assert scores == pytest.approx(walk_naively(histories)[users], abs=1e-6)


def test_transitions_are_skipped_in_a_set():
    events = make()
    (transitions,) = choose_baselines("exclude", ["transitions"])
    for is_ordered in (False, True):
        parts = [replace(events, is_ordered=is_ordered)] * 2
        ((_, record, score),) = fit_baselines([transitions], *parts, None, lambda line: None)
        assert (score is None) == ("skipped" in record) == (not is_ordered)
