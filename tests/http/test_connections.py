"""The connection refuses whole single requests where too many wait, and counts what it let in."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import h11
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st
from service.http import connections
from service.http.connections import Connection
from service.http.middleware import Worker
from tests.http.services import NOW, asking, publish_served
from tests.linear_bundle import SHOP
from tests.served import write_request
from uvicorn.server import ServerState

BODY = NOW | {"user_id": "u1", "k": 2}
SINGLE = write_request("POST", "/v1/recommend", BODY)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    with asking(publish_served(tmp_path_factory.mktemp("connections"), SHOP)) as app:
        yield app


@asynccontextmanager
async def connected(app):
    """Give the streams of a client of the application over a socket."""
    config = uvicorn.Config(
        app, http=Connection, ws="none", lifespan="off", log_config=None, proxy_headers=False
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()
        server.close()
        while state.connections:
            await asyncio.sleep(0.01)


async def read_answer(reader):
    """Return status, headers and JSON of an answer, as h11 reads them."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="POST", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    head, content = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await asyncio.wait_for(reader.read(1 << 16), 20))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            content += event.data
        else:
            assert isinstance(event, h11.EndOfMessage)
            headers = {name.decode(): value.decode() for name, value in head.headers}
            return head.status_code, headers, json.loads(content)


def test_where_too_many_wait_a_single_request_is_refused_unread_and_the_connection_goes_on(
    app, monkeypatch
):
    shed = app.state.shared.metrics.counters["shed"]

    async def main():
        async with connected(app) as (reader, writer):
            answers = []
            for is_full in (True, True, False, True):
                monkeypatch.setattr(Worker, "n_excess", 9 if is_full else -9)
                for parts in ((SINGLE,), (SINGLE[:30], SINGLE[30:])):
                    for part in parts:
                        writer.write(part)
                        await asyncio.sleep(0.02)
                    answers.append(await read_answer(reader))
            return answers

    before = shed._value.get()
    answers = asyncio.run(main())
    assert [status for status, *_ in answers] == [503, 503, 503, 503, 200, 200, 503, 503]
    assert shed._value.get() - before == 6
    for _, headers, content in answers:
        assert content["request_id"] == headers["x-request-id"]
        assert headers["x-content-type-options"] == "nosniff"
    unread, read = answers[:2]  # the second came in two parts
    assert {**unread[1], "x-request-id": 0, "date": 0} == {**read[1], "x-request-id": 0, "date": 0}
    assert unread[1]["retry-after"] == "1"
    assert unread[2]["error"] == read[2]["error"]
    assert len({headers["x-request-id"] for _, headers, _ in answers}) == 8


NAMES = st.sampled_from(
    [
        *(b"content-length", b"Content-Length", b"transfer-encoding", b"connection", b"expect"),
        *(b"x-a", b"upgrade", b"content-lengthy", b" content-length", b"content-length "),
    ]
)
VALUES = st.sampled_from(
    [b"2", b"0", b"+2", b"2, 2", b"chunked", b"close", b"keep-alive", b"", b"\xff"]
)
ENDS = st.sampled_from([b"\r\n", b"\n", b"\r", b"\r\n ", b"\r\n\r\n"])
LINES = st.lists(st.tuples(NAMES, st.sampled_from([b":", b": "]), VALUES, ENDS), max_size=5)
STARTS = st.sampled_from(
    [
        b"POST /v1/recommend HTTP/1.1\r\n",
        b"POST /v1/recommend HTTP/1.0\r\n",
        b"POST /v1/similar HTTP/1.1\r\n",
    ]
)


def read_request(data):
    """Return path, body and what is left behind it, as h11 reads them, or None."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    try:
        request, body = parser.next_event(), b""
        while isinstance(event := parser.next_event(), h11.Data):
            body += event.data
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or not isinstance(event, h11.EndOfMessage):
        return None
    return request.target, body, parser.trailing_data[0], parser.their_state


@settings(max_examples=200)
@given(STARTS, LINES, st.sampled_from([b"{}", b"", b"{}GET / HTTP/1.1\r\n\r\n"]))
def test_what_is_refused_unread_is_one_request_as_h11_reads_it(start, lines, body):
    given = start + b"".join(b"".join(line) for line in lines)
    for data in (given + b"\r\n" + body, given + b"host: x\r\ncontent-length: 2\r\n\r\n" + body):
        head = connections._SINGLE.match(data)
        if head and head.end() + int(head[1]) == len(data):
            # h11 wants a host as well, and refuses what has none
            seen = read_request(data) or read_request(data.replace(b"\r\n", b"\r\nhost: x\r\n", 1))
            assert seen == (b"/v1/recommend", data[head.end() :], b"", h11.DONE)


@pytest.mark.parametrize(
    ("lines", "is_single"),
    [
        (b"content-length: 2\r\n", True),
        (b"a: b\r\nConnection: keep-alive\r\nContent-Length: 2\r\nx: y\r\n", True),
        (b"content-length: 2\r\ncontent-length: 2\r\n", False),
        (b"content-length: 2\r\ntransfer-encoding: chunked\r\n", False),
        (b"connection: close\r\ncontent-length: 2\r\n", False),
        (b"expect: 100-continue\r\ncontent-length: 2\r\n", False),
        (b"content-length: 2\r\n x: y\r\n", False),
        (b"content-length: 3\r\n", False),
        (b"", False),
    ],
)
def test_a_plain_head_is_told_from_others(lines, is_single):
    data = b"POST /v1/recommend HTTP/1.1\r\nhost: x\r\n" + lines + b"\r\n{}"
    head = connections._SINGLE.match(data)
    assert bool(head and head.end() + int(head[1]) == len(data)) is is_single


def test_who_sends_slowly_takes_nobodys_place_and_who_leaves_gives_it_back(app, monkeypatch):
    worker = app.state.shared.answers
    waiting = asyncio.Event()
    seen = []

    async def wait(*_):
        seen.append(len(worker.admitted))
        await waiting.wait()

    monkeypatch.setattr(Worker, "answer", wait)

    async def main():
        async with connected(app) as (_, writer):
            writer.write(SINGLE[:-1])
            await asyncio.sleep(0.05)
            seen.append(len(worker.admitted))
            writer.write(SINGLE[-1:])
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        return len(worker.admitted)

    assert len(worker.admitted) == 0
    assert asyncio.run(main()) == 0
    assert seen == [0, 1]


def test_metrics_are_written_twice_a_second_for_however_many_ask(app, monkeypatch):
    metrics, written = app.state.shared.metrics, []
    monkeypatch.setattr(metrics, "_write_at", 0.0)
    monkeypatch.setattr(
        "service.http.metrics.generate_latest", lambda _: [written.append(0), b"text"][1]
    )
    with ThreadPoolExecutor(8) as threads:
        for n_written in (1, 2):
            texts = [one.result() for one in [threads.submit(metrics.write) for _ in range(64)]]
            assert set(texts) == {b"text"}
            assert len(written) == n_written
            metrics._write_at = 0.0
