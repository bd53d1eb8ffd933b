from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules import schema_fitting
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig
from datamodules.schema_fitting import fit_schema
from datamodules.splits import split_interactions
from datamodules.tables import Tables
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.clock import LAST_SECOND
from serve.errors import SchemaError
from serve.kinds import KINDS
from serve.schema import Schema

DAY = 86400
CONFIG = DataConfig(
    features=FeaturesConfig(
        user={"town": "categorical", "income": "numeric"},
        item={
            "genres": FeatureConfig("multi_categorical", separator=","),
            "colour": "categorical",
            "price": "numeric",
            "flat": "numeric",
            "nothing": "numeric",
        },
        context={
            "hour": "hour_of_day",
            "day": "day_of_week",
            "month": "month_of_year",
            "week": "week_of_year",
            "screen": FeatureConfig("categorical", column="device"),
            "load": "numeric",
        },
    ),
    ties="simultaneous",
    timezone="Asia/Tokyo",
)


@pytest.fixture
def tables():
    interactions = pd.DataFrame(
        {
            "user_id": [1, 1, 2, 3, 3, 3, 2],
            "item_id": ["a", "b", "a", "c", "a", "b", "z"],
            "datetime": np.array([0, 1, 2, 10, 20, 100, 334]) * DAY,
            "event": ["buy", "view", "view", "view", "buy", None, "secret"],
            "weight": [0.0, 1, 2, 3, 4, 5, 1e6],
            "device": [7.0, 7.0, 8.0, 8.0, None, 9.0, 5.0],
            "load": [1.0, 2, np.nan, 4, 5, 6, 1e9],
        }
    )
    users = pd.DataFrame(
        {
            "user_id": [9, 3, 2, 1],
            "town": ["far", "x", " y ", "y"],
            "income": [1e9, 1.0, 3.0, np.nan],
        }
    )
    items = pd.DataFrame(
        {
            "item_id": ["a", "b", "c", "z"],
            "genres": ["p,q, q", "q,r", None, ",".join("abcdefg")],
            "colour": [True, None, False, "odd"],
            "price": [1.0, 2.0, 4.5, 1e9],
            "flat": [0.1, 0.1, 0.1, 5.0],
            "nothing": [np.nan, np.nan, np.nan, 5.0],
        }
    )
    return Tables(interactions, users, items)


@pytest.fixture
def schema(tables, monkeypatch):
    monkeypatch.setattr("datamodules.schema_fitting.MIN_USERS", 1)
    return fit_schema(tables, tables.interactions.head(6), CONFIG)


def feature(schema, name):
    every = schema.user_features + schema.item_features + schema.context_features
    return next(entry for entry in every if entry.name == name)


def test_vocabularies_are_of_training_rows_by_frequency_then_value(schema):
    assert feature(schema, "town").vocabulary == ("y", "x")
    assert feature(schema, "colour").vocabulary == ("false", "true")
    assert feature(schema, "genres").vocabulary == ("q", "p", "r")
    assert feature(schema, "screen").vocabulary == ("7", "8", "9")
    assert feature(schema, "screen").column == "device"
    assert feature(schema, "hour").vocabulary == tuple(str(hour) for hour in range(24))
    assert feature(schema, "day").vocabulary == tuple(str(day) for day in range(7))
    assert feature(schema, "month").vocabulary == tuple(str(month) for month in range(12))
    assert feature(schema, "week").vocabulary == tuple(str(week) for week in range(53))
    assert feature(schema, "hour").column == "datetime"
    assert schema.event_types == ("view", "buy")


def test_values_of_users_moments_and_events_that_few_users_have_get_no_code():
    features = FeaturesConfig(
        user={
            "town": "categorical",
            "likes": FeatureConfig("multi_categorical", separator=","),
        },
        item={"colour": "categorical"},
        context={
            "device": "categorical",
            "seen": FeatureConfig("multi_categorical", separator=","),
        },
    )
    numbers = np.arange(12)
    five, four = numbers < 5, numbers >= 8
    interactions = pd.DataFrame(
        {
            "user_id": np.repeat(numbers, 3),
            "item_id": 1,
            "datetime": np.arange(36) * DAY,
        }
    )
    interactions["device"] = np.repeat(np.where(five, "5", np.where(four, "4", None)), 3)
    interactions["seen"] = np.repeat(np.where(five, "a, five,a", np.where(four, "four,a", None)), 3)
    interactions["event"] = np.repeat(np.where(five, "five", np.where(four, "four", None)), 3)
    users = pd.DataFrame(
        {
            "user_id": numbers,
            "town": np.where(five, "five", np.where(four, "four", " ")),
        }
    )
    users["likes"] = np.where(five, "a,five", np.where(four, "four", None))
    items = pd.DataFrame({"item_id": [1], "colour": ["rare"]})
    schema = fit_schema(
        Tables(interactions, users, items), interactions, DataConfig(features=features)
    )
    found = {
        one.name: one.vocabulary
        for one in (
            *schema.user_features,
            *schema.item_features,
            *schema.context_features,
        )
    }
    assert found == {
        "town": ("five",),
        "likes": ("a", "five"),
        "colour": ("rare",),
        "device": ("5",),
        "seen": ("a", "five"),
    }
    assert schema.event_types == ("five",)


