"""Item-item weights against dense algebra, one history after the other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import scipy.sparse as sp
from evaluation.content_cosines import content_cosines
from models.item_item import (
    Interactions,
    ease,
    item_knn,
    next_item,
)
from models.plateau import LOW_PASS, SKEW, bend, leading_vectors, plateau_filter
from serve.clock import DAY
from serve.encode import code_slices
from serve.kinds import UNKNOWN
from tests.tiny_data import ORDERED, make_world

from evaluation import content_cosines as content_module
from models import item_item

N = 13
RIDGE = 20.0
MIN_COMMON = 20


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


def draw_times(users: list[list[int]]) -> np.ndarray:
    """Draw the seconds of all events, some on one day and others years apart."""
    rng = np.random.default_rng(5)
    days = [rng.choice([0, 0.1, 1, 40, 800], len(items)).cumsum() for items in users]
    return 1_500_000_000 + (DAY * np.concatenate(days)).astype(np.int64)


def lay_out(
    users: list[list[int]], targets: range = range(N), times: np.ndarray | None = None
) -> Interactions:
    user, items = (
        np.repeat(np.arange(len(users)), [len(items) for items in users]),
        np.concatenate(users),
    )
    times = np.zeros_like(user) if times is None else times
    return Interactions(user, items, times, np.isin(items, targets), len(users), N)


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
        largest = np.argsort(-np.abs(values), kind="stable")[:top_k]
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


def test_item_knn_is_a_cosine_that_counts_less_of_few_users():
    users = draw()
    counts = count_users(users)
    expected = np.zeros((N, N))
    for first in range(N):
        for second in set(range(N)) - {first}:
            n_both = sum({first, second} <= set(items) for items in users)
            expected[first, second] = n_both / ((counts[first] * counts[second]) ** 0.5 + 10)
    assert_alike(item_knn(lay_out(users), 40), expected)
    assert set(np.diff(item_knn(lay_out(users), 3).indptr)) == {3}


@pytest.mark.parametrize("top_k", [3, 40])
def test_content_counts_by_the_rarity_of_what_two_items_share(top_k, monkeypatch):
    monkeypatch.setattr(content_module, "MAX_SHARING", 8)
    world = make_world(ORDERED)
    catalogue, n = world.catalogue, len(world.catalogue)
    values = [set() for _ in range(n)]  # (column's feature, code) of each item
    for feature, span in code_slices(catalogue.item_features):
        for item, codes in enumerate(catalogue.features.codes[:, span].tolist()):
            values[item] |= {(feature.name, code) for code in codes if code > UNKNOWN}
    sharing = Counter(value for own in values for value in own)
    assert min(sharing.values()) <= 8 < max(sharing.values())
    rarity = {value: np.log(n / many) if many <= 8 else 0.0 for value, many in sharing.items()}
    n_events = np.arange(n) % 5
    expected = np.zeros((n, n))
    for one, other in permutations(range(n), 2):
        norms = [sum(rarity[value] ** 2 for value in values[item]) for item in (one, other)]
        both = sum(rarity[value] ** 2 for value in values[one] & values[other])
        if both:
            cosine = both / np.sqrt(norms[0] * norms[1])
            expected[one, other] = cosine * (n_events[other] + 1) ** 0.25
    found = content_cosines(np.repeat(np.arange(n), n_events), catalogue, top_k).toarray()
    np.testing.assert_allclose(np.sort(found), np.sort(keep(expected, top_k)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[found > 0], expected[found > 0], rtol=1e-5)
    assert (found > 0).any(axis=1).sum() > n / 2


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


def popular(users: list[list[int]], n: int) -> list[int]:
    return np.argsort(-count_users(users), kind="stable")[:n].tolist()


def test_where_the_others_get_no_weights_the_items_of_the_most_users_are_inverted():
    users = draw()
    core = popular(users, 8)
    assert_alike(ease(lay_out(users), N, RIDGE, 8), solve_ease(users, core))
    assert_alike(
        next_item(lay_out(users), N, RIDGE, 0.3, 8), solve_next(users, core, range(N), 0.3)
    )


def add_naively(
    of_core: np.ndarray, core: list[int], gram: np.ndarray, following: np.ndarray
) -> np.ndarray:
    """Predict what the core leaves of each pair by its first item alone."""
    weights = of_core.copy()
    for source in range(N):
        for target in range(N):
            is_inverted = source in core and target in core
            if is_inverted or source == target or not following[source, target]:
                continue
            explained = sum(gram[source, item] * of_core[item, target] for item in core)
            left = following[source, target] - explained
            weights[source, target] = left / (gram[source, source] + RIDGE)
    return weights


@pytest.mark.parametrize(("n_core", "top_k"), [(8, N), (5, N), (8, 3)])
def test_of_a_large_catalogue_ease_gives_the_others_what_the_core_leaves(n_core, top_k):
    users = draw()
    core = popular(users, n_core)
    gram = owned(users).T @ owned(users)
    of_core = keep(solve_ease(users, core), top_k)
    expected = keep(add_naively(of_core, core, gram, gram), top_k)
    found = ease(lay_out(users), top_k, RIDGE, n_core, max_dense=N - 1)
    assert_alike(found, expected)
    others = [item for item in range(N) if item not in core]
    assert np.abs(found.toarray()[others]).sum(axis=1).min() > 0


@pytest.mark.parametrize(("longest", "n_core", "decay"), [(12, 8, 0.3), (30, 5, 1.0)])
def test_of_a_large_catalogue_next_item_regression_gives_the_others_what_the_core_leaves(
    longest, n_core, decay
):
    users = draw(longest=longest)
    core = popular(users, n_core)
    before, after = lay_out_histories(users, range(N), decay)
    of_core = solve_next(users, core, range(N), decay)
    expected = add_naively(of_core, core, before.T @ before, before.T @ after)
    assert_alike(next_item(lay_out(users), N, RIDGE, decay, n_core, max_dense=3), expected)


def test_a_core_of_all_items_leaves_nothing_to_the_others():
    events = lay_out(draw())
    for estimate in (
        lambda most: ease(events, 5, RIDGE, N, most),
        lambda most: next_item(events, 5, RIDGE, 0.3, N, most),
    ):
        inverted = estimate(N)
        grown = estimate(N - 1)
        np.testing.assert_array_equal(grown.toarray(), inverted.toarray())


def test_of_a_very_large_catalogue_the_filter_is_linear():
    users = draw()
    expected = scale(users).T @ scale(users)
    np.fill_diagonal(expected, 0)
    found = plateau_filter(lay_out(users), 4, 3, seed=1, max_dense=N - 1)
    assert_alike(found, keep(expected, 4))


def test_far_pairs_of_events_are_left_out_where_there_would_be_too_many(monkeypatch):
    users = draw(longest=30)
    n_events = sum(map(len, users))
    monkeypatch.setattr(item_item, "MAX_PAIRS", 3 * n_events)
    # histories of three events, as with a decay that forgets the fourth
    found = next_item(lay_out(users), N, RIDGE, 0.3)
    assert_alike(found, solve_next(users, list(range(N)), range(N), 0.3, reach=3))


def draw_planted(n_items: int, n_users: int) -> list[list[int]]:
    """Draw users of clusters of ten items; every other event is followed by its successor."""
    rng = np.random.default_rng(8)
    users = []
    for first in rng.integers(n_items // 10, size=n_users) * 10:
        items = [first + int(9 * rng.random() ** 3)]
        while len(items) < 6:
            new = first + int(10 * rng.random() ** 3)
            items.append((items[-1] * 7 + 3) % n_items if rng.random() < 0.5 else new)
        users.append(items)
    return users


@pytest.mark.parametrize("name", ["ease", "next_item"])
def test_lower_limits_rank_a_planted_world_no_worse_than_the_whole_inversion(name):
    n_items = 400
    users = draw_planted(n_items, 900)
    past = [items[:-1] for items in users]
    events = Interactions(
        np.repeat(np.arange(900), 5),
        np.concatenate(past),
        np.zeros(4500, int),
        np.ones(4500, bool),
        900,
        n_items,
    )

    def measure(n_core: int, max_dense: int) -> float:
        if name == "ease":
            weights = ease(events, 32, RIDGE, n_core, max_dense).toarray()
        else:
            weights = next_item(events, 32, RIDGE, 0.5, n_core, max_dense).toarray()
        n_found = 0
        for items in users:
            scores = np.exp(-0.5 * np.arange(5))[::-1] @ weights[items[:-1]]
            scores[items[:-1]] = -np.inf
            n_found += items[-1] in np.argsort(-scores, kind="stable")[:10]
        return n_found / 900

    whole = measure(n_items, n_items)
    grown = measure(40, 40)
    assert whole > 0.3
    assert grown >= 0.97 * whole
    assert measure(40, n_items) < 0.9 * grown


def lay_out_histories(
    users: list[list[int]],
    targets: range,
    decay: float,
    reach: int | None = None,
    times: np.ndarray | None = None,
    floor: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Lay out the fading history before each event, and the event if it is a target."""
    before, after = [], []
    events = lay_out(users, times=times)
    for user, items in enumerate(users):
        moments = events.time[events.user == user] / DAY
        for place in range(1, len(items)):
            history, following = np.zeros(N), np.zeros(N)
            ages = moments[place] - moments[:place][::-1]
            by_time = floor + (1 - floor) * np.exp(-ages)
            for distance, item in enumerate(reversed(items[:place])):
                is_near = distance < 2 or np.exp(-decay * distance) >= 0.02
                if is_near and (reach is None or distance < reach):
                    history[item] += np.exp(-decay * distance) * by_time[distance]
            following[items[place]] = items[place] in targets
            before.append(history)
            after.append(following)
    return np.array(before), np.array(after)


