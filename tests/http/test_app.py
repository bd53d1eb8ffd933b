"""The routes answer as the recommender does; what changes, changes the next answer and is there after a restart."""

import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest
from serve.due import find_due
from serve.reasons import explain
from serve.recommendations import Mark, Segment, Segments
from serve.recommender import Recommender
from serve.rerank import Dials, recommend
from service.publish import Stage, publish
from service.state import StateStore
from tests.http.services import NOW, TOKEN, a_user, asking, listed, publish_served
from tests.linear_bundle import (
    FILMS,
    SHOP,
    UNTIL,
    N,
    W,
    item_ids,
    publish_linear,
    write_linear,
)
from tests.linear_profiles import known_users, make_profiles, write_profiles
from tests.served import JSON, ROOT, ask

AUTHORISED = JSON | {"authorization": f"Bearer {TOKEN}"}
SCRIPT = (ROOT / "service" / "http" / "page.js").read_text(encoding="utf-8")
PAGE = (ROOT / "service" / "http" / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[SHOP, FILMS], ids=["shop", "films"])
def schema(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(schema, tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("asking"), schema)


@pytest.fixture(scope="module")
def recommender(bundle):
    return Recommender.load(bundle)


@pytest.fixture(scope="module")
def app(bundle):
    """Give an application whose state no test changes."""
    with asking(bundle) as app:
        yield app


@pytest.fixture
def own(bundle, tmp_path):
    """Give a bundle with profiles and state that a test may change."""
    return (
        shutil.copytree(bundle.parent, tmp_path / "own", ignore=lambda *_: ["state"]) / bundle.name
    )


@pytest.fixture
def changing(own):
    with asking(own, token=TOKEN) as app:
        yield app


def test_a_list_that_is_confirmed_again_is_written_once_unless_that_failed(
    changing, own, monkeypatch
):
    def confirm(request_id):
        return ask(changing, "POST", "/v1/shown", {"request_id": request_id}).status

    with monkeypatch.context() as patch:
        patch.setattr(StateStore, "log_impressions", Mock(side_effect=OSError))
        assert confirm("r1") >= 500
    assert [confirm(name) for name in ("r1", "r2", "r1", "r1")] == [200] * 4
    with closing(sqlite3.connect(own.parent / "state" / "state.db")) as database:
        names = database.execute("SELECT request_id FROM answer_rows ORDER BY number").fetchall()
    assert names == [("r1",), ("r2",)]


def check_list(given, expected):
    assert [item["item_id"] for item in given["items"]] == expected.item_id.tolist()
    assert [item["rank"] for item in given["items"]] == expected.rank.tolist()
    np.testing.assert_allclose(
        [item["score"] for item in given["items"]], expected.score, atol=1e-6
    )
    assert given["unknown_items"] == expected.unknown_items


@pytest.mark.parametrize("repeats", [None, "allow", "exclude"])
def test_one_request_is_answered_as_by_the_recommender(app, schema, recommender, repeats):
    request = {
        "user_id": a_user(schema),
        "datetime": UNTIL + 500,
        "context": {"device": "web"},
    }
    reply = ask(
        app,
        "POST",
        "/v1/recommend",
        request | {"k": 7} | ({"repeats": repeats} if repeats else {}),
    )
    (expected,) = recommender.recommend(
        [request], 7, None if repeats is None else repeats == "exclude"
    )
    (given,) = reply.json["answers"]
    check_list(given, expected)
    assert reply.json["version"] == recommender.bundle.manifest.version
    assert reply.headers["x-request-id"] == reply.json["request_id"]
    assert 0 < reply.json["latency_ms"] < 60_000


def test_an_answer_says_of_whom_nothing_is_known_and_a_counter_how_often(own, schema):
    strange = 77 if schema.user_id_type == "integer" else "typo"
    history = [{"item_id": item_ids(schema)[0]}]
    with asking(own) as app:
        asked = [
            {"user_id": a_user(schema)},
            {"user_id": strange},
            {"user_id": strange, "history": history},
            {},
        ]
        answers = ask(app, "POST", "/v1/recommend", {"requests": asked}).json["answers"]
        assert [one.get("user_known") for one in answers] == [True, False, False, None]
        ask(
            app,
            "POST",
            "/v1/events",
            {"user_id": strange, "item_id": item_ids(schema)[0]},
        )
        assert ask(app, "POST", "/v1/recommend", {"user_id": strange}).json["answers"][0][
            "user_known"
        ]
        assert "bascule_unknown_users_total 2.0" in ask(app, "GET", "/metrics").content.decode()


def test_many_requests_are_answered_in_their_order_filtered_and_a_short_list_says_why(
    app, schema, recommender
):
    filters = {"where": "department = 'dairy' and price > 1", "at_most": {"brand": 2}}
    requests = [{"user_id": user, "datetime": UNTIL} for user in known_users(schema)]
    requests += [requests[0], {"filters": filters, "datetime": UNTIL}]
    answers = ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 9}).json["answers"]
    expected = [*recommender.recommend(requests, 9)]
    for given, wanted in zip(answers, expected, strict=True):
        check_list(given, wanted)
    assert 0 < len(answers[-1]["items"]) <= 4
    assert answers[-1]["reason"] == expected[-1].reason


