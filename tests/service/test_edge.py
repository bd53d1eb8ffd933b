"""What strangers do at the edge: bodies without end, silent connections, and clients of a service that ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from http.client import HTTPConnection, RemoteDisconnected
from threading import Event, Thread

import pytest
from tests.http.services import publish_served
from tests.linear_bundle import SHOP
from tests.served import ROOT, read_reply, serving, write_request
from tests.service.test_access import many_files  # noqa: F401 - a fixture of all tests here

pytestmark = pytest.mark.service

CHUNKED = b"POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
TINY = b"1\r\n \r\n" * 4096
LARGE = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
N_POOL, N_SILENT = 20, 560


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("edge"), SHOP)


@pytest.fixture(scope="module")
def server(bundle):
    with serving("--bundle", bundle) as server:
        yield server


def send_until_closed(connection, part, at_most):
    """Send a part again and again; return how many bytes the service took."""
    n_bytes = 0
    try:
        while n_bytes < at_most:
            connection.sendall(part)
            n_bytes += len(part)
    except OSError:
        pass
    return n_bytes


@pytest.mark.parametrize(
    ("path", "host", "part", "status"),
    [
        (b"/v1/recommend", b"localhost", TINY, 400),
        (b"/v1/recommend", b"evil.example", LARGE, 421),
        (b"/v1/recommend", b"localhost", LARGE, 413),
        (b"/v1/none", b"localhost", LARGE, 404),
    ],
    ids=["tiny chunks", "another host", "too long", "no such path"],
)
def test_a_body_without_end_is_answered_and_read_no_further(server, path, host, part, status):
    with server.connect() as connection:
        connection.sendall(CHUNKED % (path, host))
        n_bytes = send_until_closed(connection, part, 64_000_000)
        assert n_bytes < 16_000_000  # what buffers of both ends hold is among them
    enough = part[:3000] if part is TINY else part * 34
    with server.connect() as connection:
        connection.sendall(CHUNKED % (path, host) + enough)
        assert read_reply(connection).status == status
        connection.settimeout(5)
        while read_or_reset(connection):
            pass  # the rest of the answer, then the end


def test_a_body_in_chunks_of_sixteen_bytes_is_read(server):
    text = b'{"user_id": "u1", "exclude": [' + b'"none", ' * 2000 + b'"none"]}'
    chunks = [text[start : start + 80] for start in range(0, len(text), 80)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    with server.connect() as connection:
        connection.sendall(CHUNKED % (b"/v1/recommend", b"localhost") + body + b"0\r\n\r\n")
        assert read_reply(connection).status == 200


def test_connections_that_never_asked_give_way_to_a_pool_and_heads_have_a_time(server):
    ask = write_request("POST", "/v1/recommend", {"user_id": "u1", "k": 2})
    with ExitStack() as stack:
        pool = [stack.enter_context(server.connect()) for _ in range(N_POOL)]
        for connection in pool:
            connection.sendall(ask)
            assert read_reply(connection).status == 200
        begun = time.monotonic()
        late = stack.enter_context(server.connect())
        late.sendall(b"POST /v1/rec")
        for number in range(N_SILENT):
            source = (f"127.0.{1 + number // 200}.{1 + number % 200}", 0)
            silent = socket.create_connection(("127.0.0.1", server.port), 20, source)
            stack.enter_context(silent)
        for connection in pool:
            connection.sendall(ask)
            assert read_reply(connection).status == 200
        while time.monotonic() < begun + 5:
            time.sleep(0.1)
        again = stack.enter_context(server.connect())
        again.sendall(b"POST /v1/rec")
        again.settimeout(20)
        assert read_or_reset(again) == b""
        for connection in pool:
            connection.sendall(ask)
            assert read_reply(connection).status == 200


OWN_NETWORK = 'ip link set lo up && ip -6 route add local 2001:db8::/32 dev lo && exec "$@"'
can_isolate = (
    os.geteuid() == 0
    and shutil.which("ip")
    and subprocess.run(["unshare", "--net", "true"], check=False).returncode == 0
)


@pytest.mark.skipif(not can_isolate, reason="needs root, iproute2 and a network namespace")
def test_all_addresses_of_an_ipv6_network_are_one_client(bundle):
    crowd = [sys.executable, "-m", "tests.service.crowd", bundle]
    command = ["unshare", "--net", "sh", "-c", OWN_NETWORK, "sh", *crowd]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [200] * N_POOL


def read_or_reset(connection):
    try:
        return connection.recv(99)
    except ConnectionResetError:
        return b""


def ask_on(port, keeps, is_over, outcomes):
    """Ask until nobody listens, on one connection or on a new one each time."""
    connection = None
    while not is_over.is_set():
        try:
            connection = connection or HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("POST", "/v1/recommend", b'{"user_id": "u1"}', JSON_HEAD)
            reply = connection.getresponse()
            reply.read()
            outcomes.append(reply.status)
            if not keeps or reply.will_close:
                connection.close()
                connection = None
        except ConnectionRefusedError:
            return
        except (RemoteDisconnected, OSError) as error:
            outcomes.append(type(error).__name__)
            connection = None


JSON_HEAD = {"content-type": "application/json"}


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "a worker"])
def test_a_service_that_is_told_to_end_resets_nobody(bundle, workers):
    for _ in range(3):
        outcomes, is_over = [], Event()
        with serving("--bundle", bundle, *workers) as server:
            threads = [
                Thread(target=ask_on, args=(server.port, place % 2 == 0, is_over, outcomes))
                for place in range(12)
            ]
            for thread in threads:
                thread.start()
            while len(outcomes) < 100:
                time.sleep(0.01)
            assert server.end() == 0
            is_over.set()
            for thread in threads:
                thread.join(30)
        assert set(outcomes) == {200}


def test_a_service_that_is_about_to_end_says_at_once_that_it_is_not_ready(bundle):
    with serving("--bundle", bundle) as server, server.connect() as connection:
        ask = write_request("GET", "/ready", headers={})
        connection.sendall(ask)
        assert read_reply(connection).status == 200
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
        connection.sendall(ask)
        assert read_reply(connection).status == 503
        assert server.process.wait(20) == 0


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["alone", "a worker"])
def test_a_signal_to_renew_ends_nothing_however_early_it_comes(bundle, workers):
    with serving("--bundle", bundle, *workers) as server:
        for _ in range(5):
            server.process.send_signal(signal.SIGHUP)
            assert server.ask("GET", "/health").status == 200
        assert server.end() == 0