def solve_next(
    users: list[list[int]],
    core: list[int],
    targets: range,
    decay: float,
    reach: int | None = None,
    times: np.ndarray | None = None,
    floor: float = 1.0,
) -> np.ndarray:
    """Predict each next item that is a target from those before it by least squares."""
    before, after = lay_out_histories(users, targets, decay, reach, times, floor)
    ridge = np.sqrt(RIDGE) * np.eye(len(core))
    rows, columns = np.vstack([before[:, core], ridge]), np.vstack([after[:, core], 0 * ridge])
    found = np.linalg.lstsq(rows, columns, rcond=None)[0]
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


@pytest.mark.parametrize(("longest", "floor", "decay"), [(12, 0.5, 0.02), (40, 0.1, 0.1)])
def test_by_time_what_is_old_keeps_a_share_of_its_weight(longest, floor, decay):
    users = draw(longest=longest)
    times = draw_times(users)
    events = lay_out(users, times=times)
    found = next_item(events, N, RIDGE, decay, floor=floor)
    assert_alike(
        found, solve_next(users, list(range(N)), range(N), decay, times=times, floor=floor)
    )


def test_at_one_moment_events_fade_by_position_alone():
    users = draw()
    moment = np.full(sum(map(len, users)), 1_500_000_000)
    assert_alike(
        next_item(lay_out(users, times=moment), N, RIDGE, 0.3, floor=0.2),
        solve_next(users, list(range(N)), range(N), 0.3),
    )


