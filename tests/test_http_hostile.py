"""Bodies that strangers send: each is refused with 4xx, shortly, and without a word of it in the answer."""

import asyncio
import gzip
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from serve.http.bodies import Ask, ItemBody, Tell
from serve.http.faults import Fault
from serve.http.limits import MOST_EVENTS, MOST_IDS, MOST_ITEMS, MOST_LISTED, MOST_REQUESTS, Limits
from serve.http.redaction import without_values
from serve.http.strict_json import read_json
from tests.linear_bundle import SHOP
from tests.live_service import asking, publish_served
from tests.served import JSON, ROOT, ask, exchange

SENTINEL = "Zq7sentinelZq7"


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with asking(publish_served(tmp_path_factory.mktemp("hostile"), SHOP)) as app:
        yield app


def refuse(reply, *statuses):
    assert reply.status in statuses, reply
    assert len(reply.content) < 1024
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error", "request_id"}
    assert SENTINEL not in reply.content.decode()
    return reply.json["error"]


@pytest.mark.parametrize("k", [0, -1, 1001, 2**63, 10**30, "5", True, 5.0, 1e3, None, [5], {"k": 5}])
def test_a_k_that_is_no_small_number_is_refused_and_named(app, k):
    error = refuse(ask(app, "POST", "/v1/recommend", {"k": k}), 422)
    assert error["field"] == "k"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"requests": [{}] * 257}, "requests"),
        ({"requests": []}, "requests"),
        ({"history": [{"item_id": "a"}] * 501}, "history"),
        ({"exclude": ["a"] * 10_001}, "exclude"),
        ({"requests": [{}, {"history": [{"item_id": "a"}] * 501}]}, "requests[1].history"),
        ({"user_id": SENTINEL * 200}, "user_id"),
        ({"features": {str(number): 1 for number in range(65)}}, "features"),
        ({"context": {SENTINEL: [[[1]]]}}, "context"),
        ({"features": [1]}, "features"),
        ({"history": {"item_id": "a"}}, "history"),
        ({"repeats": SENTINEL}, "repeats"),
        ({"requests": [{"k": 5}]}, "requests[0].k"),
        ({"requests": [{}], "explain": True}, "explain"),
        ({"requests": [{SENTINEL: 1}]}, "requests[0]"),
        ({"history": [{SENTINEL: 1}]}, "history[0]"),
        ({SENTINEL: 1}, None),
        ([{"k": 5}], None),
        (SENTINEL, None),
        (None, None),
        (7, None),
    ],
)
def test_a_body_of_another_form_is_refused_and_the_place_named(app, body, field):
    error = refuse(ask(app, "POST", "/v1/recommend", json.dumps(body).encode()), 422)
    assert error.get("field") == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "u1", "item_id": "i107", "request_id": 7}, "request_id"),
        ({"user_id": "u1", "item_id": "i107", "weight": SENTINEL}, "weight"),
        ({"item_id": "i107"}, "user_id"),
        ({"user_id": "u1"}, "item_id"),
        ({"events": []}, "events"),
        ({"events": [{"user_id": "u1", "item_id": "i107"}] * 257}, "events"),
        ({"events": [{"user_id": "u1", "item_id": "i107"}, {"user_id": "u1", "item_id": [1]}]}, "events[1].item_id"),
        ([SENTINEL], None),
    ],
)
def test_an_event_of_another_form_is_refused_and_the_place_named(app, body, field):
    assert refuse(ask(app, "POST", "/v1/events", json.dumps(body).encode()), 422).get("field") == field


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"k": SENTINEL}, "k", "expected a whole number"),
        ({"explain": 1, "k": SENTINEL}, "k", "expected a whole number"),
        ({"user_id": 5.5}, "user_id", "expected a text or a whole number"),
        ({"exclude": ["a", None]}, "exclude[1]", "expected a text or a whole number"),
        ({"history": [{"item_id": 1, "weight": SENTINEL}]}, "history[0].weight", "expected a number"),
        ({"datetime": True}, "datetime", "expected a text or a number"),
        ({"features": {"income": {}}}, "features", "expected a text, a number, true or false or a list"),
        ({"exclude": SENTINEL}, "exclude", "expected a list"),
    ],
)
def test_a_value_of_another_type_is_told_all_that_it_might_be(app, body, field, said):
    error = refuse(ask(app, "POST", "/v1/recommend", body), 422)
    assert (error["field"], error["message"]) == (field, said)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"features": {SENTINEL: 1}}, "allowed: gender, income"),
        ({"features": {"incom": 1}}, "did you mean 'income'"),
        ({"features": {"income": SENTINEL}}, "features.income"),
        ({"features": {"device": SENTINEL}}, "context feature"),
        ({"datetime": SENTINEL}, "datetime"),
        ({"history": [{"item_id": "a", "datetime": 2 * 10**9}, {"item_id": "b", "datetime": 10**9}]}, "oldest first"),
        ({"history": [{"item_id": "a", "weight": -77123}]}, "weight"),
        ({"history": [{"event": SENTINEL}]}, "item_id"),
        ({"user_id": "   "}, "user_id"),
        ({"datetime": 77123}, "datetime"),
        ({"datetime": "77123e1"}, "the unit of time … is ambiguous"),
        ({"history": [{"item_id": "a", "datetime": at} for at in ("77123e5", 10**12)]}, "mixed units: … (seconds), …"),
        ({"features": {"income": ["x; expected ", 12, 77123]}}, "features.income: expected a number"),
        ({"filters": {"where": "price 77123"}}, "character 7: expected 'and', 'or' or the end; got …"),
        ({"filters": {"where": "price in 77123"}}, "expected '['; got …"),
        ({"filters": {"where": "price in [77123 77123"}}, "expected ','; got …"),
        ({"filters": {"where": "(price < 77123"}}, "expected ')'; got the end"),
        ({"filters": {"where": "price not 77123"}}, "expected 'in' after 'not'; got …"),
        ({"filters": {"where": f"price '{'; expected ' * 9}77123'"}}, "the end; got …"),
        ({"filters": {"where": "price < 77123e999"}}, "… is too large"),
        ({"filters": {"where": "`it's 77123` = 1"}}, "filters: unknown column …; allowed: "),
        ({"filters": {"where": '`it\'s "77123"` = 1'}}, "filters: unknown column …; allowed: "),
        ({"filters": {"at_most": {"it's 77123": 1}}}, "filters: unknown column …; allowed: "),
    ],
)
def test_what_does_not_fit_the_bundle_is_refused_without_its_value(app, body, said):
    error = refuse(ask(app, "POST", "/v1/recommend", body), 422)
    assert said in error["message"]
    assert "77123" not in error["message"]


