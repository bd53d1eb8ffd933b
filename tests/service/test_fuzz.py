"""Whatever is sent to a running service: no fault of its own, no echo, and it answers on as before.

`FUZZ=100000` sends as many mutated bodies, and a tenth of it in raw streams; without it a few seconds' worth.
"""

import copy
import hashlib
import http.client
import json
import os
import random
import subprocess
import sys
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Thread

import pytest
from tests.http.services import NOW, publish_served
from tests.linear_bundle import SHOP
from tests.served import serving, write_request

pytestmark = pytest.mark.service
N_BODIES = int(os.environ.get("FUZZ", "8000"))
MARK = "Zq7markZq7"
KEY = "the key of an admin"
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
ODD = [
    *(None, True, False, 0, -1, 1.5, 1e308, 2**63, -(2**63) - 1, 10**40, 0.1, 1_660_000_000, 1e12, "", " ", "1e5"),
    *(MARK, MARK * 500, f"{MARK}\u2028\x00", f"\ud800{MARK}", f"price < '{MARK}'", "not " * 200, "(" * 300),
    *("2022-01-01", "9999-12-31T23:59:59Z", [], [[]], {}, {"": ""}, [None] * 50, {MARK: {MARK: [MARK]}}, [[[MARK]]]),
]  # fmt: skip
EVENT = {"item_id": "i107", "datetime": 1_490_000_000, "event": "buy", "weight": 2}
ASKED = {
    "history": [EVENT, EVENT | {"item_id": "i114"}],
    "context": {"device": "web"},
    "features": {"income": 3},
}
FILTERS = {
    "where": "brand in ['x'] and price <= 20 and not department = 'fruit'",
    "only": ["i107"],
    "at_most": {"brand": 2},
}
BODIES = [
    ("POST", "/v1/recommend", {"user_id": "u1", "k": 5, "datetime": 1_510_000_000, "filters": FILTERS}),
    ("POST", "/v1/recommend", ASKED | {"k": 7, "explain": True, "repeats": "allow", "exclude": ["i100", 7]}),
    ("POST", "/v1/recommend", {"requests": [{"user_id": "u1"}, {"filters": {"at_most": {"brand": 2}}}], "k": 3}),
    ("POST", "/v1/similar", {"item_id": "i107", "k": 5, "explain": True}),
    ("POST", "/v1/due", ASKED | {"k": 5, "datetime": 1_500_000_000, "exclude": ["i100"], "filters": FILTERS}),
    ("POST", "/v1/events", EVENT | {"user_id": "u3", "request_id": "abc"}),
    ("POST", "/v1/events", {"events": [EVENT | {"user_id": "u4"}, {"user_id": 4, "item_id": 5, "event": "dismiss"}]}),
    ("PUT", "/v1/items/new", {"columns": {"department": "meat", "price": 2.5, "title": "red bread", "in_stock": True}}),
    ("DELETE", "/v1/items/new", None),
    ("POST", "/v1/users/forget", {"user_id": "nobody"}),
]  # fmt: skip
GOOD = {
    "history": [{"item_id": "i107"}, {"item_id": "i114"}],
    **NOW,
    "filters": {"where": "brand = 'x'"},
}


@contextmanager
def serving_with_keys(folder, log):
    """Give a service with keys; what it logs comes into a list, and is all there at the end."""
    keys = folder / "keys"
    keys.write_text(f"admin admin {hashlib.sha256(KEY.encode()).hexdigest()}\n")
    bundle = publish_served(folder / "run", SHOP)
    with serving("--bundle", bundle, "--keys", keys, "--retention-days", 36_000) as server:
        reader = Thread(target=lambda: log.extend(server.process.stderr))
        reader.start()
        yield server
        assert server.end() == 0
    reader.join()


def list_leaks(log):
    """Return the lines of a log that show what was sent, or where the code failed."""
    return [line for line in log if MARK in line or "Traceback" in line]


@pytest.fixture
def service(tmp_path):
    log = []
    with serving_with_keys(tmp_path, log) as server:
        yield server
    assert not list_leaks(log)


def list_places(node, path=()):
    yield path
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for name, child in children:
        yield from list_places(child, (*path, name))


def alter(body, rng):
    """Replace, rename, remove or repeat some parts of a body."""
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 2, 4])):
        *path, last = rng.choice([place for place in list_places(body) if place] or [(None,)])
        node = body
        for name in path:
            node = node[name]
        how = rng.random()
        if last is None or how < 0.02:
            return rng.choice(ODD)
        if how < 0.6:
            node[last] = copy.deepcopy(rng.choice(ODD))
        elif how < 0.75 and isinstance(node, dict):
            node[rng.choice([MARK, "", "user_id", "k", "where", "\x00", "item_id"])] = node.pop(
                last
            )
        elif how < 0.9:
            del node[last]
        elif isinstance(node, list):
            node.extend([copy.deepcopy(node[last])] * rng.choice([1, 10, 600]))
    return body


