"""What a user did just now counts in the next answer, as if it had stood in their profile."""

import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from serve.errors import SchemaError
from serve.profiles import Profiles, settle_profiles, stage_profiles
from serve.recommender import Recommender
from serve.requests import History, Request, parse_request
from service.event_log import Observation, parse_observations, read_log
from service.known_users import complete
from service.state import StateStore
from tests.linear_bundle import DAY, SEED, SHOP, UNTIL, WORLDS, N, item_ids
from tests.linear_profiles import known_users
from tests.linear_reference import naive_list, naive_scores

EMPTY = {"history": []}


def draw_events(schema, seed):
    """Draw events of two known users and an unknown one, some before the last of the profile, some of no known item."""
    rng = np.random.default_rng(seed)
    first, second, *_ = known_users(schema)
    users = [first, second, 99 if schema.user_id_type == "integer" else "newcomer"]
    ids = [*item_ids(schema)[5:15], 8 if schema.item_id_type == "integer" else "unborn"]
    return [
        Observation(
            users[int(rng.integers(3))],
            ids[int(rng.integers(len(ids)))],
            ["view", "buy", "other"][int(rng.integers(3))] if schema.event_types else None,
            UNTIL + int(rng.integers(-3, 3)) * DAY,
            float(rng.integers(0, 4)) if schema.has_weight else None,
        )
        for _ in range(17)
    ]


def write_event(one):
    row = {
        "item_id": one.item_id,
        "datetime": one.datetime,
        "event": one.event,
        "weight": one.weight,
    }
    return {name: value for name, value in row.items() if value is not None}


def grow(known, events):
    """Add events to profiles, as the requests would be if they had been there."""
    grown = {user_id: {**user, "history": list(user["history"])} for user_id, user in known.items()}
    for one in dict.fromkeys(events):  # what was sent twice is there once
        told = [
            (old["item_id"], old["datetime"], old.get("event"))
            for old in known.get(one.user_id, EMPTY)["history"]
        ]
        if (one.item_id, one.datetime, one.event) not in told:
            grown.setdefault(one.user_id, {"features": {}, "history": []})["history"].append(
                write_event(one)
            )
    for user in grown.values():
        user["history"].sort(key=lambda row: row["datetime"])
    return grown


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("filter_viewed", [True, False])
def test_answers_are_those_of_a_profile_that_has_the_events(
    recommenders, store, world, seed, filter_viewed
):
    schema, recommender = WORLDS[world], recommenders[world]
    known, events = known_users(schema), draw_events(schema, seed)
    row_of = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    n_compared = 0
    for n_seen, one in enumerate(events, start=1):
        store.observe(one.user_id, one.item_id, one.event, one.datetime, one.weight)
        if n_seen not in (1, 9, len(events)):
            continue
        n_compared += 1
        grown = grow(known, events[:n_seen])
        raw = [{"user_id": user_id} for user_id in grown] + [
            {"user_id": one.user_id, "datetime": UNTIL + 9 * DAY}
        ]
        raw = [request | {"again": "any"} for request in raw]
        requests = [
            complete(parse_request(request, schema), recommender.profiles, store) for request in raw
        ]
        for request, answer in zip(
            raw, recommender.recommend(requests, 6, filter_viewed), strict=True
        ):
            _, scores, owned = naive_scores(schema, SEED, grown, request)
            rows = set(range(N)) - owned if filter_viewed else set(range(N))
            expected = naive_list(scores, rows, 6)
            assert [row_of[item_id] for item_id in answer.item_id] == expected
            np.testing.assert_allclose(
                answer.score, [scores[row] for row in expected], rtol=1e-4, atol=1e-4
            )
    assert n_compared == 3


