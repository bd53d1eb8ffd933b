from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.beyond_accuracy import describe_lists, exposure_gini
from evaluation.targets import ItemSets, Targets

N = 11
LISTS = np.array([[3, 0, 7, 9, 1], [0, 3, -1, -1, -1], [4, 0, 2, 8, 1]])
EVENTS = np.array([40, 0, 3, 9, 1, 6, 0, 2, 5, 4, 30])
TARGETS = Targets(ItemSets(np.array([0, 5, -1, 10]), np.array([0, 2, 3, 4])), np.arange(3))


def test_figures_equal_a_plain_count():
    shown = [item for items in LISTS.tolist() for item in items[:3] if item >= 0]
    total = sum(EVENTS.tolist()) + N
    wanted = [40 + 1, 6 + 1, 0 + 1, 30 + 1]
    got = describe_lists(LISTS, TARGETS, EVENTS, 3)
    assert got == {
        "coverage@3": len(set(shown)) / N,
        "novelty@3": pytest.approx(np.mean([-math.log2((EVENTS[item] + 1) / total) for item in shown])),
        "popularity_lift@3": pytest.approx(np.mean([EVENTS[item] + 1 for item in shown]) / np.mean(wanted)),
        "gini@3": pytest.approx(gini_naively([shown.count(item) for item in range(N)])),
    }


def gini_naively(exposure: list[int]) -> float:
    """Half the mean absolute difference over the mean."""
    differences = [abs(a - b) for a in exposure for b in exposure]
    return sum(differences) / (2 * len(exposure) * sum(exposure))


def test_gini_of_equal_and_of_single_exposure():
    assert exposure_gini(np.arange(N).reshape(1, N), N) == pytest.approx(0)
    assert exposure_gini(np.full((5, 1), 3), N) == pytest.approx(1 - 1 / N)


def test_empty_lists_show_nothing():
    got = describe_lists(np.full((3, 5), -1), TARGETS, EVENTS, 3)
    assert set(got.values()) == {0.0}
