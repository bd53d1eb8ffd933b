"""Workers behind one address: renewed, killed and drained under clients that ask without a pause; nothing is lost."""

import http.client
import json
import os
import re
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest
from serve.recommender import Recommender
from service.registry import Registry, activate, publish_version
from service.state import StateStore
from tests.http.services import EVER, NOW, TOKEN, publish_served
from tests.linear_bundle import SHOP, item_ids, publish_linear
from tests.served import JSON, serving

pytestmark = pytest.mark.service
IDS = item_ids(SHOP)
AUTHORISED = JSON | {"authorization": f"Bearer {TOKEN}"}
RELOADING = {"BASCULE_RELOAD_TOKEN": TOKEN}
HISTORY = [{"item_id": IDS[3]}, {"item_id": IDS[8]}]
REQUEST = NOW | {"history": HISTORY, "k": 7}


class Client(Thread):
    """Ask without a pause, on one connection for as long as the server keeps it, or on a new one each time."""

    def __init__(self, port, keeps, make=lambda number: ("/v1/recommend", REQUEST)):
        super().__init__(daemon=True)
        self._port, self._keeps, self._make = port, keeps, make
        self._is_over = Event()
        self.replies, self.broken = [], []  # (number, answer) and (number, error)

    def run(self):
        connection = None
        for number in count():
            if self._is_over.is_set():
                break
            path, body = self._make(number)
            connection = connection or http.client.HTTPConnection(
                "127.0.0.1", self._port, timeout=30
            )
            try:
                connection.request("POST", path, json.dumps(body), JSON)
                reply = connection.getresponse()
                content = json.loads(reply.read())
                if reply.status != 200:
                    raise OSError(f"{reply.status}: {content}")
                self.replies.append((number, content))
            except (OSError, http.client.HTTPException) as error:
                self.broken.append((number, error))
                connection.close()
                connection = None
                time.sleep(0.01)
            else:
                if not self._keeps or reply.will_close:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    def stop(self):
        self._is_over.set()
        self.join(40)


@contextmanager
def asked(port, *makes):
    """Have clients ask, of which every second one keeps its connection."""
    clients = [Client(port, place % 2 == 0, *make) for place, make in enumerate(makes or [()] * 2)]
    for client in clients:
        client.start()
    try:
        yield clients
    finally:
        for client in clients:
            client.stop()


def wait_for(met, seconds=60):
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until
        time.sleep(0.02)


def workers_of(server):
    return set(
        map(
            int,
            Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
            .read_text()
            .split(),
        )
    )


def statuses(server):
    """Return the version of each worker that a dozen connections reach."""
    return Counter(
        server.ask("GET", "/v1/status", headers=AUTHORISED).json["version"] for _ in range(12)
    )


def expected_lists(bundles):
    """Return version -> the list of that bundle."""
    recommenders = [Recommender.load(bundle) for bundle in bundles]
    return {
        one.version: one.recommend([NOW | {"history": HISTORY}], 7).item_id.tolist()
        for one in recommenders
    }


def check_lists(clients, expected):
    """Require that each answer is the list of the version that it names, and that no version goes back and forth."""
    for client in clients:
        assert client.broken == []
        for _, reply in client.replies:
            items = [item["item_id"] for item in reply["answers"][0]["items"]]
            assert items == expected[reply["version"]]


def tell(who, turn=0):
    """Make events of a user, each of a time of its own."""
    event = {"user_id": f"u{who}", "item_id": IDS[0]}
    return (lambda number: ("/v1/events", event | {"datetime": first_of(turn) + number}),)


def first_of(turn):
    return 1_500_000_000 + 100_000 * turn