def scale(users: list[list[int]]) -> np.ndarray:
    """Divide the rows and columns of the interaction matrix by the roots of their sums."""
    matrix = owned(users)
    per_user = np.maximum(matrix.sum(axis=1), 1)
    per_item = np.maximum(matrix.sum(axis=0), 1)
    return matrix / np.sqrt(per_user)[:, None] / np.sqrt(per_item)


def filter_densely(users: list[list[int]], n_factors: int) -> np.ndarray:
    """Weigh every component of a whole singular value decomposition by itself."""
    _, values, right = np.linalg.svd(scale(users), full_matrices=False)
    curve = bend(values[n_factors - 1 :: -1] ** 2)[::-1]
    weights = np.zeros((N, N))
    for place, (value, vector) in enumerate(zip(values, right, strict=True)):
        chord = curve[-1] / values[n_factors - 1] ** 2 * value**2
        weight = curve[place] + LOW_PASS if place < n_factors else chord
        weights += weight * np.outer(vector, vector)
    per_item = np.maximum(count_users(users), 1) ** SKEW
    weights *= per_item / per_item[:, None]
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize(
    ("n_factors", "top_k", "chunk"), [(4, 40, 2**24), (4, 3, 2 * N), (1, 5, 2**24)]
)
def test_the_filter_weighs_the_components_of_a_decomposition(monkeypatch, n_factors, top_k, chunk):
    monkeypatch.setattr(item_item, "CHUNK", chunk)
    users = draw()
    found = plateau_filter(lay_out(users), top_k, n_factors, seed=1)
    assert_alike(found, keep(filter_densely(users, n_factors), top_k))


