"""Hostile bodies are refused with 4xx, shortly, and without a word of them; answers fit the OpenAPI document."""

import asyncio
import json
import random
import time
from urllib.parse import unquote

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from service.http import schemas
from tests.http.services import TOKEN, asking, publish_served
from tests.linear_bundle import SHOP, WORLDS
from tests.served import JSON, ROOT, ask, exchange

SENTINEL = "Zq7sentinelZq7"
N_CALLS = 20  # of each route and mode


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with asking(publish_served(tmp_path_factory.mktemp("hostile"), SHOP), token=TOKEN) as app:
        yield app


@pytest.fixture(scope="module")
def document(app):
    return ask(app, "GET", "/openapi.json").json


def refuse(reply, *statuses):
    assert reply.status in statuses, reply
    assert len(reply.content) < 1024
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error", "request_id"}
    assert SENTINEL not in reply.content.decode()
    return reply.json["error"]


@pytest.mark.parametrize("k", [0, -1, 1001, 2**63, 10**30, "5", True, 5.0, None, [5], {"k": 5}])
def test_a_k_that_is_no_small_number_is_refused_and_named(app, k):
    assert refuse(ask(app, "POST", "/v1/recommend", {"k": k}), 422)["field"] == "k"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("recommend", {"requests": [{}, {"history": [{"item_id": "a"}] * 501}]}, "requests[1].history"),
        ("recommend", {"user_id": SENTINEL * 200}, "user_id"),
        ("recommend", {"context": {SENTINEL: [[[1]]]}}, "context"),
        ("recommend", {"repeats": SENTINEL}, "repeats"),
        ("recommend", {"requests": [{}], "explain": True}, "explain"),
        ("recommend", {"diversity": 1.01}, "diversity"),
        ("recommend", {"requests": [{}], "novelty": "much"}, "novelty"),
        ("recommend", {"requests": [{}], "new_share": -0.1}, "new_share"),
        ("recommend", {"history": [{SENTINEL: 1}]}, "history[0]"),
        ("recommend", {SENTINEL: 1}, None),
        ("recommend", SENTINEL, None),
        ("events", {"user_id": "u1", "item_id": "i107", "weight": SENTINEL}, "weight"),
        ("events", {"item_id": "i107"}, "user_id"),
        ("events", {"events": [{"user_id": "u1", "item_id": [1]}]}, "events[0].item_id"),
        ("users/forget", {"user_id": ["u1"]}, "user_id"),
    ],
)  # fmt: skip
def test_a_body_of_another_form_is_refused_and_the_place_named(app, path, body, field):
    assert (
        refuse(ask(app, "POST", f"/v1/{path}", json.dumps(body).encode()), 422).get("field")
        == field
    )


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("recommend", {"user": 1}, ["'user'", "did you mean 'user_id'"]),
        ("recommend", {"new_items": 3}, ["'new_items'", "/docs"]),
        ("recommend", {"requests": [{"usr_id": 1}]}, ["'usr_id'", "'user_id'"]),
        ("recommend", {"history": [{"item": 1}]}, ["'item'", "'item_id'"]),
        ("similar", {"item": 1}, ["'item'", "'item_id'"]),
        ("events", {"events": [{"user": 1, "item_id": 2}]}, ["'user'", "'user_id'"]),
        ("events", {"user_id": 1, "item_id": 2, "context": {"divice": "tv"}}, ["'device'"]),
        ("recommend", [1, 2], ["a JSON object"]),
        ("recommend", {"history": "i1"}, ["a JSON array"]),
    ],
)
def test_a_slip_is_named_with_what_was_meant(app, path, body, words):
    message = refuse(ask(app, "POST", f"/v1/{path}", json.dumps(body).encode()), 422)["message"]
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", ["anna.smith@example.org", "u77123", "a" * 41, "x'; y", "é", "\n"])
def test_a_field_that_may_hold_an_id_or_worse_is_not_repeated(app, name):
    error = refuse(ask(app, "POST", "/v1/recommend", {name: 1}), 422)
    assert name not in error["message"]
    assert "unknown field" in error["message"]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"features": {SENTINEL: 1}}, "allowed: gender, income"),
        ({"features": {"income": SENTINEL}}, "features.income"),
        (
            {
                "history": [
                    {"item_id": "a", "datetime": 2 * 10**9},
                    {"item_id": "b", "datetime": 10**9},
                ]
            },
            "oldest first",
        ),
        ({"history": [{"item_id": "a", "weight": -77123}]}, "weight"),
        ({"datetime": "77123e1"}, "datetime"),
        ({"features": {"income": ["x; expected ", 12, 77123]}}, "features.income"),
        ({"filters": {"where": "prise <= 77123"}}, "did you mean 'price'"),
        ({"filters": {"where": "price <= 'cheap77123'"}}, "price"),
        ({"filters": {"where": "(price < 77123"}}, ""),
        ({"filters": {"where": "`it's 77123` = 1"}}, "allowed: "),
        ({"filters": {"at_most": {"it's 77123": 1}}}, "allowed: "),
        (
            {"requests": [{}, {"filters": {"at_most": {"brandy": 1}}}]},
            "requests[1]: filters",
        ),
        ({"requests": [{}, {"context": {"nowhere": "x"}}]}, "requests[1]: context"),
    ],
)
def test_a_request_that_does_not_fit_the_bundle_is_refused_without_its_value(app, body, text):
    error = refuse(ask(app, "POST", "/v1/recommend", body), 422)
    assert text in error["message"]
    assert "77123" not in error["message"]


