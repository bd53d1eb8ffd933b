"""The state on a full disk, and of many rows: answers and events go on meanwhile."""

import os
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress

import pytest
from service.state import StateStore
from tests.http.services import NOW, publish_served
from tests.linear_bundle import SHOP, UNTIL, item_ids
from tests.served import serving

pytestmark = pytest.mark.service
IDS = item_ids(SHOP)
EVENT = {"user_id": "u2", "item_id": IDS[3]}
ASKED = NOW | {"user_id": "u2", "k": 5}
SECONDS = 30


@contextmanager
def small_disk(path):
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True
    )
    if done.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(os.urandom(4096)):
            pass


def wait_for(what):
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.mark.parametrize("has_state", [False, True], ids=["a new state", "an old state"])
def test_a_disk_that_is_full_at_the_start_is_used_once_it_is_not(tmp_path, has_state):
    bundle = publish_served(tmp_path / "run", SHOP)
    with small_disk(tmp_path / "disk") as disk:
        state = (
            "--bundle",
            bundle,
            "--state",
            disk / "state",
            "--retention-days",
            "36000",
        )
        if has_state:
            with serving(*state) as server:
                assert server.ask("POST", "/v1/events", EVENT).status == 200
                server.end()
        fill(disk / "filler")
        with serving(*state) as server:
            assert len(server.ask("POST", "/v1/recommend", ASKED).json["answers"][0]["items"]) == 5
            for _ in range(3):
                assert server.ask("POST", "/v1/events", EVENT).status == 503
                assert server.ask("POST", "/v1/users/forget", {"user_id": "u3"}).status == 503
            ready = server.ask("GET", "/ready")
            assert (ready.status, "disk" in ready.json["faults"]) == (200, True)
            (disk / "filler").unlink()
            wait_for(lambda: server.ask("POST", "/v1/events", EVENT).status == 200)
            wait_for(lambda: not server.ask("GET", "/ready").json.get("faults"))
            assert server.ask("POST", "/v1/users/forget", {"user_id": "u3"}).status == 200
            assert server.end() == 0


def fill_state(store, n_answers):
    """Write answers of 30 users, ten items each, a second between two."""
    for n in range(30):
        store.observe(f"u{n}", "a", "view", UNTIL)
    numbers = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    user = "(SELECT number FROM users WHERE place = 1 + i % 30)"
    with store._writing() as connection:
        answers = f"INSERT INTO answer_rows {numbers} SELECT i, 'r' || i, {user}, ? + i, 'v', 'greedy', NULL FROM n"
        connection.execute(answers, (n_answers, UNTIL))
        shown = f"INSERT INTO shown {numbers} SELECT 1 + (i - 1) / 10, i % 10, 'item-' || i % 999, 0.5, 1.0 FROM n"
        connection.execute(shown, (10 * n_answers,))


def test_events_do_not_wait_while_users_are_forgotten_and_old_rows_expire(tmp_path):
    """To write the file anew for each of them, as was done, takes seconds."""
    with closing(StateStore(tmp_path / "state" / "state.db", retention_days=36_000)) as store:
        fill_state(store, 300_000)
        store.days = dict.fromkeys(store.days, 1)
        late = UNTIL + 10**6
        for erase in (
            lambda: store.forget("nobody"),
            lambda: store.forget("u7"),
            lambda: sum(map(Counter.total, store.expire_slices(UNTIL + 100_000))),
        ):
            waits, thread = [], threading.Thread(target=erase)
            thread.start()
            while thread.is_alive() or len(waits) < 10:
                begun = time.monotonic()
                assert store.observe("somebody", "a", "view", late + len(waits))
                waits.append(time.monotonic() - begun)
                time.sleep(0.01)
            assert max(waits) < 1
        kept = [i for i in range(1, 300_001) if i >= 100_000 - 86_400 and i % 30 != 7]
        assert store._read("SELECT count(*) FROM shown") == [(10 * len(kept),)]
