"""What `/v1/recommend` and `/v1/similar` answer is what the recommender answers."""

import numpy as np
import pytest

from serve.http.answers import Written
from serve.http.metrics import Metrics
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, SHOP, UNTIL, N, item_ids
from tests.linear_profiles import known_users
from tests.live_service import asking, publish_served
from tests.served import ask

SOMEBODY = {"history": [{"item_id": "i107", "datetime": UNTIL, "event": "buy"}], "datetime": UNTIL + 100}


@pytest.fixture(scope="module", params=[SHOP, FILMS], ids=["shop", "films"])
def bundle(request, tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("asking"), request.param)


@pytest.fixture(scope="module")
def recommender(bundle):
    return Recommender.load(bundle)


@pytest.fixture(scope="module")
def app(bundle):
    with asking(bundle) as app:
        yield app


def users(recommender):
    return list(known_users(recommender.bundle.schema))


def check_list(given, expected):
    assert [item["item_id"] for item in given["items"]] == expected.item_id.tolist()
    assert [item["rank"] for item in given["items"]] == expected.rank.tolist()
    np.testing.assert_allclose([item["score"] for item in given["items"]], expected.score, atol=1e-6)
    assert given["unknown_items"] == expected.unknown_items


@pytest.mark.parametrize("repeats", [None, "allow", "exclude"])
def test_one_request_is_answered_as_by_the_recommender(app, recommender, repeats):
    request = {"user_id": users(recommender)[1], "datetime": UNTIL + 500, "context": {"device": "web"}}
    body = request | {"k": 7} | ({"repeats": repeats} if repeats else {})
    reply = ask(app, "POST", "/v1/recommend", body)
    assert reply.status == 200
    filter_viewed = None if repeats is None else repeats == "exclude"
    (expected,) = recommender.recommend([request], 7, filter_viewed)
    (given,) = reply.json["answers"]
    check_list(given, expected)


def test_many_requests_are_answered_in_their_order(app, recommender):
    requests = [{"user_id": user, "datetime": UNTIL} for user in (*users(recommender), users(recommender)[0])]
    reply = ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 3})
    for given, expected in zip(reply.json["answers"], recommender.recommend(requests, 3), strict=True):
        check_list(given, expected)


def test_k_is_10_by_default_and_a_catalogue_may_be_smaller_than_k(app):
    assert len(ask(app, "POST", "/v1/recommend", {}).json["answers"][0]["items"]) == 10
    assert len(ask(app, "POST", "/v1/recommend", {"k": 1000}).json["answers"][0]["items"]) == N


def test_filters_are_obeyed_and_a_short_list_says_why(app, recommender):
    filters = {"where": "department = 'dairy' and price > 1", "at_most": {"brand": 2}}
    body = {"filters": filters, "k": 9, "datetime": UNTIL}
    (given,) = ask(app, "POST", "/v1/recommend", body).json["answers"]
    (expected,) = recommender.recommend([{"filters": filters, "datetime": UNTIL}], 9)
    check_list(given, expected)
    assert 0 < len(given["items"]) <= 4
    assert given["reason"] == expected.reason
    only = item_ids(recommender.bundle.schema)[5:8]
    (given,) = ask(app, "POST", "/v1/recommend", {"filters": {"only": only}, "k": 3}).json["answers"]
    assert {item["item_id"] for item in given["items"]} == set(only)
    assert "reason" not in given


def test_an_item_that_is_out_of_stock_is_kept_away_by_a_filter(bundle, recommender, tmp_path):
    item_id = item_ids(recommender.bundle.schema)[6]
    body = {"filters": {"where": "in_stock"}, "k": 23}
    with asking(bundle, state=tmp_path / "state") as app:
        assert ask(app, "PUT", f"/v1/items/{item_id}", {"columns": {"in_stock": False}}).status == 200
        (given,) = ask(app, "POST", "/v1/recommend", body).json["answers"]
        assert item_id not in [item["item_id"] for item in given["items"]]
        assert len(given["items"]) == N - 1


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"where": "prise <= 77123"}, "did you mean 'price'"),
        ({"where": "price <= 'cheap77123'"}, "price"),
        ({"where": "price <= 77123 and ("}, "character"),
        ({"where": "77123"}, "column"),
        ({"at_most": {"brand": 0}}, "greater than or equal"),
        ({"at_most": {"brandy": 1}}, "did you mean 'brand'"),
        ({"only": [[77123]]}, ""),
        ({"when": 77123}, "not known"),
    ],
)
def test_filters_that_do_not_fit_are_refused_without_their_values(app, filters, said):
    reply = ask(app, "POST", "/v1/recommend", {"filters": filters})
    assert reply.status == 422
    assert said in reply.json["error"]["message"]
    assert "77123" not in reply.content.decode()


