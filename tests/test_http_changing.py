"""Events, items and forgetting over HTTP: what changes, changes the next answer, and is there after a restart."""

import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from serve.__main__ import main
from serve.errors import BundleError
from serve.http.command import places_of_bundle, places_of_registry
from serve.incoming import Asked
from serve.layout import STATE_FILE
from serve.registry.changes import publish_and_activate
from serve.registry.versions import Registry
from serve.service import Service
from serve.state import StateStore
from serve.state.tombstones import FORGOTTEN
from tests.linear_bundle import DAY, FILMS, SHOP, UNTIL, item_ids
from tests.linear_profiles import known_users
from tests.live_service import EVER, asking, publish_served
from tests.served import ask, serving

NOW = {"datetime": UNTIL + DAY}


@pytest.fixture(params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture
def bundle(schema, tmp_path):
    return publish_served(tmp_path, schema)


@pytest.fixture
def app(bundle):
    with asking(bundle) as app:
        yield app


def listed(app, **request):
    reply = ask(app, "POST", "/v1/recommend", {**NOW, **request})
    assert reply.status == 200, reply
    return [item["item_id"] for item in reply.json["answers"][0]["items"]]


def a_user(schema):
    return list(known_users(schema))[1]


def test_a_service_that_could_not_begin_lets_go_of_the_items(bundle):
    places = places_of_bundle(bundle, None, None)
    places.state.mkdir()
    (places.state / STATE_FILE).write_bytes(b"no database" * 100)
    with pytest.raises(BundleError, match="is no database") as kept:  # and with it all that the attempt held
        Service(places.source, places.state, places.runs, EVER)
    (places.state / STATE_FILE).unlink()
    Service(places.source, places.state, places.runs, EVER).close()
    assert kept.value.__traceback__ is not None


def test_of_many_requests_the_one_that_is_wrong_is_named(app):
    reply = ask(app, "POST", "/v1/recommend", {"requests": [{}, {"history": [{"item_id": []}]}], "k": 2})
    assert reply.status == 422
    several = {"requests": [{}, {"context": {"nowhere": "x"}}], "k": 2}
    reply = ask(app, "POST", "/v1/recommend", several)
    assert reply.status == 422
    assert reply.json["error"]["message"].startswith("requests[1]: context: unknown name")
    alone = ask(app, "POST", "/v1/recommend", several["requests"][1])
    assert alone.json["error"]["message"].startswith("context: unknown name")


def test_the_status_says_that_the_data_is_old_where_anything_fades(app, schema):
    status = ask(app, "GET", "/v1/status").json
    assert status["data_until"] == UNTIL
    days = (int(time.time()) - UNTIL) // DAY
    notes = [note for note in status["notes"] if note.startswith(f"the data ended {days} days ago")]
    assert len(notes) == (schema.repeats == "allow")


def test_where_who_was_forgotten_cannot_be_told_nobody_known_is_answered(app, bundle, schema):
    user, damaged = a_user(schema), bundle.parent / FORGOTTEN
    damaged.write_text("{", encoding="utf-8")
    reply = ask(app, "POST", "/v1/recommend", {**NOW, "user_id": user})
    assert (reply.status, reply.json["error"]["code"]) == (503, "unavailable")
    assert str(bundle.parent) not in reply.content.decode()
    assert listed(app)
    damaged.unlink()
    assert listed(app, user_id=user)


def test_an_event_counts_in_the_next_answer(app, schema):
    user = a_user(schema)
    before = listed(app, user_id=user, repeats="exclude")
    taken = before[0]
    reply = ask(app, "POST", "/v1/events", {"user_id": user, "item_id": taken, "event": "buy", "datetime": UNTIL + 5})
    assert reply.status == 200
    assert reply.json["kept"] == 1
    assert reply.json["latency_ms"] > 0
    assert reply.json["version"] == ask(app, "GET", "/v1/status").json["version"]
    after = listed(app, user_id=user, repeats="exclude")
    assert taken not in after
    assert after != before[1:]  # the history is another one, not only what is left out


def test_a_dismissed_item_is_kept_away_whatever_history_the_request_has(app, schema):
    user = a_user(schema)
    ids = item_ids(schema)
    unwanted = listed(app, user_id=user, repeats="allow")[0]
    ask(app, "POST", "/v1/events", {"user_id": user, "item_id": unwanted, "event": "dismiss"})
    assert unwanted not in listed(app, user_id=user, repeats="allow", k=23)
    history = [{"item_id": unwanted}, {"item_id": ids[3]}]
    assert unwanted not in listed(app, user_id=user, repeats="allow", k=23, history=history)
    assert unwanted in listed(app, repeats="allow", k=23, history=history)


def test_events_are_kept_all_or_none(app, schema):
    user, ids = a_user(schema), item_ids(schema)
    before = listed(app, user_id=user)
    events = [{"user_id": user, "item_id": ids[0]}, {"user_id": user, "item_id": ids[1], "datetime": "never"}]
    reply = ask(app, "POST", "/v1/events", {"events": events})
    assert reply.status == 422
    assert "never" not in reply.content.decode()
    assert listed(app, user_id=user) == before


def test_an_event_older_than_the_retention_is_not_kept(bundle, schema):
    user, (first, second, *_) = a_user(schema), item_ids(schema)
    places, now = places_of_bundle(bundle, None, None), int(time.time())
    with closing(Service(places.source, places.state, places.runs, retention_days=2)) as service:
        events = [
            {"user_id": user, "item_id": item, "event": "buy", "datetime": now - since}
            for item, since in ((first, 3 * DAY), (second, DAY))
        ]
        assert service.observe(events) == 1
    with closing(StateStore(places.state / STATE_FILE)) as store:
        assert list(store.history(user).item_id) == [second]


def new_id(schema):
    return 5000 if schema.item_id_type == "integer" else "new/item 1"


def test_an_item_comes_stays_over_a_restart_and_goes_for_good(bundle, schema):
    item_id, columns = new_id(schema), {"department": "dairy", "price": 2.5, "brand": "x"}
    with asking(bundle) as app:
        assert item_id not in listed(app, k=30)
        assert ask(app, "PUT", f"/v1/items/{item_id}", {"columns": columns}).status == 200
        assert item_id in listed(app, k=30)
        assert len(ask(app, "POST", "/v1/similar", {"item_id": item_id, "k": 3}).json["items"]) == 3
    with asking(bundle) as app:
        assert item_id in listed(app, k=30)
        gone = [item_id, item_ids(schema)[4]]
        for one in gone:
            assert ask(app, "DELETE", f"/v1/items/{one}", headers={}).json["was_there"] is True
        assert not set(gone) & set(listed(app, k=30))
    with asking(bundle) as app:
        assert not set(gone) & set(listed(app, k=30))
        assert ask(app, "DELETE", f"/v1/items/{item_id}", headers={}).json["was_there"] is False


def test_the_status_counts_the_items_that_may_be_listed(app, schema):
    known, new = item_ids(schema)[4], new_id(schema)
    sent = [("DELETE", known, -1), ("PUT", new, 0), ("DELETE", new, -1), ("DELETE", new, -1), ("PUT", known, 0)]
    before = len(listed(app, k=30))
    for method, item_id, change in sent:
        assert ask(app, method, f"/v1/items/{item_id}", {"columns": {"department": "dairy"}}).status == 200
        assert ask(app, "GET", "/v1/status").json["items"] == len(listed(app, k=30)) == before + change


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prise": 77123}, "did you mean 'price'"),
        ({"price": "cheap77123"}, "price"),
        ({}, "item"),
    ],
)
def test_an_item_that_cannot_be_placed_is_refused_without_its_values(app, schema, columns, said):
    reply = ask(app, "PUT", f"/v1/items/{new_id(schema)}", {"columns": columns})
    assert reply.status == 422
    assert said in reply.json["error"]["message"]
    assert "77123" not in reply.content.decode()
    assert str(new_id(schema)) not in reply.json["error"]["message"]


