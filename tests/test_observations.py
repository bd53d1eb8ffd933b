import re

import pytest

from serve.errors import SchemaError
from serve.state.observations import Observation, parse_observations
from tests.linear_bundle import FILMS, SHOP

NOW = 1_700_000_000


def test_events_are_read_as_the_bundle_types_them():
    raw = [
        {"user_id": "u", "item_id": "a", "event": " buy ", "datetime": "2023-11-14T22:13:19Z", "weight": 2},
        {"user_id": 7, "item_id": "unknown to all", "request_id": "r-1"},
        {"user_id": "u", "item_id": "a", "event": None, "datetime": None, "weight": None, "request_id": None},
    ]
    assert parse_observations(raw, SHOP, NOW) == [
        Observation("u", "a", "buy", NOW - 1, 2.0),
        Observation("7", "unknown to all", None, NOW, None, "r-1"),
        Observation("u", "a", None, NOW),
    ]
    (event,) = parse_observations([{"user_id": "7", "item_id": "-3", "datetime": NOW * 1000}], FILMS, NOW)
    assert event == Observation(7, -3, None, NOW)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": None}, "events[1].user_id is None (NoneType)"),
        ({"item_id": ""}, "events[1].item_id is '' (str)"),
        ({"item_id": True}, "events[1].item_id is True (bool)"),
        ({"event": ["view"]}, "events[1].event is ['view'] (list)"),
        ({"datetime": "yesterday"}, "events[1].datetime is 'yesterday' (str)"),
        ({"datetime": NOW + 86_401}, f"events[1].datetime is {NOW + 86_401} (int), more than a day to come"),
        ({"weight": -1}, "events[1].weight is -1.0"),
        ({"weight": float("nan")}, "events[1].weight is nan (float)"),
        ({"request_id": "a b"}, "events[1].request_id is 'a b' (str)"),
        ({"request_id": "x" * 65}, "events[1].request_id is 'xxx"),
        ({"request_id": 7}, "events[1].request_id is 7 (int)"),
        ({"evnt": "view"}, "unknown name 'evnt' (str); did you mean 'event'?"),
    ],
)
def test_faults_name_the_event_and_the_value(change, message):
    good = {"user_id": "u", "item_id": "a"}
    with pytest.raises(SchemaError, match=re.escape(message)):
        parse_observations([good, good | change], SHOP, NOW)


@pytest.mark.parametrize(
    ("raw", "message"), [({}, "events is {}"), (["x"], "events[0] is 'x'"), (None, "events is None")]
)
def test_events_are_a_list_of_mappings(raw, message):
    with pytest.raises(SchemaError, match=re.escape(message)):
        parse_observations(raw, SHOP, NOW)


def test_a_day_to_come_is_within_what_clocks_differ():
    (event,) = parse_observations([{"user_id": "u", "item_id": "a", "datetime": NOW + 86_400}], SHOP, NOW)
    assert event.datetime == NOW + 86_400
