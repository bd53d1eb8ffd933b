"""Factors of sets against dense algebra."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp

from models import eigenvectors, item_correlations
from models.item_correlations import (
    POPULARITY_SHARES,
    RIDGES,
    WEIGHT_POWER,
    Settings,
    choose_settings,
    correlate,
    partial_correlations,
)

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


def nearest(owned: np.ndarray, ridge: float, dim: int = D) -> np.ndarray:
    """Return V, (N, dim), of V V' nearest to the correlations, an error at i, j weighted by how many have each."""
    weight = (1 + owned.sum(axis=0)) ** WEIGHT_POWER
    values, columns = np.linalg.eigh(correlations(owned, ridge) * np.outer(weight, weight))
    return columns[:, -dim:] * np.sqrt(np.maximum(values[-dim:], 0)) / weight[:, None]


def factorise(owned: np.ndarray, dim: int = D) -> np.ndarray:
    user, item_row = owned.nonzero()
    twice = np.concatenate([user, user[:5]]), np.concatenate([item_row, item_row[:5]])  # a row more on a pair
    return correlate(*twice, owned.shape, dim, "dot", seed=3).vectors.double().numpy()


def gain(scores: np.ndarray, own: np.ndarray, wanted: np.ndarray) -> float:
    """Compute NDCG@10 by a walk through a list."""
    ranked = [row for row in np.argsort(-scores) if not own[row]][:10]
    gains = [1 / np.log2(place + 2) for place in range(10)]
    return sum(gain for gain, row in zip(gains, ranked, strict=False) if wanted[row]) / sum(gains[: int(wanted.sum())])


def test_correlations_rank_as_ease_does():
    owned = draw()
    precision = np.linalg.inv(owned.T.astype(np.float64) @ owned + RIDGE * np.eye(N))
    weights = np.eye(N) - precision / np.diag(precision)  # of EASE, zero on the diagonal
    found, spread = partial_correlations(sp.csr_array(owned), RIDGE)
    assert found.dtype == np.float32
    np.testing.assert_allclose((owned / spread) @ found * spread, owned @ weights, atol=1e-5)
    np.testing.assert_allclose(found, correlations(owned, RIDGE), atol=1e-5)


def test_what_an_item_varies_by_beside_all_others_is_what_they_leave_unexplained():
    """With rows of the ridge below those of the users, it is the length of what least squares leave of a column."""
    owned = draw().astype(np.float64)
    rows = np.concatenate([owned, np.sqrt(RIDGE) * np.eye(N)])
    _, spread = partial_correlations(sp.csr_array(owned.astype(np.float32)), RIDGE)
    for item in range(N):
        others = np.delete(rows, item, axis=1)
        left = rows[:, item] - others @ np.linalg.lstsq(others, rows[:, item], rcond=None)[0]
        assert spread[item] == pytest.approx(np.linalg.norm(left), rel=1e-4)


def test_factors_are_the_best_of_their_rank_where_many_have_the_items(monkeypatch):
    monkeypatch.setattr(item_correlations, "RIDGES", (RIDGE,))
    owned = draw() * (np.random.default_rng(7).random((U, N)) < np.geomspace(1, 0.05, N))
    expected = nearest(owned, RIDGE) @ nearest(owned, RIDGE).T
    vectors = factorise(owned)
    assert np.linalg.norm(vectors, axis=1)[owned.any(axis=0)].mean() == pytest.approx(1)
    scale = np.trace(vectors @ vectors.T) / np.trace(expected)
    np.testing.assert_allclose(vectors @ vectors.T, expected * scale, atol=1e-4)


