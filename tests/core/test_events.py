from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.events import Events, as_sets, history_arrays
from tests.linear_bundle import SHOP

SET = replace(
    SHOP,
    has_datetime=False,
    ties="simultaneous",
    repeats="exclude",
    history_length=3,
    context_features=(),
)
one_event = st.tuples(st.integers(0, 8), st.integers(1, 3), st.sampled_from([0.5, 1.0, 4.0]))
segments = st.lists(st.lists(one_event, max_size=9), min_size=1, max_size=4)


def make_events(histories: list[list[tuple[int, int, float]]]) -> Events:
    rows, kinds, weights = (
        [event[i] for history in histories for event in history] for i in range(3)
    )
    counts = [len(history) for history in histories]
    return Events(
        np.array(rows, dtype=np.int64),
        np.zeros(len(rows), dtype=np.int64),
        np.array(kinds, dtype=np.int64),
        np.array(weights, dtype=np.float32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def histories_of(events: Events) -> list[list[tuple[int, int, float]]]:
    columns = (events.item_row.tolist(), events.event.tolist(), events.weight.tolist())
    flat = list(zip(*columns, strict=True))
    return [
        flat[start:stop]
        for start, stop in zip(events.offsets[:-1], events.offsets[1:], strict=True)
    ]


@given(histories=segments)
@settings(max_examples=150, deadline=None)
def test_a_set_holds_the_heaviest_event_of_each_item(histories):
    found = histories_of(as_sets(make_events(histories)))
    assert len(found) == len(histories)
    for given_events, kept in zip(histories, found, strict=True):
        heaviest: dict[int, tuple[float, int]] = {}
        for row, kind, weight in given_events:
            heaviest[row] = max(heaviest.get(row, (0.0, 0)), (weight, kind))
        assert Counter(kept) == Counter(
            (row, kind, weight) for row, (weight, kind) in heaviest.items()
        )


@given(histories=segments, seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_file_has_no_influence_on_a_set(histories, seed):
    rng = np.random.default_rng(seed)
    shuffled = [[history[i] for i in rng.permutation(len(history))] for history in histories]
    assert histories_of(as_sets(make_events(shuffled))) == histories_of(
        as_sets(make_events(histories))
    )
    for found, expected in zip(
        history_arrays(make_events(shuffled), SET)[0].values(),
        history_arrays(make_events(histories), SET)[0].values(),
        strict=True,
    ):
        assert np.array_equal(found, expected)


@given(items=st.sets(st.integers(0, 10**6), max_size=12), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_items_come_in_one_order_whoever_has_them(items, seed):
    rng = np.random.default_rng(seed)
    owners = [[(int(row), 1, 1.0) for row in rng.permutation(sorted(items))] for _ in range(2)]
    first, second = histories_of(as_sets(make_events([*owners, [(3, 1, 1.0)]])))[:2]
    assert first == second


def test_an_event_in_the_context_of_the_request_is_marked_and_in_a_set_any_of_its_item():
    events = replace(
        make_events([[(7, 1, 1.0), (7, 2, 3.0), (2, 1, 1.0)], [(7, 1, 1.0)]]),
        context=np.array([5, 6, 0, 5]),
    )
    ordered = replace(SET, ties="ordered")
    assert history_arrays(events, ordered, np.array([5, 0]))[0]["history_matches"].tolist() == [
        [1, 0, 0],
        [0, 0, 0],
    ]
    arrays, rows = history_arrays(events, SET, np.array([5, 5]))
    marked = dict(zip(rows[0].tolist(), arrays["history_matches"][0].tolist(), strict=False))
    assert (marked[7], marked[2]) == (1, 0)
    assert (
        arrays["history_events"][0, rows[0].tolist().index(7)] == 2
    )  # of the heaviest event still
    assert arrays["history_matches"][1, 0] == 1


def test_a_history_reads_distinct_items_though_one_stands_in_many_rows():
    many = [(7, 1, 1.0)] * 20 + [(2, 1, 1.0), (4, 1, 1.0)]
    arrays, rows = history_arrays(make_events([many]), SET)
    assert arrays["history_lengths"].tolist() == [3]
    assert sorted(rows[0].tolist()) == [2, 4, 7]


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.0, -10), (math.e - 1, 0), (1e30, 10), (-3.0, -10)]
)
def test_the_weight_of_an_event_is_standardised_and_clipped_in_a_history(weight, expected):
    schema = replace(SET, has_weight=True, weight_mean=1.0, weight_scale=0.01)
    arrays, _ = history_arrays(make_events([[(7, 1, weight)]]), schema)
    assert arrays["history_weights"][0, 0] == pytest.approx(expected, abs=1e-4)
    unweighted = replace(schema, has_weight=False)
    arrays, _ = history_arrays(make_events([[(7, 1, weight)]]), unweighted)
    assert arrays["history_weights"].tolist() == [[0.0]]
