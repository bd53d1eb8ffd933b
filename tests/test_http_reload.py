"""Reloads over HTTP: who may ask, and what answers before, meanwhile and after."""

import os
import re
import shutil
import threading

import numpy as np
import pytest

from serve.http.app import make_app
from serve.http.reloading import make_reloading
from serve.recommender import Recommender
from tests import damaged_bundles
from tests.linear_bundle import SHOP, UNTIL, publish_linear
from tests.live_service import publish_served, sharing
from tests.served import JSON, ask, serving

TOKEN = "a token of more than 16 characters"
AUTHORISED = JSON | {"authorization": f"Bearer {TOKEN}"}
DAMAGES = list(damaged_bundles.damages())
REQUEST = {"user_id": "u1", "datetime": UNTIL, "k": 5}


@pytest.fixture
def bundle(tmp_path):
    return publish_served(tmp_path, SHOP)


@pytest.fixture
def app(bundle):
    with sharing(bundle) as parts:
        yield make_app(parts, [make_reloading(parts, TOKEN)])


def replace_bundle(bundle, seed):
    """Put the bundle of another training in place."""
    shutil.rmtree(bundle)
    return publish_linear(bundle.parent, SHOP, seed)


def test_without_a_token_there_is_no_such_route(bundle, tmp_path):
    with sharing(bundle, tmp_path / "other" / "state") as parts:
        assert ask(make_app(parts), "POST", "/v1/reload", headers=AUTHORISED).status == 404


@pytest.mark.parametrize("header", ["", f"Bearer {TOKEN[:-1]}", TOKEN, f"bearer {TOKEN}", "Bearer \xff"])
def test_a_wrong_token_is_refused(app, header):
    assert ask(app, "POST", "/v1/reload", headers={"authorization": header}).status == 401


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "x-real-ip"])
def test_who_comes_through_a_proxy_is_refused(app, name):
    assert ask(app, "POST", "/v1/reload", headers=AUTHORISED | {name: "127.0.0.1"}).status == 403


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[(host, 200) for host in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1")],
        *[(host, 403) for host in ("10.0.0.7", "192.168.1.2", "8.8.8.8", "0.0.0.0", "fe80::1%eth0", "2001:db8::1")],
        *[(host, 403) for host in ("::ffff:10.0.0.7", "::127.0.0.1", "localhost", "", None)],
    ],
)
def test_who_knows_the_token_on_another_machine_is_refused(app, host, status):
    reply = ask(app, "POST", "/v1/reload", headers=AUTHORISED, host=host)
    assert reply.status == status
    assert ask(app, "POST", "/v1/reload", headers=JSON, host=host).status in (401, 403)


def test_another_version_answers_from_the_reload_on(app, bundle):
    before = ask(app, "POST", "/v1/recommend", REQUEST).json
    replace_bundle(bundle, seed=8)
    assert ask(app, "POST", "/v1/recommend", REQUEST).json["version"] == before["version"]
    reply = ask(app, "POST", "/v1/reload", headers=AUTHORISED)
    assert reply.status == 200
    after = ask(app, "POST", "/v1/recommend", REQUEST).json
    assert after["version"] == reply.json["version"] != before["version"]
    assert after["answers"] != before["answers"]
    assert 'bascule_reloads_total{outcome="loaded"} 1.0' in ask(app, "GET", "/metrics").content.decode()


def test_live_items_are_put_on_the_next_version_too(app, bundle):
    ask(app, "PUT", "/v1/items/fresh", {"columns": {"brand": "x"}})
    replace_bundle(bundle, seed=8)
    assert ask(app, "POST", "/v1/reload", headers=AUTHORISED).status == 200
    items = ask(app, "POST", "/v1/recommend", REQUEST | {"k": 30}).json["answers"][0]["items"]
    assert "fresh" in [item["item_id"] for item in items]


