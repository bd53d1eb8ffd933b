"""Keys, roles, rates, hosts, ports and framing: a refusal needs the head alone, and one request has one answer."""

import asyncio
import hashlib
import os
import random
import socket
import time
from contextlib import ExitStack

import pytest
from bascule.commands import main
from service.http.access import Key, KeyFile, find_network, read_keys
from service.http.schemas import Role
from starlette.exceptions import HTTPException
from tests.http.services import TOKEN, asking, publish_served
from tests.linear_bundle import SHOP, item_ids
from tests.served import JSON, ask, exchange, serving, write_request

KEYS = {role: f"{role}-{'0123456789abcdef' * 2}" for role in ("ask", "write", "admin")}
ITEM = item_ids(SHOP)[0]
EVENT = {"user_id": "u1", "item_id": ITEM}
CHANGES = [
    ("POST", "/v1/events", EVENT),
    ("POST", "/v1/shown", {"request_id": "r1"}),
    ("POST", "/v1/users/forget", {"user_id": "nobody"}),
    ("PUT", f"/v1/items/{ITEM}", {"columns": {"in_stock": True}}),
    ("DELETE", "/v1/items/none", None),
]
OPERATING = [
    ("GET", "/v1/status", None),
    ("GET", "/metrics", None),
    ("POST", "/v1/reload", None),
]
SEEN = [("GET", path, None) for path in ("/v1/page", "/v1/segments", "/openapi.json")]
CALLS = {  # the lowest role that may make a call -> calls
    "": [
        ("GET", path, None) for path in ("/health", "/ready", "/", "/docs", "/page.js", "/page.css")
    ],
    "ask": [
        ("POST", "/v1/recommend", {}),
        ("POST", "/v1/similar", {"item_id": ITEM}),
        ("POST", "/v1/due", {}),
        *SEEN,
    ],
    "write": CHANGES[:2],
    "admin": [*CHANGES[2:], *OPERATING, ("GET", "/none", None)],
}


def write_line(name, role, key, *rate):
    return " ".join([name, role, hashlib.sha256(key.encode()).hexdigest(), *map(str, rate)]) + "\n"


def bearer(key):
    return JSON | {"authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(
        "# who may do what\n"
        + "".join(write_line(f"a-{role}", role, key) for role, key in KEYS.items())
    )
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_served(tmp_path_factory.mktemp("access"), SHOP)


def test_each_role_may_do_what_is_below_it_and_nothing_above(bundle, keys):
    order = list(CALLS)
    with asking(bundle, keys=KeyFile(keys)) as app:
        for lowest, call in ((lowest, call) for lowest, calls in CALLS.items() for call in calls):
            for role, key in KEYS.items():
                status = ask(app, *call, bearer(key)).status
                assert (status == 403) is (order.index(role) < order.index(lowest)), (
                    call,
                    role,
                    status,
                )
            for headers in (
                JSON,
                bearer("x" * 32),
                bearer(""),
                JSON | {"authorization": KEYS["admin"]},
            ):
                reply = ask(app, *call, headers)
                assert (reply.status == 401) is (lowest != ""), (call, headers)
                assert reply.headers.get("www-authenticate") == ("Bearer" if lowest else None)
        counts = ask(app, "GET", "/metrics", headers=bearer(KEYS["admin"])).content.decode()
        assert 'bascule_requests_total{route="recommend",status="401"} 4.0' in counts
        assert 'bascule_requests_total{route="forget",status="403"} 2.0' in counts


def test_keys_are_rotated_while_it_serves_and_a_damaged_file_changes_nothing(
    bundle, keys, monkeypatch
):
    monkeypatch.setattr("service.http.access._RECHECK_SECONDS", 0)

    def statuses(*some):
        return [ask(app, "POST", "/v1/recommend", {}, bearer(key)).status for key in some]

    with asking(bundle, keys=KeyFile(keys)) as app:
        keys.write_text(keys.read_text() + write_line("a-ask", "ask", "new" * 9))
        assert statuses(KEYS["ask"], "new" * 9) == [200, 200]
        for damage in (
            "",
            "a-ask ask\n",
            f"a-ask ask {'new' * 9}\n",
            write_line("x", "ask", "y") + "\xff",
        ):
            keys.write_bytes(damage.encode("latin-1"))
            assert statuses(KEYS["ask"], "new" * 9, "y") == [200, 200, 401]
        os.replace(keys, f"{keys}.gone")
        assert statuses("new" * 9) == [200]
        keys.write_text(write_line("a-ask", "ask", "new" * 9))
        assert statuses(KEYS["ask"], "new" * 9) == [401, 200]


