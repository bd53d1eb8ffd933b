from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluation.views
from evaluation.ranking import tiles
from evaluation.targets import ItemSets, Targets
from evaluation.views import find_owned, rank_views, view_targets

N, K = 11, 5
ALLOWED = {
    "all": lambda item, owned: True,
    "repeat": lambda item, owned: item in owned,
    "novel": lambda item, owned: item not in owned,
}


def as_sets(lists) -> ItemSets:
    flat = np.array([item for items in lists for item in items], np.int64)
    return ItemSets(flat, np.cumsum([0, *map(len, lists)]))


def as_lists(sets: ItemSets):
    return [part.tolist() for part in np.split(sets.item_row, sets.offsets[1:-1])]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(-1, N - 1), max_size=N, unique=True), min_size=1, max_size=4),
    st.integers(0, 99),
    st.integers(1, 50),
)
def test_every_view_is_the_ranking_of_its_items(owned, seed, cells):
    scores = np.random.default_rng(seed).integers(-2, 3, (len(owned), N)).astype(np.float32)
    asked = []

    def score_tile(requests):
        asked.extend(requests.tolist())
        return scores[requests]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation.views, "tiles", lambda rows, columns: tiles(rows, columns, cells))
        got = rank_views(score_tile, as_sets(owned), N, K, ALLOWED)
    assert asked == list(range(len(owned)))  # one pass for all views
    for view, allowed in ALLOWED.items():
        for row, items in enumerate(owned):
            ranked = sorted(range(N), key=lambda item: (-scores[row, item], item))
            expected = [item for item in ranked if allowed(item, items)][:K]
            assert got[view][row].tolist() == expected + [-1] * (K - len(expected)), view


def test_scores_are_not_altered():
    scores = np.arange(2 * N, dtype=np.float32).reshape(2, N)
    before = scores.copy()
    rank_views(lambda requests: scores, as_sets([[0, 5], [3]]), N, K, ALLOWED)
    assert (scores == before).all()


def test_targets_split_into_repeat_and_novel():
    targets = Targets(as_sets([[2, -1, 7], [4], [0]]), np.array([6, 8, 6]))
    owned = as_sets([[7, 9], [], [0, -1]])
    got = view_targets(targets, owned, "allow")
    assert as_lists(got["all"].items) == [[2, -1, 7], [4], [0]]
    assert as_lists(got["repeat"].items) == [[7], [], [0]]
    assert as_lists(got["novel"].items) == [[2, -1], [4], []]
    assert all(view.user.tolist() == [6, 8, 6] for view in got.values())


def test_without_repeats_owned_targets_stay_as_misses():
    targets = Targets(as_sets([[2, 7], [4]]), np.array([0, 1]))
    owned = as_sets([[7, 9], [4]])
    got = view_targets(targets, owned, "exclude")
    assert list(got) == ["novel"]
    assert as_lists(got["novel"].items) == [[2, 7], [4]]
    assert find_owned(targets, owned).tolist() == [False, True, True]