@pytest.mark.parametrize("item_id", [7, 12, -1, "7", "é"])
def test_an_item_that_is_not_known_is_refused_without_its_id_however_short(app, item_id):
    reply = ask(app, "POST", "/v1/similar", {"item_id": item_id})
    assert reply.status == 422
    said = "item_id … is unknown; allowed: the 23 ids of the catalogue", "item_id: expected a whole number of 64 bits"
    assert reply.json["error"]["message"].replace(" (str)", "").startswith(said)


@pytest.mark.parametrize("path", ["/v1/items/", "/v1/items/a\0b", "/v1/items/" + "9" * 300])
def test_an_id_that_is_none_is_refused(app, path):
    assert ask(app, "PUT", path, {"columns": {"brand": "x"}}).status in (404, 422)


def test_ids_in_paths_may_hold_anything_a_text_may(app, schema):
    if schema.item_id_type == "integer":
        assert ask(app, "PUT", f"/v1/items/{new_id(schema)}\n", {"columns": {"brand": "x"}}).status == 422
        return
    for item_id in ["new\n", "new\nitem", "\n new", "a/b/", "é?#"]:
        assert ask(app, "PUT", f"/v1/items/{item_id}", {"columns": {"brand": "x"}}).status == 200
        assert item_id in listed(app, k=40)
        assert "new" not in listed(app, k=40)
        assert ask(app, "DELETE", f"/v1/items/{item_id}", headers={}).json["was_there"] is True
        assert item_id not in listed(app, k=40)


