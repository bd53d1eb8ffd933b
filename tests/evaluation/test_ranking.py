import math

import evaluation.ranking
import numpy as np
import pytest
from evaluation.metrics import Targets
from evaluation.ranking import (
    find_owned,
    keep_largest_entries,
    multiply_items,
    rank_views,
    tiles,
    top_k,
    view_targets,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from tests.evaluation.naive import as_lists, as_sets

N, K = 11, 5
SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]),
    st.floats(width=32, allow_nan=False),
)
ALLOWED = {
    "all": lambda item, owned: True,
    "repeat": lambda item, owned: item in owned,
    "novel": lambda item, owned: item not in owned,
}


def rank_naively(scores: list[float], k: int) -> list[int]:
    rows = [row for row, score in enumerate(scores) if math.isfinite(score)]
    best = sorted(rows, key=lambda row: (-scores[row], row))[:k]
    return best + [-1] * (k - len(best))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_are_ranked_exactly_with_ties_in_their_order(data):
    n_items, k = data.draw(st.integers(1, 700)), data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    few = data.draw(
        st.lists(SCORES, min_size=1, max_size=6)
    )  # many items share a score, at the cut too
    scores = rng.choice(np.array(few, np.float32), (3, n_items))
    if data.draw(st.booleans()):
        places = rng.random(scores.shape) < 0.1
        scores[places] = rng.standard_normal(places.sum()).astype(np.float32)
    assert top_k(scores, k).tolist() == [rank_naively(row, k) for row in scores.tolist()]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(-1, N - 1), max_size=N, unique=True),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 99),
    st.integers(1, 50),
)
def test_every_view_is_the_ranking_of_its_items(owned, seed, cells):
    scores = np.random.default_rng(seed).integers(-2, 3, (len(owned), N)).astype(np.float32)
    before, asked = scores.copy(), []

    def score(requests):
        asked.extend(requests.tolist())
        return scores[requests[0] : requests[-1] + 1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluation.ranking,
            "tiles",
            lambda rows, columns, size=cells: tiles(rows, columns, size),
        )
        got = rank_views(score, as_sets(owned), N, K, ALLOWED)
    assert asked == list(range(len(owned)))  # one pass for all views
    assert (scores == before).all()
    for view, allowed in ALLOWED.items():
        for row, items in enumerate(owned):
            ranked = sorted(range(N), key=lambda item: (-scores[row, item], item))
            expected = [item for item in ranked if allowed(item, items)][:K]
            assert got[view][row].tolist() == expected + [-1] * (K - len(expected)), view


def test_targets_split_into_repeat_and_novel():
    targets = Targets(as_sets([[2, -1, 7], [4], [0]]), np.array([6, 8, 6]))
    got = view_targets(targets, as_sets([[7, 9], [], [0, -1]]), "allow")
    assert as_lists(got["all"].items) == [[2, -1, 7], [4], [0]]
    assert as_lists(got["repeat"].items) == [[7], [], [0]]
    assert as_lists(got["novel"].items) == [[2, -1], [4], []]
    assert all(view.user.tolist() == [6, 8, 6] for view in got.values())


def test_without_repeats_owned_targets_stay_as_misses():
    targets, owned = (
        Targets(as_sets([[2, 7], [4]]), np.array([0, 1])),
        as_sets([[7, 9], [4]]),
    )
    got = view_targets(targets, owned, "exclude")
    assert list(got) == ["novel"]
    assert as_lists(got["novel"].items) == [[2, 7], [4]]
    assert find_owned(targets, owned).tolist() == [False, True, True]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40))
def test_products_of_columns_are_the_largest_of_dense_algebra(seed, k, cells):
    rng = np.random.default_rng(seed)
    matrix = (rng.normal(size=(7, N)) * (rng.random((7, N)) < 0.5)).astype(np.float32)
    dense = matrix.T @ matrix * np.arange(1, N + 1) / np.arange(1, N + 1)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.ranking.tiles, "__defaults__", (cells,))
        found = multiply_items(
            sparse.csr_array(matrix), k, lambda values, row, col: values * (col + 1) / (row + 1)
        )
    expected = np.zeros_like(dense)
    for row, values in enumerate(dense):
        largest = np.argsort(-np.abs(values))[:k]
        expected[row, largest] = values[largest]
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5, atol=1e-5)


def test_of_equal_entries_the_first_are_kept():
    rows = [[2, -2, 2, 1], [0, 0, 0, 0], [0, 1, 0, -3]]
    found = keep_largest_entries(sparse.csr_array(np.array(rows, np.float32)), 2)
    assert found.toarray().tolist() == [[2, -2, 0, 0], [0, 0, 0, 0], [0, 1, 0, -3]]
