from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from serve.known_users import no_profiles
from serve.requests import parse_request
from serve.schema import Feature
from serve.unseen import Unseen
from tests.linear_bundle import FILMS, SHOP, item_ids
from tests.linear_profiles import known_users, make_profiles

IDS = item_ids(SHOP)
LIKES = Feature("likes", "multi_categorical", "likes", ("a", "b"), width=2)
WIDE = replace(SHOP, user_features=(*SHOP.user_features, LIKES))
RAW = [
    {"context": {"device": "phone"}, "features": {"gender": "f", "income": 1e9, "likes": "a|b"}},
    {"context": {"device": "fridge"}, "user_id": "secret"},
    {"context": {"device": " fridge "}, "features": {"gender": "?", "likes": ["a", "c", None]}},
    {"context": {"device": None}, "features": {"gender": ""}},
    {"history": [{"item_id": IDS[0], "event": event} for event in ("gift", "buy", "gift", None)]},
    {},
]


def watch(schema, raw, profiles=None):
    unseen = Unseen(schema, no_profiles(schema) if profiles is None else profiles)
    requests = [parse_request(one, schema) for one in raw]
    assert list(unseen.watch(requests)) == requests
    return unseen


def test_unseen_values_are_counted_once_a_request():
    note, strangers = watch(WIDE, RAW).notes()
    assert strangers == (
        "note: 1 of 6 requests name a user without a profile and bring no history; answered without one"
    )
    assert note == (
        "note: 3 of 6 requests name values not seen in training: context.device 'fridge' (2 times), "
        "features.gender '?' (1 times), features.likes 'c' (1 times), history.event 'gift' (1 times); taken as unknown"
    )


def test_users_with_a_profile_or_a_history_are_no_strangers():
    profiles = make_profiles(SHOP, known_users(SHOP))
    known = profiles.user_ids.tolist()[0]
    raw = [{"user_id": known}, {"user_id": "new", "history": []}, {"features": {}}]
    assert watch(SHOP, raw, profiles).notes() == []
    assert len(watch(SHOP, [*raw, {"user_id": "new"}], profiles).notes()) == 1


def test_nothing_is_said_of_what_is_known_or_missing():
    unseen = watch(WIDE, [RAW[0], RAW[3], RAW[5]])
    unseen.count_items(np.zeros(3, dtype=np.int64))
    assert unseen.notes() == []


def test_fields_that_the_data_lacks_are_named():
    bare = replace(FILMS, has_datetime=False)
    event = {"item_id": 100, "datetime": 1_400_000_000, "event": "buy", "weight": 2}
    raw = [{"history": [event]}, {"history": [event, event], "datetime": 1_400_000_000}, {"history": [{"item_id": 1}]}]
    assert watch(bare, raw).notes() == [
        "note: not read, since the training data has no such field: datetime (1 times), history.datetime (2 times), "
        "history.event (2 times), history.weight (2 times)"
    ]


def test_unknown_items_are_summed():
    unseen = watch(SHOP, [{}] * 4)
    unseen.count_items(np.array([0, 3]))
    unseen.count_items(np.array([2, 0]))
    assert unseen.notes() == [
        "note: the histories of 2 of 4 requests hold 5 items that are not in the bundle; left out"
    ]


@pytest.mark.parametrize("n_values", [7, 1100])
def test_many_values_are_not_all_kept(n_values):
    devices = [f"d{number % n_values}" for number in range(n_values + 30)] + ["d3"] * 40
    unseen = watch(SHOP, [{"context": {"device": device}} for device in devices])
    (note,) = unseen.notes()
    count = Counter(devices)["d3"]
    assert note.startswith(f"note: {len(devices)} of {len(devices)} requests name")
    assert f"training: context.device 'd3' ({count} times), " in note
    assert note.endswith(", and others; taken as unknown")
    assert note.count("times") == 5
    assert len(unseen._values) <= 1000


@pytest.mark.parametrize(("n_values", "n_named"), [(4, 4), (5, 5), (6, 5)])
def test_others_are_told_of_where_there_are_any(n_values, n_named):
    (note,) = watch(SHOP, [{"context": {"device": f"d{number}"}} for number in range(n_values)]).notes()
    assert note.count("(1 times)") == n_named
    assert note.endswith(", and others; taken as unknown") == (n_named < n_values)


def test_a_value_is_cut_and_escaped():
    (note,) = watch(SHOP, [{"context": {"device": "a\x1b[31m\n" + "b" * 99}}]).notes()
    assert "device 'a\\x1b[31m\\n" + "b" * 33 + "' (1 times)" in note