def test_a_request_learns_whether_its_user_is_known_and_nothing_else_where_the_store_has_nothing(
    recommenders, store
):
    profiles, (user_id, *_) = recommenders["shop"].profiles, known_users(SHOP)
    store.observe("another", "a", "view", UNTIL)
    store.observe("grump", "a", "dismiss", UNTIL)
    own = Request("another", history=History(np.array(["b"], dtype=object)))
    strange = replace(own, user_id="nobody")
    known = {
        Request(): None,
        Request(user_id): True,
        Request("nobody"): False,
        own: True,
        strange: False,
    }
    for request, is_known in known.items():
        assert complete(request, profiles, store) == replace(request, user_known=is_known)
    assert complete(Request("grump"), profiles, store).user_known


def test_what_was_taken_live_is_not_listed_until_it_may_be_due_again(recommenders, store):
    recommender = recommenders["shop"]
    user_id, *_ = known_users(SHOP)
    (best, *_) = recommender.recommend([Request(user_id, datetime=UNTIL)], N).item_id
    other = next(item for item in item_ids(SHOP) if item != best)

    def ask(**more):
        request = complete(Request(user_id, **more), recommender.profiles, store)
        return recommender.recommend([request], N).of(0)

    store.observe(user_id, best, "buy", UNTIL + 5)
    after = ask(datetime=UNTIL + 9)
    assert best not in after.item_id
    assert after.held_back == 1
    whole = ask(datetime=UNTIL + 9, again="any")
    assert [item for item in whole.item_id if item != best] == after.item_id.tolist()
    # a history of its own says nothing of what was taken live
    own = parse_request({"history": [{"item_id": other}]}, SHOP).history
    alone = ask(history=own, datetime=UNTIL + 9)
    assert (best in alone.item_id, alone.held_back) == (True, 1)
    # the same event in the profile of a later training is still held back
    profile = recommender.profiles.get(user_id)
    grown = replace(
        Profiles.none(SHOP),
        user_ids=np.array([user_id], object),
        history=complete(Request(user_id), recommender.profiles, store).history,
        offsets=np.array([0, len(profile.history) + 1]),
    )
    request = complete(Request(user_id, datetime=UNTIL + 9), grown, store)
    later = Recommender(recommender.bundle, grown).recommend([request], N).of(0)
    assert best not in later.item_id
    far = ask(datetime=UNTIL + 400 * DAY)
    assert (best in far.item_id, far.held_back) == (True, 0)


def test_what_a_profile_took_on_its_last_day_is_held_back_where_it_is_served(
    recommenders, store, tmp_path
):
    measured = recommenders["shop"]
    item_ids = measured.catalogue.item_ids
    profiles = measured.just_taken.hold_last_day(measured.profiles, item_ids)
    stage_profiles(tmp_path / "profiles", [profiles], "1")
    settle_profiles(tmp_path / "profiles", "1")
    served = Recommender(measured.bundle, Profiles.load(tmp_path / "profiles"))
    n_held = 0
    for user_id in known_users(SHOP):
        history = served.profiles.get(user_id).history
        if not len(history):
            continue
        moment = int(history.datetime[-1])
        # the rule of live events is the judge
        last_day = int((history.datetime > moment - DAY).sum())
        live = Request(user_id, history=history, n_fresh=last_day, datetime=moment)
        expected = measured.recommend([live], N).item_id.tolist()
        request = Request(user_id, datetime=moment)
        assert served.recommend([request], N).item_id.tolist() == expected
        whole = measured.recommend([request], N).item_id.tolist()
        assert served.recommend([replace(request, again="any")], N).item_id.tolist() == whole
        assert served.recommend([replace(request, profile=False)], N).held_back.sum() == 0
        n_held += len(whole) - len(expected)
        # a live event holds its own item back, and leaves the others held
        store.observe(user_id, expected[0], "buy", moment + 5)
        joined = complete(replace(request, datetime=moment + 9), served.profiles, store)
        assert not {*served.recommend([joined], N).item_id} & ({*whole} - {*expected[1:]})
        later = replace(request, datetime=moment + 400 * DAY)
        assert served.recommend([later], N).held_back.sum() == 0
    assert n_held > 0
    (gone, *_) = known_users(SHOP)
    assert len(profiles.without([gone]).held_until) == len(profiles.without([gone]).history)


