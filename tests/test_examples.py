from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from evaluation.report.asked import Asked, ask_known_users, ask_test_users, rank
from evaluation.report.examples import Names, describe_examples, draw_examples
from evaluation.targets import ItemSets
from serve.bundle import Bundle
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, SHOP, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles


def make(folder, schema):
    bundle = Bundle.load(publish_linear(folder, schema, seed=7))
    return Recommender(bundle, make_profiles(schema, known_users(schema)))


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make(tmp_path_factory.mktemp("shop"), SHOP)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return make(tmp_path_factory.mktemp("films"), FILMS)


def names_of(schema):
    return Names(pd.Index(item_ids(schema)), [f"name {item}" for item in item_ids(schema)])


def holdout_of(schema):
    ids, users = item_ids(schema), list(known_users(schema))
    rows = range(35)
    return pd.DataFrame({"user_id": [users[row % 5] for row in rows], "item_id": [ids[row % 23] for row in rows]})


@pytest.mark.parametrize("schema", [SHOP, FILMS])
def test_hits_and_owned_items_are_marked(schema, shop, films):
    recommender = shop if schema is SHOP else films
    holdout, known = holdout_of(schema), known_users(schema)
    asked = ask_test_users(recommender, holdout, None, seed=3)
    examples = describe_examples(recommender, asked, names_of(schema))
    views = {"All items": False, "New items only": True} if schema is SHOP else {"Recommended": True}
    for example, user in zip(examples, known, strict=True):
        wanted = set(holdout.loc[holdout["user_id"] == user, "item_id"])
        owned = {event["item_id"] for event in known[user]["history"]}
        assert example.history_length == len(known[user]["history"])
        assert example.n_targets == len(wanted)
        for ranking in example.rankings:
            answer = recommender.recommend([{"user_id": user}], 10, filter_viewed=views[ranking.title]).of(0)
            assert [place.name for place in ranking.places] == [f"name {item}" for item in answer.item_id]
            assert [place.is_hit for place in ranking.places] == [item in wanted for item in answer.item_id]
            assert [place.is_owned for place in ranking.places] == [item in owned for item in answer.item_id]
            assert ranking.hits == len(wanted & set(answer.item_id))


@pytest.mark.parametrize("at", [None, "2020-09-13T12:26:40Z"])
def test_users_of_the_test_are_asked_for_at_its_moment(shop, at):
    """As the evaluation asked them: lists are others at another time."""
    moment = {} if at is None else {"datetime": datetime(2020, 9, 13, 12, 26, 40, tzinfo=UTC)}
    asked = ask_test_users(shop, holdout_of(SHOP), at, seed=3)
    assert asked.requests == [{"user_id": user, **moment} for user in sorted(list(known_users(SHOP))[:5])]


def test_the_last_events_come_first_by_day(shop):
    known = known_users(SHOP)
    examples = describe_examples(shop, ask_known_users(shop, seed=3), names_of(SHOP))
    for example, user in zip(examples, known.values(), strict=True):
        last = user["history"][::-1][:8]
        dates = [str(np.datetime64(event["datetime"], "s").astype("M8[D]")) for event in last]
        assert [day.date for day in example.days for _ in day.events] == dates
        for event, said in zip(last, [event for day in example.days for event in day.events], strict=True):
            name = "an item outside the catalogue" if event["item_id"] == "gone" else f"name {event['item_id']}"
            assert said.startswith(f"{name} [{event['event']}")
            assert f"weight {event['weight']:g}]" in said
        assert example.targets is None


@pytest.mark.parametrize("missing", [None, np.nan])
def test_nothing_is_said_of_an_event_that_is_missing(shop, missing):
    known = shop.profiles.history
    nameless = replace(known, event=np.full(len(known), missing, object), weight=None)
    recommender = Recommender(shop.bundle, replace(shop.profiles, history=nameless))
    asked = ask_known_users(recommender, seed=3)
    days = [day for one in describe_examples(recommender, asked, names_of(SHOP)) for day in one.days]
    assert not any("[" in said for day in days for said in day.events)


@pytest.mark.parametrize(("other", "is_said"), [(1.0, False), (np.nan, False), (2.5, True), (0.5, True)])
def test_a_weight_of_one_is_said_where_another_is_not_one(shop, other, is_said):
    known = shop.profiles.history
    weight = np.ones(len(known))
    weight[0] = other
    weighted = Recommender(shop.bundle, replace(shop.profiles, history=replace(known, weight=weight)))
    asked = ask_known_users(weighted, seed=3)
    days = [day for one in describe_examples(weighted, asked, names_of(SHOP)) for day in one.days]
    assert any("weight 1]" in said for day in days for said in day.events) == is_said


def test_users_are_drawn_once_each_from_short_to_long_histories():
    lengths = np.random.default_rng(3).permutation(200)
    requests = [{"user_id": f"u{row % 150}"} for row in range(200)]
    drawn = draw_examples(Asked(requests, lengths, None), seed=5)
    users = [request["user_id"] for request in drawn.requests]
    assert len(set(users)) == 10
    assert drawn.history_length.tolist() == sorted(drawn.history_length)
    again = draw_examples(Asked(requests, lengths, None), seed=5)
    assert [request["user_id"] for request in again.requests] == users
    groups = np.array_split(np.sort(lengths[:150]), 10)
    assert all(length in group for length, group in zip(drawn.history_length, groups, strict=True))


def test_few_and_no_users_are_no_error():
    few = Asked([{"user_id": "a"}, {"user_id": "b"}], np.array([3, 1]), None)
    assert [request["user_id"] for request in draw_examples(few, 1).requests] == ["b", "a"]
    assert len(draw_examples(Asked([], np.empty(0, np.int64), None), 1)) == 0


def test_a_sample_keeps_requests_and_targets_together():
    sets = ItemSets.group(np.arange(7), np.arange(7) * 3, 7)
    asked = Asked([{"user_id": row} for row in range(7)], np.arange(7) * 2, sets)
    sampled = asked.sample(4, seed=3)
    users = [request["user_id"] for request in sampled.requests]
    assert len(users) == 4
    assert users == sorted(users)
    assert sampled.history_length.tolist() == [2 * user for user in users]
    assert sampled.targets.item_row.tolist() == [3 * user for user in users]
    assert asked.sample(7, seed=3) is asked


def test_lists_are_those_of_the_recommender(films):
    asked = ask_known_users(films, seed=3)
    lists = rank(films, replace(asked, targets=None), filter_viewed=True)
    ids = np.array(item_ids(FILMS))
    for row, request in enumerate(asked.requests):
        answer = films.recommend([request], 10, filter_viewed=True).of(0)
        assert ids[lists[row][lists[row] >= 0]].tolist() == answer.item_id.tolist()


def test_days_are_those_of_the_time_zone(films):
    """An evening in New York is the next day in London."""
    bundle = replace(films.bundle, schema=replace(films.bundle.schema, timezone="America/New_York"))
    user = next(iter(known_users(FILMS)))
    evening = 1_500_000_000 // 86_400 * 86_400 + 3600  # 14 July 2017, 01:00 UTC
    profiles = films.profiles
    history = replace(profiles.history, datetime=np.full(len(profiles.history), evening))
    recommender = Recommender(bundle, replace(profiles, history=history))
    (example,) = describe_examples(recommender, Asked([{"user_id": user}], np.array([1]), None), names_of(FILMS))
    assert [day.date for day in example.days] == ["2017-07-13"]