@pytest.mark.parametrize("weakest", [0.9, 0.2, 0.02, 1e-5])
def test_the_curve_of_the_filter_rises_to_a_half_and_to_one(weakest):
    squares = np.array([weakest, 0.4, 0.5, 0.6, 0.95, 1.0])
    curve = bend(squares)
    assert curve[-1] == 1
    assert curve[2] == 0.5
    assert (np.diff(curve[np.argsort(squares)]) >= 0).all()
    # no less than the linear filter where components are weak, and flat where they are strong
    assert curve[0] >= weakest * (1 - 1e-6) or weakest > 0.5
    assert abs(curve[3] - curve[1]) <= 0.2 + 1e-6


def test_leading_vectors_are_those_of_the_whole_decomposition():
    rng = np.random.default_rng(3)
    matrix = rng.random((60, 200)) * (rng.random((60, 200)) < 0.2)
    squares, vectors = leading_vectors(sp.csr_array(matrix.astype(np.float32)), 5, seed=0)
    _, values, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(squares, values[4::-1] ** 2, rtol=1e-3)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-5)
    assert abs(vectors[:, -1] @ right[0]) > 0.999


ESTIMATORS = {
    "ease": lambda events: ease(events, 4, RIDGE),
    "next_item": lambda events: next_item(events, 4, RIDGE, 0.3),
    "plateau": lambda events: plateau_filter(events, 4, 3, seed=1),
}
estimators = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())
# The branches of large catalogues, and cosines, count users as well.
COUNTING = ESTIMATORS | {
    "item_knn": lambda events: item_knn(events, 4),
    "ease_of_rest": lambda events: ease(events, 4, RIDGE, 8, N - 1),
    "next_item_of_rest": lambda events: next_item(events, 4, RIDGE, 0.3, 8, N - 1),
    "linear_filter": lambda events: plateau_filter(events, 4, 3, seed=1, max_dense=N - 1),
}


@pytest.mark.parametrize("name", COUNTING)
def test_a_weight_needs_enough_users_who_took_both_items_and_others_take_the_place(name):
    users = draw()
    common = owned(users).T @ owned(users)
    at_will = COUNTING[name](lay_out(users)).toarray()
    of_many = COUNTING[name](replace(lay_out(users), min_users=MIN_COMMON)).toarray()

    assert (common[at_will != 0] < MIN_COMMON).any()
    assert (common[of_many != 0] >= MIN_COMMON).all()
    may_stand = at_will[common >= MIN_COMMON]
    assert np.count_nonzero(may_stand) > 0
    np.testing.assert_array_equal(of_many[common >= MIN_COMMON][may_stand != 0] != 0, True)


def test_the_weights_that_stand_do_not_depend_on_those_that_fall():
    users = draw()
    common = owned(users).T @ owned(users)
    expected = keep(solve_ease(users, list(range(N))) * (common >= MIN_COMMON), 4)
    assert_alike(ease(replace(lay_out(users), min_users=MIN_COMMON), 4, RIDGE), expected)


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
        np.zeros(sum(map(len, users)), np.int64),
        np.ones(sum(map(len, users)), bool),
        len(users),
        N,
    )
    assert np.isfinite(estimate(events).toarray()).all()