@pytest.mark.parametrize("user_id", ["newcomer", "known"])
def test_a_return_undoes_what_it_brings_back_and_nothing_else(recommenders, store, user_id):
    recommender = recommenders["shop"]
    if user_id == "known":
        user_id = next(
            one for one in known_users(SHOP) if len(recommender.profiles.get(one).history)
        )
    first, second, *_ = item_ids(SHOP)

    def read():
        request = complete(Request(user_id, datetime=UNTIL + 99), recommender.profiles, store)
        history = request.history
        if history is None:
            history = recommender.profiles.get(user_id).history
        answer = recommender.recommend([request], N).of(0)
        return history.item_id.tolist(), answer.item_id.tolist()

    store.observe(user_id, first, "view", UNTIL + 1)
    before = read()
    store.observe(user_id, second, "buy", UNTIL + 2, 2.0)
    store.observe(user_id, second, "buy", UNTIL + 3, -1.0)
    part = complete(Request(user_id), recommender.profiles, store).history
    assert (part.item_id[-1], part.weight[-1]) == (second, 1.0)  # one of two came back
    store.observe(user_id, second, "buy", UNTIL + 4, -7.0)
    assert read() == before
    store.observe(user_id, first, "buy", UNTIL + 5, -1.0)  # of another type, but the only one
    assert read()[0] == before[0][:-1]
    log = read_log(store.path).events
    assert sorted(log.column("weight").to_pylist(), key=str) == [-1.0, -1.0, -7.0, 2.0, None]


def test_a_mistyped_type_is_answered_by_the_nearest_and_another_one_is_kept():
    event = {"user_id": "u", "item_id": item_ids(SHOP)[0]}
    assert SHOP.event_types
    for declared in SHOP.event_types:
        (kept,) = parse_observations([{**event, "event": declared}], SHOP, UNTIL)
        assert kept.event == declared
        with pytest.raises(SchemaError, match=f"did you mean '{declared}'"):
            parse_observations([{**event, "event": f"{declared}{declared[-1]}"}], SHOP, UNTIL)
    for label in ("dismiss", "undismiss", "click"):
        (kept,) = parse_observations([{**event, "event": label}], SHOP, UNTIL)
        assert kept.event == label


@pytest.mark.parametrize("user_id", ["u1", "newcomer"])
def test_a_live_event_has_the_context_that_a_trained_one_has(recommenders, store, user_id):
    pd = pytest.importorskip("pandas")
    from datamodules.sequences import build_sequences

    profiles, ids = recommenders["shop"].profiles, item_ids(SHOP)
    devices = ["web", "phone", None, "fridge", "web"]
    raw = [
        {"item_id": ids[row], "datetime": UNTIL + row * 3600, "context": {"device": device}}
        for row, device in enumerate(devices)
    ]
    sent = [{**event, "user_id": user_id} for event in raw]
    store.observe_many(parse_observations(sent, SHOP, UNTIL + DAY))
    store.observe(user_id, ids[9], "view", UNTIL + DAY)
    live = complete(Request(user_id), profiles, store).history
    assert live.context[-1] == 0  # nobody said in which it happened
    table = pd.DataFrame(raw).drop(columns="context").assign(device=devices, user_id=user_id)
    trained = build_sequences(table, table[["user_id"]][:1], np.sort(ids), SHOP).events
    assert live.context[-6:-1].tolist() == trained.context.tolist()
    assert len({*live.context[-6:]}) == 6
    before = profiles.get(user_id)
    if before is not None:
        assert len(live) == len(before.history) + 6
        assert not live.context[: len(before.history)].any()


