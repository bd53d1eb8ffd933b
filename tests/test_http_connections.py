"""Connections over real sockets: slow ones are cut, good ones are not, and the end drops nothing."""

import asyncio
import json
import random
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial

import pytest
import uvicorn
from uvicorn.server import ServerState

from serve.http.crowd import Crowd
from serve.http.limits import Limits
from serve.http.listening import accept_waiting, listen, turn_away
from serve.http.protocol import BoundedProtocol
from tests.linear_bundle import SHOP
from tests.live_service import publish_served
from tests.served import read_reply, serving, write_request


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("sockets"), SHOP)


@pytest.fixture(scope="module")
def server(bundle):
    with serving("--bundle", bundle) as server:
        yield server


def test_a_connection_answers_many_requests_also_sent_at_once(server):
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(write_request("POST", "/v1/recommend", {"user_id": "u1", "k": 2}))
            assert len(read_reply(connection).json["answers"][0]["items"]) == 2
        connection.sendall(2 * write_request("GET", "/health"))
        replies = b""
        while replies.count(b'{"status":"ok"}') < 2:
            replies += connection.recv(1 << 16)


def test_a_connection_with_a_request_behind_the_one_that_is_answered_is_not_silent():
    """Where there are too many connections, one that waits for an answer is not closed."""

    async def ask_twice():
        crowd, may_end = Crowd(Limits()), asyncio.Event()

        async def app(scope, receive, send):
            if scope["path"] == "/second":
                await may_end.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body", "body": b""})

        config = uvicorn.Config(app, lifespan="off", log_config=None)
        config.load()
        make = partial(BoundedProtocol, crowd, config=config, server_state=ServerState(), app_state={})
        async with await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(write_request("GET", "/first") + write_request("GET", "/second"))
            counts = []
            for _ in range(2):
                await reader.readuntil(b"\r\n\r\n")
                counts.append(crowd.n_asking)
                may_end.set()
            writer.close()
        return counts

    assert asyncio.run(ask_twice()) == [1, 0]


class Noted:
    """A connection that notes when it is closed."""

    def __init__(self, closed):
        self._closed = closed

    def hang_up(self):
        self._closed.append(self)


@pytest.mark.parametrize("seed", range(5))
def test_of_too_many_the_one_that_has_been_silent_for_longest_is_closed(seed):
    rng, crowd, closed = random.Random(seed), Crowd(Limits(connections=5)), []
    expected, silent_since = [], {}  # None: it waits for an answer
    for moment in range(400):
        one = rng.choice([*silent_since, None, None])
        if one is None:
            one = Noted(closed)
            silent_since[one] = moment
            crowd.enter(one)
            if len(silent_since) > 5:
                silent = [each for each, since in silent_since.items() if since is not None]
                expected.append(min(silent, key=silent_since.get))
                del silent_since[expected[-1]]
        elif silent_since[one] is None:
            crowd.await_next(one)
            silent_since[one] = moment
        elif rng.random() < 0.7:
            crowd.hear(one)
            silent_since[one] = None
        else:
            crowd.leave(one)
            del silent_since[one]
            crowd.await_next(one)  # the end of an answer that nobody reads any more
        assert crowd.n_asking == [*silent_since.values()].count(None)
    assert closed == expected
    assert len(closed) > 20


@pytest.mark.parametrize(("files", "n_open"), [(70, 6), (64, 1), (10, 1), (10_000, 8)])
def test_no_more_connections_are_open_than_the_files_of_the_process_allow(monkeypatch, files, n_open):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, 2 * files))
    crowd, closed = Crowd(Limits(connections=8)), []
    for _ in range(12):
        crowd.enter(Noted(closed))
    assert len(closed) == 12 - n_open


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/ready", 200), ("/page.js", 200), ("/v1/similar", 405)]
)
def test_head_is_answered_as_get_is_without_the_body(server, path, status):
    lengths = []
    for method in ("GET", "HEAD"):
        with server.connect() as connection, connection.makefile("rb") as reading:
            connection.sendall(write_request(method, path, headers={"connection": "close"}))
            head, _, content = reading.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status)
        lengths.append([line for line in head.split(b"\r\n") if line.startswith(b"content-length: ")])
        assert bool(content) == (method == "GET")
    assert lengths[0] == lengths[1] != []