TEXTS = st.from_regex(r"q[a-z0-9.+*()\[\]-]{1,9}q", fullmatch=True)
SENT = st.recursive(
    TEXTS | st.integers(100, 10**6) | st.floats(1.0, 1e6).filter(lambda number: len(str(number)) > 2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def written(value):
    """All that a value of JSON holds, as texts: names too."""
    if isinstance(value, dict):
        return [*value, *(text for inner in value.values() for text in written(inner))]
    return [text for inner in value for text in written(inner)] if isinstance(value, list) else [str(value)]


@settings(max_examples=200, deadline=None)
@given(sent=SENT, order=st.randoms())
def test_nothing_that_was_sent_is_said_however_the_message_was_written(sent, order):
    texts = written(sent)
    order.shuffle(texts)
    message = f"of price, {' and '.join(['nothing', *texts])}: none is a price"
    said = without_values(message, {"price"}, {"price": sent})
    assert said == f"of price, {' and '.join(['nothing', *('…' for _ in texts)])}: none is a price"


def test_words_of_a_message_stay_where_they_are_too_short_to_be_told_from_what_was_sent():
    message = "character 3: a text is no number; give it as a number"
    assert without_values(message, set(), ["a", "is", 3, True, None]) == message
    assert without_values("got secret.word twice", set(), ["secret", "secret.word", "word"]) == "got … twice"
    assert without_values(message, set(), ["num", "character 3"]) == message.replace("character 3", "…")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"features": {"income": 1e999}}', "expected a text, a finite number, true or false or a list"),
        (b'{"history": [{"item_id": "a", "weight": 1e999}]}', "expected a finite number"),
        (b'{"datetime": 1e999}', "expected a text or a finite number"),
        (b'{"k": 1e999}', "expected a whole number"),
    ],
)
def test_a_number_beyond_all_is_said_to_be_not_finite(app, body, said):
    assert refuse(ask(app, "POST", "/v1/recommend", body), 422)["message"] == said