def test_events_that_a_later_training_put_into_the_profile_count_once(recommenders, store):
    profiles = recommenders["shop"].profiles
    history = profiles.get("u1").history
    for place in (3, 3, 8, 12):  # one of them sent twice
        store.observe(
            "u1",
            *(history.columns()[name][place] for name in ("item_id", "event")),
            int(history.datetime[place]),
        )
    store.observe("u1", str(history.item_id[3]), "returned", int(history.datetime[3]))
    completed = complete(Request("u1"), profiles, store).history
    assert len(completed) == len(history) + 1
    assert [event for event in completed.event if event == "returned"] == ["returned"]
    assert sorted(completed.datetime.tolist()) == completed.datetime.tolist()


@pytest.mark.parametrize(
    ("world", "user_id", "other_id", "stored", "readable"),
    [
        (
            "films",
            4,
            "4",
            [107, "107", "0107", "x", "108", "９", str(2**63)],
            [107, 107, None, None, 108, None, None],
        ),
        ("shop", "5", 5, [7, "x", -8, "i107"], ["7", "x", "-8", "i107"]),
    ],
)
def test_what_was_stored_with_another_type_of_ids_is_read_in_that_of_the_bundle(
    recommenders, store, tmp_path, world, user_id, other_id, stored, readable
):
    recommender, request = recommenders[world], Request(user_id)
    with closing(StateStore(tmp_path / "as_it_is_now" / "state.db")) as expected:
        for time, (item_id, as_now) in enumerate(zip(stored, readable, strict=True), start=UNTIL):
            for event in ("view", "dismiss"):
                store.observe(other_id, item_id, event, time, 2.0)
                if as_now is not None:
                    expected.observe(user_id, as_now, event, time, 2.0)
        completed, same = (
            complete(request, recommender.profiles, one) for one in (store, expected)
        )
        for name, values in same.history.columns().items():
            np.testing.assert_array_equal(getattr(completed.history, name), values)
        assert completed.exclude == same.exclude
        assert (
            len(recommender.recommend([completed, replace(request, exclude=completed.exclude)], N))
            == 2
        )


def draw_without_times(rng, has_events):
    """Draw up to 9 events of few kinds, so that many are alike: pairs of an item and an event."""
    events = [None, "view"] if has_events else [None]
    return [
        (int(rng.integers(2)), events[int(rng.integers(len(events)))])
        for _ in range(rng.integers(1, 10))
    ]


@pytest.mark.parametrize("has_events", [False, True])
def test_live_events_that_the_end_of_a_profile_without_times_has_count_once(store, has_events):
    rng = np.random.default_rng(8)
    for user_id in range(40):
        profile = draw_without_times(rng, has_events)
        newer = draw_without_times(rng, has_events)
        live = [*profile[int(rng.integers(len(profile) + 1)) :], *newer]
        store.observe_many(
            Observation(user_id, item_id, event if has_events else f"said {place}", place, 2.0)
            for place, (item_id, event) in enumerate(live)
        )
        items, events = zip(*profile, strict=True)
        history = History(np.array(items), event=np.array(events, object) if has_events else None)
        profiles = Profiles(np.array([user_id]), {}, history, np.array([0, len(profile)]))
        completed = complete(Request(user_id), profiles, store).history
        n_same = max(
            n
            for n in range(min(len(profile), len(live)) + 1)
            if profile[len(profile) - n :] == live[:n]
        )
        assert completed.item_id.tolist() == [*items, *(item_id for item_id, _ in live[n_same:])]
        assert completed.datetime is None


def test_without_times_in_the_data_what_was_taken_months_ago_is_not_just_taken(store):
    profiles = Profiles(np.array([7]), {}, History(np.array([1, 2])), np.array([0, 2]))
    now = int(time.time())
    store.observe(7, 3, "buy", now - 200 * DAY)
    assert complete(Request(7), profiles, store).n_fresh == 0
    store.observe(7, 4, "buy", now)
    completed = complete(Request(7), profiles, store)
    assert completed.history.item_id.tolist() == [1, 2, 3, 4]
    assert completed.n_fresh == 1