def test_many_slow_clients_keep_nobody_from_an_answer_and_are_cut_off(server):
    head = write_request("POST", "/v1/recommend", {"k": 3})
    slow = [server.connect() for _ in range(200)]
    for number, connection in enumerate(slow):
        connection.sendall([b"", b"POST /v1", head[:-3]][number % 3])
    started = time.monotonic()
    while time.monotonic() - started < 2:
        assert server.ask("POST", "/v1/recommend", {"k": 3}).status == 200
    for number, connection in enumerate(slow):
        connection.settimeout(10)
        assert read_reply(connection).status == 408, number
        assert connection.recv(1) == b""
        connection.close()
    assert server.ask("GET", "/ready").status == 200


def test_a_dripping_body_is_cut_off_though_it_never_stops(server):
    head = write_request("POST", "/v1/recommend", b"{" + b" " * 5000)
    with server.connect() as connection:
        connection.sendall(head[:-5000])
        started = time.monotonic()
        connection.settimeout(0.2)
        reply = b""
        while not reply and time.monotonic() - started < 20:
            try:
                connection.sendall(b" ")
                reply = connection.recv(1 << 16)
            except TimeoutError:
                continue
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


def test_a_body_without_length_is_refused_once_it_is_too_long(server):
    with server.connect() as connection:
        head = "POST /v1/recommend HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        connection.sendall(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        for _ in range(12):
            connection.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
        assert read_reply(connection).status == 413