@pytest.mark.parametrize(
    "body",
    [
        b'{"features": {"income": NaN}}',
        b'{"features": {"income": Infinity}}',
        b'{"features": {"income": -Infinity}}',
        b'{"features": {"income": 1e999}}',
        b'{"history": [{"item_id": "a", "weight": 1e999}]}',
        b'{"user_id": "\\ud800"}',
        b'{"features": {"\\udfff": 1}}',
        b'{"context": {"device": ["\\uDBFF"]}}',
        b'{"user_id": "a\\u0000b"}',
        b'{"user_id": "a\x00b"}',
        b'{"k": 5, "k": 6}',
        b'{"history": [{"item_id": "a", "item_id": "b"}]}',
        b"[" * 300_000,
        b'{"features":' * 60_000,
        b"[" * 300_000 + b"]" * 300_000,
        b'{"user_id": ' + b"9" * 5000 + b"}",
        b'{"user_id": ' + b"9" * 4000 + b"}",
        b'{"datetime": ' + b"9" * 300 + b"}",
        b'{"user_id": "\xff\xfe"}',
        b"\xef\xbb\xbf{}",
        b"{}{}",
        b"{",
        b"",
        b"{'k': 5}",
        f'{{"{SENTINEL}": "{SENTINEL}", '.encode(),
    ],
)
def test_what_is_no_json_or_cannot_be_held_is_refused(app, body):
    refuse(ask(app, "POST", "/v1/recommend", body), 400, 422)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        *[(b'{"a": %s}' % number, "NaN or Infinity") for number in (b"NaN", b"Infinity", b"-Infinity")],
        *[
            (b'["%s"]' % text, "half a surrogate")
            for text in (b"\\uD800", b"\\ud800", b"\\uDFFF", b"\\udc00", b"\\uDbFf")
        ],
        *[(b'[[{"%s": 1}]]' % text, "half a surrogate") for text in (b"a\\u0000", b"\\uDC00b")],
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b"[" + b"9" * 5_000 + b"]", "too many digits"),
    ],
)
def test_what_no_text_or_number_may_be_is_said(body, said):
    with pytest.raises(Fault, match=said) as fault:
        read_json(body)
    assert fault.value.status_code == 400


def test_a_whole_surrogate_pair_and_an_escaped_backslash_are_texts_like_any_other(app):
    assert ask(app, "POST", "/v1/recommend", b'{"user_id": "\\ud83d\\ude00", "k": 1}').status == 200
    assert ask(app, "POST", "/v1/recommend", b'{"user_id": "a\\\\u0000", "k": 1}').status == 200


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/xml", "json", ""]
)
def test_another_content_type_is_refused(app, kind):
    headers = {} if kind is None else {"content-type": kind}
    refuse(ask(app, "POST", "/v1/recommend", b"{}", headers), 415)


@pytest.mark.parametrize("encoding", ["gzip", "Deflate", "br", "gzip, identity"])
def test_a_compressed_body_is_refused_as_such(app, encoding):
    reply = ask(app, "POST", "/v1/recommend", gzip.compress(b"{}"), JSON | {"content-encoding": encoding})
    assert "content-encoding" in refuse(reply, 415)["message"]


def test_a_body_that_is_said_not_to_be_compressed_is_read(app):
    assert ask(app, "POST", "/v1/recommend", b"{}", JSON | {"content-encoding": "identity"}).status == 200


