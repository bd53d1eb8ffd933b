from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.metrics import average_by_user, measure_requests, measure_users
from evaluation.targets import ItemSets, Targets, hit_matrix


def measure_naively(ranked: list[int], wanted: list[int], k: int) -> dict[str, float]:
    """Count place by place; -1 among `wanted` is a target that cannot be found."""
    gain, precision, first, found = 0.0, 0.0, 0, 0
    for place, item in enumerate(ranked[:k], start=1):
        if item < 0 or item not in wanted:
            continue
        found += 1
        gain += 1 / math.log2(place + 1)
        precision += found / place
        first = first or place
    reachable = min(k, len(wanted))
    return {
        f"HR@{k}": 1.0 if found else 0.0,
        f"Recall@{k}": found / len(wanted),
        f"NDCG@{k}": gain / sum(1 / math.log2(place + 1) for place in range(1, reachable + 1)),
        f"MRR@{k}": 1 / first if first else 0.0,
        f"MAP@{k}": precision / reachable,
    }


@st.composite
def requests(draw):
    lists, wanted = [], []
    for _ in range(draw(st.integers(1, 4))):
        items = draw(st.permutations(range(11)))[: draw(st.integers(0, 7))]
        lists.append([*items, *[-1] * (7 - len(items))])
        known = draw(st.lists(st.integers(0, 10), max_size=6, unique=True))
        wanted.append([*known, *[-1] * draw(st.integers(0 if known else 1, 2))])
    return lists, wanted


def as_targets(wanted, user) -> Targets:
    flat = np.array([item for items in wanted for item in items], np.int64)
    return Targets(ItemSets(flat, np.cumsum([0, *map(len, wanted)])), np.array(user))


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_metric_equals_a_plain_loop(drawn):
    lists, wanted = drawn
    targets = as_targets(wanted, range(len(wanted)))
    got = measure_requests(hit_matrix(np.array(lists), targets), targets.items.counts, (3, 5, 10))
    for k in (3, 5, 10):
        for row, (ranked, items) in enumerate(zip(lists, wanted, strict=True)):
            for name, value in measure_naively(ranked, items, k).items():
                assert got[name][row] == pytest.approx(value, abs=1e-12), (name, row)


def test_users_count_once_however_often_they_ask():
    wanted = [[4], [5, 6], [], [2]]
    lists = np.array([[4, 0, 1, 2, 3], [0, 1, 2, 5, 3], [0, 1, 2, 3, 4], [0, 1, 3, 4, 5]])
    got = measure_users(lists, as_targets(wanted, [9, 3, 9, 9]), (5,))
    assert got["Recall@5"].tolist() == [
        0.5,
        (1.0 + 0.0) / 2,
    ]  # user 3, user 9; the request without target is left out
    assert got["MRR@5"].tolist() == [1 / 4, 0.5]


def test_averages_come_in_order_of_users():
    assert average_by_user(np.array([1.0, 0.0, 5.0]), np.array([8, 8, 2])).tolist() == [5.0, 0.5]
