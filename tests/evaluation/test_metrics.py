import math

import numpy as np
import pytest
from evaluation.metrics import (
    Targets,
    describe_lists,
    find_bounds,
    find_head,
    hit_matrix,
    measure_requests,
    measure_users,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t
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


def draw_gains(rng, n):
    """Return gains like NDCG, a quarter of them not 0, and their true mean."""
    return np.where(rng.random(n) < 0.25, rng.beta(1.5, 2, n), 0.0), 0.25 * 1.5 / 3.5


def draw_differences(rng, n):
    return np.where(rng.random(n) < 0.3, rng.normal(0, 0.3, n), 0.0), 0.0


@pytest.mark.parametrize("draw", [draw_gains, draw_differences])
@pytest.mark.parametrize("n_users", [20, 50, 300])
def test_the_intervals_of_few_users_hold_the_truth(draw, n_users):
    rng = np.random.default_rng(n_users)
    n_held = 0
    for _ in range(600):
        values, truth = draw(rng, n_users)
        low, high = find_bounds(values[:, None])[:, 0]
        n_held += low <= truth <= high
    assert 0.92 * 600 <= n_held <= 0.985 * 600


def test_bounds_are_those_of_students_t_where_nothing_is_skewed():
    values = np.array([[-2.0], [-1.0], [0.5], [1.0], [2.0], [-0.5]])
    half = t.ppf(0.975, 5) * values.std(ddof=1) / np.sqrt(6)
    assert find_bounds(values)[:, 0] == pytest.approx([-half, half])
    skewed = np.array([[0.0], [0.0], [0.0], [0.0], [0.0], [6.0]])
    low, high = find_bounds(skewed)[:, 0] - 1
    assert high > -low
    assert find_bounds(np.full((5, 2), 0.3)) == pytest.approx(np.full((2, 2), 0.3))
    assert find_bounds(np.array([[0.3]])) == pytest.approx(np.array([[0.3], [0.3]]))