def test_line_ends_after_an_answer_do_not_hold_a_connection_open(server):
    """They are no request, and yet end the waiting for the next one."""
    with server.connect() as connection:
        connection.sendall(write_request("GET", "/health"))
        assert read_reply(connection).status == 200
        connection.sendall(b"\r\n")
        connection.sendall(write_request("GET", "/health"))
        assert read_reply(connection).status == 200
        connection.sendall(b"\r\n")
        connection.settimeout(10)
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (b"GET /", b"a"),
        (b"GET / HTTP/1.1\r\nx: ", b"a"),
        (b"GET / HTTP/1.1\r\n", b"x: a\r\n"),
        (b"POST /v1/recommend HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"x: a\r\n"),
    ],
    ids=["path", "value", "headers", "trailers"],
)
def test_a_head_without_end_is_hung_up_on_before_it_fills_the_memory(server, begin, piece):
    with server.connect() as connection:
        connection.sendall(begin)
        with pytest.raises(ConnectionError):
            connection.sendall(piece * (40_000_000 // len(piece)))
    assert server.ask("GET", "/ready").status == 200


@pytest.mark.parametrize(
    "noise", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_what_is_no_http_is_refused(server, noise):
    with server.connect() as connection:
        connection.sendall(noise)
        assert read_reply(connection).status in (400, 408)


def test_who_goes_away_leaves_nothing_behind(server):
    for _ in range(50):
        with server.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.sendall(write_request("POST", "/v1/recommend", {"k": 3})[:-2])
    deadline = time.monotonic() + 20
    while b"bascule_in_flight 1.0" not in server.ask("GET", "/metrics").content:
        assert time.monotonic() < deadline


class Client(threading.Thread):
    """Ask on and on over one connection, and a new one where the server said that it closes the old one."""

    def __init__(self, server):
        super().__init__()
        self.server = server
        self.statuses = []
        self.dropped = 0
        self.start()

    def run(self):
        connection = None
        while True:
            try:
                connection = connection or self.server.connect()
            except ConnectionError:
                return  # nobody listens any more: nothing was asked
            reply = self.ask(connection)
            if reply is None or reply.headers.get("connection") == "close":
                connection.close()
                connection = None

    def ask(self, connection):
        try:
            connection.sendall(write_request("POST", "/v1/recommend", {"user_id": "u1", "k": 5}))
            reply = read_reply(connection)
        except ConnectionError:
            reply = None
        if reply is None or not reply.status:
            self.dropped += 1
            return None
        self.statuses.append(reply.status)
        return reply


def end_under_load(bundle):
    with (
        serving("--bundle", bundle, "--state", bundle.parent / "other" / "state") as server,
        ExitStack() as open_sockets,
    ):
        clients = [Client(server) for _ in range(4)]
        slow = [open_sockets.enter_context(server.connect()) for _ in range(5)]
        for number, connection in enumerate(slow):
            connection.sendall(write_request("POST", "/v1/recommend", {"k": 3})[: 10 + 40 * number])
        time.sleep(1)
        started = time.monotonic()
        assert server.end() == 0
        assert time.monotonic() - started < 10
        for client in clients:
            client.join()
            assert client.dropped == 0
            assert client.statuses
            assert set(client.statuses) == {200}


def test_sigterm_under_load_drops_nothing_and_ends_well(bundle):
    end_under_load(bundle)


@pytest.mark.slow
def test_sigterm_under_load_ten_times(bundle):
    for _ in range(10):
        end_under_load(bundle)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a moment remains in which a connection is reset")
def test_who_has_connected_is_let_in_and_nobody_after_that():
    with listen("127.0.0.1", 0) as listener, ExitStack() as opened:
        listener.listen()
        early = [opened.enter_context(socket.create_connection(listener.getsockname())) for _ in range(3)]
        turn_away(listener)
        for one in early:
            one.sendall(b"hello")
        late = opened.enter_context(socket.socket())
        late.settimeout(0.2)
        with pytest.raises(TimeoutError):
            late.connect(listener.getsockname())
        accepted = [opened.enter_context(one) for one in accept_waiting(listener)]
        assert [one.getpeername() for one in accepted] == [one.getsockname() for one in early]
        assert [one.recv(5) for one in accepted] == [b"hello"] * 3


def test_readiness_ends_with_the_signal_while_answers_are_still_given(bundle):
    with (
        serving("--bundle", bundle, "--state", bundle.parent / "other" / "state") as server,
        server.connect() as connection,
    ):
        server.process.send_signal(signal.SIGTERM)
        statuses = []
        for path in ("/ready", "/health"):
            reply = server.ask("GET", path)
            statuses.append(reply.status)
            assert reply.headers["connection"] == "close"
        assert statuses == [503, 200]
        assert server.process.wait(20) == 0
        assert connection.recv(1) == b""


def test_an_address_that_is_taken_and_a_bundle_that_is_none_are_one_line(bundle, server, tmp_path):
    from tests.test_serve_cli import run

    assert run("http", "--bundle", bundle, "--port", server.port) == 2
    assert run("http", "--bundle", tmp_path, "--port", 0) == 2
    assert run("http", "--bundle", bundle, "--port", 0) == 2  # another service has the state


@pytest.mark.parametrize("days", ["0", "-3", "nan", "40000"])
def test_a_retention_that_keeps_nothing_or_for_ever_is_refused(bundle, tmp_path, days, capsys):
    from tests.test_serve_cli import run

    state = tmp_path / "state"
    assert run("http", "--bundle", bundle, "--state", state, "--port", 0, "--retention-days", days) == 2
    assert "--retention-days is" in capsys.readouterr().err
    assert not state.exists()


@pytest.mark.parametrize("name", ["state", "profiles"])
def test_a_folder_in_which_forgetting_would_not_look_is_refused(bundle, tmp_path, name, capsys):
    from tests.test_serve_cli import run

    assert run("http", "--bundle", bundle, f"--{name}", tmp_path / "elsewhere", "--port", 0) == 2
    assert f"expected a folder called '{name}'" in capsys.readouterr().err


@pytest.mark.parametrize("port", [-1, 65_536, 70_000])
def test_a_port_that_there_is_not_is_refused(port):
    with pytest.raises(ValueError, match=rf"--port is {port}; allowed: 0 to 65535"):
        listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "a\0b"])
def test_an_address_that_there_cannot_be_is_named(host):
    with pytest.raises(ValueError, match=rf"^cannot listen at {host}:0: "):
        listen(host, 0)