def test_json_with_a_charset_is_json(app):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert ask(app, "POST", "/v1/recommend", b"{}", headers).status == 200


def test_a_body_is_not_read_beyond_its_limit(app):
    length = {"content-length": "20000000"}
    refuse(ask(app, "POST", "/v1/recommend", b"{", JSON | length), 413)
    refuse(ask(app, "POST", "/v1/recommend", b"{", JSON | {"content-length": "9" * 5000}), 413)
    parts = [b" " * 300_000 for _ in range(70)]
    refuse(asyncio.run(exchange(app, "POST", "/v1/recommend", parts, JSON)), 413)


def test_a_body_of_just_the_limit_is_read(app):
    body = b"{}".ljust(1_000_000)
    for parts in ([body], [body[:-1], body[-1:]]):
        for headers in (JSON, JSON | {"content-length": "1000000"}):
            assert asyncio.run(exchange(app, "POST", "/v1/recommend", parts, headers)).status == 200
    refuse(asyncio.run(exchange(app, "POST", "/v1/recommend", [body, b" "], JSON)), 413)
    refuse(ask(app, "POST", "/v1/recommend", b"{}", JSON | {"content-length": "1000001"}), 413)
    for length in ("-5", "1e3", "", "²"):
        refuse(ask(app, "POST", "/v1/recommend", b"{}", JSON | {"content-length": length}), 413)


def test_a_long_exclude_list_of_a_legal_length_is_answered(app):
    assert ask(app, "POST", "/v1/recommend", {"exclude": ["x"] * 10_000, "k": 2}).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/recommend", 405),
        ("POST", "/health", 405),
        ("GET", f"/{SENTINEL}", 404),
        ("POST", "/docs", 404),
        ("POST", f"/v1/recommend/{SENTINEL}", 404),
        ("GET", "/ready/", 404),
        ("GET", "/v1/search", 404),
    ],
)
def test_other_methods_and_paths_are_refused(app, method, path, status):
    refuse(ask(app, method, path, {}), status)


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/recommend", "POST"),
        ("/v1/items/i107", "DELETE, PUT"),
        ("/v1/status", "GET, HEAD"),
        ("/", "GET, HEAD"),
        ("/openapi.json", "GET, HEAD"),
    ],
)
def test_another_method_is_told_of_all_that_a_path_has(app, methods, path):
    reply = ask(app, "PATCH", path, {})
    assert (reply.status, reply.headers["allow"]) == (405, methods)
    assert reply.json["error"]["message"] == f"method not allowed; allowed: {methods}"


def mutate(body, rng):
    """Change some bytes: swap, repeat, cut, or put in what is special to JSON."""
    content = bytearray(body)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(content) + 1)
        piece = rng.choice([b"{", b"}", b"[", b"]", b'"', b",", b":", b"null", b"-1", b"1e999", b"\\u0000", b"\\ud800"])
        piece = rng.choice([piece, bytes([rng.randrange(256)]), bytes(content[place : place + rng.randrange(20)])])
        content[place : place + rng.randrange(3)] = piece
    return bytes(content)


def check_mutated(app, number, seed):
    rng = random.Random(seed)
    bodies = [
        {"user_id": "u1", "features": {"income": 2.5, "gender": SENTINEL}, "k": 3, "context": {"device": "web"}},
        {"requests": [{"history": [{"item_id": "i107", "weight": 1, "event": SENTINEL}]}], "repeats": "allow"},
        {"exclude": ["i107", SENTINEL], "datetime": "2020-01-01T00:00:00Z", "k": 2},
    ]
    written = [json.dumps(body).encode() for body in bodies]
    for _ in range(number):
        reply = ask(app, "POST", "/v1/recommend", mutate(rng.choice(written), rng))
        if reply.status != 200:
            refuse(reply, 400, 422)


def test_mutated_bodies_are_answered_or_refused(app):
    check_mutated(app, 500, seed=1)


