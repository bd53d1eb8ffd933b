"""More than can be answered is told to come back, at once; what was taken in is answered."""

import asyncio
import json
import threading

import pytest

from serve.http.app import make_app
from serve.http.limits import Limits
from serve.http.worker import OverloadError, Worker
from tests.linear_bundle import SHOP, item_ids
from tests.live_service import publish_served, sharing
from tests.served import JSON, exchange


@pytest.fixture
def gate():
    return threading.Event()


async def fill(worker, gate, n_jobs):
    """Let jobs wait for the gate and give them as tasks that have begun."""
    tasks = [asyncio.ensure_future(worker.run(lambda: gate.wait(20))) for _ in range(n_jobs)]
    await asyncio.sleep(0)
    return tasks


def test_a_full_worker_refuses_and_then_finishes_what_it_took(gate):
    async def main():
        worker = Worker("test", waiting=3, deadline=30)
        tasks = await fill(worker, gate, 3)
        with pytest.raises(OverloadError):
            await worker.run(lambda: 1)
        gate.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        assert await worker.run(lambda: 7) == 7
        assert worker.is_idle
        worker.close()

    asyncio.run(main())


def test_what_waits_at_the_end_is_finished_first(gate):
    done = []

    async def main():
        worker = Worker("test", waiting=3, deadline=30)
        jobs = [worker.run(lambda number=number: (gate.wait(20), done.append(number))) for number in range(3)]
        tasks = [asyncio.ensure_future(job) for job in jobs]
        await asyncio.sleep(0)
        assert not worker.is_idle
        closing = threading.Thread(target=worker.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        gate.set()
        closing.join(20)
        assert done == [0, 1, 2]
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_a_worker_with_one_job_is_not_idle(gate):
    async def main():
        worker = Worker("test", waiting=3, deadline=30)
        assert worker.is_idle
        tasks = await fill(worker, gate, 1)
        assert not worker.is_idle
        gate.set()
        await asyncio.gather(*tasks)
        assert worker.is_idle
        worker.close()

    asyncio.run(main())


def test_a_job_that_waited_too_long_is_not_begun(gate):
    begun = []

    async def main():
        worker = Worker("test", waiting=3, deadline=0.05)
        first = await fill(worker, gate, 1)
        late = asyncio.ensure_future(worker.run(lambda: begun.append(1)))
        await asyncio.sleep(0.2)
        gate.set()
        with pytest.raises(OverloadError):
            await late
        await asyncio.gather(*first)
        worker.close()

    asyncio.run(main())
    assert begun == []


def test_an_error_of_a_job_is_its_callers_and_the_thread_goes_on():
    async def main():
        worker = Worker("test", waiting=3, deadline=30)
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        assert await worker.run(lambda: 7) == 7
        worker.close()

    asyncio.run(main())


def test_a_job_that_nobody_waits_for_any_more_is_not_begun(gate):
    begun = []

    async def main():
        worker = Worker("test", waiting=3, deadline=30)
        first = await fill(worker, gate, 1)
        gone = asyncio.ensure_future(worker.run(lambda: begun.append(1)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(*first)
        worker.close()

    asyncio.run(main())
    assert begun == []


def test_an_overloaded_service_says_when_to_come_back_and_stays_ready(tmp_path, gate):
    bundle = publish_served(tmp_path, SHOP)

    async def main(parts, app):
        tasks = await fill(parts.answering, gate, 2)
        refused = await exchange(app, "POST", "/v1/recommend", [b"{}"], JSON)
        alike = await exchange(app, "POST", "/v1/similar", [b'{"item_id": "i100"}'], JSON)
        unread = await exchange(app, "POST", "/v1/recommend", [], JSON)  # whoever reads its body fails
        counts = (await exchange(app, "GET", "/metrics", [b""], {})).content.decode()
        ready = await exchange(app, "GET", "/ready", [b""], {})
        gate.set()
        await asyncio.gather(*tasks)
        answered = await exchange(app, "POST", "/v1/recommend", [b"{}"], JSON)
        assert "bascule_waiting 2.0" in counts
        assert "bascule_shed_total 3.0" in counts
        assert "bascule_in_flight 1.0" in counts
        assert unread.status == 503
        assert (alike.status, alike.headers["retry-after"]) == (503, "3")
        return refused, ready, answered

    with sharing(bundle, limits=Limits(waiting=2, deadline=30, retry_after=3)) as parts:
        refused, ready, answered = asyncio.run(main(parts, make_app(parts)))
    assert (refused.status, ready.status, answered.status) == (503, 200, 200)
    assert refused.headers["retry-after"] == "3"
    assert refused.json["error"]["code"] == "unavailable"


def test_events_are_kept_while_a_user_is_forgotten(tmp_path, gate, monkeypatch):
    bundle = publish_served(tmp_path, SHOP)
    begun = threading.Event()

    def forget_slowly(*_):
        begun.set()
        assert gate.wait(20)
        return {}

    monkeypatch.setattr("serve.service.forget_known", forget_slowly)
    event = json.dumps({"user_id": "u1", "item_id": item_ids(SHOP)[0]}).encode()

    async def main(app):
        forgetting = asyncio.ensure_future(exchange(app, "POST", "/v1/users/forget", [b'{"user_id": "u2"}'], JSON))
        while not (begun.is_set() or forgetting.done()):
            await asyncio.sleep(0)
        kept = await exchange(app, "POST", "/v1/events", [event], JSON)
        gate.set()
        return kept, await forgetting

    with sharing(bundle, limits=Limits(deadline=0.0)) as parts:  # answers must come at once, events may come late
        kept, forgotten = asyncio.run(main(make_app(parts)))
    assert (kept.status, kept.json["kept"]) == (200, 1)
    assert forgotten.status == 200


def test_items_change_while_events_wait_for_the_disk(tmp_path, gate, monkeypatch):
    bundle = publish_served(tmp_path, SHOP)

    def observe_slowly(_, observed):
        assert gate.wait(20)
        return len(observed)

    monkeypatch.setattr("serve.service.StateStore.observe_many", observe_slowly)
    known = item_ids(SHOP)[0]
    event = json.dumps({"user_id": "u1", "item_id": known}).encode()

    async def main(app):
        telling = asyncio.ensure_future(exchange(app, "POST", "/v1/events", [event], JSON))
        changed = await exchange(app, "PUT", f"/v1/items/{known}", [b'{"columns": {"in_stock": false}}'], JSON)
        is_waiting = not telling.done()
        gate.set()
        return changed, is_waiting, await telling

    with sharing(bundle) as parts:
        changed, is_waiting, told = asyncio.run(main(make_app(parts)))
    assert (changed.status, is_waiting, told.status) == (200, True, 200)