def test_a_path_that_is_no_utf8_is_refused(bundle):
    with serving("--bundle", bundle) as server:
        for path in ["/v1/items/%E9", "/v1/items/a%FF", "/v1/items/%ED%A0%80"]:
            for method in ("PUT", "DELETE"):
                reply = server.ask(method, path, {"columns": {"department": "dairy"}})
                assert (reply.status, reply.json["error"]["code"]) == (400, "bad_request")
                assert "UTF-8" in reply.json["error"]["message"]


def test_a_forgotten_user_is_nobody_and_stays_so(bundle, schema):
    user = a_user(schema)
    with asking(bundle) as app:
        nobody = listed(app)
        ask(app, "POST", "/v1/events", {"user_id": user, "item_id": item_ids(schema)[0]})
        assert listed(app, user_id=user) != nobody
        reply = ask(app, "POST", "/v1/users/forget", {"user_id": user})
        assert reply.status == 200
        (receipt,) = reply.json["receipts"]
        assert receipt["erased"]["profiles"] == 1
        assert receipt["erased"]["events"] == 1
        assert listed(app, user_id=user) == nobody
        assert ask(app, "POST", "/v1/events", {"user_id": user, "item_id": item_ids(schema)[0]}).json["kept"] == 0
    with asking(bundle) as app:
        assert listed(app, user_id=user) == nobody


def test_whoever_is_forgotten_by_command_where_the_profiles_are_is_nobody_where_the_state_is_too(
    tmp_path, bundle, schema
):
    registry = Registry(tmp_path / "registry")
    publish_and_activate(registry, bundle, keep=1)
    places = places_of_registry(registry.path, bundle.parent / "profiles", None)
    user, item_id = a_user(schema), item_ids(schema)[0]
    with closing(Service(places.source, places.state, places.runs, EVER)) as service:
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 1
        assert main(["forget", "--run", str(bundle.parent), "--user", str(user)]) == 0
        hers, anyones = service.recommend([Asked([{**NOW, "user_id": user}, NOW], 5, None, "r")])[0].lists
        assert hers.item_id.tolist() == anyones.item_id.tolist()
        np.testing.assert_allclose(hers.score, anyones.score)
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 0


def test_a_user_is_forgotten_where_one_of_two_folders_holds_nothing_yet(tmp_path, bundle, schema):
    registry = Registry(tmp_path / "registry")
    publish_and_activate(registry, bundle, keep=1)
    places = places_of_registry(registry.path, None, tmp_path / "apart" / "state")
    user, item_id = a_user(schema), item_ids(schema)[0]
    with closing(Service(places.source, places.state, places.runs, EVER)) as service:
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 1
        (receipt,) = service.forget(user)
        assert receipt["erased"]["events"] == 1
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 0


