from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules.leaks.sample import draw_sample

from datamodules.clean import weigh_targets
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, SplitConfig, TargetsConfig
from datamodules.leaks import Leak, find_leaks, stop_on_leaks
from datamodules.splits import Split, split_interactions
from datamodules.tables import Tables
from serve.errors import SchemaError
from tests.planted_leaks import HONEST, PLANTED, add_honest, plant

N_USERS, N_ITEMS, N_EVENTS, N_DAYS = 151, 67, 31, 60
DAY = 86_400


def make_events(rng):
    """Draw events of users with a taste, in a catalogue of which each item is at its height for some days."""
    user = np.repeat(np.arange(N_USERS), N_EVENTS)
    day = np.sort(rng.integers(0, N_DAYS, (N_USERS, N_EVENTS)), axis=1).ravel()
    height = rng.integers(0, N_DAYS, N_ITEMS)
    liked = rng.normal(size=(N_USERS, N_ITEMS))
    score = liked[user] - 0.5 * np.abs(day[:, None] - height) + 1.5 * rng.gumbel(size=(len(user), N_ITEMS))
    item = score.argmax(axis=1)
    time = 1_500_000_000 // DAY * DAY + day * DAY + rng.integers(0, DAY, len(user))
    return pd.DataFrame({"user_id": user, "item_id": item + 1000, "datetime": time})


def look(events, users=None, items=None, **declared):
    """Find leaks as a run does."""
    config = DataConfig(**declared)
    events = weigh_targets(events, config)
    users = events[["user_id"]].drop_duplicates() if users is None else users
    items = pd.DataFrame({"item_id": np.unique(events["item_id"])}) if items is None else items
    return find_leaks(Tables(events, users, items), split_interactions(events, config, 0), config)


def in_context(*columns):
    return FeaturesConfig(context={name: {**PLANTED, **HONEST}[name] for name in columns})


@pytest.mark.parametrize("seed", range(20))
def test_planted_leaks_are_named_and_honest_columns_are_not(seed):
    rng = np.random.default_rng(seed)
    events = add_honest(plant(make_events(rng), rng), rng)
    calendar = {"hour": FeatureConfig("hour_of_day", "datetime"), "weekday": FeatureConfig("day_of_week", "datetime")}
    features = FeaturesConfig(context={**PLANTED, **HONEST, **calendar})
    leaks = look(events, features=features, targets=TargetsConfig(events=["buy"]))
    assert {leak.column for leak in leaks} == set(PLANTED)
    kinds = {(leak.column, leak.kind) for leak in leaks}
    assert kinds >= {("sku", "identifies the item"), ("receipt", "known after the choice")}
    assert ("bought_for", "known after the choice") in kinds
    assert all(leak.table == "interactions" and 0.5 <= leak.power <= 1 for leak in leaks)
    assert all(f"interactions.{leak.column}" in leak.message for leak in leaks)


def test_a_renamed_item_is_said_with_its_guesses_and_those_of_popularity():
    events = make_events(np.random.default_rng(3))
    events["sku"] = "sku " + events["item_id"].astype(str)
    (leak,) = look(events, features=FeaturesConfig(context={"sku": "categorical"}), split=SplitConfig("none"))
    drawn = draw_sample(Split(events, events[:0], events[:0], "none"))
    most = np.bincount(drawn.item[drawn.is_learnt]).argmax()
    by_popularity = (drawn.item[~drawn.is_learnt] == most).mean()
    assert f"right for 100.0% of the events of other users ({by_popularity:.1%} by popularity)" in leak.message
    assert "for 100% of the events its value goes with one item alone" in leak.message
    assert leak.power == pytest.approx(1.0)


def test_a_fact_of_the_item_is_called_so():
    rng = np.random.default_rng(3)
    events = make_events(rng)
    events["cost"] = np.where(events["item_id"] % 11 == 0, "paid", "free")
    (leak,) = look(events, features=FeaturesConfig(context={"cost": "categorical"}))
    assert (leak.kind, leak.column, leak.power) == ("fact of the item", "cost", 1.0)
    assert "make it a feature of the items" in leak.message


def test_of_many_weights_those_above_0_may_be_the_choice():
    """As amounts that were paid, and 0 for what was only looked at."""
    rng = np.random.default_rng(5)
    events = plant(make_events(rng), rng)
    events["weight"] = np.where(events["event"] == "buy", 1 + rng.integers(0, 40, len(events)), 0).astype(float)
    message = "interactions.bought_for is there in 100.0% of the events of weight 1 or more and in 0.0% of"
    found = look(events.drop(columns="event"), features=in_context("bought_for"))
    assert any(leak.message.startswith(message) for leak in found)


def test_a_number_near_that_of_the_item_is_no_fact_of_it():
    """As what was paid, which differs from purchase to purchase."""
    rng = np.random.default_rng(4)
    events = make_events(rng)
    events["paid"] = events["item_id"] * 7 % 31 + 0.01 * rng.random(len(events))
    (leak,) = look(events, features=FeaturesConfig(context={"paid": "numeric"}))
    assert (leak.kind, leak.column) == ("known after the choice", "paid")
    assert leak.power > 0.9


