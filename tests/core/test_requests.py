import re
from dataclasses import replace
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.cells import parse_id, parse_ids
from serve.errors import SchemaError
from serve.kinds import Feature
from serve.requests import (
    History,
    Request,
    ask_now,
    parse_request,
)
from tests.linear_bundle import SHOP

SCHEMA = replace(
    SHOP,
    user_features=(
        Feature("age", "numeric", "birth_year"),
        Feature("gender", "categorical", "sex", ("f", "m")),
        Feature("likes", "multi_categorical", "likes", ("a", "b"), width=2),
    ),
    item_id_type="integer",
    event_types=("view",),
)


NOON = 1_704_110_400


def test_nothing_given():
    assert parse_request({}, SCHEMA) == Request()
    nothing = dict.fromkeys(["user_id", "features", "history", "context", "datetime", "exclude"])
    assert parse_request(nothing, SCHEMA) == Request()


def test_everything_given():
    raw = {
        "user_id": "u7",
        "features": {"age": 3, "gender": None, "likes": ["a", 5, None]},
        "history": [
            {
                "item_id": 11,
                "datetime": "2024-01-01",
                "event": " view ",
                "weight": 2,
                "context": {"device": True},
            },
            {"item_id": "12", "datetime": "2024-01-01T12:00:00Z"},
        ],
        "context": {"device": True},
        "datetime": NOON * 1000,
        "exclude": [5, "5", 7],
    }
    request = parse_request(raw, SCHEMA)
    assert {
        name: values.tolist()
        for name, values in request.history.columns().items()
        if name not in ("weight", "context")
    } == {
        "item_id": [11, 12],
        "datetime": [NOON - 43_200, NOON],
        "event": ["view", None],
    }
    np.testing.assert_array_equal(request.history.weight, [2.0, np.nan])
    assert len(set(request.history.context.tolist())) == 2
    assert replace(request, history=None) == Request(
        user_id="u7",
        features={"age": 3.0, "gender": None, "likes": ["a", 5, None]},
        context={"device": True},
        datetime=NOON,
        exclude=(5, 7),
    )


def test_naive_times_are_read_in_the_time_zone_of_the_data():
    assert parse_request(
        {"datetime": date(2024, 1, 1)}, replace(SCHEMA, timezone="Etc/GMT+5")
    ).datetime == (NOON - 43_200 + 5 * 3600)


@pytest.mark.parametrize(
    ("id_type", "value", "expected"),
    [
        ("integer", 7, 7),
        ("integer", "7", 7),
        ("integer", "-7", -7),
        ("integer", -(2**63), -(2**63)),
        ("integer", np.uint8(7), 7),
        ("string", np.uint64(2**64 - 1), "18446744073709551615"),
        ("string", 7, "7"),
        ("string", "007", "007"),
        ("string", " a\u00e9\0\u00a0", "a\u00e9\0"),
        ("string", "KAF 0051 ", "KAF 0051"),
        ("integer", " 7 ", 7),
    ],
)
def test_ids(id_type, value, expected):
    parsed = parse_id(value, id_type, "item_id")
    assert (parsed, type(parsed)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("id_type", "value", "shown"),
    [
        ("integer", 7.5, r"7\.5 \(float\)"),
        ("integer", 7.0, r"7\.0 \(float\)"),
        ("integer", True, r"True \(bool\)"),
        ("integer", "007", r"'007' \(str\)"),
        ("integer", "7_0", "'7_0'"),
        ("integer", "\u0667", "'\u0667'"),
        ("integer", str(2**63), "more than 64 bits"),
        ("integer", 2**63, "more than 64 bits"),
        ("integer", None, r"None \(NoneType\)"),
        ("string", "", "''"),
        ("string", "  ", "''"),
        ("string", "\ud800", r"'\\ud800'"),
        ("string", 7.5, r"7\.5"),
        ("string", ["a"], r"\['a'\] \(list\)"),
    ],
)
def test_what_is_no_id_is_refused(id_type, value, shown):
    with pytest.raises(SchemaError, match=f"item_id is .*{shown}.*expected"):
        parse_id(value, id_type, "item_id")


def at(*times):
    return {"history": [{"item_id": 1, "datetime": time} for time in times]}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], r"request is \[\] \(list\); expected a mapping"),
        ({"histroy": []}, "unknown name 'histroy' .*did you mean 'history'"),
        ({7: 1}, r"unknown name 7 \(int\); allowed: again, context"),
        ({"user_id": 10**5000}, "user_id is an integer of more than 64 bits"),
        ({"features": [1]}, r"features is \[1\] \(list\)"),
        (
            {"features": {"gendre": "f"}},
            "features: unknown name 'gendre' .*did you mean 'gender'",
        ),
        (
            {"features": {"age": "3"}},
            r"features\.age is '3' \(str\); expected a number",
        ),
        ({"features": {"age": float("nan")}}, r"features\.age is nan .*finite"),
        (
            {"features": {"age": Decimal("Infinity")}},
            r"features\.age is .*Infinity.*finite",
        ),
        (
            {"features": {"age": 10**400}},
            r"features\.age is an integer of more than 64 bits",
        ),
        (
            {"features": {"gender": ["f"]}},
            r"features\.gender is \['f'\] \(list\); expected a number",
        ),
        ({"features": {"likes": ["a", {}]}}, r"features\.likes\[1\] is \{\} \(dict\)"),
        ({"context": {"hour": 3}}, "context: unknown name 'hour'"),
        ({"history": "abc"}, r"history is 'abc' \(str\); expected a list"),
        ({"history": [5, [5]]}, r"history\[1\]\.item_id is \[5\] \(list\)"),
        ({"history": [{"item_id": 1}, {}]}, r"history\[1\]\.item_id is None"),
        (
            {"history": [{"item_id": 1, "wait": 3}]},
            r"history\[0\]: unknown name 'wait' .*mean 'weight'",
        ),
        (
            {"history": [{"item_id": 1, "weight": -0.5}]},
            r"history\[0\]\.weight is -0\.5; expected 0 or more",
        ),
        ({"history": [{"item_id": 1, "event": []}]}, r"history\[0\]\.event is \[\]"),
        (at(NOON, NOON, NOON - 1), r"history\[2\] is earlier"),
        (at(NOON, None, NOON), "some events have a datetime"),
        (at(NOON, "soon"), r"history\[1\]\.datetime is 'soon'"),
        (at(NOON, NOON * 1000), r"history\[0\]\.datetime: .*mixed"),
        ({"datetime": float("inf")}, "datetime is inf"),
        ({"datetime": "2024-13-01"}, "datetime is '2024-13-01'.*expected an ISO time"),
        ({"datetime": 17}, "datetime: .*'17' is ambiguous"),
        ({"exclude": [5, 7.5]}, r"exclude\[1\] is 7\.5"),
    ],
)
def test_what_is_wrong_is_named(raw, message):
    with pytest.raises(SchemaError, match=message):
        parse_request(raw, SCHEMA)


