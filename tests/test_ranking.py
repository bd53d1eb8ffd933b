from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluation.ranking
from evaluation.ranking import tiles, top_k

SCORES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]),
    st.floats(width=32, allow_nan=False),
)


def rank_naively(scores: list[float], k: int) -> list[int]:
    rows = [row for row, score in enumerate(scores) if math.isfinite(score)]
    best = sorted(rows, key=lambda row: (-scores[row], row))[:k]
    return best + [-1] * (k - len(best))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(SCORES, min_size=7, max_size=7), min_size=1, max_size=3), st.integers(1, 11))
def test_lists_are_exact_with_ties_in_order_of_rows(scores, k):
    matrix = np.array(scores, np.float32)
    assert top_k(matrix, k).tolist() == [rank_naively(row, k) for row in matrix.tolist()]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_long_rows_are_ranked_exactly(data):
    n_items, k = data.draw(st.integers(60, 700)), data.draw(st.integers(1, 12))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    few = data.draw(st.lists(SCORES, min_size=1, max_size=6))  # many items share a score, at the cut too
    scores = rng.choice(np.array(few, np.float32), (3, n_items))
    if data.draw(st.booleans()):
        places = rng.random(scores.shape) < 0.1
        scores[places] = rng.standard_normal(places.sum()).astype(np.float32)
    assert top_k(scores, k).tolist() == [rank_naively(row, k) for row in scores.tolist()]


@pytest.mark.parametrize("n_others", [0, 2])
def test_a_list_of_few_items_of_a_large_catalogue_is_short(n_others):
    """As one among the items that a user has: what has no score would fill it up."""
    scores = np.full((2 + n_others, 700), -np.inf, np.float32)
    scores[0, [600, 5]] = 3, 7
    scores[2:] = np.arange(700)
    expected = [[5, 600, -1, -1], [-1] * 4, *[[699, 698, 697, 696]] * n_others]
    assert top_k(scores, 4).tolist() == expected


def test_ties_at_the_cut_are_stable():
    assert top_k(np.zeros((3, 500), np.float32), 5).tolist() == [[0, 1, 2, 3, 4]] * 3


def test_small_tiles_rank_alike(monkeypatch):
    scores = np.random.default_rng(0).standard_normal((5, 11)).astype(np.float32)
    whole = top_k(scores, 3)
    monkeypatch.setattr(evaluation.ranking, "CACHED_CELLS", 25)
    assert top_k(scores, 3).tolist() == whole.tolist()


@pytest.mark.parametrize(("cells", "sizes"), [(25, [2, 2, 1]), (3, [1] * 5), (1000, [5])])
def test_tiles_cover_rows_once(cells, sizes):
    runs = list(tiles(5, 11, cells))
    assert [len(run) for run in runs] == sizes
    assert np.concatenate(runs).tolist() == list(range(5))
