"""Overload, faults, logs and the end: over-full queues answer 503, the end drops nothing, logs name nobody."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, closing

import numpy as np
import pandas as pd
import pytest
from serve.recommender import Recommender
from service.http.errors import OverloadError
from service.http.middleware import Worker
from tests.http.services import NOW, TOKEN, asking, publish_served
from tests.linear_bundle import SHOP, item_ids, publish_linear
from tests.served import JSON, ROOT, ask, exchange, read_reply, serving, write_request

SENTINEL = "Qx9person9xQ"
MOST = 20  # calls of a caller that wait before it is known how long one takes
EVENT = {"user_id": "u1", "item_id": item_ids(SHOP)[0]}


@pytest.fixture
def gate():
    return threading.Event()


@pytest.fixture
def bundle(tmp_path):
    return publish_served(tmp_path, SHOP)


async def fill(worker, gate, n_calls):
    """Let calls wait for the gate and give them as tasks that have begun."""
    tasks = [asyncio.ensure_future(worker.short.run(lambda: gate.wait(20))) for _ in range(n_calls)]
    await asyncio.sleep(0)
    return tasks


def test_a_full_worker_refuses_and_then_finishes_the_calls_that_it_took(gate):
    async def main():
        with closing(Worker(deadline=30)) as worker:
            tasks = await fill(worker, gate, MOST)
            with pytest.raises(OverloadError):
                await worker.short.run(lambda: 1)
            gate.set()
            assert await asyncio.gather(*tasks) == [True] * MOST
            with pytest.raises(ZeroDivisionError):
                await worker.short.run(lambda: 1 // 0)
            assert await worker.short.run(lambda: 7) == 7

    asyncio.run(main())


def test_a_call_that_waited_too_long_or_for_nobody_is_not_begun(gate):
    begun = []

    async def main():
        with closing(Worker(deadline=0.05)) as worker:
            first = await fill(worker, gate, 1)
            late, gone = (
                asyncio.ensure_future(worker.short.run(lambda: begun.append(1))) for _ in range(2)
            )
            await asyncio.sleep(0.2)
            gone.cancel()
            gate.set()
            for one in (late, *first):
                with pytest.raises(OverloadError):
                    await one

    asyncio.run(main())
    assert begun == []


def test_an_overloaded_service_says_when_to_come_back_and_stays_ready(bundle, gate):
    async def main(app):
        worker = app.state.shared.answers
        tasks = await fill(worker, gate, MOST)
        worker.short._seconds = 60  # of a call: another one would end too late
        refused = await exchange(app, "POST", "/v1/recommend", [b'{"requests": [{}]}'], JSON)
        short = await exchange(app, "POST", "/v1/recommend", [b"{}"], JSON)
        counts = (await exchange(app, "GET", "/metrics", [b""], {})).content.decode()
        ready = await exchange(app, "GET", "/ready", [b""], {})
        gate.set()
        await asyncio.gather(*tasks)
        answered = await exchange(app, "POST", "/v1/recommend", [b'{"requests": [{}]}'], JSON)
        assert [one.status for one in (refused, short, ready, answered)] == [
            503,
            200,
            200,
            200,
        ]
        assert (refused.headers["retry-after"], refused.json["error"]["code"]) == (
            "1",
            "unavailable",
        )
        assert f"bascule_waiting {MOST}.0" in counts
        assert "bascule_shed_total 1.0" in counts

    with asking(bundle) as app:
        asyncio.run(main(app))


def test_requests_that_come_at_once_are_answered_in_one_call_each_as_if_alone(bundle):
    bodies = [b'{"user_id": "u%d", "k": %d}' % (n % 7, 3 + n % 2) for n in range(40)] + [
        b'{"user_id": "u1", "context": {"no": 1}}'
    ]

    async def main(app):
        recommend, sizes = Recommender.recommend, []

        def count(self, requests, k=10, filter_viewed=None):
            sizes.append(len(requests))
            return recommend(self, requests, k, filter_viewed)

        alone = [await exchange(app, "POST", "/v1/recommend", [body], JSON) for body in bodies]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Recommender, "recommend", count)
            at_once = await asyncio.gather(
                *(exchange(app, "POST", "/v1/recommend", [one], JSON) for one in bodies)
            )
        assert (
            [one.status for one in at_once] == [one.status for one in alone] == [200] * 40 + [422]
        )
        for got, expected in zip(at_once[:-1], alone[:-1], strict=True):
            got, expected = (
                pd.DataFrame(one.json["answers"][0]["items"]) for one in (got, expected)
            )
            pd.testing.assert_frame_equal(got, expected, rtol=1e-6)
        assert sum(sizes) == 40
        assert max(sizes) > 1

    with asking(bundle) as app:
        asyncio.run(main(app))


@pytest.mark.parametrize("is_brief", [True, False])
def test_a_call_that_fails_fails_for_all_who_waited_for_it(is_brief):
    async def main():
        with closing(Worker(deadline=30)) as worker:
            asked = [
                worker.answer("key", n, lambda ones: [1 // n for n in ones], is_brief)
                for n in (2, 0)
            ]
            found = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(one) for one in found] == [ZeroDivisionError] * 2
            assert await worker.answer("key", 1, list, is_brief) == 1

    asyncio.run(main())


def test_a_batch_that_is_refused_holds_up_nobody_after_it(gate):
    async def main():
        with closing(Worker(deadline=30)) as worker:
            tasks = await fill(worker, gate, MOST)
            with pytest.raises(OverloadError):
                await worker.answer("key", 1, list, is_brief=False)
            gate.set()
            await asyncio.gather(*tasks)
            return await worker.answer("key", 2, list, is_brief=False)

    assert asyncio.run(main()) == 2


def test_events_are_kept_and_items_changed_while_a_user_is_forgotten(bundle, gate, monkeypatch):
    monkeypatch.setattr(
        "service.forget.forget_known",
        lambda *_, **__: {"run": "", "forgotten": []} if gate.wait(20) else None,
    )

    async def main(app):
        forgetting = asyncio.ensure_future(
            exchange(app, "POST", "/v1/users/forget", [b'{"user_id": "u2"}'], JSON)
        )
        kept = await exchange(app, "POST", "/v1/events", [json.dumps(EVENT).encode()], JSON)
        put = await exchange(
            app, "PUT", "/v1/items/i107", [b'{"columns": {"in_stock": false}}'], JSON
        )
        is_waiting = not forgetting.done()
        gate.set()
        assert (kept.status, put.status, is_waiting, (await forgetting).status) == (
            200,
            200,
            True,
            200,
        )

    with asking(bundle) as app:
        asyncio.run(main(app))


def test_a_disk_that_fails_is_answered_with_503_and_no_path(bundle, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device", "/secret/state.db")

    monkeypatch.setattr("service.service.Service.observe", fail)
    with asking(bundle) as app:
        reply = ask(app, "POST", "/v1/events", EVENT)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        assert "secret" not in reply.content.decode()
        assert ask(app, "POST", "/v1/recommend", {}).status == 200


def test_a_damaged_list_of_forgotten_users_answers_only_nobody(bundle):
    with asking(bundle) as app:
        (bundle.parent / "forgotten.json").write_text("{", encoding="utf-8")
        reply = ask(app, "POST", "/v1/recommend", {**NOW, "user_id": "u1"})
        assert reply.status == 503
        assert str(bundle.parent) not in reply.content.decode()
        assert ask(app, "POST", "/v1/recommend", NOW).status == 200


def test_no_person_is_in_logs_metrics_or_errors(bundle):
    user = {"user_id": f"{SENTINEL}1"}
    history = [{"item_id": f"{SENTINEL}2", "event": f"{SENTINEL}3"}]
    calls = [
        (
            "POST",
            "/v1/recommend",
            {**user, "history": history, "features": {"gender": f"{SENTINEL}4"}},
            200,
        ),
        (
            "POST",
            "/v1/recommend",
            {**user, "features": {f"{SENTINEL}5": SENTINEL}},
            422,
        ),
        ("POST", "/v1/recommend", {**user, "k": SENTINEL}, 422),
        ("POST", "/v1/similar", {"item_id": SENTINEL}, 422),
        ("POST", "/v1/events", {**user, "item_id": SENTINEL}, 200),
        ("PUT", f"/v1/items/{SENTINEL}", {"columns": {SENTINEL: SENTINEL}}, 422),
        ("DELETE", f"/v1/items/{SENTINEL}", None, 200),
        ("GET", f"/{SENTINEL}", None, 404),
        ("POST", "/v1/users/forget", user, 200),
        ("GET", "/metrics", None, 200),
    ]
    with serving("--bundle", bundle) as server:
        for method, path, body, status in calls:
            reply = server.ask(method, path, body)
            assert reply.status == status, path
            assert SENTINEL not in reply.content.decode()
        with server.connect() as connection:
            connection.sendall(f"GET /{SENTINEL} HTTP/9\r\n{SENTINEL}\r\n\r\n".encode())
            connection.recv(1000)
        assert server.end() == 0
        assert SENTINEL not in server.process.stderr.read()


def test_a_request_with_an_upgrade_is_one_request(bundle):
    with serving("--bundle", bundle) as server, server.connect() as connection:
        body = {"user_id": "u1", "k": 2}
        upgrade = JSON | {"connection": "upgrade", "upgrade": "h2c"}
        connection.sendall(write_request("POST", "/v1/recommend", body, upgrade))
        assert len(read_reply(connection).json["answers"][0]["items"]) == 2
        connection.sendall(2 * write_request("GET", "/health"))
        replies = b""
        while replies.count(b'{"status":"ok"}') < 2:
            replies += connection.recv(1 << 16)


def count_recommend(server):
    """Count the requests for recommendations that are there or were answered."""
    text = server.ask("GET", "/metrics").content.decode()
    found = re.findall(
        r'(?:bascule_in_flight|bascule_requests_total{route="recommend",status="200"}) (\d+)',
        text,
    )
    return sum(map(int, found)) - 1  # itself


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_requests_that_are_there_and_ends_with_status_0(bundle, number):
    body = {"requests": [{"user_id": "u1"}] * 64, "k": 23}
    with serving("--bundle", bundle) as server, ExitStack() as stack:
        idle, *busy = [stack.enter_context(server.connect()) for _ in range(6)]
        for connection in busy:
            connection.sendall(write_request("POST", "/v1/recommend", body))
        while count_recommend(server) < len(busy):
            pass
        assert server.end(number) == 0
        assert idle.recv(10) == b""
        assert [read_reply(connection).status for connection in busy] == [200] * len(busy)
        with pytest.raises(OSError, match="refused"):
            server.connect()


def test_an_address_that_is_taken_is_one_line(bundle):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (str(taken.getsockname()[1]), "70000"):
            command = [
                sys.executable,
                "-m",
                "bascule",
                "serve",
                "--bundle",
                str(bundle),
                "--port",
                port,
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert done.returncode == 2
            assert re.fullmatch(rf"error: cannot listen at 127.0.0.1:{port}: .*\n", done.stderr)


class Checker(threading.Thread):
    """Ask on and on, and recompute each answer under the version that it names."""

    def __init__(self, server, recommenders):
        super().__init__()
        self.server, self.recommenders = server, recommenders
        self.is_over = threading.Event()
        self.versions, self.faults = set(), []
        self.start()

    def run(self):
        request = {"user_id": "u1", **NOW}
        while not self.is_over.is_set():
            reply = self.server.ask("POST", "/v1/recommend", {**request, "k": 5})
            if reply.status != 200:
                self.faults.append(reply)
                continue
            self.versions.add(reply.json["version"])
            (expected,) = self.recommenders[reply.json["version"]].recommend([request], 5)
            items = reply.json["answers"][0]["items"]
            if [item["item_id"] for item in items] != expected.item_id.tolist() or not np.allclose(
                [item["score"] for item in items], expected.score, atol=1e-5
            ):
                self.faults.append(reply)


@pytest.mark.parametrize("n_swaps", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_swaps_under_load_mix_no_answer(tmp_path, n_swaps):
    """Exchange two bundles while four clients ask; each answer must be of one of them."""
    bundle, other = (
        publish_served(tmp_path / "run", SHOP, seed=3),
        publish_linear(tmp_path / "other", SHOP, seed=8),
    )
    recommenders = [
        Recommender.load(path, tmp_path / "run" / "profiles") for path in (bundle, other)
    ]
    by_version = {one.bundle.manifest.version: one for one in recommenders}
    with serving("--bundle", bundle, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
        clients = [Checker(server, by_version) for _ in range(4)]
        for _ in range(n_swaps):
            for source, target in (
                (bundle, tmp_path / "aside"),
                (other, bundle),
                (tmp_path / "aside", other),
            ):
                os.rename(source, target)
            reply = server.ask("POST", "/v1/reload", headers={"authorization": f"Bearer {TOKEN}"})
            assert reply.status == 200
        for client in clients:
            client.is_over.set()
            client.join()
        assert server.end() == 0
    assert [client.faults for client in clients] == [[]] * 4
    assert set().union(*(client.versions for client in clients)) == set(by_version)


def read_examples():
    """Return the calls of the first examples of both pages that have some."""
    commands = []
    for page, heading in (("README.md", "## Serve over HTTP"), ("docs/serving.md", "")):
        _, _, text = (ROOT / page).read_text(encoding="utf-8").partition(heading or "# ")
        block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]
        commands += [line for line in block.splitlines() if line.startswith("curl ")]
    return commands


def test_the_examples_of_the_readme_name_routes_that_there_are(bundle):
    with asking(bundle, token=TOKEN) as app:
        paths = set(ask(app, "GET", "/openapi.json").json["paths"])
    given = [re.search(r"http://127.0.0.1:8080(\S+)", command)[1] for command in read_examples()]
    assert len(given) >= 10
    assert {re.sub(r"/items/\d+", "/items/{item_id}", path) for path in given} <= paths