def test_a_damaged_file_of_keys_is_one_line_that_does_not_repeat_it(bundle, tmp_path, capsys):
    of_nothing, right = (hashlib.sha256(key).hexdigest() for key in (b"", b"a"))
    for last in (
        of_nothing,
        "a-key-itself",
        *(f"{right} {rate}" for rate in ("0", "x", "5 0", "5 1 1", "-1", "inf")),
    ):
        (tmp_path / "keys").write_text(f"shop ask {last}\n")
        assert main(["serve", "--bundle", str(bundle), "--keys", str(tmp_path / "keys")]) == 2
        said = capsys.readouterr().err
        assert (said.count("\n"), "line 1" in said, last in said) == (1, True, False)


def test_a_key_is_compared_with_all_whichever_it_is(keys, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "hmac.compare_digest", lambda one, other: compared.append(1) or one == other
    )
    for key in (*KEYS.values(), "none"):
        found = KeyFile(keys).find(hashlib.sha256(key.encode()).digest(), 0.0)
        assert (found is None) is (key == "none")
    assert len(compared) == 4 * len(KEYS)


def test_a_rate_admits_what_a_bucket_of_tokens_admits():
    draw = random.Random(3)
    for per_second, burst in ((2.0, 5), (0.3, 1), (50.0, 50)):
        key, now, tokens = (
            Key("k", Role.ASK, b"", per_second, burst),
            100.0,
            float(burst),
        )
        for _ in range(500):
            step = draw.expovariate(per_second * 1.5)
            now, tokens = now + step, min(burst, tokens + step * per_second)
            wait = key.take(now)
            assert (wait == 0) is (tokens >= 1)
            assert wait == pytest.approx(0 if tokens >= 1 else (1 - tokens) / per_second)
            tokens -= tokens >= 1


def test_a_key_that_asks_too_often_is_told_when_to_come_back(bundle, tmp_path):
    path = tmp_path / "keys"
    path.write_text(
        write_line("slow", "ask", "s" * 32, 0.01, 3) + write_line("fast", "ask", "f" * 32)
    )
    with asking(bundle, keys=KeyFile(path)) as app:
        replies = [ask(app, "POST", "/v1/recommend", {}, bearer("s" * 32)) for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * 3 + [429] * 2
        assert 90 <= int(replies[-1].headers["retry-after"]) <= 100
        assert ask(app, "POST", "/v1/recommend", {}, bearer("f" * 32)).status == 200
    assert [(key.per_second, key.burst) for key in read_keys(path)] == [
        (0.01, 3),
        (float("inf"), 1),
    ]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "10.0.0.1",
        "[::2]:80",
        "",
    ],
)
def test_another_host_is_refused_before_the_body_is_read(bundle, host):
    with asking(bundle) as app:
        reply = asyncio.run(exchange(app, "POST", "/v1/recommend", [], JSON | {"host": host}))
        assert (reply.status, reply.json["error"]["code"]) == (
            421,
            "misdirected_request",
        )


def test_loopback_the_address_that_is_asked_and_names_that_are_given_are_answered(
    bundle,
):
    with asking(bundle, hosts=frozenset({"shop.example"})) as app:
        for host in (
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:80",
            "shop.example:443",
        ):
            assert ask(app, "GET", "/ready", headers={"host": host}).status == 200
    with (
        serving("--bundle", bundle, "--host", "0.0.0.0", "--insecure") as server,
        socket.socket() as connection,
    ):
        connection.connect(("127.9.8.7", server.port))  # a probe by an address of the machine
        connection.sendall(
            write_request("GET", "/health", headers={"host": f"127.9.8.7:{server.port}"})
        )
        assert connection.recv(99).startswith(b"HTTP/1.1 200")
        assert server.ask("GET", "/health", headers={"host": "evil.example"}).status == 421
        assert server.end() == 0