@pytest.mark.parametrize("place", [0, 7, len(RIDGES) * len(POPULARITY_SHARES) - 1])
def test_what_is_hidden_chooses_ridge_and_popularity(monkeypatch, place):
    values = (float(number == place) for number in itertools.count())
    monkeypatch.setattr(item_correlations, "_judge", lambda *_: [next(values)])
    found = choose_settings(sp.csr_array(draw()), D, "dot", seed=0)
    assert found.ridge == RIDGES[place // len(POPULARITY_SHARES)]
    assert found.popularity > 0


@pytest.mark.parametrize(
    "owned", [np.zeros((4, N)), np.eye(1), np.ones((3, 1))], ids=["nobody", "one pair", "one item"]
)
def test_popularity_counts_where_nothing_can_be_hidden_or_found(owned):
    found = choose_settings(sp.csr_array(owned.astype(np.float32)), D, "dot", seed=0)
    assert 0 < found.popularity <= 10  # all items are as popular: no reason for more


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("seed", range(3))
def test_popularity_has_the_weight_that_finds_most(monkeypatch, seed, similarity):
    monkeypatch.setattr(item_correlations, "RIDGES", (RIDGE,))
    rng = np.random.default_rng(seed)
    owned = sp.csr_array((rng.random((300, N)) < np.geomspace(0.6, 0.02, N)).astype(np.float32))
    hidden, kept = (part.toarray() for part in item_correlations._hide(owned, np.random.default_rng(seed)))
    judges = hidden.any(axis=1)
    vectors = nearest(kept, RIDGE)
    if similarity == "cosine":  # as the towers do: the sum is one of directions
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    products = kept[judges] @ vectors @ vectors.T
    if similarity == "cosine":
        products /= np.linalg.norm(kept[judges] @ vectors, axis=1, keepdims=True) + 1e-12
    popularity = np.log1p(kept.sum(axis=0))
    weights = [share * products.std() / popularity.std() for share in POPULARITY_SHARES]
    found = [
        np.mean([gain(*one) for one in zip(scores, kept[judges], hidden[judges], strict=True)])
        for scores in (products + weight * popularity for weight in weights)
    ]
    chosen = choose_settings(owned, D, similarity, seed)
    assert chosen.popularity == pytest.approx(weights[int(np.argmax(found))], rel=1e-4)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_popularity_keeps_its_weight_beside_vectors_of_unit_length(monkeypatch, similarity):
    monkeypatch.setattr(item_correlations, "choose_settings", lambda *_: Settings(RIDGE, 0.7))
    owned = draw()
    raw = nearest(owned, RIDGE)
    found = correlate(*owned.nonzero(), owned.shape, D, similarity, seed=3)
    ratio = (raw @ raw.T).std() / (found.vectors @ found.vectors.T).numpy().std()  # of what popularity stands beside
    assert found.popularity == pytest.approx(0.7 / ratio if similarity == "dot" else 0.7, rel=1e-4)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_popularity_stays_as_it_is_where_no_two_items_go_together(monkeypatch, similarity):
    monkeypatch.setattr(item_correlations, "choose_settings", lambda *_: Settings(RIDGE, 0.7))
    owned = np.eye(7)[np.repeat(np.arange(7), np.arange(1, 8))]  # one item a user
    found = correlate(*owned.nonzero(), owned.shape, D, similarity, seed=3)
    assert found.popularity == 0.7
    assert not found.vectors.any()


def test_the_judgement_is_that_of_a_walk_through_every_list():
    kept, hidden = draw(seed=1), draw(seed=2)
    hidden *= 1 - kept
    judges = hidden.any(axis=1)
    every = np.random.default_rng(0).standard_normal((int(judges.sum()), N)).astype(np.float32)
    found = item_correlations._judge(sp.csr_array(kept[judges]), sp.csr_array(hidden[judges]), every.copy())
    for value, *one in zip(found, every, kept[judges], hidden[judges], strict=True):
        assert value == pytest.approx(gain(*one), rel=1e-6)


def test_items_beyond_the_core_are_placed_with_those_of_their_users(monkeypatch):
    monkeypatch.setattr(item_correlations, "MOST_CORRELATED", 12)
    monkeypatch.setattr(item_correlations, "MOST_TRIED", 9)
    owned = draw(n_groups=2, seed=4)
    vectors = factorise(owned, dim=2)
    beyond = np.argsort(-owned.sum(axis=0), kind="stable")[12:]
    core = np.setdiff1d(np.arange(N), beyond)
    for item in beyond:
        nearness, is_alike = vectors[core] @ vectors[item], core % 2 == item % 2
        assert nearness[is_alike].mean() > nearness[~is_alike].mean()


@pytest.mark.parametrize("most", [12, N])
def test_as_many_items_as_are_wanted_are_correlated_and_the_others_stand_where_their_users_point(most):
    owned = draw(seed=5)
    made = item_correlations.factorise(*owned.nonzero(), owned.shape, D, RIDGE, 3, most)
    vectors = made.vectors.double().numpy()
    core, beyond = np.split(np.argsort(-owned.sum(axis=0), kind="stable"), [most])
    expected = nearest(owned[:, core], RIDGE)
    np.testing.assert_allclose(vectors[core] @ vectors[core].T, expected @ expected.T, atol=1e-4)
    states = owned[:, core] @ vectors[core]
    placed = np.linalg.solve(states.T @ states + RIDGE * np.eye(D), states.T @ owned[:, beyond]).T
    np.testing.assert_allclose(vectors[beyond], placed, atol=1e-5)
    spread = np.concatenate(
        [
            np.diag(np.linalg.inv(owned[:, core].T @ owned[:, core] + RIDGE * np.eye(len(core)))) ** -0.5,
            np.sqrt(owned[:, beyond].sum(axis=0) + RIDGE),  # as if nothing went together with them
        ]
    )[np.argsort(np.concatenate([core, beyond]))]
    covaried = made.of_covariances().double().numpy()
    np.testing.assert_allclose(covaried, vectors * (spread / spread.mean())[:, None], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [0, 3], ids=["krylov", "whole"])
@pytest.mark.parametrize("owned", [np.ones((1, 1)), np.zeros((2, 3)), np.eye(5)], ids=["one pair", "nobody", "alone"])
def test_hardly_any_data_gives_finite_factors(owned, ratio, monkeypatch):
    monkeypatch.setattr(eigenvectors, "LEAST_KRYLOV_RATIO", ratio)
    vectors = factorise(owned.astype(np.float32))
    assert vectors.shape == (owned.shape[1], D)
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    ("n_tastes", "n_items", "ridge", "dim"), [(5, 35, 30.0, 8), (5, 45, 100.0, 28), (3, 27, 300.0, 6)]
)
def test_factors_are_found_where_users_of_a_taste_have_all_its_items(n_tastes, n_items, ridge, dim):
    """Tastes alike have equal eigenvalues, of which LAPACK may miss some or find none."""
    owned = (np.arange(60)[:, None] % n_tastes == np.arange(n_items) % n_tastes).astype(np.float32)
    made = item_correlations.factorise(*owned.nonzero(), owned.shape, dim, ridge, 1, n_items)
    precision = np.linalg.inv(owned.T @ owned + ridge * np.eye(n_items))
    correlations = np.eye(n_items) - precision / precision[0, 0]
    values, columns = np.linalg.eigh(correlations)
    expected = (columns * np.maximum(values, 0)) @ columns.T
    np.testing.assert_allclose(made.vectors @ made.vectors.T, expected, atol=1e-5)