def check_kept(home, clients, turn=0):
    """Require that each event that was acknowledged is on disk, in a file that is sound."""
    with closing(sqlite3.connect(home / "state" / "state.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        within = (first_of(turn), first_of(turn + 1) - 1)
        (n_kept,) = database.execute(
            "SELECT count(*) FROM events WHERE datetime BETWEEN ? AND ?", within
        ).fetchone()
    assert n_kept >= sum(len(client.replies) for client in clients)
    with closing(StateStore(home / "state" / "state.db", retention_days=EVER)) as store:
        for who, client in enumerate(clients):
            kept = set(store.recall(f"u{who}").history.datetime.tolist())
            assert {first_of(turn) + number for number, _ in client.replies[-900:]} <= kept


@pytest.fixture
def run(tmp_path):
    """A registry with two versions of one world, and a folder of state."""
    bundles = [
        publish_served(tmp_path / "a", SHOP),
        publish_linear(tmp_path / "b", SHOP, seed=8),
    ]
    registry = Registry(tmp_path / "registry")
    versions = [
        publish_version(registry, one, is_activated=place == 0).version
        for place, one in enumerate(bundles)
    ]
    return (
        registry,
        versions,
        bundles,
        ("--registry", registry.path, "--retention-days", str(EVER)),
    )


@pytest.mark.parametrize(("n_workers", "n_renewals"), [(1, 3), (2, 2)])
def test_renewed_workers_miss_no_request_and_take_up_what_is_new(run, n_workers, n_renewals):
    registry, versions, bundles, options = run
    with serving(*options, "--workers", str(n_workers)) as server:
        wait_for(lambda: len(workers_of(server)) == n_workers)
        with asked(server.port) as clients:
            for number in range(n_renewals):
                before = workers_of(server)
                activate(registry, versions[1 - number % 2])
                server.process.send_signal(signal.SIGHUP)
                wait_for(lambda: len(now := workers_of(server)) == n_workers and not now & before)  # noqa: B023
                assert statuses(server).keys() == {versions[1 - number % 2]}
        check_lists(clients, expected_lists(bundles))
        assert server.end() == 0


def test_of_killed_workers_others_take_the_place_and_nothing_acknowledged_is_lost(run):
    *_, options = run
    with serving(*options, "--workers", "2") as server:
        with asked(server.port, *(tell(who) for who in range(4))) as clients:
            for _ in range(4):
                wait_for(lambda: len(workers_of(server)) == 2)
                n_replies = [len(client.replies) for client in clients]
                victim = min(workers_of(server))
                os.kill(victim, signal.SIGKILL)
                wait_for(lambda: victim not in workers_of(server))  # noqa: B023
                wait_for(
                    lambda: all(
                        len(one.replies) > n + 20
                        for one, n in zip(clients, n_replies, strict=True)  # noqa: B023
                    )
                )
        assert server.end() == 0
    assert (
        max(len(client.broken) for client in clients) <= 4
    )  # its own connection to each that was killed
    check_kept(run[0].path, clients)


def test_of_a_killed_service_nothing_acknowledged_is_lost(run):
    *_, options = run
    for turn in range(5):
        with (
            serving(*options) as server,
            asked(server.port, *(tell(who, turn) for who in range(2))) as clients,
        ):
            wait_for(lambda: all(len(client.replies) > 20 for client in clients))
            server.end(signal.SIGKILL)
        check_kept(run[0].path, clients, turn)


def test_items_and_reloads_of_one_worker_reach_the_others_within_a_second(run):
    registry, versions, *_, options = run
    with serving(*options, "--workers", "3", variables=RELOADING) as server:
        wait_for(lambda: len(workers_of(server)) == 3)
        time.sleep(2)
        for number in range(5):
            columns = {"columns": {"department": "dairy", "title": "Milk"}}
            assert server.ask("PUT", f"/v1/items/new-{number}", columns).status == 200
            activate(registry, versions[1 - number % 2])
            assert server.ask("POST", "/v1/reload", headers=AUTHORISED).status == 200
            time.sleep(1)
            seen = [
                server.ask("POST", "/v1/similar", {"item_id": f"new-{number}"}) for _ in range(12)
            ]
            assert {one.status for one in seen} == {200}
            assert statuses(server).keys() == {versions[1 - number % 2]}
        assert server.end() == 0


def test_no_answer_mixes_versions_while_they_are_exchanged(run):
    registry, versions, bundles, options = run
    with serving(*options, "--workers", "2", variables=RELOADING) as server:
        with asked(server.port) as clients:
            for number in range(20):
                activate(registry, versions[1 - number % 2])
                assert server.ask("POST", "/v1/reload", headers=AUTHORISED).status == 200
        check_lists(clients, expected_lists(bundles))
        assert {reply["version"] for client in clients for _, reply in client.replies} == set(
            versions
        )


def test_a_service_that_is_drained_answers_all_that_it_took(run):
    *_, options = run
    for _ in range(5):
        with serving(*options) as server, asked(server.port) as clients:
            wait_for(lambda: all(len(client.replies) > 20 for client in clients))
            assert server.end() == 0
        for client in clients:
            assert all(isinstance(error, ConnectionRefusedError) for _, error in client.broken[1:])


def test_counts_of_workers_that_ended_stay_and_their_files_do_not(run):
    *_, options = run

    def count():
        text = server.ask("GET", "/metrics", headers=AUTHORISED).content.decode()
        found = re.findall(r'bascule_requests_total{route="recommend",status="200"} (\d+)', text)
        return sum(map(int, found))

    with serving(*options, "--workers", "1", variables=RELOADING) as server:
        n_files, n_asked = [], 0
        for turn in range(5):
            wait_for(lambda: len(workers_of(server)) == 1)
            for _ in range(7):
                assert server.ask("POST", "/v1/recommend", REQUEST).status == 200
            n_asked += 7
            wait_for(lambda: count() == n_asked)  # noqa: B023
            (worker,) = workers_of(server)
            variables = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
            (folder,) = (one for one in variables if one.startswith(b"PROMETHEUS_MULTIPROC_DIR="))
            n_files.append(len([*Path(folder.decode().partition("=")[2]).glob("*.db")]))
            if turn % 2:
                server.process.send_signal(signal.SIGHUP)
            else:
                os.kill(worker, signal.SIGKILL)
            wait_for(lambda: worker not in workers_of(server))  # noqa: B023
        assert server.end() == 0
    assert max(n_files) <= 2 * n_files[0]  # before: as many more for each that ended