def test_a_service_that_only_reads_has_no_route_that_changes(bundle):
    with asking(bundle, read_only=True) as app:
        for method, path, body in CHANGES:
            assert ask(app, method, path, body).status == 403
        paths = ask(app, "GET", "/openapi.json").json["paths"]
        assert not {"/v1/events", "/v1/shown", "/v1/users/forget", "/v1/items/{item_id}"} & set(
            paths
        )
        assert (
            ask(app, "POST", "/v1/recommend", {}).status
            == ask(app, "GET", "/metrics").status
            == 200
        )


def test_what_admins_do_is_at_a_port_of_its_own(bundle, keys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        admin_port = free.getsockname()[1]
    with serving("--bundle", bundle, "--admin-port", str(admin_port), "--keys", keys) as server:
        main_port = server.port
        for call in (*CHANGES[2:], *OPERATING):
            for port, status in ((admin_port, 200), (main_port, 404)):
                server.port = port
                assert server.ask(*call, bearer(KEYS["admin"])).status == status
        assert server.ask("POST", "/v1/events", EVENT, bearer(KEYS["write"])).status == 200
        assert server.end() == 0
        logs = server.process.stderr.read()
        assert not any(key in logs for key in KEYS.values())


def test_keys_and_the_token_both_admit_a_reload(bundle, keys):
    with asking(bundle, token=TOKEN, keys=KeyFile(keys)) as app:
        asked = [
            (KEYS["admin"], "10.0.0.7"),
            (TOKEN, "127.0.0.1"),
            (TOKEN, "10.0.0.7"),
            (KEYS["write"], "127.0.0.1"),
        ]
        found = [
            ask(app, "POST", "/v1/reload", headers=bearer(key), host=host).status
            for key, host in asked
        ]
        assert found == [200, 200, 401, 403]


def test_a_body_that_trickles_is_given_up(bundle, monkeypatch):
    monkeypatch.setattr("service.http.middleware._BODY_SECONDS", 0.1)
    with asking(bundle) as app:
        reply = asyncio.run(exchange(app, "POST", "/v1/recommend", [], JSON))
        assert (reply.status, reply.headers["connection"]) == (408, "close")


DELETE = f"DELETE /v1/items/{ITEM} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode()
UPGRADES = [
    "connection: upgrade\r\n",
    "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAA==\r\n",
    "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
]
ASKED = b'{"user_id": "u1", "k": 2}'


def head(lines, path="/v1/recommend"):
    return f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{lines}\r\n".encode()


def sized(body, lines=""):
    return head(f"{lines}content-length: {len(body)}\r\n")


def chunked(body):
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


SIZES = (b"", b"x", b"-2", b"0x2", b"2 ;", b"2;\n", b"f" * 40)
BROKEN = (
    "transfer-encoding: xchunked",
    "transfer-encoding:\x0bchunked",
    "transfer-encoding : chunked",
    "content-length: +9",
)
FRAMES = [  # segments of a connection -> statuses of its answers
    *(([sized(ASKED, lines) + ASKED], [200]) for lines in UPGRADES),
    *(([sized(ASKED, lines), ASKED[:9], ASKED[9:]], [200]) for lines in UPGRADES),
    *(
        ([head(f"{lines}transfer-encoding: chunked\r\n"), chunked(ASKED)], [200])
        for lines in UPGRADES
    ),
    *(([sized(DELETE, lines) + DELETE], [400]) for lines in UPGRADES),
    *(([sized(DELETE, lines), DELETE], [400]) for lines in UPGRADES),
    *(
        ([head(f"{lines}content-length: {len(DELETE)}\r\n", "/no"), DELETE], [404])
        for lines in UPGRADES
    ),
    ([sized(b"", "transfer-encoding: chunked\r\n") + b"0\r\n\r\n" + DELETE], [400]),
    ([sized(ASKED, "transfer-encoding: chunked\r\n") + chunked(ASKED) + DELETE], [400]),
    ([sized(DELETE, "content-length: 0\r\n") + DELETE], [400]),
    *(
        (
            [
                head("transfer-encoding: chunked\r\n"),
                size + b"\r\n{}\r\n0\r\n\r\n" + DELETE,
            ],
            [400],
        )
        for size in SIZES
    ),
    ([head("transfer-encoding: chunked\r\n", "/no"), b"x\r\n" + DELETE], [404]),
    *(([head(f"{line}\r\ncontent-length: 0\r\n") + DELETE], [400]) for line in BROKEN),
    ([sized(ASKED, "x-folded: a\r\n transfer-encoding: chunked\r\n") + ASKED], [200]),
    ([2 * (sized(ASKED) + ASKED) + sized(b"{") + b"{"], [200, 200, 400]),
]


def test_one_request_has_one_answer_however_it_is_framed(bundle):
    with serving("--bundle", bundle) as server, ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in FRAMES]
        for step in range(3):
            for connection, (parts, _) in zip(connections, FRAMES, strict=True):
                connection.sendall(b"".join(parts[step : step + 1]))
            time.sleep(0.2)
        found = [
            list_statuses(*one)
            for one in zip(connections, (len(of) for _, of in FRAMES), strict=True)
        ]
        assert found == [expected for _, expected in FRAMES]
        assert (
            server.ask("POST", "/v1/similar", {"item_id": ITEM}).status == 200
        )  # the item was not removed
        assert server.end() == 0
        logs = server.process.stderr.read()
        assert not any(word in logs for word in ("Traceback", "Exception", "Error"))


