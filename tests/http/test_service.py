"""The service without HTTP: moments, live state, forgetting in several folders, explanations."""

import math
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import date
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from serve.recommendations import Answer
from serve.recommender import Recommender
from service.answers import show_items
from service.forget import add_to_erasure_list
from service.registry import Registry, activate, publish_version
from service.service import Service
from service.sources import BundleSource, RegistrySource
from service.state import StateStore
from tests.http.services import EVER, NOW, a_user, open_bundle, publish_served
from tests.linear_bundle import DAY, FILMS, SHOP, UNTIL, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles

from service import service as service_module

IDS = item_ids(FILMS)


@pytest.fixture(params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture
def bundle(schema, tmp_path):
    return publish_served(tmp_path, schema)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return Recommender.load(publish_served(tmp_path_factory.mktemp("films"), FILMS))


def ask(service, *requests):
    current = service.current
    return [
        one.item_id.tolist()
        for one in current.recommend([*service.read(requests, current)], 5, None)
    ]


def test_a_request_without_datetime_is_asked_in_this_minute_or_at_a_later_event(
    bundle, schema, monkeypatch
):
    now = UNTIL + 12 * 3600
    monkeypatch.setattr("service.service.time.time", lambda: now + 59.5)
    asked, user = [], a_user(schema)
    recommend = Recommender.recommend
    monkeypatch.setattr(
        Recommender,
        "recommend",
        lambda self, *given: [asked.extend(given[0]), recommend(self, *given)][1],
    )
    with closing(open_bundle(bundle)) as service:
        ask(service, {"user_id": user})
        for after in (10, 30, 3600):
            service.observe(
                [
                    {
                        "user_id": user,
                        "item_id": item_ids(schema)[0],
                        "datetime": now + after,
                    }
                ]
            )
        ask(service, {"user_id": user}, {"user_id": user, "datetime": now + 7})
    assert [request.datetime for request in asked[-3:]] == [
        now,
        now + 30,
        now + 7,
    ]  # what lies ahead does not count


def test_data_that_ended_long_ago_is_asked_at_its_end_and_live_events_follow_it(
    bundle, schema, monkeypatch
):
    item, other, *_ = item_ids(schema)
    now, user = UNTIL + 3000 * DAY + 20, a_user(schema)
    with (
        closing(open_bundle(bundle)) as service,
        closing(open_bundle(bundle)) as worker,
    ):
        monkeypatch.setattr("service.service.time.time", lambda: now)
        (before,) = service.read([{"user_id": user}], service.current)
        for seconds, what in ((0, item), (2 * DAY, other)):
            now += seconds
            service.observe([{"user_id": user, "item_id": what}])
        now += DAY
        (after,) = service.read([{"user_id": user}], service.current)
        profile = service.current.profiles.get(user).history
        assert before.datetime == UNTIL
        assert 0 <= UNTIL + 3 * DAY - after.datetime < 60
        assert after.history.item_id.tolist() == [
            *profile.item_id.tolist(),
            item,
            other,
        ]
        assert after.history.datetime.tolist() == [
            *profile.datetime.tolist(),
            UNTIL,
            UNTIL + 2 * DAY,
        ]
        later = {"user_id": user, "datetime": UNTIL + 90 * DAY}
        (asked,) = service.read([later], service.current)
        assert asked.datetime == UNTIL + 90 * DAY
        assert asked.history.datetime.tolist() == after.history.datetime.tolist()
        expected = [service.current.recommend([after], 5).of(0).item_id.tolist()]
        assert ask(service, {"user_id": user}) == ask(worker, {"user_id": user}) == expected
        status = service.describe()
        assert (status["clock"], status["moment"], len(status["notes"])) == (
            "data",
            UNTIL,
            1,
        )
    with closing(open_bundle(bundle)) as again:
        assert ask(again, {"user_id": user}) == expected
    with closing(StateStore(bundle.parent / "state" / "state.db")) as store:
        assert store.recall(user).history.datetime.tolist() == [
            now - 3 * DAY,
            now - DAY,
        ]
    with closing(Service(BundleSource(bundle), bundle.parent, None, None, EVER, "now")) as ours:
        (today,) = ours.read([{"user_id": user}], ours.current)
        assert (today.datetime, ours.describe()["clock"]) == (now - now % 60, "now")


def test_the_data_ends_with_profiles_that_are_newer_than_the_bundle(bundle, schema):
    known = known_users(schema)
    last = known[a_user(schema)]["history"][-1]
    last["datetime"] = UNTIL + 400 * DAY
    write_profiles(bundle.parent / "profiles", make_profiles(schema, known))
    with closing(open_bundle(bundle)) as service:
        (asked,) = service.read([{}], service.current)
        assert asked.datetime == service.describe()["moment"] == UNTIL + 400 * DAY + 1


def test_an_event_older_than_the_retention_is_not_kept(bundle, schema):
    user, (first, second, *_) = a_user(schema), item_ids(schema)
    now, state = int(time.time()), bundle.parent / "state"
    with closing(Service(BundleSource(bundle), bundle.parent, None, None, 2)) as service:
        times = {first: now - 3 * DAY, second: now - DAY}
        events = [{"user_id": user, "item_id": item, "datetime": at} for item, at in times.items()]
        assert service.observe(events) == (1, "1 older than 2 days, the retention")
    with closing(StateStore(state / "state.db")) as store:
        assert list(store.recall(user).history.item_id) == [second]


def test_a_folder_by_another_name_is_refused_since_forgetting_would_not_find_it(bundle):
    with pytest.raises(ValueError, match="expected a folder called 'state'"):
        open_bundle(bundle, bundle.parent / "mine")


def test_a_user_is_forgotten_out_of_all_folders_with_profiles_or_state(tmp_path, bundle, schema):
    registry = Registry(tmp_path / "registry")
    publish_version(registry, bundle, 1, is_activated=True)
    other = publish_served(
        tmp_path / "earlier", FILMS if schema is SHOP else SHOP
    ).parent  # ids of another type
    profiles, state = bundle.parent / "profiles", other / "state"
    user, event = (
        a_user(schema),
        {"user_id": a_user(schema), "item_id": item_ids(schema)[0]},
    )
    source = RegistrySource(registry, profiles)
    with closing(Service(source, registry.path, profiles, state, EVER)) as service:
        assert service.observe([event])[0] == 1
        erased = [receipt["erased"] for receipt in service.forget(user).result()]
        assert (
            sum(one["events"] for one in erased),
            sum(one["profiles"] for one in erased),
        ) == (1, 1)
        assert service.observe([event])[0] == 0
        theirs, anyones = ask(service, {**NOW, "user_id": user}, NOW)
        assert theirs == anyones


def test_services_of_one_state_follow_each_other(tmp_path, bundle, schema):
    registry, state = Registry(tmp_path / "registry"), tmp_path / "state"
    other = publish_linear(tmp_path / "other", schema, seed=8)
    versions = [
        publish_version(registry, one, is_activated=True).version for one in (bundle, other)
    ]
    source, item = RegistrySource(registry), item_ids(schema)[0]

    def start():
        return closing(Service(source, registry.path, None, state, EVER))

    def agree(version, is_listed, *services):
        until = time.monotonic() + 10
        while any(
            (one.version, one.current.catalogue.lists(item)) != (version, is_listed)
            for one in services
        ):
            assert time.monotonic() < until
            time.sleep(0.01)

    with start() as first, start() as second:
        assert first.items.remove(item)
        agree(versions[1], False, first, second)
        activate(registry, versions[0])
        assert second.reload() is None
        agree(versions[0], False, first, second)
        second.items.put(item, {"price": 2.0})
        activate(registry, versions[1])
        with (
            start() as third
        ):  # of the version that is current now: the others must not stay behind
            agree(versions[1], True, first, second, third)
        shutil.rmtree(registry.path / versions[0])
        registry.set_current(versions[0], versions)
        assert first.reload() is not None
        agree(versions[1], True, first, second)


@pytest.mark.parametrize("part", ["LiveItems", "StateStore"])
def test_answers_go_on_without_a_state_that_cannot_be_opened_until_it_can(
    bundle, schema, monkeypatch, part
):
    is_full, opened = [True], getattr(service_module, part)

    def open_part(*given):
        if is_full:
            raise OSError(28, "No space left on device", "state")
        return opened(*given)

    monkeypatch.setattr(f"service.service.{part}", open_part)
    monkeypatch.setattr("service.service._RETRY_SECONDS", 0.01)
    (gone, user, *_), (item, *_) = known_users(schema), item_ids(schema)
    event = {"user_id": user, "item_id": item, "event": "dismiss"}
    add_to_erasure_list(bundle.parent, [gone])
    with closing(open_bundle(bundle)) as service:
        known, forgotten, nobody = ask(
            service, *({**NOW, "user_id": one} for one in (user, gone)), NOW
        )
        assert (len(known), forgotten == nobody) == (5, True)
        assert "disk" in service.find_faults()
        assert service.describe()["notes"]
        for keep in (
            lambda: service.observe([event]),
            lambda: service.items.put(item, {}),
            lambda: service.items.remove(item),
        ):
            with pytest.raises(OSError, match="No space left"):
                keep()
        assert service.reload() is None
        is_full.clear()
        while "disk" in service.find_faults():
            time.sleep(0.01)
        assert service.observe([event])[0] == 1
        assert service.items.remove(item)
    with closing(StateStore(bundle.parent / "state" / "state.db")) as store:
        assert store.recall(user).dismissed == (item,)


def test_columns_are_shown_as_json_can_write_them_and_vectors_are_not(films):
    items = films.bundle.items
    table = pa.table({"item_id": items.column("item_id")})
    more = {
        "price": pa.array([math.nan, math.inf, 2.5], pa.float64()),
        "day": pa.array([date(2020, 1, 2), None, date(2021, 3, 4)]),
        "in_stock": pa.array([True, None, False]),
        "tags": pa.array([["a", "b"], [], None]),
        "picture": pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2)),
        "sound": pa.array([[1.0], [], None], pa.list_(pa.float64())),
    }
    for name, values in more.items():
        table = table.append_column(
            name, pa.chunked_array([values, pa.nulls(len(items) - 3, values.type)])
        )
    assert show_items(table, np.array([2, 0, 1])) == [
        {"price": 2.5, "day": "2021-03-04", "in_stock": False, "tags": None},
        {"price": None, "day": "2020-01-02", "in_stock": True, "tags": ["a", "b"]},
        {"price": None, "day": None, "in_stock": None, "tags": []},
    ]


def test_who_only_asks_fills_no_disk(tmp_path, monkeypatch):
    bundle = publish_served(tmp_path, SHOP)
    ids = [f"i{number}" for number in range(300)]
    answer = Answer(None, np.array(ids, object), np.ones(300, np.float32), np.arange(300), 0)
    with closing(open_bundle(bundle, tmp_path / "state")) as service:
        service.log_shown(service.current, [answer], "long")
        monkeypatch.setattr(
            "service.service.disk_usage", lambda _: SimpleNamespace(total=10_000, free=100)
        )
        until = time.monotonic() + 20
        while not service.impressions.is_short:
            assert time.monotonic() < until
            time.sleep(0.01)
        service.log_shown(service.current, [answer], "short of room")
        assert service.impressions.n_lost == 1
        assert service.observe([{"user_id": "u1", "item_id": item_ids(SHOP)[0]}])[0] == 1
    with closing(sqlite3.connect(tmp_path / "state" / "state.db")) as database:
        logged = database.execute("SELECT request_id FROM answers").fetchall()
        assert logged == [("long",)]
        items = database.execute("SELECT item_id FROM shown ORDER BY position").fetchall()
        assert [item for (item,) in items] == ids[:100]