LONG = {
    "text": "x" * 10**6,
    "list": ["y"] * 10**6,
    "name": {"z" * 10**6: 1},
    "surrogates": "\ud800" * 10**6,
}


@pytest.mark.parametrize("long", LONG)
@pytest.mark.parametrize("field", ["user_id", "features", "history", "datetime", "exclude"])
def test_messages_do_not_echo_long_values(field, long):
    with pytest.raises(SchemaError) as error:
        parse_request({field: LONG[long]}, replace(SCHEMA, user_id_type="integer"))
    assert len(str(error.value).encode()) < 250


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=7,
)
events = st.dictionaries(
    st.sampled_from(["item_id", "datetime", "event", "weight"]), anything, max_size=4
)
fields = st.sampled_from(["user_id", "features", "history", "context", "datetime", "exclude"])


@given(raw=st.dictionaries(fields, anything | st.lists(events, max_size=3), max_size=6))
@settings(max_examples=150, deadline=None)
def test_any_json_is_a_request_or_a_schema_error(raw):
    try:
        request = parse_request(raw, SCHEMA)
    except SchemaError:
        return
    assert isinstance(request, Request)
    assert request.user_id is None or isinstance(request.user_id, str)
    assert all(isinstance(item_id, int) for item_id in request.exclude)


ids = (
    st.integers(-(2**64), 2**64)
    | st.text(max_size=3)
    | st.sampled_from([None, "7", "-07", "\ud800", True, 3.0])
)


@given(values=st.lists(ids, max_size=5), id_type=st.sampled_from(["integer", "string"]))
@settings(max_examples=200, deadline=None)
def test_many_ids_are_checked_as_each_alone(values, id_type):
    def check_each():
        return [parse_id(value, id_type, f"id {index}") for index, value in enumerate(values)]

    try:
        expected = check_each()
    except SchemaError as error:
        with pytest.raises(SchemaError, match=re.escape(str(error))):
            parse_ids(values, id_type, lambda index: f"id {index}")
    else:
        assert parse_ids(values, id_type, lambda index: f"id {index}") == expected


def place_naively(times, until):
    """Walk over times; from the first that comes long after the one before it and the end of the data, go back."""
    skipped, before, placed = 0, until, []
    for time in times:
        if not skipped and time - before > 30 * 86_400:
            skipped = time - before
        before = max(before, time)
        placed.append(time - skipped)
    return placed


@given(st.lists(st.integers(0, 70), max_size=6), st.integers(0, 70), st.integers(-40, 40))
def test_now_is_without_the_first_long_pause_after_the_data(gaps, last, start):
    times = NOON + 86_400 * (start + np.cumsum([0, *gaps]))
    now = int(times[-1]) + last * 86_400
    request = Request(history=History(np.arange(len(times)), times))
    asked = ask_now(request, NOON, now + 59)
    assert [*asked.history.datetime, asked.datetime] == place_naively([*times.tolist(), now], NOON)
    assert ask_now(request, None, now + 59) == replace(request, datetime=now)
    assert ask_now(Request(), NOON, now).datetime == place_naively([now], NOON)[0]
    real = [*times.tolist(), now]
    moved = [
        time for time, placed in zip(real, place_naively(real, NOON), strict=True) if time > placed
    ]
    for moment in (NOON, NOON + 45 * 86_400, now):  # at the end of the data, later, and today
        then = ask_now(replace(request, datetime=moment), NOON, now + 59)
        expected = asked.history.datetime if moved and moment < moved[0] else times
        assert then.datetime == moment
        assert then.history.datetime.tolist() == expected.tolist()


def test_a_date_is_kept_as_an_iso_text_whatever_it_is_given_as():
    joined = Feature("joined", "date", "joined")
    for value, kept in [
        ("2024-05-31", "2024-05-31"),
        (1_717_113_600, "2024-05-31T00:00:00Z"),
        (None, None),
    ]:
        assert joined.parse(value, "features.joined") == kept
    assert joined.parse(1_717_113_600_000, "x") == joined.parse("1717113600", "x")
    for wrong in ("soon", "31.05.2024", True, [1]):
        with pytest.raises(SchemaError, match="joined is"):
            joined.parse(wrong, "features.joined")