def list_statuses(connection, n_expected=1):
    """Return the statuses of all answers: those that must come, and those that come soon after."""
    data = b""
    try:
        while more := connection.recv(1 << 16):
            data += more
            connection.settimeout(20 if data.count(b"HTTP/1.1 ") < n_expected else 0.1)
    except (TimeoutError, ConnectionResetError):
        pass
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def test_without_keys_an_address_of_a_network_is_refused(bundle, capsys):
    words = ["serve", "--bundle", str(bundle), "--host", "0.0.0.0", "--port", "0"]
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_of_keys_that_fails_is_named_until_it_is_read_again(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("service.http.access._RECHECK_SECONDS", 0)
    path = tmp_path / "some-keys"
    line = write_line("a-ask", "ask", KEYS["ask"])
    path.write_text(line)
    with asking(bundle, keys=KeyFile(path)) as app:

        def look():
            status = ask(app, "POST", "/v1/recommend", {}, bearer(KEYS["ask"])).status
            return status, ask(app, "GET", "/ready").json.get("faults", {}).keys()

        assert look() == (200, set())
        for content in ("damaged", "", line * 2):
            path.write_text(content)
            for _ in range(2):
                assert look() == (200, {"keys"})
        path.write_text(line)
        assert look() == (200, set())


@pytest.mark.parametrize(("mode", "is_said"), [(0o600, False), (0o640, False), (0o604, True)])
def test_a_file_of_keys_that_everybody_may_read_is_said_in_one_line(keys, mode, is_said, caplog):
    keys.chmod(mode)
    KeyFile(keys)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * is_said
    assert all(str(keys) in record.getMessage() for record in caplog.records)


def test_two_credentials_and_pages_of_other_sites_are_refused(bundle, keys):
    with asking(bundle, keys=KeyFile(keys)) as app:
        heads = [(name.encode(), value.encode()) for name, value in bearer(KEYS["ask"]).items()]
        access = app.state.shared.access
        scope = {"path": "/v1/recommend", "server": ("127.0.0.1", 80), "client": None, "state": {}}
        access.admit(scope | {"headers": heads})
        with pytest.raises(HTTPException):
            access.admit(scope | {"headers": [*heads, heads[-1]]})
        search = "/v1/items?search=a"
        for site, status in {"cross-site": 403, "same-site": 403, "same-origin": 200}.items():
            head = bearer(KEYS["ask"]) | {"sec-fetch-site": site}
            assert ask(app, "GET", search, headers=head).status == status
        assert ask(app, "GET", "/", headers={"sec-fetch-site": "cross-site"}).status == 200


def test_what_takes_long_counts_as_several_requests_in_the_rate_of_its_key():
    key = Key("a", Role.ASK, b"", per_second=10, burst=2)
    assert key.take(0.0) == 0
    key.charge(0.5)
    assert key.take(0.0) > 4
    free = Key("b", Role.ASK, b"")
    free.charge(9)
    assert free.take(0.0) == 0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("10.0.0.1", "10.0.0.2", False),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
    ],
)
def test_an_ipv6_network_is_one_client(one, other, is_same):
    assert (find_network(one) == find_network(other)) is is_same