def test_of_many_requests_the_one_with_a_wrong_filter_is_named(app):
    requests = [{"filters": {"where": "price < 3"}}, {"filters": {"at_most": {"brandy": 1}}}]
    reply = ask(app, "POST", "/v1/recommend", {"requests": requests})
    assert reply.status == 422
    assert reply.json["error"]["message"].startswith("requests[1]: filters: unknown column")


def test_a_body_may_not_keep_others_waiting_by_its_lists(app):
    requests = [{}] * 129
    assert ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 248}).status == 200  # 31,992 items
    reply = ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 249})
    assert reply.status == 422
    assert "above 32,000; ask for shorter lists" in reply.json["error"]["message"]


def test_a_request_without_datetime_is_asked_in_this_minute(app, recommender, monkeypatch):
    now = UNTIL + 12 * 3600
    monkeypatch.setattr("serve.service.time.time", lambda: now + 59.5)
    user = users(recommender)[1]
    (expected,) = recommender.recommend([{"user_id": user, "datetime": now}], 5)
    (given,) = ask(app, "POST", "/v1/recommend", {"user_id": user, "k": 5}).json["answers"]
    check_list(given, expected)


def test_similar_items_are_those_of_the_recommender(app, recommender):
    item_id = item_ids(recommender.bundle.schema)[4]
    reply = ask(app, "POST", "/v1/similar", {"item_id": item_id, "k": 4})
    ids, cosines = recommender.similar_items(item_id, 4)
    assert [item["item_id"] for item in reply.json["items"]] == ids.tolist()
    np.testing.assert_allclose([item["cosine"] for item in reply.json["items"]], cosines, atol=1e-6)


def test_every_answer_says_its_id_version_and_latency(app, recommender):
    replies = [ask(app, "POST", "/v1/recommend", {}) for _ in range(3)]
    assert len({reply.json["request_id"] for reply in replies}) == 3
    for reply in replies:
        assert reply.json["version"] == recommender.bundle.manifest.version
        assert 0 < reply.json["latency_ms"] < 60_000
        assert reply.headers["x-request-id"] == reply.json["request_id"]


def test_status_says_what_answers(app, recommender):
    status = ask(app, "GET", "/v1/status").json
    assert status["version"] == recommender.bundle.manifest.version
    assert status["items"] == N


def test_filters_may_name_the_columns_that_the_status_lists_and_no_other(app, recommender):
    columns = ask(app, "GET", "/v1/status").json["columns"]
    for name in columns:
        assert ask(app, "POST", "/v1/recommend", {"filters": {"at_most": {name: 1}}}).status == 200
    hidden = set(recommender.bundle.items.column_names) - set(columns)
    assert hidden == ({"repeat_rate"} if recommender.bundle.schema.repeats == "allow" else set())
    for name in hidden:
        message = ask(app, "POST", "/v1/recommend", {"filters": {"at_most": {name: 1}}}).json["error"]["message"]
        assert message.endswith(f"allowed: {', '.join(sorted(columns))}")


def test_health_and_readiness(app):
    assert ask(app, "GET", "/health").status == ask(app, "GET", "/ready").status == 200


def test_values_that_training_has_not_seen_are_named_by_their_feature_and_counted(bundle, tmp_path):
    known = {"context": {"device": "web"}}
    strange = {"context": {"device": "toaster"}, "features": {"gender": "gold-77123"}}
    with asking(bundle, state=tmp_path / "state") as app:
        body = {"requests": [known, strange, strange], "k": 1}
        first, *others = ask(app, "POST", "/v1/recommend", body).json["answers"]
        text = ask(app, "GET", "/metrics").content.decode()
    assert "unknown_values" not in first
    assert [one["unknown_values"] for one in others] == [["context.device", "features.gender"]] * 2
    assert "bascule_unknown_values_total 4.0" in text
    assert "77123" not in text


