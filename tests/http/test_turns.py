"""Long calls: they delay no short one, and stop at their deadline and when nobody waits for them."""

import asyncio
import json
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from serve.recommender import Recommender
from service.http import middleware
from service.http import routes as application
from service.http.errors import OverloadError
from service.http.middleware import CALLER, MAX_GATHERED, Worker
from service.service import Service
from service.state import StateStore
from tests.http.services import NOW, asking, publish_served
from tests.linear_bundle import SHOP, UNTIL, item_ids
from tests.served import JSON, ask, exchange

USERS = [f"u{number}" for number in range(7)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("turns"), SHOP)


@pytest.fixture
def app(bundle, tmp_path):
    with asking(bundle, tmp_path / "state") as app:
        yield app


async def post(app, body, path="/v1/recommend"):
    return await exchange(app, "POST", path, [json.dumps(body).encode()], JSON)


def test_at_its_deadline_a_call_is_told_so_though_the_thread_computes_on():
    gate = threading.Event()

    async def main():
        with closing(Worker(deadline=0.05)) as worker:
            started = time.monotonic()
            with pytest.raises(OverloadError):
                await worker.short.run(lambda: gate.wait(20))
            took = time.monotonic() - started
            gate.set()
            return took

    assert asyncio.run(main()) < 10


def test_a_short_call_is_answered_while_a_long_one_runs():
    gate = threading.Event()

    async def stays():
        return False

    def wait_for_gate():
        gate.wait(20)
        yield
        return "long"

    async def main():
        with closing(Worker(deadline=30)) as worker:
            long = asyncio.ensure_future(worker.long.run_steps(wait_for_gate(), stays))
            assert await worker.short.run(lambda: "short") == "short"
            gate.set()
            return await long

    assert asyncio.run(main()) == "long"


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_long_call_stops_when_its_client_is_gone_or_its_time_over(is_gone):
    taken = []

    def steps():
        for _ in range(100):
            taken.append(0)
            time.sleep(0.1)
            yield

    async def look():
        return is_gone

    async def main():
        deadline = 60 if is_gone else 0.05
        with closing(Worker(deadline=deadline)) as worker:
            with pytest.raises(OverloadError):
                await worker.long.run_steps(steps(), look)
            return await worker.short.run(lambda: 7) if is_gone else 7, worker.n_waiting

    assert asyncio.run(main()) == (7, 0)
    assert 0 < len(taken) < 100


@pytest.mark.parametrize("n", [1, 3, 4, 5, 7, 9, 30])
def test_a_body_in_steps_is_answered_as_in_one_call(app, bundle, n):
    requests = [{"user_id": USERS[place % 7], "datetime": UNTIL + place} for place in range(n)]
    answers = ask(app, "POST", "/v1/recommend", {"requests": requests, "k": 9}).json["answers"]
    expected = [*Recommender.load(bundle).recommend(requests, 9)]
    assert len(answers) == n
    for given, wanted in zip(answers, expected, strict=True):
        assert [item["item_id"] for item in given["items"]] == wanted.item_id.tolist()
        # The shape of a product decides the last bit of a sum, on some processors.
        scores = [item["score"] for item in given["items"]]
        np.testing.assert_allclose(scores, wanted.score, rtol=1e-6)


def test_a_single_request_is_answered_before_a_body_that_came_first_and_the_body_by_one_version(
    app, monkeypatch
):
    answering, answered, recommend = [], [], Recommender.recommend

    def note(self, requests, k=10, filter_viewed=None):
        if k == 7:
            answering.append(self)
            app.state.shared.service.items.put(item_ids(SHOP)[0], {"price": float(len(answering))})
        return recommend(self, requests, k, filter_viewed)

    async def answer(name, body):
        reply = await post(app, body)
        assert reply.status == 200, reply
        answered.append(name)

    async def main():
        body = asyncio.ensure_future(answer("body", {"requests": [NOW] * 256, "k": 7}))
        while not answering:
            await asyncio.sleep(0.001)
        await asyncio.gather(
            answer("single", NOW),
            answer("filtered", NOW | {"filters": {"where": "price > 1"}}),
        )
        await body

    monkeypatch.setattr(Recommender, "recommend", note)
    asyncio.run(main())
    assert (len(answered), answered[-1]) == (3, "body")
    assert len(answering) > 3
    assert len(set(map(id, answering))) == 1


