from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from serve.histories import NO_TIME, encode_histories, flatten_histories, join_events

from serve.catalogue import ItemIds
from serve.events import standardise_weight
from serve.requests import History
from tests.tiny_bundle import SCHEMA


@pytest.mark.parametrize("weight", [1e308, float(np.finfo(np.float32).max), 1e39])
def test_a_weight_beyond_float32_is_clipped(weight):
    schema = replace(SCHEMA, has_weight=True, weight_mean=1.5, weight_scale=0.5)
    items = ItemIds(np.array(["p", "q", "r"], dtype=object))
    history, offsets = flatten_histories([History(["q", "p"], weight=[weight, 3.0])], items)
    got = encode_histories(history, offsets, items, schema).events.weight
    assert got.tolist() == [float(np.finfo(np.float32).max), 3.0]
    assert np.isfinite(standardise_weight(got, schema)).all()


ITEMS = ItemIds(np.array(["p", "q", "r"], dtype=object))
INLINE = [
    History(["q", "x", "p"], [5, 7, 7], ["view", None, "buy"]),
    History([]),
    History(["r", "y"], weight=[None, 4.0]),
]


def test_a_column_that_a_history_lacks_is_filled():
    history, offsets = flatten_histories(INLINE, ITEMS)
    assert offsets.tolist() == [0, 3, 3, 5]
    assert history.item_id.tolist() == ["q", "x", "p", "r", "y"]
    assert history.datetime.tolist() == [5, 7, 7, NO_TIME, NO_TIME]
    assert history.event.tolist() == ["view", None, "buy", None, None]
    assert np.array_equal(history.weight, [np.nan] * 4 + [4.0], equal_nan=True)


def test_a_column_that_all_histories_lack_is_none():
    history, offsets = flatten_histories([History(["q"]), History([])], ITEMS)
    assert history.columns().keys() == {"item_id"}
    assert offsets.tolist() == [0, 1, 1]
    nothing, offsets = flatten_histories([History([])], ITEMS)
    assert len(nothing) == 0
    assert offsets.tolist() == [0, 0]


def test_the_last_time_is_that_of_the_last_event_known_or_not():
    schema = replace(SCHEMA, has_datetime=True)
    for order in ([0, 1, 2], [1, 1, 0], [1], [1, 2, 0, 1]):
        inline = [INLINE[i] for i in order]
        got = encode_histories(*flatten_histories(inline, ITEMS), ITEMS, schema)
        assert got.last_time.tolist() == [[7, NO_TIME, NO_TIME][i] for i in order]
        assert got.unknown_items.tolist() == [[1, 0, 1][i] for i in order]


def test_an_item_that_is_not_known_counts_once_in_each_history():
    lists = [["x", "q", "x", "y", "x"], ["p"], ["x", "x"], [], ["y", "z", "p", "z", "w"]]
    inline = [History(ids, [*range(len(ids))]) for ids in lists]
    got = encode_histories(*flatten_histories(inline, ITEMS), ITEMS, replace(SCHEMA, has_datetime=True))
    assert got.unknown_items.tolist() == [len(set(ids) - {"p", "q", "r"}) for ids in lists]
    assert got.events.counts.tolist() == [sum(item in "pqr" for item in ids) for ids in lists]


def test_where_the_data_has_no_times_none_is_heeded():
    schema = replace(SCHEMA, has_datetime=False)
    timed = encode_histories(*flatten_histories([History(["q", "p"], [5, 7])], ITEMS), ITEMS, schema)
    bare = encode_histories(*flatten_histories([History(["q", "p"])], ITEMS), ITEMS, schema)
    assert timed.events.time.tolist() == bare.events.time.tolist() == [0, 0]
    assert timed.last_time.tolist() == bare.last_time.tolist() == [0]


def test_where_no_history_has_times_its_events_happen_at_the_moment():
    schema = replace(SCHEMA, has_datetime=True)
    bare = encode_histories(*flatten_histories([History(["q", "p"])], ITEMS), ITEMS, schema)
    assert bare.last_time.tolist() == [NO_TIME]
    assert join_events([(bare, 0)], np.array([9])).time.tolist() == [9, 9]


def test_an_event_or_a_weight_that_is_not_given_is_nobody_s_and_the_mean():
    schema = replace(SCHEMA, has_weight=True, weight_mean=1.5, weight_scale=0.5, event_types=("buy", "view"))
    inline = [History(["q", "p", "r"], event=["view", None, "stolen"], weight=[None, 4.0, 0.0])]
    got = encode_histories(*flatten_histories(inline, ITEMS), ITEMS, schema).events
    known = encode_histories(*flatten_histories([History(["q", "p"], event=["buy", "view"])], ITEMS), ITEMS, schema)
    buy, view = known.events.event.tolist()
    assert got.event[0] == view
    assert got.event[1] == got.event[2]
    assert got.event[1] not in (buy, view)
    np.testing.assert_allclose(got.weight, [np.exp(1.5) - 1, 4.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose(known.events.weight, [np.exp(1.5) - 1] * 2, rtol=1e-6)


def test_joined_events_are_those_of_each_history_up_to_its_moment():
    schema = replace(SCHEMA, has_datetime=True)
    both = encode_histories(*flatten_histories(INLINE, ITEMS), ITEMS, schema)
    other = encode_histories(*flatten_histories([History(["p", "r"], [1, 9])], ITEMS), ITEMS, schema)
    joined = join_events([(other, 0), (both, 2), (both, 1), (both, 0)], np.array([8, 6, 3, 6]))
    assert joined.item_row.tolist() == [0, 2, 2, 1, 0]
    assert joined.time.tolist() == [1, 8, 6, 5, 6]
    assert joined.offsets.tolist() == [0, 2, 3, 3, 5]
