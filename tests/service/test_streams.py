"""A consumer beside a real Redis: killed with it, it loses no event that was acknowledged, and counts none twice."""

import json
import shutil
from contextlib import closing
from threading import Event, Thread

import pytest
import redis
from service.remote.streams import RedisStream, consume
from service.state import StateStore
from tests.http.services import publish_served
from tests.linear_bundle import SHOP
from tests.service.killed_consumers import IDS, Process, find_port, kill_and_count, wait_for

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]


def test_what_was_acknowledged_survives_kills_and_counts_once(tmp_path):
    bundle = publish_served(tmp_path / "run", SHOP)
    counts = kill_and_count(bundle, tmp_path, 4, 1.0)
    assert counts["acknowledged"] > 20
    assert (counts["lost"], counts["twice"]) == (0, 0)
    assert counts["poison"] > 0


def test_what_a_dead_consumer_left_is_taken_over(tmp_path, monkeypatch):
    port = find_port()
    server = Process(
        "redis-server", "--save", "", "--dir", tmp_path, "--port", port, folder=tmp_path
    )
    with closing(server), redis.Redis(port=port) as client:
        wait_for(lambda: answers(client))
        for number in (1, 2, 3):
            event = {"user_id": "u1", "item_id": IDS[number], "datetime": 1_700_000_000 + number}
            client.xadd("events", {"body": json.dumps(event)})
        address = f"redis://localhost:{port}"
        dead = RedisStream(address, "events", "bascule", "dead")
        dead.join()
        assert dead.read() == []  # it left nothing before
        assert len(dead.read()) == 3  # and never acknowledges these

        monkeypatch.setattr("service.remote.streams._IDLE", 300)
        stopping = Event()
        with closing(StateStore(tmp_path / "state" / "state.db")) as store:
            living = RedisStream(address, "events", "bascule", "living")
            thread = Thread(target=consume, args=(living, store, lambda: SHOP, stopping))
            thread.start()
            wait_for(lambda: client.xpending("events", "bascule")["pending"] == 0)
            stopping.set()
            thread.join()
            assert store.recall("u1").history.item_id.tolist() == IDS[1:4]


def answers(client):
    try:
        return client.ping()
    except redis.RedisError:
        return False