def test_a_body_may_not_keep_others_waiting_by_its_lists(app):
    requests = [{}] * 129
    assert (
        ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 248}).status == 200
    )  # 31,992 items
    reply = ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 249})
    assert (reply.status, "above 32,000" in reply.json["error"]["message"]) == (
        422,
        True,
    )


def test_similar_items_are_those_of_the_recommender(app, recommender):
    item_id = item_ids(recommender.bundle.schema)[4]
    ids, cosines = recommender.similar_items(item_id, 4)
    items = ask(app, "POST", "/v1/similar", {"item_id": item_id, "k": 4, "explain": True}).json[
        "items"
    ]
    assert [item["item_id"] for item in items] == ids.tolist()
    np.testing.assert_allclose([item["cosine"] for item in items], cosines, atol=1e-6)
    assert all(item["columns"]["title"].startswith("Title ") for item in items)


def test_what_is_due_is_that_of_the_history_and_live_events_count(changing, schema, recommender):
    user, item_id = a_user(schema), item_ids(schema)[5]
    asked = {"user_id": user, **NOW}
    (expected,) = find_due(recommender, [asked], 20)
    before = ask(changing, "POST", "/v1/due", asked | {"k": 20})
    fields = {
        "request_id",
        "version",
        "latency_ms",
        "items",
        "moment",
        "user_known",
        "reason",
    }
    assert (before.status, set(before.json), before.json["reason"]) == (
        200,
        fields,
        expected.reason,
    )
    assert (before.json["moment"], before.json["user_known"]) == (NOW["datetime"], True)
    for given, one in zip(before.json["items"], expected.items, strict=True):
        assert given == vars(one) | {"score": pytest.approx(one.score, abs=1e-5)}
    assert len(expected.items) > 0 if schema is SHOP else not expected.items
    for day in (3, 1):
        event = {"user_id": user, "item_id": item_id, "datetime": UNTIL - day * 86_400}
        assert ask(changing, "POST", "/v1/events", event).status == 200
    after = ask(changing, "POST", "/v1/due", asked | {"k": 20}).json["items"]
    assert (item_id in [one["item_id"] for one in after]) == (schema is SHOP)
    assert ask(changing, "POST", "/v1/due", {"user_id": 12345, "k": 3}).json["user_known"] is False


@pytest.mark.parametrize(
    ("body", "status"),
    [({"k": 0}, 422), ({"requests": [{}]}, 422), ({"filters": 3}, 422), ({}, 200)],
)
def test_a_body_about_what_is_due_is_one_request_and_a_length(app, body, status):
    assert ask(app, "POST", "/v1/due", body).status == status
    assert ask(app, "GET", "/v1/due").status == 405


def test_a_method_that_a_path_lacks_is_refused_by_the_names_of_all_it_has(app):
    reply = ask(app, "GET", "/v1/items/i1")
    assert reply.status == 405
    assert dict(reply.headers)["allow"] == "DELETE, PUT"


