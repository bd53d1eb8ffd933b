"""What is due, against a recomputation from plain lists of events."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, pairwise
from math import exp, log, sqrt
from statistics import mean, median

import numpy as np
import pytest
from serve.due import FADING, MIN_DAYS, WAIT, find_due
from serve.just_taken import DEFAULT_GAP, EARLIEST
from serve.recommender import Recommender
from tests.linear_bundle import DAY, FILMS, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles

IDS = item_ids(SHOP)
DAWN = UNTIL - UNTIL % DAY  # the first second of a day


@pytest.fixture(scope="module")
def recommender(tmp_path_factory):
    bundle = Recommender.load(publish_linear(tmp_path_factory.mktemp("due"), SHOP, 3)).bundle
    return Recommender(bundle, make_profiles(SHOP, known_users(SHOP)))


def take(item, *days, event="buy"):
    """Give events at noon of days after `DAWN`."""
    return [
        {
            "item_id": item,
            "datetime": DAWN + round(day * DAY) + DAY // 2,
            "event": event,
        }
        for day in days
    ]


def ask(recommender, *histories, at=0, k=10, **more):
    request = {
        "history": sorted(chain(*histories), key=lambda one: one["datetime"]),
        **more,
    }
    (found,) = find_due(recommender, [request | {"datetime": DAWN + at * DAY + DAY // 2}], k)
    return found


def without_score(item):
    """Leave out what is rounded otherwise in a batch."""
    return replace(item, score=0.0)


def recompute(history, moment):
    """Return item -> what its rhythm is, one event after the other."""
    days = defaultdict(dict)  # item -> date -> time of its last event
    for one in history:
        time = min(one["datetime"], moment)
        of_item, date = days[one["item_id"]], datetime.fromtimestamp(time, UTC).date()
        of_item[date] = max(time, of_item.get(date, time))
    times_of = {item: sorted(by_date.values()) for item, by_date in days.items() if item in IDS}
    gaps_of = {
        item: [later - earlier for earlier, later in pairwise(times)]
        for item, times in times_of.items()
    }
    all_gaps, rhythms = [gap for gaps in gaps_of.values() for gap in gaps], {}
    for item, gaps in gaps_of.items():
        if gaps:
            times = times_of[item]
            off = sum((gap / mean(gaps) - 1) ** 2 for gap in gaps)
            irregular = min(1, sqrt((1 + off) / (1 + len(gaps))))
            weight = irregular / (len(gaps) + irregular)
            typical = exp((1 - weight) * log(median(gaps)) + weight * log(median(all_gaps)))
            due = times[-1] + typical
            if is_overdue := due < moment:
                due = moment + WAIT * irregular * (moment - times[0]) / len(times)
            rhythms[item] = (
                due,
                is_overdue,
                times[-1],
                len(times),
                typical / DAY,
                1 - irregular,
                sum(exp((time - moment) / DAY / FADING) for time in times),
            )
    return rhythms


def test_rhythms_are_those_of_a_recomputation_event_by_event(recommender):
    rng, n_listed, n_overdue, n_named = np.random.default_rng(2), 0, 0, 0
    for _ in range(150):
        length, span = int(rng.integers(0, 40)), int(rng.integers(2, 90)) * DAY
        times = np.sort(UNTIL - rng.integers(0, span, length)).tolist()
        history = [
            {"item_id": str(rng.choice([*IDS[:7], "gone"])), "datetime": time} for time in times
        ]
        request = {
            "history": history,
            "datetime": UNTIL + int(rng.integers(-span // 3, span)),
            "again": "any",
        }
        (found,) = find_due(recommender, [request], k=20)
        expected = recompute(history, request["datetime"])
        (ranked,) = recommender.rank_owned([request], 20)
        listed = {item for item in ranked.item_id.tolist() if item in expected}
        scores = [one.score for one in found.items]
        assert {one.item_id for one in found.items} == listed
        assert scores == sorted(scores, reverse=True)
        for one in found.items:
            due, is_overdue, last, n_days, every_days, regularity, score = expected[one.item_id]
            assert (one.due is None) == (n_days < MIN_DAYS)
            if one.due is not None:
                assert one.due == pytest.approx(due, abs=2)
                assert one.due >= request["datetime"] - 1
                n_named += 1
            assert one.score == pytest.approx(score)
            assert (one.is_overdue, one.last, one.n_days) == (is_overdue, last, n_days)
            assert (one.every_days, one.regularity) == pytest.approx(
                (every_days, regularity), abs=0.0051
            )
            n_listed, n_overdue = n_listed + 1, n_overdue + is_overdue
    assert 0 < n_overdue < n_listed
    assert n_named > 8


def test_what_was_taken_on_one_day_alone_is_not_listed(recommender):
    found = ask(
        recommender,
        take(IDS[0], -3),
        take(IDS[1], -3.4, -3.2, -3),
        take(IDS[2], -9, -3),
        at=0,
    )
    assert [one.item_id for one in found.items] == [IDS[2]]
    assert found.reason
    assert ask(recommender, take(IDS[2], -9, -3), k=1).reason is None


def test_two_events_around_midnight_are_two_days(recommender):
    history = [{"item_id": IDS[0], "datetime": DAWN + second} for second in (-60, 60)]
    (one,) = ask(recommender, history).items
    assert (one.n_days, one.last, one.is_overdue) == (2, DAWN + 60, True)


def test_a_regular_item_is_due_a_gap_after_its_last_event_and_soon_when_that_has_passed(
    recommender,
):
    weekly = take(IDS[0], *range(-70, -6, 7))
    (today,) = ask(recommender, weekly, at=0).items
    assert (today.due, today.is_overdue, today.every_days) == (
        DAWN + DAY // 2,
        False,
        7,
    )
    (late,) = ask(recommender, weekly, at=2).items
    chance = take(IDS[0], -70, -69, -67, -66, -65, -60, -33, -31, -8, -7)
    (irregular,) = ask(recommender, chance, at=2).items
    assert late.is_overdue
    assert DAWN + 2.5 * DAY < late.due < DAWN + 4 * DAY
    assert late.due < irregular.due
    assert irregular.regularity < 0.2 < 0.6 < late.regularity
    (known_for_less,) = ask(recommender, weekly[-3:], at=2).items
    assert irregular.regularity < known_for_less.regularity < late.regularity
    assert "7 days" in late.text
    assert "buy" in late.text


def test_a_gap_is_drawn_towards_the_others_of_the_user_less_the_more_there_are_and_the_more_regular(
    recommender,
):
    slow = [take(item, -80, -40) for item in IDS[1:]]

    def typical(*days):
        found = ask(recommender, take(IDS[0], *days), *slow, k=30).items
        return next(one.every_days for one in found if one.item_id == IDS[0])

    once, many, irregular = (
        typical(-10, -5),
        typical(*range(-70, -4, 5)),
        typical(-70, -69, -64, -59, -30, -29, -24),
    )
    assert 5 < many < 5.4 < irregular < once < 40
    weight = sqrt(0.5) / (1 + sqrt(0.5))
    assert once == pytest.approx(5 ** (1 - weight) * 40**weight, abs=0.01)


def test_an_event_after_the_moment_counts_as_happening_at_it(recommender):
    (early,) = ask(recommender, take(IDS[0], -20, -10, 5), at=-5).items
    assert early.last == DAWN - 5 * DAY + DAY // 2
    assert early.n_days == 3
    assert not ask(recommender, take(IDS[0], 5, 9), at=0).items  # both at the moment


def test_exclusions_filters_and_length_hold_and_the_order_is_the_scores(recommender):
    history = [take(item, -20, -10, -5) for item in IDS[:6]]
    whole = ask(recommender, *history)
    scores = [one.score for one in whole.items]
    assert (len(scores), scores) == (6, sorted(scores, reverse=True))
    assert [one.name for one in whole.items] == [
        f"Title {IDS.index(one.item_id)}" for one in whole.items
    ]
    assert ask(recommender, *history, k=2).items == whole.items[:2]
    first = whole.items[0].item_id
    assert ask(recommender, *history, exclude=[first]).items == whole.items[1:]
    assert ask(recommender, *history, filters={"only": [first]}).items == whole.items[:1]


def test_a_profile_is_read_as_the_same_history_in_a_request(recommender):
    users = known_users(SHOP)
    asked = [{"user_id": user, "datetime": UNTIL + DAY} for user in users]
    by_user = find_due(recommender, asked)
    by_history = find_due(
        recommender, [known | {"datetime": UNTIL + DAY} for known in users.values()]
    )
    assert any(one.items for one in by_user)
    assert [one.user_id for one in by_user] == [*users]
    assert [replace(one, user_id=None) for one in by_user] == by_history
    alone = [one for request in asked for one in find_due(recommender, [request])]
    assert [[without_score(one) for one in found.items] for found in by_user] == [
        [without_score(one) for one in found.items] for found in alone
    ]
    latest = next(user for user, found in zip(users, by_user, strict=True) if found.items)
    moment = users[latest]["history"][-1]["datetime"]
    assert find_due(recommender, [{"user_id": latest}]) == find_due(
        recommender, [{"user_id": latest, "datetime": moment}]
    )


def test_who_is_unknown_and_who_has_no_times_or_repeats_get_an_empty_list_with_a_reason(
    recommender, tmp_path
):
    timeless = {"history": [{"item_id": IDS[0]}] * 3}
    found = find_due(recommender, [{"user_id": "nobody"}, {}, timeless])
    assert [one.items for one in found] == [(), (), ()]
    films = Recommender.load(publish_linear(tmp_path, FILMS, 3))
    again = [{"item_id": item_ids(FILMS)[0], "datetime": UNTIL - day * DAY} for day in (9, 5)]
    found += find_due(films, [{"history": again}])
    schema = replace(SHOP, has_datetime=False, context_features=())
    found += find_due(
        Recommender(replace(recommender.bundle, schema=schema)),
        [{"history": take(IDS[0], -9, -5)}],
    )
    assert [one.items for one in found[3:]] == [(), ()]
    assert all(one.reason for one in found)
    assert find_due(recommender, []) == []
    with pytest.raises(ValueError, match="k is 0"):
        find_due(recommender, [{}], k=0)


def test_only_events_that_training_had_as_targets_make_a_rhythm(recommender):
    viewed, bought = take(IDS[0], -9, -6, -3, event="view"), take(IDS[1], -9, -3)
    assert len(ask(recommender, viewed, bought).items) == 2
    manifest = recommender.bundle.manifest
    facts = replace(
        manifest.facts,
        config={"data": {"targets": {"events": ["buy"], "min_weight": None}}},
    )
    bundle = replace(recommender.bundle, manifest=replace(manifest, facts=facts))
    (one,) = ask(Recommender(bundle), viewed, bought, take(IDS[1], -1, event="view")).items
    assert (one.item_id, one.n_days, one.last) == (IDS[1], 2, bought[-1]["datetime"])


# ---- what was just taken


@pytest.fixture(scope="module")
def strangers(recommender):
    """Give the bundle without profiles: no user tells the usual gap."""
    return Recommender(recommender.bundle)


def find_held(history, moment):
    """Return the items that were taken within a day of the moment and may not be due again."""
    rhythms = recompute(history, moment)
    times_of = defaultdict(set)
    for one in history:
        if one["item_id"] in IDS:
            times_of[one["item_id"]].add(min(one["datetime"], moment))
    gaps = [
        later - earlier for times in times_of.values() for earlier, later in pairwise(sorted(times))
    ]
    usual = median(gaps) if gaps else DEFAULT_GAP
    held = set()
    for item, times in times_of.items():
        wait = usual
        if item in rhythms and usual >= DAY:
            _, _, _, _, every_days, regularity, _ = rhythms[item]
            wait = every_days * DAY * max(EARLIEST, regularity)
        if moment - max(times) < min(wait, DAY):
            held.add(item)
    return held


def draw_history(rng):
    """Draw events of days, or within hours, of which the last ones are around the moment."""
    span = int(rng.choice([3600, DAY, 40 * DAY]))
    times = UNTIL - rng.integers(0, span, int(rng.integers(0, 25)))
    times = np.sort(np.append(times, UNTIL - rng.integers(-DAY, 2 * DAY, int(rng.integers(0, 6)))))
    return [
        {"item_id": str(rng.choice([*IDS[:7], "gone"])), "datetime": int(time)} for time in times
    ]


def test_of_a_basket_in_a_request_the_items_are_listed_that_may_be_due_again(strangers):
    rng = np.random.default_rng(4)
    n_held = 0
    n_listed = 0
    for _ in range(200):
        history = draw_history(rng)
        request = {"history": history, "datetime": UNTIL + int(rng.integers(0, DAY))}
        held = find_held(history, request["datetime"])
        again = request | {"again": "any"}
        whole, novel = strangers.recommend([again], N), strangers.recommend([request], N)
        assert (whole.held_back.tolist(), len(whole.item_id)) == ([0], N)
        assert novel.held_back.tolist() == [len(held)]
        expected = [item for item in whole.item_id.tolist() if item not in held]
        assert novel.item_id.tolist() == expected
        assert (novel.of(0).reason is None) == (not held)
        recent = {one["item_id"] for one in history if one["datetime"] > request["datetime"] - DAY}
        n_held += len(held)
        n_listed += len(recent & set(expected))
    assert n_held > 100
    assert n_listed > 20


def test_what_is_held_back_is_last_of_what_is_due_and_never_overdue(strangers):
    rng = np.random.default_rng(5)
    n_last = 0
    n_overdue = 0
    for _ in range(200):
        history = draw_history(rng)
        request = {"history": history, "datetime": UNTIL + int(rng.integers(0, DAY))}
        (found,) = find_due(strangers, [request], 20)
        held = find_held(history, request["datetime"])
        are_held = [one.item_id in held for one in found.items]
        assert are_held == sorted(are_held)
        assert not any(one.is_overdue for one in found.items if one.item_id in held)
        (plain,) = find_due(strangers, [request | {"again": "any"}], 20)
        assert sorted(plain.items, key=lambda one: one.item_id in held) == [*found.items]
        n_last += sum(are_held)
        n_overdue += sum(one.is_overdue for one in found.items)
    assert n_last > 20
    assert n_overdue > 20


def test_without_times_all_of_a_basket_was_just_taken(strangers):
    request = {"history": [{"item_id": item} for item in (*IDS[:3], IDS[0], "gone")]}
    answer = strangers.recommend([request], N)
    assert set(answer.item_id) == set(IDS[3:])
    assert answer.held_back.tolist() == [3]
    timeless = replace(SHOP, has_datetime=False)
    recommender = Recommender(replace(strangers.bundle, schema=timeless))
    assert set(recommender.recommend([request], N).item_id) == set(IDS[3:])


def test_a_view_or_a_return_takes_nothing_and_an_event_without_a_type_does(strangers):
    events = {IDS[0]: "view", IDS[1]: "buy", IDS[2]: "returned", IDS[3]: None, IDS[4]: "ordered"}
    events |= {IDS[5]: "add_to_wishlist", IDS[6]: "click_and_collect_order", IDS[7]: "order_return"}
    history = [{"item_id": item, "event": event} for item, event in events.items()]

    def find_missing(targets):
        manifest = strangers.bundle.manifest
        config = {"data": {"targets": {"events": targets}}}
        manifest = replace(manifest, facts=replace(manifest.facts, config=config))
        recommender = Recommender(replace(strangers.bundle, manifest=manifest))
        return {*IDS} - {*recommender.recommend([{"history": history}], N).item_id}

    assert find_missing(["buy"]) == {IDS[1], IDS[3]}
    # without declared targets, training predicted all types that it had: a view is one of them
    assert find_missing(None) == {IDS[0], IDS[1], IDS[3]}
    # where training had no types, the word decides
    request = strangers.check([{"history": history}])[0]
    untyped = replace(strangers.just_taken, events=())
    held_back = untyped.find_held_back(request, UNTIL, strangers.catalogue.item_ids)
    assert {*held_back} == {IDS[1], IDS[3], IDS[4], IDS[6]}


def test_the_usual_gap_of_the_profiles_is_waited_for_where_the_user_has_none(recommender):
    gaps = []
    for user in known_users(SHOP).values():
        times_of = defaultdict(set)
        for one in user["history"]:
            times_of[one["item_id"]].add(one["datetime"])
        gaps += [b - a for times in times_of.values() for a, b in pairwise(sorted(times))]
    wait = median(gaps)
    assert 0 < wait < DEFAULT_GAP

    def count(seconds):
        moment = UNTIL + int(seconds)
        history = [{"item_id": IDS[0], "datetime": UNTIL}]
        request = {"history": history, "datetime": min(moment, UNTIL + DAY - 1)}
        return recommender.recommend([request], N).held_back.tolist()

    assert count(min(wait, DAY) - 1) == [1]
    known = recommender.just_taken
    request = recommender.check([{"history": take(IDS[0], -1), "datetime": DAWN}])[0]
    fresh = replace(request, n_fresh=1)
    last = fresh.history.datetime[0]
    for seconds, is_held in ((wait - 1, True), (wait, False)):
        ids = recommender.catalogue.item_ids
        held_back = known.find_held_back(fresh, int(last + seconds), ids)
        assert held_back == [IDS[0]] * is_held


def test_of_a_profile_alone_and_of_other_views_nothing_is_held_back(recommender, tmp_path):
    for user, known in known_users(SHOP).items():
        moment = max([UNTIL, *(one["datetime"] for one in known["history"])])
        asked = {"user_id": user, "datetime": moment}
        plain = recommender.recommend([asked, asked | {"again": "any"}], N)
        assert plain.held_back.tolist() == [0, 0]
        assert plain.of(0).item_id.tolist() == plain.of(1).item_id.tolist()
    request = {"history": take(IDS[0], 0), "datetime": DAWN + DAY}
    assert recommender.recommend([request], N).held_back.tolist() == [1]
    assert recommender.recommend([request], N, filter_viewed=True).held_back.tolist() == [0]
    assert recommender.rank_owned([request], N).item_id.tolist() == [IDS[0]]
    films = Recommender.load(publish_linear(tmp_path, FILMS, 3))
    request = {"history": [{"item_id": item_ids(FILMS)[0]}]}
    assert len(films.recommend([request], N, filter_viewed=False).item_id) == N
