from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from datamodules.cutoffs import Cutoffs
from datamodules.requests import RequestMaker, Targets, distinct_targets, find_owned
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.events import Owned, summarise_owned
from tests.tiny_data import BASKETS, DAY, FIRST, draw_events, make_data, make_world

WORLD = make_world(BASKETS)
counts_of_users = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@settings(max_examples=30, deadline=None)
@given(counts=counts_of_users, seed=st.integers(0, 99))
def test_targets_are_the_distinct_items_of_each_segment(counts, seed):
    events = draw_events(counts, WORLD.schema, np.random.default_rng(seed))
    segments = np.repeat(np.arange(len(counts)), counts).tolist()
    expected = sorted(Counter(zip(segments, events.item_row.tolist(), strict=True)).items())
    found = distinct_targets(events, np.ones(sum(counts), np.float32))
    assert list(zip(found.users.tolist(), found.rows.tolist(), strict=True)) == [
        pair for pair, _ in expected
    ]
    assert found.weights.tolist() == pytest.approx([1 + math.log(count) for _, count in expected])


@settings(max_examples=30, deadline=None)
@given(
    owned=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 9))),
    wanted=st.sets(st.tuples(st.integers(0, 3), st.integers(0, 12))),
)
def test_targets_are_found_among_the_owned_items(owned, wanted):
    has, asks = sorted(owned), sorted(wanted)
    users, rows = (np.array([pair[i] for pair in has], dtype=np.int64) for i in range(2))
    empty = np.zeros((0, 0), np.float32)
    columns = [np.array([pair[i] for pair in asks], dtype=np.int64) for i in range(2)]
    targets = Targets(*columns, np.ones(len(asks), np.float32))
    expected = [has.index(pair) if pair in owned else -1 for pair in asks]
    assert find_owned(Owned(users, rows, empty, empty, empty), targets).tolist() == expected


def all_cutoffs(data) -> Cutoffs:
    offsets = data.sequences.events.offsets
    users = np.arange(len(offsets) - 1)
    stops = (offsets[:-1] + offsets[1:] + 1) // 2
    times = np.full(len(users), FIRST + 10**7)
    return Cutoffs(users, stops, stops, times, np.full(len(users), 3))


NO_TARGETS = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


@pytest.mark.parametrize("memory_length", [3, 4000])
def test_requests_hold_what_is_known_at_the_cut(memory_length):
    data = make_data(WORLD)
    schema = replace(WORLD.schema, memory_length=memory_length)
    cutoffs = all_cutoffs(data)
    maker = RequestMaker(WORLD.catalogue, data.trends, schema)
    context = data.sequences.context.take(cutoffs.users)
    events = data.sequences.events
    starts = events.offsets[:-1]
    known = events.between(starts, cutoffs.stops)
    batch = maker.make(known, cutoffs.times, 3, NO_TARGETS, data.sequences.user, context)
    expected_pairs = []
    for user, (start, stop) in enumerate(zip(starts, cutoffs.stops, strict=True)):
        past = events.item_row[start:stop][-memory_length:].tolist()
        expected_pairs += [(user, row) for row in sorted(set(past))]
        recent = past[-schema.history_length :]
        length = int(batch.arrays["history_lengths"][user])
        assert batch.history_rows[user, :length].tolist() == recent
        assert (batch.history_rows[user, length:] == 0).all()
    found = list(zip(batch.owned_users.tolist(), batch.owned_rows.tolist(), strict=True))
    assert found == expected_pairs
    assert torch.equal(batch.popularity, torch.from_numpy(data.trends.popularity[3]))
    past = known.last(memory_length)
    rates = data.trends.repeat_rate[3]
    owned = summarise_owned(past, cutoffs.times, schema.decay_days, len(schema.event_types), rates)
    assert np.array_equal(batch.arrays["owned_statistics"], owned.statistics)


def test_the_memory_is_asked_no_further_from_the_last_event_than_the_longest_gap():
    data = make_data(WORLD)
    gap = 5 * DAY
    schema = replace(WORLD.schema, longest_gap=gap)
    events = data.sequences.events
    n_users = len(events)
    far = np.full(n_users, WORLD.schema.data_until + 90 * DAY)
    context = data.sequences.context.take(np.zeros(n_users, np.int64))
    user = data.sequences.user
    late = RequestMaker(WORLD.catalogue, data.trends, schema)
    batch = late.make(events, far, 3, NO_TARGETS, user, context)
    limited = [
        min(moment, events.time[start:stop].max(initial=0) + gap) if stop > start else moment
        for moment, start, stop in zip(far, events.offsets[:-1], events.offsets[1:], strict=True)
    ]
    assert batch.arrays["request_times"].tolist() == limited
    near = RequestMaker(WORLD.catalogue, data.trends, WORLD.schema)
    expected = near.make(events, np.array(limited), 3, NO_TARGETS, user, context)
    for name in ("owned_statistics", "user_statistics", "owned_preferences"):
        assert torch.equal(batch.arrays[name], expected.arrays[name])
    assert (np.array(limited) < far).any()