@pytest.mark.parametrize("item_id", [7, -1, "7", "é"])
def test_an_item_that_is_not_known_is_refused_without_its_id_however_short(app, item_id):
    message = refuse(ask(app, "POST", "/v1/similar", {"item_id": item_id}), 422)["message"]
    assert f"{item_id}" not in message.replace("23 ids", "")


@pytest.mark.parametrize(
    "body",
    [
        b'{"history": [{"item_id": "a", "weight": 1e999}]}',
        b'{"user_id": "\\ud800"}',
        b'{"features": {"\\udfff": 1}}',
        b'{"\\udfff": 1}',
        b'{"user_id": "a\x00b"}',
        b"[" * 300_000,
        b'{"features":' * 60_000,
        b'{"user_id": ' + b"9" * 5000 + b"}",
        b'{"user_id": ' + b"9" * 4000 + b"}",
        b'{"user_id": "\xff\xfe"}',
        b"",
        f'{{"{SENTINEL}": "{SENTINEL}", '.encode(),
    ],
)
def test_a_body_that_is_no_json_or_cannot_be_held_is_refused(app, body):
    refuse(ask(app, "POST", "/v1/recommend", body), 400, 422)


def test_another_content_type_is_refused_and_none_from_a_page_of_whatever_site(app):
    kinds = (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
    )
    for headers in (
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        *({"content-type": one} for one in kinds),
    ):
        refuse(ask(app, "POST", "/v1/recommend", b"{}", headers), 415)
    assert ask(app, "POST", "/v1/recommend", b"{}", {}).status == 200
    assert (
        ask(
            app,
            "POST",
            "/v1/recommend",
            b"{}",
            {"content-type": "Application/JSON; charset=utf-8"},
        ).status
        == 200
    )


def test_a_body_is_read_up_to_its_limit_and_not_beyond(app):
    body = b"{}".ljust(1_000_000)
    for parts in ([body], [body[:-1], body[-1:]]):
        assert asyncio.run(exchange(app, "POST", "/v1/recommend", parts, JSON)).status == 200
    refuse(asyncio.run(exchange(app, "POST", "/v1/recommend", [body, b" "], JSON)), 413)
    refuse(
        asyncio.run(exchange(app, "POST", "/v1/recommend", [b" " * 300_000] * 70, JSON)),
        413,
    )


def test_other_methods_and_paths_are_refused(app):
    for method, path, status in (
        ("GET", "/v1/recommend", 405),
        ("GET", f"/{SENTINEL}", 404),
        ("POST", "/redoc", 404),
    ):
        refuse(ask(app, method, path, {}), status)


def mutate(body, rng):
    """Change some bytes: swap, repeat, cut, or put in what is special to JSON."""
    content = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(content) + 1)
        piece = rng.choice(
            [
                b"{",
                b"}",
                b"[",
                b"]",
                b'"',
                b",",
                b":",
                b"null",
                b"-1",
                b"1e999",
                b"\\u0000",
                b"\\ud800",
            ]
        )
        piece = rng.choice(
            [
                piece,
                bytes([rng.randrange(256)]),
                bytes(content[place : place + rng.randrange(20)]),
            ]
        )
        content[place : place + rng.randrange(3)] = piece
    return bytes(content)


@pytest.mark.parametrize(
    "number",
    [400, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])],
)
def test_mutated_bodies_are_answered_or_refused(app, number):
    rng = random.Random(number)
    bodies = [
        {
            "user_id": "u1",
            "features": {"income": 2.5, "gender": SENTINEL},
            "k": 3,
            "context": {"device": "web"},
        },
        {
            "requests": [{"history": [{"item_id": "i107", "weight": 1, "event": SENTINEL}]}],
            "repeats": "allow",
        },
        {"exclude": ["i107", SENTINEL], "datetime": "2020-01-01T00:00:00Z", "k": 2},
        {
            "filters": {
                "where": f"price <= 2 and not brand = '{SENTINEL}'",
                "at_most": {"brand": 1},
            },
            "k": 2,
        },
    ]
    written = [json.dumps(body).encode() for body in bodies]
    for _ in range(number):
        reply = ask(app, "POST", "/v1/recommend", mutate(rng.choice(written), rng))
        if reply.status != 200:
            refuse(reply, 400, 422)


