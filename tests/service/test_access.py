"""Slow clients and framing, at a service that stands alone and at one behind Debian's nginx with deploy/nginx.conf."""

import os
import re
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.http.services import publish_served
from tests.http.test_access import DELETE, ITEM, UPGRADES, head, list_statuses, sized
from tests.linear_bundle import SHOP
from tests.served import ROOT, read_reply, serving, write_request

pytestmark = pytest.mark.service
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
NAME = "recommend.example.com"
N_SLOW, N_GOOD = 520, 50
ASKED = ("POST", "/v1/recommend", {"user_id": "u1", "k": 2})
MAIN = """
daemon off; pid {0}/pid; error_log {0}/error; events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u;
    scgi_temp_path {0}/s; include {0}/bascule.conf;
}}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("service"), SHOP)


@pytest.fixture(autouse=True)
def many_files():
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@dataclass
class Proxy:
    """An nginx, asked from an address of this machine."""

    port: int
    context: ssl.SSLContext

    def connect(self, source="127.0.0.2", name=NAME):
        plain = socket.create_connection(
            ("127.0.0.1", self.port), timeout=20, source_address=(source, 0)
        )
        return self.context.wrap_socket(plain, server_hostname=name)

    def ask(self, *call):
        with self.connect() as connection:
            connection.sendall(
                write_request(*call).replace(b"host: localhost", f"host: {NAME}".encode())
            )
            return read_reply(connection)


def place_deployed(folder, port, own_port):
    """Return what to write in place of what in deploy/nginx.conf."""
    return {
        "127.0.0.1:8080": f"127.0.0.1:{port}",
        "listen 443": f"listen 127.0.0.1:{own_port}",
        f"/etc/ssl/certs/{NAME}.pem": f"{folder}/cert",
        f"/etc/ssl/private/{NAME}.key": f"{folder}/key",
        "/var/log/nginx/bascule.log": f"{folder}/log",
    }


@contextmanager
def proxying(port, path=ROOT / "deploy" / "nginx.conf", place=place_deployed, **changes):
    """Run nginx with a configuration of the repository, as nobody where this is root."""
    if NGINX is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as name, socket.socket() as free:
        folder = Path(name)
        folder.chmod(0o777)
        free.bind(("127.0.0.1", 0))
        own_port = free.getsockname()[1]
        free.close()
        make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout key -out cert"
        subprocess.run(
            [
                *make.split(),
                "-subj",
                f"/CN={NAME}",
                "-addext",
                f"subjectAltName=DNS:{NAME}",
            ],
            cwd=folder,
            check=True,
            capture_output=True,
        )
        (folder / "key").chmod(0o644)
        text = path.read_text(encoding="utf-8")
        for old, new in {**place(folder, port, own_port), **changes}.items():
            assert old in text
            text = text.replace(old, new)
        (folder / "bascule.conf").write_text(text)
        (folder / "main.conf").write_text(MAIN.format(folder))
        command = [
            NGINX,
            "-e",
            f"{folder}/error",
            "-p",
            name,
            "-c",
            f"{folder}/main.conf",
        ]
        with subprocess.Popen(command, **user) as process:
            try:
                proxy = Proxy(own_port, ssl.create_default_context(cafile=folder / "cert"))
                until = time.monotonic() + 20
                while not is_there(proxy):
                    assert process.poll() is None, (folder / "error").read_text()
                    assert time.monotonic() < until
                yield proxy
            finally:
                process.terminate()


def is_there(proxy):
    try:
        proxy.connect().close()
    except OSError:
        time.sleep(0.1)
        return False
    return True


WEBSOCKETS = {
    'proxy_set_header Connection "";': 'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
}


@pytest.mark.parametrize(
    "changes", [{}, WEBSOCKETS], ids=["as it is", "with the usual lines for websockets"]
)
def test_nothing_in_a_body_is_a_request_behind_a_proxy(bundle, changes):
    with (
        serving("--bundle", bundle, "--allowed-host", NAME) as server,
        proxying(server.port, **changes) as proxy,
    ):
        n_items = server.ask("GET", "/v1/status").json["items"]
        for lines in UPGRADES:
            chunked = (
                head(f"{lines}transfer-encoding: chunked\r\n"),
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(DELETE), DELETE),
            )
            for first, *others in (
                [sized(DELETE, lines)],
                [sized(DELETE, lines), DELETE[:30], DELETE[30:]],
                chunked,
            ):
                with proxy.connect() as connection:
                    for part in (
                        first.replace(b"localhost", NAME.encode()),
                        *(others or [DELETE]),
                    ):
                        connection.sendall(part)
                        time.sleep(0.05 if others else 0)
                    assert list_statuses(connection) == [400]
            assert proxy.ask(*ASKED).status == 200
        for path in (
            f"/v1/items/{ITEM}",
            "/v1/items/%2e%2e/recommend",
            "/v1/recommend/../items/i1",
            "/metrics",
            "/v1/status",
        ):
            assert proxy.ask("DELETE" if "items" in path else "GET", path).status in (
                404,
                405,
            )
        assert server.ask("GET", "/v1/status").json["items"] == n_items
        with pytest.raises(ssl.SSLError):
            proxy.connect(name="evil.example")


def be_slow(stack, connect, begin):
    """Open many connections that begin a request and do not end it; some are refused."""
    for number in range(N_SLOW):
        try:
            connection = stack.enter_context(connect())
            connection.sendall(begin)
        except OSError:
            continue
        if number % 20 == 0:
            time.sleep(0.05)


@pytest.mark.parametrize(
    "begin",
    [b"", b"POST /v1/rec", sized(b"{" * 900) + b"{"],
    ids=["nothing", "heads", "bodies"],
)
def test_slow_clients_give_way_to_good_ones_of_the_same_address(bundle, begin):
    with serving("--bundle", bundle) as server, ExitStack() as stack:
        be_slow(stack, server.connect, begin)
        assert [server.ask(*ASKED).status for _ in range(N_GOOD)] == [200] * N_GOOD
        counted = re.search(
            r"bascule_dropped_connections_total (\d+)",
            server.ask("GET", "/metrics").content.decode(),
        )
        assert int(counted[1]) >= N_SLOW - 512


def test_slow_bodies_stay_at_the_proxy_and_take_nothing_from_other_addresses(bundle):
    with (
        serving("--bundle", bundle, "--allowed-host", NAME) as server,
        proxying(server.port) as proxy,
        ExitStack() as stack,
    ):
        begin = sized(b"{" * 900).replace(b"localhost", NAME.encode()) + b"{"
        be_slow(stack, lambda: proxy.connect("127.0.0.1"), begin)
        assert [proxy.ask(*ASKED).status for _ in range(N_GOOD)] == [200] * N_GOOD
        assert "bascule_in_flight 1.0" in server.ask("GET", "/metrics").content.decode()  # this one


def test_a_body_that_trickles_is_given_up_while_bytes_still_come(bundle):
    with serving("--bundle", bundle) as server, server.connect() as connection:
        connection.sendall(sized(b" " * 900))
        connection.settimeout(0.5)
        begun = time.monotonic()
        while time.monotonic() < begun + 30:
            connection.sendall(b" ")
            try:
                assert connection.recv(99).startswith(b"HTTP/1.1 408")
                break
            except TimeoutError:
                continue
        assert 5 < time.monotonic() - begun < 25