def test_a_user_is_forgotten_where_the_state_lies_beside_a_bundle_with_ids_of_another_type(tmp_path, bundle, schema):
    registry, other = Registry(tmp_path / "registry"), FILMS if schema is SHOP else SHOP
    publish_and_activate(registry, bundle, keep=1)
    earlier = publish_served(tmp_path / "earlier", other).parent
    places = places_of_registry(registry.path, bundle.parent / "profiles", earlier / "state")
    user, item_id = a_user(schema), item_ids(schema)[0]
    with closing(Service(places.source, places.state, places.runs, EVER)) as service:
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 1
        erased = [receipt["erased"] for receipt in service.forget(user)]
        assert sum(one["events"] for one in erased) == 1
        assert sum(one["profiles"] for one in erased) == 1
        assert service.observe([{"user_id": user, "item_id": item_id}]) == 0


@pytest.mark.parametrize(
    ("here", "bundle_as_given", "run_as_given"),
    [
        ("..", "{run}/bundle", "{run}"),
        (".", "bundle", "."),
        ("bundle", ".", "{whole}"),
        ("..", "{whole}/bundle", "{whole}"),
    ],
)
def test_a_receipt_names_a_run_as_it_was_given(bundle, schema, monkeypatch, here, bundle_as_given, run_as_given):
    words = {"run": bundle.parent.name, "whole": str(bundle.parent)}
    monkeypatch.chdir(bundle.parent / here)
    places = places_of_bundle(Path(bundle_as_given.format(**words)), None, None)
    with closing(Service(places.source, places.state, places.runs, EVER)) as service:
        (receipt,) = service.forget(a_user(schema))
    assert receipt["run"] == run_as_given.format(**words)
    assert receipt["erased"]["profiles"] == 1


def test_every_impression_is_logged_with_position_policy_and_version(bundle, schema):
    user = a_user(schema)
    with asking(bundle) as app:
        reply = ask(app, "POST", "/v1/recommend", {"requests": [{"user_id": user}, {}], "k": 4}).json
    with sqlite3.connect(bundle.parent / "state" / "state.db") as state:
        rows = state.execute(
            "SELECT a.request_id, a.user_id, a.bundle_version, a.policy, s.position, s.item_id FROM answers a "
            "JOIN shown s ON s.answer = a.number ORDER BY a.number, s.position"
        ).fetchall()
    state.close()
    assert rows == [
        (reply["request_id"], asker, reply["version"], "greedy", position, item["item_id"])
        for asker, answer in zip((user, None), reply["answers"], strict=True)
        for position, item in enumerate(answer["items"], start=1)
    ]


def test_a_file_that_another_process_keeps_is_told_as_such(bundle, schema, monkeypatch):
    monkeypatch.setattr("serve.state.database._PATIENCE", 0.05)
    with asking(bundle, bundle.parent / "other" / "state") as app:
        path = bundle.parent / "other" / "state" / "state.db"
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            event = {"user_id": a_user(schema), "item_id": item_ids(schema)[0]}
            reply = ask(app, "POST", "/v1/events", event)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert "another process" in reply.json["error"]["message"]
            assert str(bundle.parent) not in reply.content.decode()
            other.execute("ROLLBACK")
            assert ask(app, "POST", "/v1/events", event).status == 200


def test_a_disk_that_fails_is_told_and_nothing_is_lost_silently(app, schema, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "/secret/state.db")

    monkeypatch.setattr("serve.state.store.StateStore.observe_many", fail)
    monkeypatch.setattr("serve.state.store.StateStore.log_impressions", fail)
    reply = ask(app, "POST", "/v1/events", {"user_id": a_user(schema), "item_id": item_ids(schema)[0]})
    assert reply.status == 503
    assert "secret" not in reply.content.decode()
    assert reply.headers["retry-after"] == "1"
    assert listed(app)
    lost = b"bascule_impressions_lost 1.0"
    deadline = time.monotonic() + 20
    while lost not in ask(app, "GET", "/metrics").content:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/events", {"user_id": "u1"}),
        ("/v1/events", {"user_id": "u1", "item_id": "i100", "score": 3}),
        ("/v1/events", {"events": []}),
        ("/v1/events", {"events": [{"user_id": "u1", "item_id": "i1"}] * 257}),
        ("/v1/events", {"user_id": None, "item_id": "i1"}),
        ("/v1/users/forget", {}),
        ("/v1/users/forget", {"user_id": ["u1"]}),
        ("/v1/users/forget", {"user_id": " "}),
    ],
)
def test_other_forms_are_refused(app, path, body):
    assert ask(app, "POST", path, json.dumps(body).encode()).status == 422