def test_an_explained_item_has_its_columns_and_the_reasons_for_it(app, schema, recommender):
    ids = item_ids(schema)
    asked = {
        "history": [{"item_id": ids[3]}, {"item_id": ids[8]}],
        "features": {"gender": "f"},
        **NOW,
    }
    body = asked | {"k": 6, "repeats": "allow", "explain": True}
    items = ask(app, "POST", "/v1/recommend", body).json["answers"][0]["items"]
    (expected,) = explain(recommender, [asked], [[item["item_id"] for item in items]])
    assert any(expected.reasons)
    for item, reasons in zip(items, expected.reasons, strict=True):
        assert item["columns"]["title"] == f"Title {ids.index(item['item_id'])}"
        assert item["name"] == item["columns"]["title"]
        assert item["reasons"] == [one.to_json() for one in reasons]
    assert set(ask(app, "POST", "/v1/recommend", {}).json["answers"][0]["items"][9]) == {
        "item_id",
        "name",
        "score",
        "rank",
    }


def test_items_are_named_in_every_list_and_a_changed_title_at_once(own, schema):
    ids = item_ids(schema)
    with asking(own) as app:
        for path, body in (("recommend", {"k": N}), ("similar", {"item_id": ids[3], "k": N})):
            for title in (None, "Fig rolls"):
                if title is not None:
                    changed = {"columns": {"title": title}}
                    assert ask(app, "PUT", f"/v1/items/{ids[8]}", changed).status == 200
                answer = ask(app, "POST", f"/v1/{path}", body).json
                items = answer["answers"][0]["items"] if path == "recommend" else answer["items"]
                names = {item["item_id"]: item["name"] for item in items}
                assert len(names) >= N - 1
                expected = {one: f"Title {row}" for row, one in enumerate(ids)}
                if title is not None or path == "similar":
                    expected[ids[8]] = "Fig rolls"
                assert names == {one: expected[one] for one in names}


def test_a_history_of_plain_ids_is_that_of_events_with_these_items(app, schema):
    ids = item_ids(schema)
    plain = [ids[3], {"item_id": ids[8]}, ids[3], 7 if schema.item_id_type == "integer" else "x"]
    events = [one if isinstance(one, dict) else {"item_id": one} for one in plain]
    answers = [
        ask(app, "POST", "/v1/recommend", {"history": history, "k": 9, **NOW}).json["answers"]
        for history in (plain, events)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0]["unknown_items"] == 1
    assert answers[0] != ask(app, "POST", "/v1/recommend", {"k": 9, **NOW}).json["answers"]


def test_an_event_is_kept_with_its_context(own, schema):
    ids = item_ids(schema)
    event = {"user_id": "77", "item_id": ids[4], "context": {"device": "web"}}
    with asking(own) as app:
        assert ask(app, "POST", "/v1/events", event).json["kept"] == 1
        assert ask(app, "POST", "/v1/events", {**event, "context": None}).json["kept"] == 1
    with closing(sqlite3.connect(own.parent / "state" / "state.db")) as database:
        kept = database.execute("SELECT context FROM events ORDER BY number").fetchall()
    assert kept[0] == ('{"device": "web"}',)
    assert all(row == (None,) for row in kept[1:])


def test_a_method_that_a_path_lacks_is_answered_by_the_one_that_it_has(app):
    for method, path, other in (
        ("GET", "/v1/recommend", "POST"),
        ("POST", "/v1/segments", "GET"),
        ("GET", "/v1/items/i1", "DELETE, PUT"),
    ):
        reply = ask(app, method, path)
        assert reply.status == 405
        assert reply.json["error"]["message"].endswith(f"use {other}")


