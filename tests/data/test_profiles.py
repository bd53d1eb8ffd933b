from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules.sequences import build_sequences
from evaluation.holdout import profiles_from_frame
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.catalogue import ItemIds
from serve.encode import context_keys
from serve.events import history_arrays
from serve.kinds import Feature
from serve.requests import Request
from serve.tower import RequestEncoder
from tests.linear_bundle import FILMS, SHOP, UNTIL, item_ids

USERS = pd.DataFrame(
    {
        "user_id": ["b", "d", "a"],
        "sex": ["f", None, "m"],
        "income": [2.5, np.nan, 7.0],
        "other": [1, 2, 3],
    }
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
    profiles = profiles_from_frame(EVENTS, USERS, SHOP)
    assert profiles.user_ids.tolist() == ["a", "b", "c", "d"]
    assert profiles.offsets.tolist() == [0, 2, 2, 5, 5]
    assert profiles.history.item_id.tolist() == ["i1", "i2", "i2", "i3", "i1"]
    assert (profiles.history.datetime - UNTIL).tolist() == [20, 20, 10, 10, 30]
    assert profiles.history.event.tolist() == ["buy", None, "buy", "view", "buy"]
    assert profiles.history.weight.tolist() == [4.0, 2.0, 5.0, 3.0, 1.0]
    assert profiles.features["gender"].tolist() == ["m", "f", None, None]
    np.testing.assert_array_equal(profiles.features["income"], [7.0, 2.5, np.nan, np.nan])
    assert profiles.features.keys() == {"gender", "income"}


def test_a_feature_without_a_column_is_missing():
    profiles = profiles_from_frame(EVENTS, USERS[["user_id"]], SHOP)
    assert profiles.features["gender"].tolist() == [None] * 4
    assert np.isnan(profiles.features["income"]).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
@pytest.mark.parametrize("schema", [SHOP, FILMS], ids=["shop", "films"])
def test_serving_reads_profiles_as_training_reads_tables(schema, data):
    n = data.draw(st.integers(1, 17))
    is_text = schema.user_id_type == "string"
    ids = item_ids(schema)

    def draw(values, dtype=None):
        return pd.Series(
            data.draw(st.lists(st.sampled_from(values), min_size=n, max_size=n)),
            dtype=dtype,
        )

    events = pd.DataFrame(
        {
            "user_id": draw(["p", "q", "r"] if is_text else [5, 7, 11]),
            "item_id": draw(ids[:6]),
            "datetime": draw([UNTIL - 9, UNTIL - 5, UNTIL]),
            "position": draw([1, 2, 3]),
            "event": draw(["view", "buy", None], "str"),
            "weight": draw([0.0, 1.0, 2.5]),
            "device": draw(["phone", "web", None], "str"),
        }
    )
    users = pd.DataFrame(
        {
            "user_id": ["s", "p"] if is_text else [13, 5],
            "sex": ["m", "z"],
            "income": [1.0, None],
        }
    )
    features = (
        *schema.user_features,
        Feature("sexes", "multi_categorical", "sex", ("f", "m"), width=2),
    )
    device = Feature("device", "categorical", "device", ("web", "phone"))
    schema = replace(schema, user_features=features, context_features=(device,))
    known_ids = np.array(sorted(ids)[3:], dtype=object if is_text else np.int64)
    trained = build_sequences(events, users, known_ids, schema)
    profiles = profiles_from_frame(events, users, schema)
    encoder = RequestEncoder(schema, ItemIds(known_ids), None)
    asked = [Request(user_id, context={"device": "phone"}) for user_id in trained.user_ids.tolist()]
    served = encoder.encode([profiles.complete(request) for request in asked]).tower
    key = context_keys((device,), np.array([[device.codes["phone"]]]))
    arrays, rows = history_arrays(trained.events, schema, key.repeat(len(asked)))
    arrays |= {"user_codes": trained.user.codes, "user_values": trained.user.values}
    for name, array in arrays.items():
        np.testing.assert_array_equal(served.arrays[name], array)
    np.testing.assert_array_equal(served.history_rows, rows)
