"""Factors of sets against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from models import item_correlations
from models.item_correlations import RIDGES, choose_ridge, correlation_factors, partial_correlations

U, N, D, RIDGE = 60, 17, 4, 30.0


def draw(n_groups: int = 3, seed: int = 0) -> np.ndarray:
    """Let users mostly have items of one group."""
    rng = np.random.default_rng(seed)
    is_near = rng.integers(n_groups, size=U)[:, None] == np.arange(N) % n_groups
    return (rng.random((U, N)) < np.where(is_near, 0.7, 0.08)).astype(np.float32)


def correlations(owned: np.ndarray, ridge: float) -> np.ndarray:
    precision = np.linalg.inv(owned.T.astype(np.float64) @ owned + ridge * np.eye(owned.shape[1]))
    found = -precision / np.sqrt(np.outer(np.diag(precision), np.diag(precision)))
    np.fill_diagonal(found, 0)
    return found


def factorise(owned: np.ndarray, dim: int = D) -> np.ndarray:
    user, item_row = owned.nonzero()
    twice = np.concatenate([user, user[:5]]), np.concatenate([item_row, item_row[:5]])  # a row more on a pair
    return correlation_factors(*twice, owned.shape, dim, seed=3).double().numpy()


def test_correlations_rank_as_ease_does():
    owned = draw()
    precision = np.linalg.inv(owned.T.astype(np.float64) @ owned + RIDGE * np.eye(N))
    weights = np.eye(N) - precision / np.diag(precision)  # of EASE, zero on the diagonal
    root = np.sqrt(np.diag(precision))
    found = partial_correlations(sp.csr_array(owned), RIDGE)
    assert found.dtype == np.float32
    np.testing.assert_allclose((owned * root) @ found / root, owned @ weights, atol=1e-5)
    np.testing.assert_allclose(found, correlations(owned, RIDGE), atol=1e-5)


def test_factors_are_the_best_of_their_rank(monkeypatch):
    monkeypatch.setattr(item_correlations, "RIDGES", (RIDGE,))
    owned = draw()
    values, columns = np.linalg.eigh(correlations(owned, RIDGE))
    expected = (columns[:, -D:] * values[-D:]) @ columns[:, -D:].T
    vectors = factorise(owned)
    assert np.linalg.norm(vectors, axis=1).mean() == pytest.approx(1)
    scale = np.trace(vectors @ vectors.T) / np.trace(expected)
    np.testing.assert_allclose(vectors @ vectors.T, expected * scale, atol=1e-4)


def test_what_is_hidden_chooses_the_ridge(monkeypatch):
    owned = sp.csr_array(draw())
    values = iter([0.2, 0.9, 0.4, 0.3])
    monkeypatch.setattr(item_correlations, "_judge", lambda *_: [next(values)])
    assert choose_ridge(owned, D, seed=0) == RIDGES[1]
    assert choose_ridge(sp.csr_array((4, N), dtype=np.float32), D, seed=0) == RIDGES[0]  # nothing to hide


def test_the_judgement_is_that_of_a_walk_through_every_list():
    kept, hidden = draw(seed=1), draw(seed=2)
    hidden *= 1 - kept
    judges = hidden.any(axis=1)
    vectors = np.random.default_rng(0).standard_normal((N, D)).astype(np.float32)
    found = item_correlations._judge(sp.csr_array(kept[judges]), sp.csr_array(hidden[judges]), vectors)
    for value, own, wanted in zip(found, kept[judges], hidden[judges], strict=True):
        scores = own @ vectors @ vectors.T
        ranked = [row for row in np.argsort(-scores) if not own[row]][:10]
        gains = [1 / np.log2(place + 2) for place in range(10)]
        gained = sum(gain for gain, row in zip(gains, ranked, strict=False) if wanted[row])
        assert value == pytest.approx(gained / sum(gains[: int(wanted.sum())]), rel=1e-6)


def test_items_beyond_the_core_are_placed_with_those_of_their_users(monkeypatch):
    monkeypatch.setattr(item_correlations, "MOST_CORRELATED", 12)
    owned = draw(n_groups=2, seed=4)
    vectors = factorise(owned, dim=2)
    beyond = np.argsort(-owned.sum(axis=0), kind="stable")[12:]
    core = np.setdiff1d(np.arange(N), beyond)
    for item in beyond:
        nearness, is_alike = vectors[core] @ vectors[item], core % 2 == item % 2
        assert nearness[is_alike].mean() > nearness[~is_alike].mean()


@pytest.mark.parametrize("owned", [np.ones((1, 1)), np.zeros((2, 3)), np.eye(5)], ids=["one pair", "nobody", "alone"])
def test_hardly_any_data_gives_finite_factors(owned):
    vectors = factorise(owned.astype(np.float32))
    assert vectors.shape == (owned.shape[1], D)
    assert np.isfinite(vectors).all()
