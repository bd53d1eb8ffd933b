from __future__ import annotations

import math

import numpy as np
import pytest

from evaluation.events import Events, as_binary, as_counts, as_logs, join_events
from serve.errors import SchemaError

U, N = 5, 7
PAIRS = [(0, 3), (2, 3), (0, 3), (0, 6), (2, 1), (0, 3)]


def make(pairs=PAIRS, time=True) -> Events:
    user, item = np.array(pairs).T
    return Events(user, item, 100 + 10 * np.arange(len(pairs)) if time else None, U, N)


@pytest.mark.parametrize(
    ("strength", "of_three"),
    [(as_counts, 3), (as_binary, 1), (as_logs, 1 + math.log(3))],
    ids=["counts", "binary", "logs"],
)
def test_strengths_of_pairs(strength, of_three):
    expected = np.zeros((U, N))
    expected[0, 3] = of_three
    expected[0, 6] = expected[2, 3] = expected[2, 1] = 1
    assert make().matrix(strength).toarray() == pytest.approx(expected)
    assert make().popularity(strength) * (expected.sum(axis=0).max() + 1) == pytest.approx(expected.sum(axis=0))


def test_owned_items_are_distinct_and_strangers_own_none():
    owned = make().owned()
    assert owned.item_row.tolist() == [3, 6, 1, 3]
    assert owned.offsets.tolist() == [0, 2, 2, 4, 4, 4]


def test_joining_and_keeping():
    whole = join_events(make(PAIRS[:2]), make(PAIRS[2:]))
    assert list(zip(whole.user_row.tolist(), whole.item_row.tolist(), strict=True)) == PAIRS
    kept = whole.keep(whole.user_row == 2)
    assert kept.item_row.tolist() == [3, 1]
    assert kept.since_last().tolist() == [10, 0]
    assert join_events(make(), make(time=False)).time is None


def test_recency_needs_times():
    with pytest.raises(SchemaError, match="no times"):
        make(time=False).since_last()


def test_recency_counts_from_the_last_event_also_before_1970():
    events = make()
    early = Events(events.user_row, events.item_row, events.time - 10**9, U, N)
    assert early.since_last().tolist() == events.since_last().tolist() == [50, 40, 30, 20, 10, 0]
    assert events.keep(np.zeros(len(PAIRS), bool)).since_last().tolist() == []
