"""Whatever fits the OpenAPI document, and what does not: no route fails, and each says what the document says."""

import json
from urllib.parse import unquote

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode

from tests.linear_bundle import SHOP
from tests.live_service import asking, publish_served
from tests.served import JSON, ask

N_CALLS = 25  # of each route and mode


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with asking(publish_served(tmp_path_factory.mktemp("openapi"), SHOP)) as app:
        yield app


@pytest.fixture(scope="module")
def operations(app):
    document = ask(app, "GET", "/openapi.json").json
    return [found.ok() for found in schemathesis.openapi.from_dict(document).get_all_operations()]


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
