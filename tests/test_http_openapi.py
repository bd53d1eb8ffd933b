"""Whatever fits the OpenAPI document, and what does not: no route fails, and each says what the document says."""

import json
from urllib.parse import unquote

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from serve.http.app import make_app
from serve.http.reloading import make_reloading
from tests.linear_bundle import SHOP
from tests.live_service import asking, publish_served, sharing
from tests.served import JSON, ask

N_CALLS = 25  # of each route and mode


TOKEN = "a token of more than 16 characters"
AUTHORISED = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("openapi"), SHOP)


@pytest.fixture(scope="module")
def app(bundle):
    with asking(bundle) as app:
        yield app


@pytest.fixture(scope="module")
def document(app):
    return ask(app, "GET", "/openapi.json").json


@pytest.fixture(scope="module")
def operations(document):
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


def check_schema(document, schema, value):
    jsonschema_rs.validator_for({**schema, "components": document["components"]}).validate(value)


def check_reply(document, method, path, reply):
    """Check that the document names the status and the kind of a reply, and says what is in it, field by field."""
    content = document["paths"][path][method]["responses"][str(reply.status)]["content"]
    schema = content[reply.headers["content-type"]]["schema"]
    check_schema(document, schema, reply.json if "json" in reply.headers["content-type"] else reply.content.decode())
    return schema


def write_body(case):
    if isinstance(case.body, bytes):
        return case.body
    try:
        return json.dumps(case.body).encode()
    except TypeError:
        return b""  # none was drawn


def check(app, operation, case):
    reply = ask(app, case.method, unquote(case.formatted_path), write_body(case), JSON)
    assert reply.status < 500
    assert len(reply.content) < 1024 or reply.status == 200
    if reply.status >= 400:
        assert set(reply.json) == {"error", "request_id"}
    if reply.status not in (404, 405):  # a path that was drawn may be another route's
        assert str(reply.status) in operation.definition.raw["responses"]


def hammer(app, operation, mode):
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=N_CALLS, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def call(case):
        check(app, operation, case)

    call()


def test_no_call_that_fits_the_document_makes_the_service_fail(app, operations):
    assert len(operations) >= 9
    for operation in operations:
        hammer(app, operation, GenerationMode.POSITIVE)


def test_no_call_that_does_not_fit_makes_the_service_fail(app, operations):
    for operation in operations:
        if operation.method in ("post", "put"):  # of those without a body hardly anything can be wrong
            hammer(app, operation, GenerationMode.NEGATIVE)


@pytest.mark.parametrize(
    "body",
    [{}, {"k": 3}, {"repeats": "allow", "k": 3}, {"requests": [{}], "k": 3}, {"requests": [{"user_id": "u1"}]}],
)
def test_what_is_answered_fits_the_document(app, document, body):
    asked = document["paths"]["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    check_schema(document, asked, body)  # one of two forms: it must not fit both
    reply = ask(app, "POST", "/v1/recommend", body)
    assert reply.status == 200
    check_reply(document, "post", "/v1/recommend", reply)


@pytest.mark.parametrize(
    ("method", "path", "asked", "body", "named"),
    [
        ("post", "/v1/recommend", "/v1/recommend", {"k": 0}, {"error", "request_id"}),
        ("post", "/v1/events", "/v1/events", {"user_id": "u1", "item_id": "i107"}, {"kept"}),
        ("put", "/v1/items/{item_id}", "/v1/items/i107", {"columns": {"price": 2}}, {"latency_ms"}),
        ("delete", "/v1/items/{item_id}", "/v1/items/i107", None, {"was_there"}),
        ("post", "/v1/users/forget", "/v1/users/forget", {"user_id": "u77"}, {"receipts"}),
    ],
)
def test_the_document_names_the_fields_of_an_answer(app, document, method, path, asked, body, named):
    reply = ask(app, method.upper(), asked, body)
    schema = check_reply(document, method, path, reply)
    described = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    assert set(reply.json) == set(described["properties"])
    assert named <= set(described["properties"])


def test_the_document_names_the_field_of_an_error(app, document):
    assert ask(app, "POST", "/v1/recommend", {"k": 0}).json["error"].keys() == {"code", "message", "field"}
    assert document["components"]["schemas"]["Said"]["properties"].keys() == {"code", "message", "field"}


def test_metrics_are_described_as_what_they_are(app, document):
    check_reply(document, "get", "/metrics", ask(app, "GET", "/metrics"))
    assert len(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == 1


def test_reloads_are_described_with_their_refusals(bundle, tmp_path):
    with sharing(bundle, tmp_path / "state") as parts:
        app = make_app(parts, [make_reloading(parts, TOKEN)])
        document = ask(app, "GET", "/openapi.json").json
        for headers in ({}, AUTHORISED | {"forwarded": "for=a"}, AUTHORISED):
            check_reply(document, "post", "/v1/reload", ask(app, "POST", "/v1/reload", headers=headers))
        (bundle / "golden.json").write_bytes(b"")
        refused = ask(app, "POST", "/v1/reload", headers=AUTHORISED)
        assert refused.status == 409
        check_reply(document, "post", "/v1/reload", refused)
