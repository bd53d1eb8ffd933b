"""A service to ask in a test: in this process without a socket, or another process with one."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
JSON = {"content-type": "application/json"}


@dataclass
class Reply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def ask(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    host: str | None = "127.0.0.1",
) -> Reply:
    """Ask an ASGI application once, from a host; a body that is not bytes is written as JSON."""
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    return asyncio.run(
        exchange(app, method, path, [content], JSON if headers is None else headers, host)
    )


async def exchange(
    app: Any,
    method: str,
    path: str,
    parts: list[bytes],
    headers: Mapping[str, str],
    host: str | None = "127.0.0.1",
) -> Reply:
    """Send a body in parts and return the whole reply."""
    reply, remaining = Reply(0), list(parts)
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
    }
    path, _, query = path.partition("?")
    scope |= {"query_string": query.encode()}
    scope |= {
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": sent,
        "state": {},
    }
    scope |= {
        "client": None if host is None else (host, 5),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        if not remaining:
            await asyncio.sleep(3600)  # the client stays
        body = remaining.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(remaining)}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            reply.status = message["status"]
            reply.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            assert len(reply.headers) == len(message["headers"])  # of two policies both hold
        else:
            reply.content += message.get("body", b"")

    await app(scope, receive, send)
    return reply


@dataclass
class Server:
    """A process that serves."""

    process: subprocess.Popen[str]
    port: int

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        with self.connect() as connection:
            connection.sendall(write_request(method, path, body, headers))
            return read_reply(connection)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@contextmanager
def serving(*arguments: str | Path, variables: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run `bascule serve` on a free port; it must have ended well, or been ended, by the end of the test."""
    command = [
        sys.executable,
        "-m",
        "bascule",
        "serve",
        *map(str, arguments),
        "--port",
        "0",
    ]
    environment = (
        os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | dict(variables or {})
    )
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = said = process.stderr.readline()
            while "http://" not in line and ("ERROR" in line or "WARNING" in line):
                line = process.stderr.readline()
            if "http://" not in line:
                process.kill()  # one that lives would be waited for
            assert "http://" in line, said + line + process.stderr.read()
            yield Server(process, int(re.search(r":(\d+)\D*$", line)[1]))
        finally:
            process.kill()


def write_request(
    method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> bytes:
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    lines = {"host": "localhost", "content-length": str(len(content))} | dict(
        JSON if headers is None else headers
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


def read_reply(connection: socket.socket) -> Reply:
    """Read one reply; status 0 if the connection was closed without any."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(1 << 16)
        if not more:
            return Reply(0, content=data)
        data += more
    head, _, content = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    while len(content) < int(headers.get("content-length", 0)):
        content += connection.recv(1 << 16)
    return Reply(int(first.split()[1]), headers, content)