@pytest.mark.slow
def test_ten_thousand_mutated_bodies_are_answered_or_refused(app):
    check_mutated(app, 10_000, seed=2)


BOUNDS = {
    "k": (Ask, 1000, lambda n: {"k": n}),
    "requests": (Ask, 256, lambda n: {"requests": [{}] * n}),
    "history": (Ask, 500, lambda n: {"history": [{"item_id": 1}] * n}),
    "exclude": (Ask, 10_000, lambda n: {"exclude": [1] * n}),
    "only": (Ask, 10_000, lambda n: {"filters": {"only": ["a"] * n}}),
    "where": (Ask, 4096, lambda n: {"filters": {"where": "x" * n}}),
    "limits": (Ask, 64, lambda n: {"filters": {"at_most": {f"c{number}": 1 for number in range(n)}}}),
    "limit": (Ask, 1000, lambda n: {"filters": {"at_most": {"c": n}}}),
    "features": (Ask, 64, lambda n: {"features": {f"f{number}": 1 for number in range(n)}}),
    "name": (Ask, 256, lambda n: {"context": {"f" * n: 1}}),
    "value": (Ask, 4096, lambda n: {"features": {"f": "x" * n}}),
    "values": (Ask, 4096, lambda n: {"features": {"f": [1] * n}}),
    "id": (Ask, 256, lambda n: {"user_id": "x" * n}),
    "past event": (Ask, 4096, lambda n: {"history": [{"item_id": 1, "event": "x" * n}]}),
    "events": (Tell, 256, lambda n: {"events": [{"user_id": 1, "item_id": 2}] * n}),
    "event": (Tell, 4096, lambda n: {"user_id": 1, "item_id": 2, "event": "x" * n}),
    "answer": (Tell, 4096, lambda n: {"user_id": 1, "item_id": 2, "request_id": "x" * n}),
    "columns": (ItemBody, 64, lambda n: {"columns": {f"c{number}": 1 for number in range(n)}}),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_is_just_as_long_as_it_may_be_is_taken_and_nothing_longer_or_empty(bound):
    kind, most, body_of = BOUNDS[bound]
    TypeAdapter(kind).validate_python(body_of(most))
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(body_of(most + 1))
    if bound in ("k", "limit", "name", "id", "requests", "events"):
        TypeAdapter(kind).validate_python(body_of(1))
        with pytest.raises(ValidationError):
            TypeAdapter(kind).validate_python(body_of(0))


def test_the_limits_are_those_that_the_documentation_promises():
    limits, text = Limits(), " ".join((ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split())
    for said in (
        f"limits are {limits.body / 10**6:g} MB for a body, {MOST_REQUESTS} requests or events in it",
        f"histories of {MOST_EVENTS} events, {MOST_IDS:,} excluded items, k up to {MOST_ITEMS:,}",
        f"{MOST_LISTED:,} items in all lists of a body, {limits.head / 1000:g} KB of headers",
        f"{limits.head_time:g} s to send the headers and {limits.body_time:g} s to send the body",
        f"and {limits.connections} connections",
        f"only beyond {limits.write_waiting} of them at once, or after {limits.write_deadline:g} s, does a caller",
    ):
        assert said in text


@pytest.mark.parametrize(
    "body",
    [
        {"requests": [{"exclude": [None] * 10_000}] * 3},
        {"requests": [{"filters": {"only": [{}]}}] * 256},
        {"requests": [{"history": [{"x": 1}] * 500}] * 9},
        {"features": {str(number): [{}] * 4000 for number in range(9)}},
    ],
    ids=["exclude", "only", "history", "features"],
)
def test_a_body_of_faults_alone_is_not_checked_to_its_end(body):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Ask).validate_python(body)
    assert caught.value.error_count() < 100


def test_an_object_of_many_names_is_refused_before_they_are_looked_at(app):
    error = refuse(ask(app, "POST", "/v1/recommend", {f"{SENTINEL}{number}": 1 for number in range(257)}), 400)
    assert "allowed: 256" in error["message"]
