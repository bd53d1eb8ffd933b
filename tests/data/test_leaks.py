"""The leak check: planted leaks are named, honest columns and clean splits are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import clean, weigh_targets
from datamodules.config import (
    DataConfig,
    FeatureConfig,
    FeaturesConfig,
    SplitConfig,
    TargetsConfig,
)
from datamodules.leaks import find_leaks, stop_on_leaks
from datamodules.splits import Split, split_interactions
from datamodules.tables import Tables, read_tables
from serve.errors import SchemaError
from tests.data.test_config import load

N_USERS, N_ITEMS, N_EVENTS, N_DAYS = 151, 107, 31, 60
DAY = 86_400
CONTEXT = {
    "sku": "categorical",
    "receipt": "categorical",
    "paid": "numeric",
    "bought_for": "numeric",
    "device": "categorical",
    "city": "categorical",
    "store": "categorical",
    "session": "categorical",
    "mood": "categorical",
    "noise": "numeric",
    "hour": FeatureConfig("hour_of_day", "datetime"),
}
PLANTED = {f"interactions.{name}" for name in ("sku", "receipt", "paid", "bought_for")}


def make_events(rng) -> pd.DataFrame:
    """Draw events of users with a taste, in a catalogue of which each item is at its height for some days."""
    user = np.repeat(np.arange(N_USERS), N_EVENTS)
    day = np.sort(rng.integers(0, N_DAYS, (N_USERS, N_EVENTS)), axis=1).ravel()
    liked, height = (
        rng.normal(size=(N_USERS, N_ITEMS)),
        rng.integers(0, N_DAYS, N_ITEMS),
    )
    score = (
        liked[user]
        - 0.5 * np.abs(day[:, None] - height)
        + 1.5 * rng.gumbel(size=(len(user), N_ITEMS))
    )
    time = 1_500_000_000 // DAY * DAY + day * DAY + rng.integers(0, DAY, len(user))
    return pd.DataFrame({"user_id": user, "item_id": score.argmax(axis=1) + 1000, "datetime": time})


def plant(events, rng) -> pd.DataFrame:
    """Add a renamed item, a word that the item decides, prices paid and prices of bought events, and honest columns."""
    user, item, n = (
        events["user_id"].to_numpy(),
        events["item_id"].to_numpy() - 1000,
        len(events),
    )
    price, words = (
        np.round(np.exp(rng.normal(1, 1, N_ITEMS)), 2)[item],
        np.array(["aisle", "shelf", "stand", "till"]),
    )
    is_bought, visit = rng.random(n) < 0.3, events["datetime"] // DAY
    leaning = np.where(rng.random(N_ITEMS) < 0.5, 0.4, 0.6)[item]
    return events.assign(
        event=np.where(is_bought, "buy", "view"),
        sku=np.array([f"sku-{number}" for number in rng.permutation(N_ITEMS)])[item],
        receipt=np.where(
            rng.random(n) < 1 / 6,
            rng.choice(words, n),
            words[rng.integers(0, 4, N_ITEMS)[item]],
        ),
        paid=np.round(price * rng.choice([1, 1, 1, 0.9, 0.8, 0.5], n), 2),
        bought_for=np.where(is_bought, price, np.nan),
        device=np.where(rng.random(n) < 0.9, user % 3, rng.integers(0, 3, n)).astype("str"),
        city=rng.integers(0, 90, N_USERS)[user].astype("str"),
        store=((user * 7 + visit % 2) % 41).astype("str"),
        session=[f"{one}-{another}" for one, another in zip(user, visit, strict=True)],
        mood=np.where(rng.random(n) < leaning, "happy", "sad"),
        noise=rng.normal(size=n),
    )


def look(events, users=None, items=None, split=None, **declared):
    """Find leaks as a run does."""
    config = DataConfig(**declared)
    events = weigh_targets(events, config)
    users = events[["user_id"]].drop_duplicates() if users is None else users
    items = pd.DataFrame({"item_id": np.unique(events["item_id"])}) if items is None else items
    return find_leaks(
        Tables(events, users, items),
        split or split_interactions(events, config, 0),
        config,
    )


@pytest.mark.parametrize("seed", range(8))
def test_planted_columns_of_the_context_are_named_and_honest_ones_are_not(seed):
    rng = np.random.default_rng(seed)
    events = plant(make_events(rng), rng)
    leaks = look(
        events,
        features=FeaturesConfig(context=CONTEXT),
        targets=TargetsConfig(events=["buy"]),
    )
    assert {leak.column for leak in leaks} == PLANTED
    kinds = {(leak.column, leak.kind) for leak in leaks}
    assert kinds >= {
        ("interactions.sku", "identifies the item"),
        ("interactions.receipt", "known after the choice"),
    }
    assert all(0.5 <= leak.power <= 1 and leak.column in leak.message for leak in leaks)


def test_a_fact_of_the_item_is_called_so():
    events = make_events(np.random.default_rng(3))
    events["cost"] = np.where(events["item_id"] % 11 == 0, "paid", "free")
    (leak,) = look(events, features=FeaturesConfig(context={"cost": "categorical"}))
    assert (leak.kind, leak.column, leak.power) == ("fact of the item", "interactions.cost", 1.0)


def test_counts_of_items_that_include_the_test_are_named():
    rng = np.random.default_rng(8)
    events = make_events(rng)
    split = split_interactions(events, DataConfig(split=SplitConfig("pairs")), 0)
    columns = {
        "sales": events["item_id"].value_counts(),
        "place_by_sales": -events["item_id"].value_counts(),
        "sales_before": split.refit["item_id"].value_counts(),
        "price": pd.Series(rng.normal(size=N_ITEMS), np.arange(N_ITEMS) + 1000),
    }
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 1000})
    items = items.assign(
        **{name: items["item_id"].map(values).astype(float) for name, values in columns.items()}
    )
    features = FeaturesConfig(item=dict.fromkeys(columns, "numeric"))
    leaks = look(events.drop(columns="datetime"), items=items, split=split, features=features)
    named = {leak.column: leak for leak in leaks if leak.kind == "made from the test"}
    assert named.keys() == {"items.sales", "items.place_by_sales"}
    assert min(leak.power for leak in named.values()) > 0.9


@pytest.mark.parametrize("kind", ["leave_one_out", "time", "none"])
@pytest.mark.parametrize("ties", ["ordered", "simultaneous"])
def test_our_own_splits_share_nothing(kind, ties):
    events = make_events(np.random.default_rng(1))
    events = events.drop_duplicates(["user_id", "item_id", "datetime"])
    config = DataConfig(
        split=SplitConfig(kind, "2017-08-24" if kind == "time" else None), ties=ties
    )
    assert look(events, split=split_interactions(events, config, 0), ties=ties) == ()


def parts(train, test, kind="files") -> Split:
    return Split(train, train[:0], test, kind)


def test_events_in_two_parts_are_counted():
    events = make_events(np.random.default_rng(2))
    train = events[events["datetime"] < events["datetime"].max() - 9 * DAY]
    test = events.drop(train.index)
    copied = pd.concat([train, test.head(5)])
    leak, *_ = look(events, split=parts(copied, test))
    assert (leak.kind, leak.column) == (
        "test in training",
        "interactions.user_id, item_id, datetime",
    )
    assert leak.power == pytest.approx(5 / len(test))
    assert look(events, split=parts(train, test)) == ()
    sets = events[["user_id", "item_id"]].drop_duplicates()
    (leak,) = look(sets, split=parts(sets[:-50], sets[-60:], "pairs"))
    assert (leak.column, leak.power) == ("interactions.user_id, item_id", pytest.approx(10 / 60))


def test_files_split_at_random_know_the_future_of_their_users():
    events = make_events(np.random.default_rng(4)).drop_duplicates(
        ["user_id", "item_id", "datetime"]
    )
    is_test = np.random.default_rng(0).random(len(events)) < 0.2
    train, test = events[~is_test], events[is_test]
    first, last = (
        test.groupby("user_id")["datetime"].min(),
        train.groupby("user_id")["datetime"].max(),
    )
    (leak,) = look(events, split=parts(train, test))
    assert (leak.kind, leak.column) == ("test in training", "interactions.datetime")
    assert leak.power == pytest.approx((last.reindex(first.index) > first).mean())


def test_few_rows_say_nothing_and_stopping_names_all_leaks_in_one_line():
    rng = np.random.default_rng(5)
    events = plant(make_events(rng), rng)
    features = FeaturesConfig(context={"sku": "categorical", "receipt": "categorical"})
    assert look(events.head(150), features=features) == ()
    leaks = look(events, features=features)
    stop_on_leaks(())
    with pytest.raises(SchemaError, match=r"2 found: .*sku.*receipt") as error:
        stop_on_leaks(leaks)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_bundled_sample_raises_no_alarm():
    config = load("grocery")
    context = {"store": "categorical", "hour": FeatureConfig("hour_of_day", "datetime")}
    config = replace(config, features=replace(config.features, context=context))
    tables, _ = clean(read_tables(config)[0])
    assert find_leaks(tables, split_interactions(tables.interactions, config, 0), config) == ()