def test_an_explained_list_tells_the_segment_of_its_user_where_there_are_segments(
    own, schema, tmp_path
):
    assert "segment" not in (plain := ask_one(own, {"user_id": a_user(schema), "explain": True}))
    with Stage.open(tmp_path / "told") as stage:
        facts = write_linear(stage, schema, 3)
        marks = (Mark("user", "gender", "f", 40, 0.8, 1.6),)
        kinds = (
            Segment(1, 50, 0.5, "often f", marks),
            Segment(2, 50, 0.5, "much like all others", ()),
        )
        centroids = np.random.default_rng(0).standard_normal((2, W)).tolist()
        segments = Segments(100, {"2": 0.9}, (0.0,) * W, tuple(map(tuple, centroids)), kinds)
        (stage.path / "segments.json").write_bytes(segments.to_bytes())
        bundle = publish(stage.prepare(facts, {})).path
    shutil.copytree(own.parent / "profiles", bundle.parent / "profiles")
    expected = kinds[
        int(segments.of(Recommender.load(bundle).encode_users([{"user_id": a_user(schema)}]))[0])
    ]
    told = ask_one(bundle, {"user_id": a_user(schema), "explain": True, **NOW})
    assert told["segment"] == {"id": expected.id, "size": 50, "text": expected.text}
    assert "segment" not in ask_one(bundle, {"user_id": a_user(schema)})
    nobody = {"explain": True, "context": {"device": "web"}}
    for said, is_told in (
        ({}, False),
        ({"user_id": 99999}, False),
        ({"features": {"gender": None}, "history": []}, False),
        ({"features": {"gender": "f"}}, True),
        ({"history": [item_ids(schema)[3]]}, True),
    ):
        assert ("segment" in ask_one(bundle, nobody | said)) is is_told
    with asking(bundle) as app:
        assert ask(app, "GET", "/v1/segments").json["segments"] == segments.describe()
    with asking(own) as app:
        assert ask(app, "GET", "/v1/segments").json["segments"] == []
    assert len(plain["items"]) == len(told["items"])


def ask_one(bundle, body):
    with asking(bundle) as app:
        return ask(app, "POST", "/v1/recommend", body).json["answers"][0]


@pytest.mark.parametrize(
    "body",
    [{}, {"requests": [{}, {}], "k": 9}, {"filters": {"at_most": {"department": 2}}}],
)
def test_the_dials_order_a_list_and_its_order_is_logged_as_shown(changing, own, schema, body):
    turned = {"diversity": 0.9, "novelty": 0.5}
    asked = [{"user_id": a_user(schema), **NOW, **one} for one in body.get("requests", [body])]
    sent = {"requests": asked, "k": body["k"]} if "requests" in body else asked[0]
    replies = [
        ask(changing, "POST", "/v1/recommend", sent | dials).json
        for dials in (turned, {"diversity": 0})
    ]
    lists = recommend(Recommender.load(own), asked, body.get("k", 10), None, Dials(**turned))
    for given, expected in zip(replies[0]["answers"], lists, strict=True):
        check_list(given, expected)
    assert replies[0]["answers"] != replies[1]["answers"]
    assert replies[1]["answers"] == ask(changing, "POST", "/v1/recommend", sent).json["answers"]
    changing.state.shared.service.impressions.close()
    with closing(sqlite3.connect(own.parent / "state" / "state.db")) as database:
        query = (
            "SELECT policy, item_id FROM answer_rows a JOIN shown s ON s.answer = a.number"
            " ORDER BY answer, position"
        )
        shown = database.execute(query).fetchall()
    logged = [item for policy, item in shown if policy == "greedy diversity=0.9 novelty=0.5"]
    assert logged == [
        item["item_id"] for answer in replies[0]["answers"] for item in answer["items"]
    ]
    assert {policy for policy, _ in shown} == {
        "greedy",
        "greedy diversity=0.9 novelty=0.5",
    }


def test_values_that_training_has_not_seen_are_named_by_their_feature(app):
    strange = {"context": {"device": "toaster"}, "features": {"gender": "gold"}}
    body = {"requests": [{"context": {"device": "web"}}, strange], "k": 1}
    first, second = ask(app, "POST", "/v1/recommend", body).json["answers"]
    assert "unknown_values" not in first
    assert second["unknown_values"] == ["context.device", "features.gender"]


def test_probes_are_answered_and_the_status_names_the_columns_that_filters_may_name(
    app, recommender
):
    status = ask(app, "GET", "/v1/status").json
    assert (status["version"], status["items"]) == (
        recommender.bundle.manifest.version,
        N,
    )
    for name in status["columns"]:
        assert ask(app, "POST", "/v1/recommend", {"filters": {"at_most": {name: 1}}}).status == 200
    assert "repeat_rate" not in status["columns"]
    assert {
        ask(app, method, path).status
        for method in ("GET", "HEAD")
        for path in ("/health", "/ready")
    } == {200}


