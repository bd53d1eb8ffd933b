from __future__ import annotations

import numpy as np
import pytest

import evaluation.ease
from evaluation.ease import DualEase, PrimalEase, fit_dual_ease, fit_ease, fit_primal_ease
from evaluation.events import Events, as_binary, as_logs, join_events
from evaluation.ranking import tiles

LAMBDAS = (0.5, 3.0, 30.0)


def make(n_users: int, n_items: int, seed: int = 0) -> Events:
    rng = np.random.default_rng(seed)
    n_events = 6 * n_users
    return Events(
        rng.integers(n_users - 1, size=n_events), rng.integers(n_items, size=n_events), None, n_users, n_items
    )


def score_naively(events: Events, regularisation: float) -> np.ndarray:
    """Solve one least-squares problem per item, its own weight held at zero: the definition of the model."""
    counts = np.zeros((events.n_users, events.n_items))
    np.add.at(counts, (events.user_row, events.item_row), 1)
    strengths = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0)
    scores = np.zeros_like(strengths)
    for item in range(events.n_items):
        others = np.delete(strengths, item, axis=1)
        gram = others.T @ others + regularisation * np.eye(events.n_items - 1)
        scores[:, item] = others @ np.linalg.solve(gram, others.T @ strengths[:, item])
    return scores


@pytest.mark.parametrize("fit", [fit_primal_ease, fit_dual_ease])
@pytest.mark.parametrize(("n_users", "n_items"), [(7, 11), (13, 5)])
def test_both_forms_solve_the_regressions(fit, n_users, n_items, monkeypatch):
    monkeypatch.setattr(evaluation.ease, "tiles", lambda rows, columns: tiles(rows, columns, 3 * columns))
    one = Events(np.array([n_users - 1]), np.array([2]), None, n_users, n_items)  # of a user who has nothing else
    events = join_events(make(n_users, n_items), one)
    users = np.array([3, 0, n_users - 1])
    for regularisation, model in zip(LAMBDAS, fit(events, LAMBDAS, as_logs), strict=True):
        expected = score_naively(events, regularisation)[users]
        assert model.score(users) == pytest.approx(expected, abs=2e-5)


def test_dual_equals_primal_on_more_data():
    events = make(97, 211, seed=1)
    users = np.arange(97)
    for primal, dual in zip(
        fit_primal_ease(events, (10, 300), as_binary),
        fit_dual_ease(events, (10, 300), as_binary),
        strict=True,
    ):
        assert dual.score(users) == pytest.approx(primal.score(users), abs=1e-5)


def test_the_smaller_matrix_is_chosen():
    assert isinstance(next(fit_ease(make(7, 11), (3.0,), as_binary)), DualEase)
    assert isinstance(next(fit_ease(make(13, 5), (3.0,), as_binary)), PrimalEase)


@pytest.mark.parametrize(("n_users", "n_items"), [(7, 11), (13, 5)])
def test_strangers_get_what_is_popular(n_users, n_items):
    events = make(n_users, n_items)
    (model,) = fit_ease(events, (3.0,), as_binary)
    popular = np.bincount(events.item_row, minlength=n_items)
    scores = model.score(np.array([n_users - 1]))[0]
    assert np.argsort(scores, kind="stable").tolist() == np.argsort(popular, kind="stable").tolist()