def test_of_a_body_with_a_fault_nothing_is_logged(app, monkeypatch):
    shown = []
    monkeypatch.setattr(app.state.shared.service.impressions, "add", shown.extend)
    bad = {"requests": [{}] * 9 + [{"context": {"no": 1}}]}
    assert ask(app, "POST", "/v1/recommend", bad).status == 422
    assert shown == []
    same = {"requests": [{"filters": {"where": "price > 1"}}] * 2}
    assert ask(app, "POST", "/v1/recommend", same).status == 200
    assert len(shown) == 2


def test_a_body_whose_filters_take_too_long_is_given_up_at_its_deadline(app, monkeypatch):
    read, n_read = Service.read, []

    def read_slowly(self, raw, current):
        for parsed in read(self, raw, current):
            n_read.append(0)
            time.sleep(0.05)
            yield parsed

    monkeypatch.setattr(Service, "read", read_slowly)
    app.state.shared.answers.short._deadline = 0.2
    conditions = [{"filters": {"where": f"price > {number}"}} for number in range(16)]
    assert ask(app, "POST", "/v1/recommend", {"requests": conditions}).status == 503
    time.sleep(0.2)
    assert 1 < len(n_read) < 16


def test_a_user_is_looked_up_once_for_a_body(app, monkeypatch):
    recalled, recall = [], StateStore.recall
    monkeypatch.setattr(
        StateStore,
        "recall",
        lambda self, user: [recalled.append(user), recall(self, user)][1],
    )
    ids = ["u1", "u2", "u1", None, "u1", "u2"]
    assert (
        ask(
            app,
            "POST",
            "/v1/recommend",
            {"requests": [{"user_id": user} for user in ids]},
        ).status
        == 200
    )
    assert recalled == ["u1", "u2"]


def test_of_very_many_live_events_the_latest_count_and_every_dismissal(tmp_path):
    with closing(StateStore(tmp_path / "state" / "state.db")) as store:
        store.observe("u1", "unwanted", "dismiss", UNTIL - 1)
        for number in range(1500):
            store.observe("u1", f"i{number}", "view", UNTIL + number)
        recalled = store.recall("u1")
    assert recalled.history.item_id.tolist() == [f"i{number}" for number in range(500, 1500)]
    assert recalled.dismissed == ("unwanted",)


class Unanswered:
    """A connection whose request waits for its answer, or for its client to read it."""

    def __init__(self, has_begun=False):
        self.has_begun = has_begun

    def is_unanswered(self):
        return not self.has_begun


def test_clients_who_do_not_read_their_answers_hold_no_place(app):
    worker = app.state.shared.answers
    worker._seconds = middleware._SINGLE_SECONDS / 100
    worker.admitted = {Unanswered(has_begun=True) for _ in range(500)}
    assert ask(app, "POST", "/v1/recommend", {}).status == 200
    worker.admitted |= {Unanswered() for _ in range(102)}
    assert ask(app, "POST", "/v1/recommend", {}).status == 503


def test_who_asks_too_much_is_refused_before_it_costs_and_probes_are_not(app, monkeypatch):
    monkeypatch.setattr(Worker, "note", lambda *_: None)
    worker, asking_item = app.state.shared.answers, {"item_id": item_ids(SHOP)[0]}

    def statuses():
        asked = [("POST", "/v1/recommend", {}), ("POST", "/v1/similar", asking_item)]
        asked.append(("POST", "/v1/due", {"user_id": "u1"}))
        asked += [("GET", path, None) for path in ("/metrics", "/health", "/ready", "/v1/status")]
        return [ask(app, *one).status for one in asked]

    assert statuses() == [200] * 7
    worker._seconds = middleware._SINGLE_SECONDS / 100
    worker.admitted = {Unanswered() for _ in range(102)}
    assert statuses() == [503] * 3 + [200] * 4
    assert len(worker.admitted) == 102
    worker.admitted = {Unanswered() for _ in range(99)}
    assert statuses() == [200] * 7


def test_the_longer_single_requests_take_the_fewer_may_wait_and_two_batches_always_may():
    with closing(Worker(deadline=1)) as worker:

        def find_most():
            worker.admitted = set()
            while worker.n_excess < 0:
                worker.admitted.add(Unanswered())
            return len(worker.admitted)

        sizes = []
        for seconds in (0.001, 0.01, 9, 0.001):
            for n_there in (1, 4) * 200:
                worker.note(n_there * seconds * middleware._SINGLE_SECONDS, n_there)
            sizes.append(find_most())
    assert sizes == pytest.approx([1000, 100, 2 * MAX_GATHERED, 1000], abs=1)