def test_metrics_count_answers_by_route_and_status(own, recommender):
    with asking(own) as app:
        for body in ({"k": 1000}, {}, {"k": 0}, {"context": {"device": "toaster"}}):
            ask(app, "POST", "/v1/recommend", body)
        ask(app, "GET", "/v1/items/secret")
        text = ask(app, "GET", "/metrics").content.decode()
    assert 'bascule_requests_total{route="recommend",status="200"} 3.0' in text
    assert 'bascule_requests_total{route="recommend",status="422"} 1.0' in text
    assert 'bascule_requests_total{route="items",status="405"} 1.0' in text
    counts = {"recommendations": 3, "short_lists": 1, "unknown_values": 1, "shed": 0}
    assert all(f"bascule_{name}_total {count}.0" in text for name, count in counts.items())
    assert f'bascule_bundle_info{{version="{recommender.bundle.manifest.version}"}} 1.0' in text
    assert "secret" not in text


def test_an_event_counts_in_the_next_answer_and_after_a_restart(own, schema):
    user = a_user(schema)
    with asking(own) as app:
        before = listed(app, user_id=user, repeats="exclude")
        event = {
            "user_id": user,
            "item_id": before[0],
            "event": "buy",
            "datetime": UNTIL + 5,
        }
        assert ask(app, "POST", "/v1/events", event).json["kept"] == 1
        after = listed(app, user_id=user, repeats="exclude")
        assert before[0] not in after
    with asking(own) as app:
        assert listed(app, user_id=user, repeats="exclude") == after


def test_a_dismissed_item_is_kept_away_whatever_history_the_request_has(changing, schema):
    user, ids = a_user(schema), item_ids(schema)
    unwanted = listed(changing, user_id=user, repeats="allow")[0]
    history = [{"item_id": unwanted}, {"item_id": ids[3]}]
    ask(
        changing,
        "POST",
        "/v1/events",
        {"user_id": user, "item_id": unwanted, "event": "dismiss"},
    )
    assert unwanted not in listed(changing, user_id=user, repeats="allow", k=23)
    assert unwanted not in listed(changing, user_id=user, repeats="allow", k=23, history=history)
    assert unwanted in listed(changing, repeats="allow", k=23, history=history, again="any")
    ask(
        changing,
        "POST",
        "/v1/events",
        {"user_id": user, "item_id": unwanted, "event": "undismiss"},
    )
    assert unwanted in listed(changing, user_id=user, repeats="allow", k=23)


@pytest.fixture
def buying(tmp_path):
    """Give an application of a bundle whose training predicted what is bought."""
    with Stage.open(tmp_path / "bought") as stage:
        facts = replace(
            write_linear(stage, SHOP, 3), config={"data": {"targets": {"events": ["buy"]}}}
        )
        bundle = publish(stage.prepare(facts, {})).path
    write_profiles(bundle.parent / "profiles", make_profiles(SHOP, known_users(SHOP)))
    with asking(bundle) as app:
        yield app


def ask_list(app, **request):
    reply = ask(app, "POST", "/v1/recommend", {**NOW, "k": N, **request})
    assert reply.status == 200, reply
    answer = reply.json["answers"][0]
    return [item["item_id"] for item in answer["items"]], answer


def test_what_is_taken_leaves_the_list_until_it_may_be_due_again(buying):
    user = a_user(SHOP)
    before, answer = ask_list(buying, user_id=user)
    assert "held_back" not in answer

    def send(event, item, **more):
        body = {"user_id": user, "item_id": item, "event": event, "datetime": UNTIL + 9, **more}
        assert ask(buying, "POST", "/v1/events", body).json["kept"] == 1

    send("view", before[1])
    assert before[1] in ask_list(buying, user_id=user)[0]
    send("buy", before[0])
    after, answer = ask_list(buying, user_id=user)
    assert before[0] not in after
    assert (answer["held_back"], len(after)) == (1, N - 1)
    assert "1 of them not due again" in answer["reason"]
    again, answer = ask_list(buying, user_id=user, again="any")
    assert sorted(again) == sorted(before)
    assert "held_back" not in answer
    (due,) = ask(buying, "POST", "/v1/due", {"user_id": user, "k": N, **NOW}).json["items"][-1:]
    late = {"datetime": due["last"] + 400 * 86_400}
    assert before[0] in ask_list(buying, user_id=user, **late)[0]
    many = {"requests": [NOW | {"user_id": user}, NOW | {"user_id": user, "again": "any"}], "k": N}
    lists = ask(buying, "POST", "/v1/recommend", many).json["answers"]
    assert [len(one["items"]) for one in lists] == [N - 1, N]
    assert [one.get("held_back") for one in lists] == [1, None]