def test_a_price_that_exists_for_bought_events_alone_is_named_without_targets_declared():
    rng = np.random.default_rng(5)
    events = plant(make_events(rng), rng)
    message = "interactions.bought_for is there in 100.0% of the events 'buy' and in 0.0% of the other events"
    assert any(leak.message.startswith(message) for leak in look(events, features=in_context("bought_for")))
    events = events.drop(columns="event").assign(weight=events["event"].map({"view": 0.0, "buy": 2.5}))
    message = "interactions.bought_for is there in 100.0% of the events of weight 2.5 or more and in 0.0%"
    assert any(leak.message.startswith(message) for leak in look(events, features=in_context("bought_for")))


def test_a_rating_in_the_context_is_known_after_the_choice():
    rng = np.random.default_rng(6)
    events = make_events(rng)
    events["weight"] = rng.integers(1, 6, len(events)).astype(float)
    events["stars"] = events["weight"] * 2
    (leak,) = look(events, features=FeaturesConfig(context={"stars": "numeric"}))
    assert (leak.kind, leak.column, leak.power) == ("known after the choice", "stars", 1.0)


def test_a_feature_of_a_side_that_tells_the_targets_is_named():
    rng = np.random.default_rng(7)
    events = make_events(rng)
    events["event"] = np.where(events["item_id"] % 3 == 0, "buy", "view")
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 1000})
    items["for_sale"], items["weight"] = items["item_id"] % 3 == 0, items["item_id"] % 5
    features = FeaturesConfig(item={"for_sale": "categorical", "weight": "numeric"})
    (leak,) = look(events, items=items, features=features, targets=TargetsConfig(events=["buy"]))
    assert (leak.table, leak.column, leak.kind) == ("items", "for_sale", "known after the choice")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["leave_one_out", "time", "none"])
def test_clean_data_raises_no_alarm(seed, kind):
    rng = np.random.default_rng(seed)
    events = add_honest(make_events(rng), rng)
    users = pd.DataFrame({"user_id": np.arange(N_USERS), "age": rng.integers(18, 80, N_USERS).astype(float)})
    users["zip"] = rng.integers(0, 60, N_USERS).astype("str")
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 1000, "price": rng.normal(3, 1, N_ITEMS)})
    features = FeaturesConfig({"age": "numeric", "zip": "categorical"}, {"price": "numeric"}, HONEST)
    split = SplitConfig(kind, at="2017-09-01" if kind == "time" else None)
    assert look(events, users, items, features=features, split=split) == ()


def test_sets_without_times_are_checked_too():
    rng = np.random.default_rng(9)
    events = add_honest(plant(make_events(rng), rng).drop(columns=["datetime", "event"]), rng)
    leaks = look(events.drop_duplicates(["user_id", "item_id"]), features=in_context(*HONEST, "sku", "receipt", "paid"))
    assert {leak.column for leak in leaks} == {"sku", "receipt", "paid"}


def test_lists_and_vectors_in_the_context_are_checked_too():
    rng = np.random.default_rng(10)
    events = make_events(rng)
    vectors = rng.normal(size=(N_ITEMS, 5))
    events["image"] = [vectors[item - 1000] for item in events["item_id"]]
    events["tags"] = [("x", "y") if one else ("z",) for one in rng.random(len(events)) < 0.5]
    kinds = {"image": FeatureConfig("vector"), "tags": FeatureConfig("multi_categorical")}
    (leak,) = look(events, features=FeaturesConfig(context=kinds))
    assert (leak.column, leak.kind) == ("image", "identifies the item")


def test_few_rows_say_nothing():
    rng = np.random.default_rng(11)
    events = plant(make_events(rng), rng).head(97)
    assert look(events, features=in_context(*PLANTED)) == ()


def test_the_same_data_gives_the_same_findings():
    rng = np.random.default_rng(12)
    events = plant(make_events(rng), rng)
    once, again = (look(events, features=in_context(*PLANTED)) for _ in range(2))
    assert once == again != ()


def test_the_day_of_a_catalogue_that_turns_over_is_no_alarm():
    rng = np.random.default_rng(13)
    events = make_events(rng)
    item_of_day = events["datetime"] // DAY % 61 * 5 + rng.integers(0, 5, len(events))  # news: each item lives one day
    events = add_honest(events.assign(item_id=item_of_day), rng)
    assert look(events, features=in_context("day")) == ()


def test_stopping_names_all_leaks_in_one_line():
    leak = Leak("fact of the item", "interactions", "cost", 1.0, "interactions.cost is a fact of the item")
    stop_on_leaks(())
    with pytest.raises(SchemaError, match=r"data.leaks is 'stop' and 2 leaks found: \(1\) interactions.cost") as error:
        stop_on_leaks((leak, replace(leak, column="x", message="interactions.x too")))
    assert "(2) interactions.x too" in str(error.value)
    assert "\n" not in str(error.value)