def test_metrics_count_answers_by_route_and_status(bundle, recommender, tmp_path):
    with asking(bundle, state=tmp_path / "state") as app:
        check_counts(app, recommender)


def check_counts(app, recommender):
    for body in ({"k": 1000}, {}, {"k": 0}):
        ask(app, "POST", "/v1/recommend", body)
    ask(app, "GET", "/v1/items/secret")
    text = ask(app, "GET", "/metrics").content.decode()
    assert 'bascule_requests_total{route="recommend",status="200"} 2.0' in text
    assert 'bascule_requests_total{route="recommend",status="422"} 1.0' in text
    assert "bascule_recommendations_total 2.0" in text
    assert "bascule_short_lists_total 1.0" in text
    assert f'version="{recommender.bundle.manifest.version}"' in text
    assert "secret" not in text


def test_metrics_count_all_of_an_answer_and_name_one_bundle():
    metrics = Metrics()
    for version in ("first", "second"):
        metrics.name_bundle(version)
    for path in ("/v1/items/7", "/v1/items/secret", "/v1/items", "/v1/similar", "/page.js", "/secret"):
        metrics.count_answer(path, 200, 0.25)
    for factor in (1, 10):
        metrics.count_lists(Written(b"", 0.5 * factor, 7 * factor, 3 * factor, 5 * factor, 2 * factor))
    lines = metrics.render().decode().splitlines()
    assert [line for line in lines if line.startswith("bascule_bundle_info{")] == [
        'bascule_bundle_info{version="second"} 1.0'
    ]
    counts = {"items": 2, "similar": 1, "page": 1, "other": 2}
    expected = [
        *(f'bascule_requests_total{{route="{route}",status="200"}} {count}.0' for route, count in counts.items()),
        *(f'bascule_request_seconds_sum{{route="{route}"}} {count / 4}' for route, count in counts.items()),
        *(f'bascule_request_seconds_bucket{{le="0.2",route="{route}"}} 0.0' for route in counts),
        *("bascule_answer_seconds_sum 5.5", "bascule_answer_seconds_count 2.0"),
        *("bascule_recommendations_total 77.0", "bascule_short_lists_total 33.0"),
        *("bascule_unknown_history_items_total 55.0", "bascule_unknown_values_total 22.0"),
    ]
    assert set(expected) <= set(lines)
    assert "secret" not in "".join(lines)


def test_metrics_count_lists_that_were_given_again_and_events(bundle, recommender, tmp_path, monkeypatch):
    monkeypatch.setattr("serve.service.time.time", lambda: UNTIL + 12 * 3600)
    item_id = item_ids(recommender.bundle.schema)[4]
    with asking(bundle, state=tmp_path / "state") as app:
        for k in (3, 3, 2, 3):
            assert ask(app, "POST", "/v1/recommend", {"k": k}).status == 200
        event = {"user_id": users(recommender)[1], "item_id": item_id, "datetime": UNTIL}
        assert ask(app, "POST", "/v1/events", {"events": [event, event]}).json["kept"] == 2
        other = event | {"user_id": users(recommender)[2]}
        assert ask(app, "POST", "/v1/users/forget", {"user_id": other["user_id"]}).status == 200
        assert ask(app, "POST", "/v1/events", other).json["kept"] == 0
        text = ask(app, "GET", "/metrics").content.decode()
    assert "bascule_given_again 2.0" in text
    assert "bascule_events_total 2.0" in text


def test_openapi_has_examples_that_are_answered(app):
    document = ask(app, "GET", "/openapi.json").json
    content = document["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]
    assert len(content["examples"]) == 3
    for example in content["examples"].values():
        assert ask(app, "POST", "/v1/recommend", example["value"]).status == 200


def test_headers_forbid_what_no_answer_needs(app):
    for path in ("/health", "/nowhere"):
        headers = ask(app, "GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


def test_a_short_list_of_similar_items_says_why(app, recommender):
    item_id, n_items = recommender.catalogue.item_ids.ids.tolist()[2], len(recommender.catalogue)
    answers = [ask(app, "POST", "/v1/similar", {"item_id": item_id, "k": n_items - more}).json for more in (1, 0)]
    assert "reason" not in answers[0]
    assert answers[1]["reason"] == f"the catalogue has {n_items - 1} other items"
