from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.targets import ItemSets, Targets, hit_matrix

ROWS = st.lists(st.integers(-1, 10), max_size=6, unique=True)


def as_sets(lists: list[list[int]]) -> ItemSets:
    offsets = np.cumsum([0, *map(len, lists)])
    return ItemSets(np.array([row for rows in lists for row in rows], np.int64), offsets)


def as_lists(sets: ItemSets) -> list[list[int]]:
    return [part.tolist() for part in np.split(sets.item_row, sets.offsets[1:-1])]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(ROWS, st.lists(st.integers(-1, 12), min_size=5, max_size=5)), min_size=1, max_size=4))
def test_hits_are_found_and_missing_never_hits(requests):
    wanted = [rows for rows, _ in requests]
    lists = np.array([places for _, places in requests], np.int64)
    expected = [[item >= 0 and item in rows for item in places] for rows, places in requests]
    targets = Targets(as_sets(wanted), np.arange(len(requests)))
    assert hit_matrix(lists, targets).tolist() == expected


@settings(max_examples=40, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=5), st.data())
def test_taking_and_keeping(lists, data):
    sets = as_sets(lists)
    requests = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=7))
    assert as_lists(sets.take(np.array(requests, np.int64)))[: len(requests)] == [lists[b] for b in requests]
    assert as_lists(sets.keep(sets.item_row % 2 == 0)) == [[i for i in rows if i % 2 == 0] for rows in lists]


def test_grouping_keeps_order_and_repetitions():
    request, item_row = np.array([2, 0, 2, 0, 2]), np.array([7, -1, 3, -1, 9])
    sets = ItemSets.group(request, item_row, 4)
    assert as_lists(sets) == [[-1, -1], [], [7, 3, 9], []]
    assert sets.counts.tolist() == [2, 0, 3, 0]
    assert sets.request.tolist() == [0, 0, 2, 2, 2]


def test_dropping_targets_keeps_users_in_place():
    targets = Targets(as_sets([[4, 1], [2], [0]]), np.array([5, 6, 5]))
    kept = targets.keep(np.array([False, True, False, True]))
    assert as_lists(kept.items) == [[1], [], [0]]
    assert kept.user.tolist() == [5, 6, 5]
