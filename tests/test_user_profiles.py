from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.histories import NO_TIME, encode_histories
from serve.known_users import encode_profiles

from datamodules.profiles import make_profiles
from datamodules.sequences import build_sequences
from serve.catalogue import ItemIds
from serve.profiles import Profiles, write_profiles
from serve.schema import Feature
from tests.linear_bundle import FILMS, SHOP, UNTIL, item_ids

USERS = pd.DataFrame(
    {"user_id": ["b", "d", "a"], "sex": ["f", None, "m"], "income": [2.5, np.nan, 7.0], "other": [1, 2, 3]}
)
EVENTS = pd.DataFrame(
    {
        "user_id": ["c", "a", "c", "a", "c"],
        "item_id": ["i1", "i2", "i3", "i1", "i2"],
        "datetime": np.array([30, 20, 10, 20, 10]) + UNTIL,
        "position": [1, 5, 9, 4, 8],
        "event": ["buy", None, "view", "buy", "buy"],
        "weight": [1.0, 2.0, 3.0, 4.0, 5.0],
    }
)


def test_users_of_both_tables_with_events_in_order():
    profiles = make_profiles(EVENTS, USERS, SHOP)
    assert profiles.user_ids.tolist() == ["a", "b", "c", "d"]
    assert profiles.offsets.tolist() == [0, 2, 2, 5, 5]
    assert profiles.history.item_id.tolist() == ["i1", "i2", "i2", "i3", "i1"]
    assert (profiles.history.datetime - UNTIL).tolist() == [20, 20, 10, 10, 30]
    assert profiles.history.event.tolist() == ["buy", None, "buy", "view", "buy"]
    assert profiles.history.weight.tolist() == [4.0, 2.0, 5.0, 3.0, 1.0]
    assert profiles.features["gender"].tolist() == ["m", "f", None, None]
    np.testing.assert_array_equal(profiles.features["income"], [7.0, 2.5, np.nan, np.nan])
    assert profiles.features.keys() == {"gender", "income"}


def test_integers_stay_integers_and_undeclared_columns_stay_out():
    events = EVENTS.assign(user_id=[3, 1, 3, 1, 3], item_id=[1, 2, 3, 1, 2])
    users = USERS.assign(user_id=[2, 4, 1])
    profiles = make_profiles(events, users, FILMS)
    assert profiles.user_ids.dtype == profiles.history.item_id.dtype == np.int64
    assert profiles.history.columns().keys() == {"item_id", "datetime"}
    untimed = make_profiles(events.drop(columns="datetime"), users, replace(FILMS, has_datetime=False))
    assert untimed.history.columns().keys() == {"item_id"}
    assert untimed.history.item_id.tolist() == [1, 2, 1, 2, 3]


def test_a_feature_without_a_column_is_missing():
    profiles = make_profiles(EVENTS, USERS[["user_id"]], SHOP)
    assert profiles.features["gender"].tolist() == [None] * 4
    assert np.isnan(profiles.features["income"]).all()


def test_profiles_survive_being_written(tmp_path):
    profiles = make_profiles(EVENTS, USERS, SHOP)
    write_profiles(tmp_path, profiles)
    read = Profiles.load(tmp_path)
    assert read.user_ids.tolist() == profiles.user_ids.tolist()
    assert read.history.event.tolist() == profiles.history.event.tolist()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("schema", [SHOP, FILMS], ids=["shop", "films"])
def test_serving_reads_profiles_as_training_reads_tables(schema, data):
    n = data.draw(st.integers(1, 17))
    is_text = schema.user_id_type == "string"
    ids = item_ids(schema)

    def draw(values, dtype=None):
        return pd.Series(data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)), dtype=dtype)

    events = pd.DataFrame(
        {
            "user_id": draw(["p", "q", "r"] if is_text else [5, 7, 11]),
            "item_id": draw(ids[:6]),
            "datetime": draw([UNTIL - 9, UNTIL - 5, UNTIL]),
            "position": draw([1, 2, 3]),
            "event": draw(["view", "buy", None], "str"),
            "weight": draw([0.0, 1.0, 2.5]),
        }
    )
    users = pd.DataFrame({"user_id": ["s", "p"] if is_text else [13, 5], "sex": ["m", "z"], "income": [1.0, None]})
    features = (*schema.user_features, Feature("sexes", "multi_categorical", "sex", ("f", "m"), width=2))
    schema = replace(schema, user_features=features)
    known_ids = np.array(sorted(ids)[3:], dtype=object if is_text else np.int64)
    trained = build_sequences(events, users, known_ids, schema)
    served = encode_profiles(make_profiles(events, users, schema), ItemIds(known_ids), schema)
    # training leaves out who has no known item and no row of the users table
    place = np.array([served.position(user_id) for user_id in trained.user_ids.tolist()])
    offsets = served.histories.events.offsets
    events_served = served.histories.events.between(offsets[place], offsets[place + 1])
    for name in ("item_row", "time", "event", "weight"):
        got, expected = (getattr(part, name) for part in (events_served, trained.events))
        if name != "weight" or schema.has_weight:  # a weight that is not declared is never read
            np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(events_served.offsets, trained.events.offsets)
    np.testing.assert_array_equal(served.features.take(place).codes, trained.user.codes)
    np.testing.assert_array_equal(served.features.take(place).values, trained.user.values)


def test_the_last_time_counts_unknown_items_too():
    profiles = make_profiles(EVENTS, USERS, SHOP)
    known = ItemIds(np.array(["i3", "i2"], dtype=object))
    histories = encode_histories(profiles.history, profiles.offsets, known, SHOP)
    assert histories.last_time.tolist() == [UNTIL + 20, NO_TIME, UNTIL + 30, NO_TIME]
    assert histories.unknown_items.tolist() == [1, 0, 1, 0]
    assert histories.events.item_row.tolist() == [1, 1, 0]


def test_an_empty_table_of_events_is_no_special_case():
    profiles = make_profiles(EVENTS[:0], USERS, SHOP)
    assert profiles.offsets.tolist() == [0, 0, 0, 0]
    histories = encode_histories(profiles.history, profiles.offsets, ItemIds(np.array(["i1"], dtype=object)), SHOP)
    assert histories.unknown_items.tolist() == [0, 0, 0]