def mutate(text, rng):
    """Change, remove, insert or repeat some bytes."""
    data = bytearray(text)
    pieces = [
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"\\",
        b"\\u0000",
        b"\xff\xfe",
        b"e999",
        b"NaN",
        b"\r\n",
        MARK.encode(),
    ]
    for _ in range(rng.choice([1, 1, 2, 5])):
        place, size = rng.randrange(len(data) + 1), rng.choice([0, 1, 3, 20])
        repeated = data[place : place + size] * rng.choice([2, 4])
        data[place : place + size] = rng.choice(
            [repeated, b"", rng.choice(pieces), rng.randbytes(size)]
        )
    return bytes(data)


def draw_call(rng):
    method, path, body = rng.choice(BODIES if rng.random() < 0.05 else BODIES[:-1])
    if path.startswith("/v1/items/"):
        path += rng.choice(["", "", "%00", "%ff", "x" * 300, "%20", "a%2Fb", MARK])
    altered = (
        json.dumps(alter(body, rng)).encode()
        if rng.random() < 0.6
        else mutate(json.dumps(body).encode(), rng)
    )
    return method, path, b"" if body is None else altered


def draw_stream(rng):
    """Draw what may be a request, two, a part of one, or none."""
    whole = write_request(*draw_call(rng), HEADERS)
    return rng.choice(
        [
            mutate(whole, rng),
            mutate(whole * 2, rng),
            rng.randbytes(200),
            whole[: rng.randrange(len(whole))],
        ]
    )


def send_stream(service, sent):
    """Send bytes on a connection of their own; return all that is answered."""
    with service.connect() as connection:
        connection.sendall(sent)
        connection.shutdown(1)  # of writing
        answer = b""
        while more := connection.recv(1 << 16):
            answer += more
    return answer


def read_status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else 0


def is_echo(status, answer):
    """Tell whether a refusal repeats what was sent."""
    return status != 200 and MARK.encode() in answer


def check(status, answer, sent):
    assert status < 500, (status, answer[:300], sent[:500])
    assert not is_echo(status, answer), (answer[:300], sent[:500])


def list_schemathesis(service, folder, seconds):
    """Return the command that lets schemathesis try the whole interface with all its checks.

    A value may fit the document but not the bundle (422), or be long.
    """
    config = folder / "schemathesis.toml"
    config.write_text(
        "[checks]\n"
        'positive_data_acceptance.expected-statuses = ["2xx", 404, 413, 422]\n'
        "negative_data_rejection.expected-statuses = [400, 401, 404, 405, 413, 415, 422]\n"
    )
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--header", f"Authorization: {HEADERS['authorization']}", "--checks", "all"]
    options += ["--max-time", str(seconds), "--seed", "1"]
    address = f"http://127.0.0.1:{service.port}/openapi.json"
    return [program, "--config-file", config, "run", *options, address]


def test_mutated_bodies_are_answered_or_refused(service):
    rng, statuses = random.Random(N_BODIES), Counter()
    before = service.ask("POST", "/v1/recommend", GOOD, HEADERS).json["answers"]
    with closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)) as connection:
        for _ in range(N_BODIES):
            method, path, body = draw_call(rng)
            connection.request(method, path, body, HEADERS)
            reply = connection.getresponse()
            answer = reply.read()
            check(reply.status, answer, body)
            assert reply.status == 200 or b"request_id" in answer
            statuses[reply.status] += 1
    print(statuses)
    assert {200, 400, 422} <= statuses.keys()
    assert service.ask("POST", "/v1/recommend", GOOD, HEADERS).json["answers"] == before


def test_raw_bytes_are_answered_refused_or_dropped(service):
    rng, statuses = random.Random(N_BODIES), Counter()
    for _ in range(N_BODIES // 10):
        sent = draw_stream(rng)
        answer = send_stream(service, sent)
        status = read_status(answer)
        check(status, answer, sent)
        statuses[status] += 1
    print(statuses)
    assert service.ask("POST", "/v1/recommend", GOOD, HEADERS).status == 200


def test_the_service_does_what_its_document_says(service, tmp_path):
    done = subprocess.run(
        list_schemathesis(service, tmp_path, 30),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert "Tested: 17" in done.stdout