def test_the_items_of_a_basket_are_not_listed_for_it(buying):
    ids = item_ids(SHOP)
    basket = [{"item_id": item} for item in ids[:3]]
    listed_items, answer = ask_list(buying, history=basket)
    assert set(listed_items) == set(ids[3:])
    assert answer["held_back"] == 3
    assert set(ask_list(buying, history=basket, again="any")[0]) == set(ids)
    for start, n_held in ((2, 1), (3, None)):  # what filters bar is not held back besides
        asked = {"history": basket, "filters": {"only": ids[start:]}}
        held, answer = ask_list(buying, **asked)
        whole, _ = ask_list(buying, again="any", **asked)
        assert answer.get("held_back") == n_held
        assert (set(held), set(whole)) == (set(ids[3:]), set(ids[start:]))
    for dials in ({"diversity": 0.5}, {"novelty": 0.5}, {"new_share": 0.5}, {"explain": True}):
        shown, answer = ask_list(buying, history=basket, **dials)
        assert (set(shown), answer["held_back"]) == (set(ids[3:]), 3)
    reply = ask(buying, "POST", "/v1/recommend", {"again": "now"})
    assert reply.status == 422
    assert "again" in reply.json["error"]["field"]


def test_events_are_kept_all_or_none(changing, schema):
    user, ids = a_user(schema), item_ids(schema)
    before = listed(changing, user_id=user)
    events = [
        {"user_id": user, "item_id": ids[0]},
        {"user_id": user, "item_id": ids[1], "datetime": "never"},
    ]
    assert ask(changing, "POST", "/v1/events", {"events": events}).status == 422
    assert listed(changing, user_id=user) == before


def test_an_item_comes_stays_over_a_restart_and_goes_for_good(own, schema):
    item_id = 5000 if schema.item_id_type == "integer" else "new/item é 1"
    known = item_ids(schema)[4]
    with asking(own) as app:
        body = {"columns": {"department": "dairy", "price": 2.5, "brand": "x"}}
        assert ask(app, "PUT", f"/v1/items/{item_id}", body).status == 200
        assert item_id in listed(app, k=30)
        assert len(ask(app, "POST", "/v1/similar", {"item_id": item_id, "k": 3}).json["items"]) == 3
        ask(app, "PUT", f"/v1/items/{known}", {"columns": {"in_stock": False}})
        assert known not in listed(app, k=30, filters={"where": "in_stock"})
    with asking(own) as app:
        assert item_id in listed(app, k=30)
        for one in (item_id, known):
            assert ask(app, "DELETE", f"/v1/items/{one}", headers={}).json["was_there"] is True
    with asking(own) as app:
        assert not {item_id, known} & set(listed(app, k=30))
        assert ask(app, "GET", "/v1/status").json["items"] == len(listed(app, k=30)) == N - 1
        assert ask(app, "DELETE", f"/v1/items/{item_id}", headers={}).json["was_there"] is False


def test_an_id_that_is_none_is_refused(app):
    for name in ("", "a\0b", "a\ufffd", "9" * 300):
        assert ask(app, "PUT", f"/v1/items/{name}", {"columns": {"brand": "x"}}).status in (
            404,
            422,
        )


def test_a_forgotten_user_is_nobody_and_stays_so(own, schema):
    user, event = (
        a_user(schema),
        {"user_id": a_user(schema), "item_id": item_ids(schema)[0]},
    )
    with asking(own) as app:
        nobody = listed(app)
        ask(app, "POST", "/v1/events", event)
        assert listed(app, user_id=user) != nobody
        reply = ask(app, "POST", "/v1/users/forget", {"user_id": user}).json
        (receipt,) = reply["receipts"]
        assert (receipt["erased"]["profiles"], receipt["erased"]["events"]) == (1, 1)
        assert (reply["user_known"], receipt["unknown"]) == (True, [])
        again = ask(app, "POST", "/v1/users/forget", {"user_id": user}).json
        assert (again["user_known"], again["receipts"][0]["unknown"]) == (
            False,
            receipt["forgotten"],
        )
        assert listed(app, user_id=user) == nobody
        reply = ask(app, "POST", "/v1/events", event).json
        assert (reply["kept"], reply["left_out"][:10]) == (0, "1 of users")
    with asking(own) as app:
        assert listed(app, user_id=user) == nobody