def test_the_limits_are_those_that_the_documentation_promises():
    text = " ".join((ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split())
    assert f"1 MB for a body, {schemas.MAX_REQUESTS} requests or events in it" in text
    assert f"events, {schemas.MAX_IDS:,} excluded items, k up to {schemas.MAX_ITEMS:,}" in text
    assert f"{schemas.MAX_LISTED:,} items in all lists of a body" in text


@pytest.mark.parametrize(
    "body",
    [
        {"requests": [{"exclude": [None] * 10_000}] * 3},
        {"requests": [{"history": [{"x": 1}] * 500}] * 9},
        {f"{SENTINEL}{number}": 1 for number in range(30_000)},
    ],
    ids=["exclude", "history", "names"],
)
def test_a_body_of_faults_alone_takes_no_long_time(app, body):
    started = time.monotonic()
    refuse(ask(app, "POST", "/v1/recommend", body), 422)
    assert time.monotonic() - started < 5


def check_schema(document, schema, value):
    jsonschema_rs.validator_for({**schema, "components": document["components"]}).validate(value)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_call_makes_the_service_fail_and_each_status_is_described(app, document, mode):
    operations = [
        found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    assert len(operations) >= 10
    for operation in operations:
        if mode is GenerationMode.POSITIVE or "requestBody" in operation.definition.raw:
            hammer(app, operation, mode)


def hammer(app, operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=N_CALLS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def call(case):
        reply = ask(app, case.method, unquote(case.formatted_path), write_body(case), JSON)
        assert reply.status < 500
        assert len(reply.content) < 1024 or reply.status == 200
        assert reply.status < 400 or set(reply.json) == {"error", "request_id"}
        if reply.status not in (
            404,
            405,
        ):  # a path that was drawn may be another route's
            assert str(reply.status) in operation.definition.raw["responses"]

    call()


def write_body(case):
    try:
        return case.body if isinstance(case.body, bytes) else json.dumps(case.body).encode()
    except TypeError:
        return b""  # none was drawn


@pytest.mark.parametrize("world", WORLDS)
def test_every_example_of_the_document_is_answered(tmp_path, world):
    with asking(publish_served(tmp_path, WORLDS[world])) as app:
        n_answered = 0
        for path, operations in ask(app, "GET", "/openapi.json").json["paths"].items():
            for method, operation in operations.items():
                for name, example in list_examples(operation):
                    named = "".join(one["example"] for one in operation.get("parameters", []))
                    reply = ask(app, method.upper(), path.replace("{item_id}", named), example)
                    assert reply.status == 200, (path, name, reply)
                    n_answered += 1
        assert n_answered == 13


def list_examples(operation):
    for content in operation.get("requestBody", {"content": {}})["content"].values():
        yield from ((name, example["value"]) for name, example in content["examples"].items())


def test_the_document_says_who_may_call_what_and_how_each_call_may_fail(document):
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    operations = {
        one["operationId"]: one for calls in document["paths"].values() for one in calls.values()
    }
    roles = {
        name: one["security"][0]["key"][0] for name, one in operations.items() if one["security"]
    }
    assert {roles[name] for name in ("forget_user", "put_item", "delete_item", "reload")} == {
        "admin"
    }
    assert (roles["add_events"], roles["recommend"], roles["similar"]) == (
        "write",
        "ask",
        "ask",
    )
    for name in roles:
        assert {"200", "401", "403", "429", "503"} <= set(operations[name]["responses"])
        assert operations[name]["summary"]


@pytest.mark.parametrize(
    ("method", "path", "asked", "body"),
    [
        (
            "post",
            "/v1/recommend",
            "/v1/recommend",
            {"k": 3, "explain": True, "context": {"device": "toaster"}},
        ),
        (
            "post",
            "/v1/recommend",
            "/v1/recommend",
            {"requests": [{"user_id": "u1"}], "k": 40},
        ),
        ("post", "/v1/recommend", "/v1/recommend", {"k": 0}),
        ("post", "/v1/similar", "/v1/similar", {"item_id": "i107", "explain": True}),
        ("post", "/v1/due", "/v1/due", {"user_id": "u1", "k": 40}),
        ("post", "/v1/due", "/v1/due", {"history": [], "days": 7}),
        ("post", "/v1/events", "/v1/events", {"user_id": "u1", "item_id": "i107"}),
        ("post", "/v1/shown", "/v1/shown", {"request_id": "r1"}),
        ("put", "/v1/items/{item_id}", "/v1/items/i107", {"columns": {"price": 2}}),
        ("delete", "/v1/items/{item_id}", "/v1/items/i107", None),
        ("post", "/v1/users/forget", "/v1/users/forget", {"user_id": "u77"}),
        ("post", "/v1/reload", "/v1/reload", None),
        ("get", "/metrics", "/metrics", None),
    ],
)
def test_an_answer_fits_the_document_field_by_field(app, document, method, path, asked, body):
    reply = ask(app, method.upper(), asked, body)
    content = document["paths"][path][method]["responses"][str(reply.status)]["content"]
    schema = content[reply.headers["content-type"]]["schema"]
    is_json = "json" in reply.headers["content-type"]
    check_schema(document, schema, reply.json if is_json else reply.content.decode())
    if is_json:
        assert set(reply.json) <= set(
            document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]["properties"]
        )
    if body is not None and reply.status == 200:
        (sent,) = document["paths"][path][method]["requestBody"]["content"].values()
        check_schema(document, sent["schema"], body)  # one of two forms: it must not fit both
