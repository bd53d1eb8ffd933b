"""Nothing of a person in logs, metrics or errors: sentinels go in everywhere and come out nowhere."""

import logging
import re
import sys
import time

import pytest

from serve.http.logs import QuietFormatter
from serve.registry.changes import publish_and_activate
from serve.registry.pointer import write_current
from serve.registry.versions import Registry
from tests.linear_bundle import SHOP, publish_linear
from tests.live_service import publish_served
from tests.served import ROOT, serving

SENTINEL = "Qx9person9xQ"


def test_no_sentinel_comes_out_of_logs_metrics_or_errors(tmp_path):
    bundle = publish_served(tmp_path, SHOP)
    who = {"user_id": f"{SENTINEL}1"}
    history = [{"item_id": f"{SENTINEL}2", "event": f"{SENTINEL}3"}]
    calls = [
        ("POST", "/v1/recommend", {**who, "history": history, "features": {"gender": f"{SENTINEL}4"}}),
        ("POST", "/v1/recommend", {**who, "features": {f"{SENTINEL}5": SENTINEL}}),
        ("POST", "/v1/recommend", {**who, "k": SENTINEL}),
        ("POST", "/v1/similar", {"item_id": SENTINEL}),
        ("POST", "/v1/events", {**who, "item_id": SENTINEL}),
        ("PUT", f"/v1/items/{SENTINEL}", {"columns": {SENTINEL: SENTINEL}}),
        ("DELETE", f"/v1/items/{SENTINEL}", None),
        ("GET", f"/{SENTINEL}", None),
        ("POST", "/v1/users/forget", who),
    ]
    with serving("--bundle", bundle) as server:
        replies = [server.ask(*call) for call in calls]
        replies.append(server.ask("GET", "/metrics"))
        with server.connect() as connection:
            connection.sendall(f"GET /{SENTINEL} HTTP/9\r\n{SENTINEL}\r\n\r\n".encode())
            connection.recv(1000)
        assert server.end() == 0
        log = server.process.stderr.read()
    assert [reply.status for reply in replies] == [200, 422, 422, 422, 200, 422, 200, 404, 200, 200]
    assert SENTINEL not in log
    for call, reply in zip(calls, replies, strict=False):
        assert SENTINEL not in reply.content.decode(), call


_FAILING = f"""
from serve.state.store import StateStore

SAID = "{SENTINEL}"

def log_impressions(self, answers):
    raise RuntimeError(SAID)

StateStore.log_impressions = log_impressions
"""


def test_what_an_error_says_that_ends_a_thread_is_not_in_the_log(tmp_path):
    bundle = publish_served(tmp_path, SHOP)
    (tmp_path / "sitecustomize.py").write_text(_FAILING)  # Python runs it as it starts
    with serving("--bundle", bundle, variables={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as server:
        assert server.ask("POST", "/v1/recommend", {"k": 2}).status == 200
        while not any("no longer logged" in note for note in server.ask("GET", "/v1/status").json["notes"]):
            time.sleep(0.05)
        assert server.end() == 0
        log = server.process.stderr.read()
    assert "an error has ended the thread bascule-impressions" in log
    assert "in log_impressions" in log
    assert "RuntimeError" in log
    assert SENTINEL not in log


def test_the_log_says_which_version_answers_and_why(tmp_path):
    first, second = (publish_linear(tmp_path / str(seed), SHOP, seed) for seed in (3, 8))
    registry = Registry(tmp_path / "registry")
    versions = [publish_and_activate(registry, bundle, keep=3).version for bundle in (first, second)]
    (registry.path / versions[1] / "golden.json").write_bytes(b"{}")
    token = "a token of more than 16 characters"
    with serving("--registry", registry.path, variables={"BASCULE_RELOAD_TOKEN": token}) as server:
        for status in (409, 200):
            reply = server.ask("POST", "/v1/reload", headers={"authorization": f"Bearer {token}"})
            assert reply.status == status
            write_current(registry.path, versions[0], [])
        assert server.end() == 0
        log = server.process.stderr.read()
    started, refused, loaded = log.splitlines()
    assert re.search(f"WARNING .*golden.json.*; {versions[0]} answers, which was current before$", started)
    assert re.search(f"WARNING .*refused, version {versions[0]} answers on: .*golden.json", refused)
    assert loaded.endswith(f"INFO serve.http: version {versions[0]} answers from now on")
    assert str(tmp_path) not in log


def test_an_error_in_the_log_has_its_place_and_type_but_not_its_message():
    with pytest.raises(ValueError, match=SENTINEL):
        int(SENTINEL)
    try:
        int(SENTINEL)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, __file__, 1, "it failed", None, sys.exc_info())
    written = QuietFormatter("%(message)s").format(record)
    assert written.startswith("it failed")
    assert "test_http_logs.py" in written
    assert "ValueError" in written
    assert SENTINEL not in written