def test_what_cannot_be_loaded_is_refused_and_the_old_version_answers_on(app, bundle):
    before = ask(app, "POST", "/v1/recommend", REQUEST).json
    (bundle / "user_tower.onnx").write_bytes(b"no tower")
    reply = ask(app, "POST", "/v1/reload", headers=AUTHORISED)
    assert reply.status == 409
    assert "user_tower.onnx" in reply.json["error"]["message"]
    assert str(bundle.parent) not in reply.content.decode()
    assert ask(app, "GET", "/ready").status == 200
    last = ask(app, "GET", "/v1/status").json["last_reload"]
    assert last["is_loaded"] is False
    assert last["reason"] == reply.json["error"]["message"]
    after = ask(app, "POST", "/v1/recommend", REQUEST).json
    assert (after["version"], after["answers"]) == (before["version"], before["answers"])


def test_after_a_damage_the_old_version_answers_on(app, bundle, tmp_path):
    reload_damaged(app, bundle, tmp_path, DAMAGES[::9])


@pytest.mark.slow
def test_after_every_damage_the_old_version_answers_on(app, bundle, tmp_path):
    reload_damaged(app, bundle, tmp_path, DAMAGES)


def reload_damaged(app, bundle, tmp_path, damages):
    before = ask(app, "POST", "/v1/recommend", REQUEST).json
    other = publish_linear(tmp_path / "other", SHOP, seed=8)
    whole = tmp_path / "whole"
    bundle.rename(whole)
    for name, damage, message in damages:
        shutil.copytree(other, bundle)
        damage(bundle, whole)
        reply = ask(app, "POST", "/v1/reload", headers=AUTHORISED)
        assert reply.status == 409, name
        assert ask(app, "GET", "/ready").status == 200, name
        assert re.search(message, ask(app, "GET", "/v1/status").json["last_reload"]["reason"]), name
        after = ask(app, "POST", "/v1/recommend", REQUEST).json
        assert (after["version"], after["answers"]) == (before["version"], before["answers"]), name
        remove(bundle)


def remove(path):
    path.unlink() if path.is_symlink() else shutil.rmtree(path)


class Checker(threading.Thread):
    """Ask on and on, and recompute each answer under the version that it names."""

    def __init__(self, server, recommenders):
        super().__init__()
        self.server, self.recommenders = server, recommenders
        self.is_over = threading.Event()
        self.versions, self.faults = set(), []
        self.start()

    def run(self):
        while not self.is_over.is_set():
            reply = self.server.ask("POST", "/v1/recommend", REQUEST)
            if reply.status != 200:
                self.faults.append(reply)
                continue
            self.versions.add(reply.json["version"])
            request = {name: value for name, value in REQUEST.items() if name != "k"}
            (expected,) = self.recommenders[reply.json["version"]].recommend([request], REQUEST["k"])
            items = reply.json["answers"][0]["items"]
            if [item["item_id"] for item in items] != expected.item_id.tolist() or not np.allclose(
                [item["score"] for item in items], expected.score, atol=1e-5
            ):
                self.faults.append(reply)


def swap_under_load(tmp_path, n_swaps):
    """Exchange two bundles behind a link's back while four clients ask; each answer must be of one of them."""
    bundle = publish_served(tmp_path / "run", SHOP, seed=3)
    other = publish_linear(tmp_path / "other", SHOP, seed=8)
    profiles = tmp_path / "run" / "profiles"
    recommenders = [Recommender.load(path, profiles) for path in (bundle, other)]
    by_version = {one.bundle.manifest.version: one for one in recommenders}
    with serving("--bundle", bundle, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
        clients = [Checker(server, by_version) for _ in range(4)]
        for _ in range(n_swaps):
            os.rename(bundle, tmp_path / "aside")
            os.rename(other, bundle)
            os.rename(tmp_path / "aside", other)
            assert server.ask("POST", "/v1/reload", headers=AUTHORISED).status == 200
        for client in clients:
            client.is_over.set()
            client.join()
        assert server.ask("GET", "/v1/status").json["last_reload"]["is_loaded"]
        assert server.end() == 0
    for client in clients:
        assert client.faults == []
    assert set().union(*(client.versions for client in clients)) == set(by_version)


def test_swaps_under_load_mix_no_answer(tmp_path):
    swap_under_load(tmp_path, 4)


@pytest.mark.slow
def test_a_hundred_swaps_under_load_mix_no_answer(tmp_path):
    swap_under_load(tmp_path, 100)