@pytest.mark.parametrize("n", [40, 300])
def test_leading_factors_are_found_in_the_whole_or_in_a_small_space(n, monkeypatch):
    """Of a spectrum with a long flat tail and negative values: 40 items are reduced whole, of 300 a part is read."""
    monkeypatch.setattr(eigenvectors, "KRYLOV_BLOCK", 8)
    monkeypatch.setattr(eigenvectors, "KRYLOV_COLUMNS", 60)
    rng = np.random.default_rng(5)
    columns = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = np.sort(np.concatenate([[2.0, 1.5, 1.2, 1.0, 0.9], rng.uniform(-1.0, 0.5, n - 5)]))[::-1]
    symmetric = (columns * values) @ columns.T
    vectors = item_correlations._leading(symmetric.astype(np.float32), 6, seed=1)
    assert vectors.shape == (n, 6)
    product = vectors.astype(np.float64) @ vectors.T
    found = np.linalg.eigvalsh(product)[::-1][:6]
    assert found[:5] == pytest.approx(values[:5], rel=1e-3)
    assert found.sum() >= 0.99 * values[:6].sum()
    best = (columns[:, :5] * values[:5]) @ columns[:, :5].T
    assert np.linalg.norm(columns[:, :5].T @ (product - best) @ columns[:, :5]) <= 0.01


def test_many_factors_are_found_in_many_blocks(monkeypatch):
    """Of a falling spectrum: rounding leads the products of later blocks back to where its largest values lie."""
    monkeypatch.setattr(eigenvectors, "KRYLOV_BLOCK", 8)
    monkeypatch.setattr(eigenvectors, "KRYLOV_COLUMNS", 80)
    values = np.geomspace(1, 1e-3, 700)
    columns = np.linalg.qr(np.random.default_rng(8).standard_normal((700, 700)))[0]
    symmetric = ((columns * values) @ columns.T).astype(np.float32)
    vectors = item_correlations._leading(symmetric, 48, seed=1).astype(np.float64)
    np.testing.assert_allclose(np.linalg.eigvalsh(vectors.T @ vectors)[::-1], values[:48], rtol=1e-3)


@pytest.mark.parametrize("ratio", [0, 3], ids=["krylov", "whole"])
def test_items_that_nobody_has_are_placed_nowhere(ratio, monkeypatch):
    monkeypatch.setattr(eigenvectors, "LEAST_KRYLOV_RATIO", ratio)
    symmetric = np.zeros((30, 30), np.float32)
    symmetric[:20, :20] = np.corrcoef(np.random.default_rng(6).standard_normal((20, 50)))
    vectors = item_correlations._leading(symmetric, 2, seed=0)
    assert (np.abs(vectors).max(axis=1) > 1e-3).tolist() == [True] * 20 + [False] * 10
    assert not vectors[20:].any()