def test_a_call_that_was_given_up_counts_as_a_long_one():
    may_end = threading.Event()

    async def main():
        with closing(Worker(deadline=0.2)) as worker:
            worker.short._seconds = 0.001
            with pytest.raises(OverloadError):
                await worker.short.run(lambda: may_end.wait(10))
            may_end.set()
            return worker.short._seconds

    assert asyncio.run(main()) > 0.01


def test_calls_of_one_caller_that_would_end_too_late_are_refused_at_once_and_the_others_end():
    async def main():
        refused_after = []

        async def ask_once(worker):
            started = time.monotonic()
            try:
                await worker.short.run(lambda: time.sleep(0.05))
            except OverloadError:
                refused_after.append(time.monotonic() - started)
                return False
            return True

        with closing(Worker(deadline=1)) as worker:
            assert await ask_once(worker)
            for _ in range(30):  # it learns how long they take
                await ask_once(worker)
            refused_after.clear()
            ended = await asyncio.gather(*(ask_once(worker) for _ in range(79)))
        return sum(ended), refused_after

    n_ended, refused_after = asyncio.run(main())
    assert 9 < n_ended < 21
    assert len(refused_after) == 79 - n_ended
    assert np.median(refused_after) < 0.5


def test_long_calls_of_one_caller_end_one_after_another():
    ended, running, most = [], [], []

    def steps(number):
        running.append(number)
        for _ in range(5):
            most.append(len(running) - len(ended))
            time.sleep(0.01)
            yield
        ended.append(number)

    async def stays():
        return False

    async def main():
        with closing(Worker(deadline=30)) as worker:
            calls = [worker.long.run_steps(steps(number), stays) for number in range(6)]
            await asyncio.gather(*calls)

    asyncio.run(main())
    assert ended == [*range(6)]
    assert set(most) == {1}


def test_similar_items_are_searched_outside_the_event_loop_and_the_document_is_written_once(
    app, monkeypatch
):
    threads, written = [], []
    similar = Service.similar
    monkeypatch.setattr(
        Service,
        "similar",
        lambda *given: [threads.append(threading.current_thread()), similar(*given)][1],
    )
    assert ask(app, "POST", "/v1/similar", {"item_id": item_ids(SHOP)[0]}).status == 200
    assert threads[0] is not threading.main_thread()
    openapi = app.openapi
    monkeypatch.setattr(app, "openapi", lambda: [written.append(0), openapi()][1])
    assert ask(app, "GET", "/openapi.json").content == ask(app, "GET", "/openapi.json").content
    assert len(written) == 1


def test_among_very_many_items_single_requests_are_answered_outside_the_event_loop(
    app, monkeypatch
):
    monkeypatch.setattr(application, "_MAX_BRIEF", 0)
    recommend, calls = Recommender.recommend, []

    def note(self, requests, k=10, filter_viewed=None):
        calls.append((len(requests), threading.current_thread() is threading.main_thread()))
        return recommend(self, requests, k, filter_viewed)

    async def main():
        bodies = [NOW | {"user_id": USERS[number % 7]} for number in range(20)]
        alone = [await post(app, body) for body in bodies]
        at_once = await asyncio.gather(*(post(app, body) for body in bodies))
        for one, other in zip(alone, at_once, strict=True):
            assert [item["item_id"] for item in one.json["answers"][0]["items"]] == [
                item["item_id"] for item in other.json["answers"][0]["items"]
            ]

    monkeypatch.setattr(Recommender, "recommend", note)
    asyncio.run(main())
    assert not any(is_in_loop for _, is_in_loop in calls)
    assert (sum(n for n, _ in calls), len(calls) < 40) == (40, True)


def test_a_caller_who_fills_the_line_delays_another_by_one_call():
    order = []

    async def ask_as(worker, caller, name):
        CALLER.set(caller)
        try:
            await worker.short.run(lambda: [time.sleep(0.01), order.append(name)])
        except OverloadError:
            return 503
        return 200

    async def main():
        with closing(Worker(deadline=30)) as worker:
            many = [asyncio.ensure_future(ask_as(worker, "greedy", "g")) for _ in range(100)]
            await asyncio.sleep(0.02)
            few = [await ask_as(worker, "modest", "m") for _ in range(3)]
            return await asyncio.gather(*many), few, len(order)

    many, few, _ = asyncio.run(main())
    assert few == [200] * 3
    assert {200, 503} == set(many)
    last = max(place for place, name in enumerate(order) if name == "m")
    assert last < 12 < len(order)  # in the order of arrival: behind all of the other's


def test_reasons_are_for_lists_that_people_read(app):
    for k, status in {100: 200, 101: 422}.items():
        body = {**NOW, "k": k, "explain": True}
        assert ask(app, "POST", "/v1/recommend", body).status == status
