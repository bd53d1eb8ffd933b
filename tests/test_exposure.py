from __future__ import annotations

import numpy as np

from evaluation.report.exposure import Exposure, thin_out

COUNTS = np.array([3, 0, 11, 5, 5, 1, 0])
LISTS = np.array([[2, 0, 3], [2, 6, -1], [4, 2, 0], [2, -1, -1], [3, 2, 5]])


def test_shares_are_those_of_the_most_popular_items():
    exposure = Exposure.measure(COUNTS, LISTS)
    order = [2, 3, 4, 0, 5, 1, 6]
    assert exposure.events.tolist() == [COUNTS[row] for row in order]
    assert exposure.shown.tolist() == [(row == LISTS).sum() for row in order]
    assert exposure.shares() == [(1, 11 / 25, 5 / 12)]  # a hundredth and a tenth of 7 items are the same one
    events, shown = exposure.curves()
    assert events.points[2] == (3 / 7, 21 / 25)
    assert shown.points[2] == (3 / 7, 8 / 12)
    assert shown.points[-1] == (1.0, 1.0)


def test_each_mark_that_is_more_items_has_its_shares():
    exposure = Exposure.measure(np.arange(20), np.array([[19, 18], [19, 3]]))
    assert exposure.shares() == [(1, 19 / 190, 2 / 4), (2, 37 / 190, 3 / 4)]


def test_ranks_are_of_items_with_events():
    assert Exposure.measure(COUNTS, LISTS).ranks().points == [(1, 11), (2, 5), (3, 5), (4, 3), (5, 1)]


def test_nothing_shown_and_nothing_known_is_no_error():
    exposure = Exposure.measure(np.zeros(4, np.int64), np.full((3, 2), -1))
    assert exposure.shares() == [(1, 0.0, 0.0)]
    assert exposure.ranks().points == []


def test_thinning_keeps_both_ends():
    assert thin_out(0) == []
    assert thin_out(1) == [0]
    places = thin_out(50_000)
    assert (places[0], places[-1]) == (0, 49_999)
    assert places == sorted(set(places))
    assert len(places) <= 120
