"""Item-item weights against dense algebra, one history after the other."""

from __future__ import annotations

import numpy as np
import pytest
from models.item_item import (
    FILTER_WEIGHT,
    Interactions,
    ease,
    gf_cf,
    next_item,
)

from models import item_item

N = 13
RIDGE = 20.0


def draw(seed: int = 4, longest: int = 12) -> list[list[int]]:
    """Draw the items of users, in order; of two in three the next one is the one after in the catalogue."""
    rng = np.random.default_rng(seed)
    users = []
    for length in rng.integers(1, longest + 1, 70):
        items = [int(rng.integers(N))]
        while len(items) < length:
            items.append((items[-1] + 1) % N if rng.random() < 2 / 3 else int(rng.integers(N)))
        users.append(items)
    return users


def lay_out(users: list[list[int]], targets: range = range(N)) -> Interactions:
    user, items = (
        np.repeat(np.arange(len(users)), [len(items) for items in users]),
        np.concatenate(users),
    )
    return Interactions(user, items, np.isin(items, targets), len(users), N)


def owned(users: list[list[int]]) -> np.ndarray:
    matrix = np.zeros((len(users), N))
    for row, items in zip(matrix, users, strict=True):
        row[items] = 1
    return matrix


def count_users(users: list[list[int]]) -> np.ndarray:
    return owned(users).sum(axis=0)


def keep(weights: np.ndarray, top_k: int) -> np.ndarray:
    """Keep the weights of each row whose absolute values are largest."""
    kept = np.zeros_like(weights)
    for row, values in enumerate(weights):
        largest = np.argsort(-np.abs(values))[:top_k]
        kept[row, largest] = values[largest]
    return kept


def assert_alike(found, expected: np.ndarray) -> None:
    assert np.abs(found.toarray() - expected).max() <= 1e-5 * np.abs(expected).max()


def solve_ease(users: list[list[int]], items: list[int]) -> np.ndarray:
    """Predict each item from the others by one ridge regression each: what EASE does at once."""
    matrix, weights = owned(users), np.zeros((N, N))
    for item in items:
        others = [other for other in items if other != item]
        gram = matrix[:, others].T @ matrix[:, others] + RIDGE * np.eye(len(others))
        weights[others, item] = np.linalg.solve(gram, matrix[:, others].T @ matrix[:, item])
    return weights


@pytest.mark.parametrize("top_k", [3, 40])
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(top_k):
    users = draw()
    assert_alike(
        ease(lay_out(users), top_k, RIDGE),
        keep(solve_ease(users, list(range(N))), top_k),
    )


def test_ease_of_targets_does_not_look_at_what_was_only_seen():
    users, targets = draw(), range(3, N)
    bought = [[item for item in items if item in targets] for items in users]
    assert_alike(
        ease(lay_out(users, targets).only_targets(), N, RIDGE),
        solve_ease(bought, list(targets)),
    )


def test_of_a_large_catalogue_the_items_of_the_most_users_are_inverted():
    users = draw()
    core = np.argsort(-count_users(users), kind="stable")[:8].tolist()
    assert_alike(ease(lay_out(users), N, RIDGE, 8), solve_ease(users, core))
    assert_alike(
        next_item(lay_out(users), N, RIDGE, 0.3, 8), solve_next(users, core, range(N), 0.3)
    )


def solve_next(users: list[list[int]], core: list[int], targets: range, decay: float) -> np.ndarray:
    """Predict each next item that is a target from those before it by least squares."""
    before, after = [], []
    for items in users:
        for place in range(1, len(items)):
            history, following = np.zeros(N), np.zeros(N)
            for distance, item in enumerate(reversed(items[:place])):
                if distance < 2 or np.exp(-decay * distance) >= 0.02:
                    history[item] += np.exp(-decay * distance)
            following[items[place]] = items[place] in targets
            before.append(history[core])
            after.append(following[core])
    ridge = np.sqrt(RIDGE) * np.eye(len(core))
    found = np.linalg.lstsq(np.vstack([before, ridge]), np.vstack([after, 0 * ridge]), rcond=None)[
        0
    ]
    np.fill_diagonal(found, 0)
    weights = np.zeros((N, N))
    weights[np.ix_(core, core)] = found
    return weights


@pytest.mark.parametrize(
    ("longest", "n_targets", "decay"),
    [(12, N, 1 / 3), (40, N, 0.05), (12, 9, 2.0), (9, 9, 5.0)],
)
def test_next_item_regression_is_least_squares_of_what_comes_next(longest, n_targets, decay):
    users = draw(longest=longest)
    found = next_item(lay_out(users, range(n_targets)), N, RIDGE, decay)
    assert_alike(found, solve_next(users, list(range(N)), range(n_targets), decay))


def filter_densely(users: list[list[int]], n_factors: int) -> np.ndarray:
    """Compute GF-CF's weights by a whole singular value decomposition."""
    matrix = owned(users)
    per_user, per_item = (
        np.maximum(matrix.sum(axis=1), 1),
        np.maximum(matrix.sum(axis=0), 1),
    )
    scaled = matrix / np.sqrt(per_user)[:, None] / np.sqrt(per_item)
    vectors = np.linalg.svd(scaled)[2][:n_factors].T
    weights = scaled.T @ scaled
    weights += (
        FILTER_WEIGHT * np.diag(per_item**-0.5) @ vectors @ vectors.T @ np.diag(per_item**0.5)
    )
    np.fill_diagonal(weights, 0)
    return np.maximum(weights, 0)


@pytest.mark.parametrize(
    ("n_factors", "top_k", "chunk"), [(4, 40, 2**24), (4, 3, 2 * N), (1, 5, 2**24)]
)
def test_gf_cf_is_its_formula_by_dense_algebra(monkeypatch, n_factors, top_k, chunk):
    monkeypatch.setattr(item_item, "CHUNK", chunk)
    users = draw()
    found = gf_cf(lay_out(users), top_k, n_factors, seed=1)
    assert_alike(found, keep(filter_densely(users, n_factors), top_k))


ESTIMATORS = {
    "ease": lambda events: ease(events, 4, RIDGE),
    "next_item": lambda events: next_item(events, 4, RIDGE, 0.3),
    "gf_cf": lambda events: gf_cf(events, 4, 3, seed=1),
}
estimators = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@estimators
def test_a_row_has_at_most_k_weights_none_of_its_own_item_and_none_of_items_without_users(
    estimate,
):
    users = [[item - (item in {5, 11}) for item in items] for items in draw()]
    found = estimate(lay_out(users))
    assert np.diff(found.indptr).max() == 4
    assert not found.diagonal().any()
    dense = found.toarray()
    assert not dense[[5, 11]].any()
    assert not dense[:, [5, 11]].any()


@estimators
def test_the_same_interactions_give_the_same_bytes(estimate):
    first, second = estimate(lay_out(draw())), estimate(lay_out(draw()))
    assert first.data.tobytes() == second.data.tobytes()
    assert first.indices.tobytes() == second.indices.tobytes()


@estimators
@pytest.mark.parametrize("users", [[[]], [[3]], [[3], [3]], [[2, 5]]])
def test_next_to_nothing_is_no_fault(estimate, users):
    events = Interactions(
        np.repeat(np.arange(len(users)), list(map(len, users))),
        np.array([item for items in users for item in items], np.int64),
        np.ones(sum(map(len, users)), bool),
        len(users),
        N,
    )
    assert np.isfinite(estimate(events).toarray()).all()