def test_scales_are_of_known_training_values(schema):
    for name, values in {
        "price": [1, 2, 4.5],
        "load": [1, 2, 4, 5, 6],
        "income": [1, 3],
    }.items():
        assert feature(schema, name).mean == pytest.approx(statistics.mean(values))
        assert feature(schema, name).scale == pytest.approx(statistics.pstdev(values))
    assert (feature(schema, "flat").mean, feature(schema, "flat").scale) == (0.1, 1.0)
    assert (feature(schema, "nothing").mean, feature(schema, "nothing").scale) == (
        0.0,
        1.0,
    )
    logs = [math.log(1 + weight) for weight in range(6)]
    assert schema.weight_mean == pytest.approx(statistics.mean(logs))
    assert schema.weight_scale == pytest.approx(statistics.pstdev(logs))


def test_the_facts_of_the_data(schema):
    assert (schema.user_id_type, schema.item_id_type) == ("integer", "string")
    assert schema.has_datetime
    assert schema.has_weight
    assert schema.data_until == 100 * DAY + 1
    assert (schema.timezone, schema.ties, schema.repeats) == (
        "Asia/Tokyo",
        "simultaneous",
        "exclude",
    )
    assert schema.memory_length == 4000
    assert schema.decay_days == (3.0, 9.0, 27.0, 90.0)
    assert schema.popularity_days == ()


def test_a_set_is_simultaneous_and_as_popular_as_all_of_it():
    pairs = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5]})
    schema = fit_schema(
        Tables(pairs, pairs[["user_id"]].head(1), pairs[["item_id"]].head(1)),
        pairs,
        DataConfig(),
    )
    assert (schema.is_set, schema.ties, schema.popularity_days) == (
        True,
        "simultaneous",
        (1.0,),
    )


def make_histories(lengths, columns) -> tuple[Tables, pd.DataFrame]:
    """Make one user for each length, all items of hers distinct, two rows each."""
    rows = [(user, item, item) for user, length in enumerate(lengths) for item in range(length)]
    interactions = pd.DataFrame(rows * 2, columns=["user_id", "item_id", "datetime"])[
        ["user_id", "item_id", *columns]
    ]
    return Tables(
        interactions,
        interactions[["user_id"]].head(0),
        interactions[["item_id"]].head(0),
    ), interactions


@pytest.mark.parametrize(
    ("lengths", "columns", "repeats", "expected"),
    [
        ([1, 2, 3], ["datetime"], "exclude", 10),
        (
            range(1, 41),
            ["datetime"],
            "exclude",
            80,
        ),  # the 99th percentile of two rows each is 79.2
        ([3] * 99 + [45], ["datetime"], "exclude", 10),  # one of a hundred has more
        ([1000] * 3, ["datetime"], "exclude", 100),
        ([1000] * 3, ["datetime"], "allow", 20),
        (range(1, 101), [], "exclude", 100),  # a set counts items, not rows
        ([1000] * 3, [], "exclude", 500),
    ],
)
def test_history_length_covers_nearly_all_users(lengths, columns, repeats, expected):
    tables, interactions = make_histories(lengths, columns)
    assert fit_schema(tables, interactions, DataConfig(repeats=repeats)).history_length == expected
    given = DataConfig(repeats=repeats, history_length=3)
    assert fit_schema(tables, interactions, given).history_length == 3


def test_events_that_are_held_out_do_not_change_the_schema(tables):
    config = replace(CONFIG, split=SplitConfig("time", "1970-03-02"), repeats="allow")
    split = split_interactions(tables.interactions.head(6), config, 0)
    assert (len(split.train), len(split.validation), len(split.test)) == (4, 1, 1)
    later = tables.interactions.copy()
    is_later = later["datetime"] > split.train["datetime"].max()
    for name, value in {
        "user_id": 9,
        "item_id": "z",
        "event": "new",
        "weight": 77,
        "device": 66,
        "load": 55,
    }.items():
        later.loc[is_later, name] = value
    changed = Tables(later, tables.users, tables.items)
    train = later[~is_later]
    assert fit_schema(changed, train, config) == fit_schema(tables, split.train, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            DataConfig(repeats="allow"),
            "repeats is 'allow' and the interactions have no datetime or position",
        ),
        (
            DataConfig(ties="simultaneous"),
            "ties is 'simultaneous' and the interactions have no datetime or position.*: ordered",
        ),
    ],
)
def test_repeats_need_an_order_and_baskets_a_time(config, message):
    events = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [5, 6, 5]})
    tables = Tables(
        events,
        events[["user_id"]].drop_duplicates(),
        events[["item_id"]].drop_duplicates(),
    )
    with pytest.raises(SchemaError, match=message):
        fit_schema(tables, events, config)