def test_every_impression_is_logged_with_position_policy_and_version(own, schema):
    user = a_user(schema)
    with asking(own) as app:
        reply = ask(
            app, "POST", "/v1/recommend", {"requests": [{"user_id": user}, {}], "k": 4}
        ).json
    with closing(sqlite3.connect(own.parent / "state" / "state.db")) as state:
        rows = state.execute(
            "SELECT request_id, user_id, bundle_version, policy, position, item_id FROM feedback "
            "ORDER BY user_id IS NULL, position"
        ).fetchall()
    assert rows == [
        (
            reply["request_id"],
            user_id,
            reply["version"],
            "greedy",
            position,
            item["item_id"],
        )
        for user_id, answer in zip((user, None), reply["answers"], strict=True)
        for position, item in enumerate(answer["items"], start=1)
    ]


def test_without_a_token_there_are_no_reloads(app):
    assert ask(app, "POST", "/v1/reload", headers=AUTHORISED).status == 404
    assert "/v1/reload" not in ask(app, "GET", "/openapi.json").json["paths"]


def test_a_reload_needs_the_token_and_this_machine(changing):
    right = f"Bearer {TOKEN}"
    hosts = [
        (right, host, status)
        for host, status in (
            ("127.8.9.1", 200),
            ("::1", 200),
            ("10.0.0.7", 401),
            (None, 401),
        )
    ]
    for header, host, status in [
        *hosts,
        *((wrong, "127.0.0.1", 401) for wrong in ("", TOKEN, "Bearer \xff")),
    ]:
        assert (
            ask(
                changing,
                "POST",
                "/v1/reload",
                headers={"authorization": header},
                host=host,
            ).status
            == status
        )


def test_another_version_answers_from_the_reload_on_with_the_live_items(changing, own, schema):
    request = {"user_id": a_user(schema), **NOW, "k": 5}
    before = ask(changing, "POST", "/v1/recommend", request).json
    ask(changing, "PUT", "/v1/items/4321", {"columns": {"brand": "x"}})
    shutil.rmtree(own)
    publish_linear(own.parent, schema, seed=8)
    assert ask(changing, "POST", "/v1/recommend", request).json["version"] == before["version"]
    reply = ask(changing, "POST", "/v1/reload", headers=AUTHORISED)
    after = ask(changing, "POST", "/v1/recommend", request).json
    assert after["version"] == reply.json["version"] != before["version"]
    assert after["answers"] != before["answers"]
    assert "4321" in map(str, listed(changing, k=30))
    assert (
        'bascule_reloads_total{outcome="loaded"} 1.0'
        in ask(changing, "GET", "/metrics").content.decode()
    )


def test_a_version_that_cannot_be_loaded_is_refused_and_the_old_one_answers_on(changing, own):
    before = listed(changing)
    (own / "user_tower.onnx").write_bytes(b"no tower")
    reply = ask(changing, "POST", "/v1/reload", headers=AUTHORISED)
    assert (reply.status, "user_tower.onnx" in reply.json["error"]["message"]) == (
        409,
        True,
    )
    assert str(own.parent) not in reply.content.decode()
    last = ask(changing, "GET", "/v1/status").json["last_reload"]
    assert (last["is_loaded"], last["reason"]) == (
        False,
        reply.json["error"]["message"],
    )
    assert listed(changing) == before


def test_the_page_is_served_with_a_policy_that_lets_in_nothing_else(app):
    for path, kind in (
        ("/", "text/html"),
        ("/page.css", "text/css"),
        ("/page.js", "text/javascript"),
        ("/health", ""),
    ):
        reply = ask(app, "GET", path)
        assert reply.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert not re.search("unsafe|http", reply.headers["content-security-policy"])
    assert re.findall(r"<script[^>]*>", PAGE) == ['<script src="/page.js" defer>']
    assert not re.search(r"\son\w+=|style=|<style|https?://", PAGE)
    assert "/v1/shown" not in SCRIPT  # staff look there, not the user
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|https?://",
        SCRIPT,
    )
    assert all(f'id="{name}"' in PAGE for name in re.findall(r'byId\("([\w-]+)"\)', SCRIPT))
