import math

import evaluation.metrics
import numpy as np
import pytest
from evaluation.metrics import (
    RESAMPLES,
    SEED,
    Targets,
    describe_lists,
    find_head,
    hit_matrix,
    measure_requests,
    measure_users,
    resample_means,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.naive import as_sets, measure_naively

N = 11
LISTS = np.array([[3, 0, 7, 9, 1], [0, 3, -1, -1, -1], [4, 0, 2, 8, 1]])
EVENTS = np.array([40, 0, 3, 9, 1, 6, 0, 2, 5, 4, 30])


@st.composite
def requests(draw):
    lists, wanted = [], []
    for _ in range(draw(st.integers(1, 4))):
        items = draw(st.permutations(range(11)))[: draw(st.integers(0, 7))]
        lists.append([*items, *[-1] * (7 - len(items))])
        known = draw(st.lists(st.integers(0, 10), max_size=6, unique=True))
        wanted.append([*known, *[-1] * draw(st.integers(0 if known else 1, 2))])
    return lists, wanted


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_metric_equals_a_plain_loop(drawn):
    lists, wanted = drawn
    targets = Targets(as_sets(wanted), np.arange(len(wanted)))
    hits = hit_matrix(np.array(lists), targets)
    assert hits.tolist() == [
        [i >= 0 and i in w for i in r] for r, w in zip(lists, wanted, strict=True)
    ]
    got = measure_requests(hits, targets.items.counts, (3, 5, 10))
    for k in (3, 5, 10):
        for row, (ranked, items) in enumerate(zip(lists, wanted, strict=True)):
            for name, value in measure_naively(ranked, items, k).items():
                assert got[name][row] == pytest.approx(value, abs=1e-12), (name, row)


def test_users_count_once_however_often_they_ask():
    wanted = [[4], [5, 6], [], [2]]
    lists = np.array([[4, 0, 1, 2, 3], [0, 1, 2, 5, 3], [0, 1, 2, 3, 4], [0, 1, 3, 4, 5]])
    got = measure_users(lists, Targets(as_sets(wanted), np.array([9, 3, 9, 9])), (5,))
    assert got["Recall@5"].tolist() == [
        0.5,
        (1.0 + 0.0) / 2,
    ]  # users 3 and 9, the request without target left out


def test_figures_of_lists_equal_a_plain_count():
    shown = [item for items in LISTS.tolist() for item in items[:3] if item >= 0]
    total, wanted = sum(EVENTS.tolist()) + N, [40 + 1, 6 + 1, 0 + 1, 30 + 1]
    exposure = [shown.count(item) for item in range(N)]
    differences = sum(abs(a - b) for a in exposure for b in exposure)
    assert describe_lists(
        LISTS, Targets(as_sets([[0, 5], [-1], [10]]), np.arange(3)), EVENTS, 3
    ) == {
        "coverage@3": len(set(shown)) / N,
        "novelty@3": pytest.approx(
            np.mean([-math.log2((EVENTS[item] + 1) / total) for item in shown])
        ),
        "popularity_lift@3": pytest.approx(
            np.mean([EVENTS[item] + 1 for item in shown]) / np.mean(wanted)
        ),
        "gini@3": pytest.approx(differences / (2 * N * sum(exposure))),
    }


def test_the_head_has_four_fifths_of_the_events_and_the_first_of_equals():
    assert find_head(np.array([8, 71, 1, 8, 12])).tolist() == [False, True, False, False, True]
    assert find_head(np.array([1, 1, 1, 1, 1])).tolist() == [True] * 4 + [False]
    assert find_head(np.array([79, 1, 20])).tolist() == [True, False, True]
    assert find_head(np.array([80, 1, 19])).tolist() == [True, False, False]


def test_bootstrap_samples_are_means_of_drawn_rows(monkeypatch):
    values, rng = np.random.default_rng(0).random((13, 3)), np.random.default_rng(SEED)
    got = resample_means(values)
    assert got.shape == (RESAMPLES, 3)
    for row in range(5):
        assert got[row] == pytest.approx(values[rng.integers(13, size=13)].mean(axis=0))
    monkeypatch.setattr(evaluation.metrics, "BLOCK_BYTES", 8 * 13 * 7)
    assert resample_means(values) == pytest.approx(got)