GROWING = DataConfig(
    features=FeaturesConfig(
        user={"town": "categorical"},
        item={"tags": "multi_categorical", "title": "text"},
        context={"device": "categorical", "hour": "hour_of_day"},
    )
)
values = st.sampled_from([None, "a", "b", "c", "d", "e"])
event = st.fixed_dictionaries(
    {
        "user_id": st.integers(1, 3),
        "item_id": st.sampled_from(["i", "j"]),
        "event": values,
        "device": values,
        "datetime": st.integers(10**9, 2 * 10**9),
    }
)
table = st.lists(event, min_size=1, max_size=7)
cells = st.lists(values, min_size=3, max_size=3)


def fit_tables(events, towns, tags, previous):
    interactions = pd.DataFrame(events).astype({"event": "str", "device": "str"})
    users = pd.DataFrame({"user_id": [1, 2, 3], "town": towns})
    titles = [f"{first} {second}" for first, second in zip(tags, towns, strict=True)]
    items = pd.DataFrame({"item_id": ["i", "j", "k"], "tags": tags, "title": titles})
    return fit_schema(Tables(interactions, users, items), interactions, GROWING, previous)


def codes_of(schema: Schema) -> dict:
    """Say what each code means: (side and feature, value) -> code."""
    every = {"events": {name: 2 + place for place, name in enumerate(schema.event_types)}}
    for side in ("user", "item", "context"):
        every |= {f"{side}.{feature.name}": feature.codes for feature in schema.features(side)}
    return {(name, value): code for name, codes in every.items() for value, code in codes.items()}


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_code_ever_changes(data):
    schema, known, sizes = None, {}, []
    for _ in range(3):
        schema = fit_tables(data.draw(table), data.draw(cells), data.draw(cells), schema)
        codes = codes_of(schema)
        assert known.items() <= codes.items()
        by_name = {}
        for (name, _), code in codes.items():
            by_name.setdefault(name, []).append(code)
        assert all(sorted(found) == list(range(2, 2 + len(found))) for found in by_name.values())
        known = codes
        sizes.append(schema.item_features[1].buckets)
        schema = Schema.from_json(schema.to_json())
    assert len(set(sizes)) == 1


def test_a_type_of_ids_that_changed_is_refused():
    events = [{"user_id": 1, "item_id": "i", "event": "a", "device": "b", "datetime": 10**9}]
    before = fit_tables(events, ["a"] * 3, ["b"] * 3, None)
    with pytest.raises(SchemaError, match="user_id is integer; the previous schema has string ids"):
        fit_tables(events, ["a"] * 3, ["b"] * 3, replace(before, user_id_type="string"))
    with pytest.raises(SchemaError, match="item_id is string; the previous schema has integer ids"):
        fit_tables(events, ["a"] * 3, ["b"] * 3, replace(before, item_id_type="integer"))


def test_ages_are_fitted_at_the_events_of_users_and_for_items_at_the_end_of_the_data():
    events = pd.DataFrame(
        {
            "user_id": [1, 1, 2, 3],
            "item_id": [1, 2, 2, 2],
            "datetime": np.array([10, 40, 20, 30]) * DAY,
        }
    )
    users = pd.DataFrame({"user_id": [1, 2, 3], "joined": ["1970-01-06", "1970-01-01", None]})
    items = pd.DataFrame({"item_id": [1, 2], "released": ["1970-01-02", "1970-01-04"]})
    config = DataConfig(features=FeaturesConfig(user={"joined": "date"}, item={"released": "date"}))
    tables = Tables(events, users, items)
    schema = fit_schema(tables, events, config)
    end = schema.data_until / DAY
    joined, released = schema.user_features[0], schema.item_features[0]
    ages = [
        10 - 5,
        40 - 5,
        20 - 0,
    ]  # in days at each event of a user whose date is known
    assert joined.mean + end == pytest.approx(statistics.mean(ages))
    assert joined.scale == pytest.approx(statistics.pstdev(ages))
    assert released.mean + end == pytest.approx(end - 2)
    later = events.assign(datetime=events["datetime"] + 5 * DAY)
    again = fit_schema(tables, later, config, schema)
    assert again.user_features[0].mean + again.data_until / DAY == pytest.approx(
        statistics.mean(ages)
    )
    with pytest.raises(SchemaError, match="no datetime"):
        fit_schema(tables, events.drop(columns="datetime").assign(position=0), config)


def test_every_kind_is_fitted():
    assert set(schema_fitting._FITS) == set(KINDS)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(0, 2)), min_size=1, max_size=60
    )
)
@settings(max_examples=50, deadline=None)
def test_the_longest_gap_covers_nearly_all_gaps_between_visits(rows):
    events = pd.DataFrame(rows, columns=["user_id", "datetime", "item_id"])
    events["datetime"] *= 7 * 3600  # of one day: one visit
    gaps = []
    for user in range(4):
        days = sorted({time * 7 // 24 for owner, time, _ in rows if owner == user})
        gaps += [(later - earlier) * DAY for earlier, later in itertools.pairwise(days)]
    expected = int(np.quantile(gaps, 0.99)) if gaps else LAST_SECOND
    assert schema_fitting.fit_longest_gap(events) == expected
