"""What happens to every request and answer, whatever its route: a plain ASGI layer."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

from serve.http.faults import TOO_MANY, write_fault
from serve.http.parts import Parts

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_POLICY = b"content-security-policy"
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_NOTHING_LOADS = (_POLICY, b"default-src 'none'; frame-ancestors 'none'")
_QUEUED = frozenset({"/v1/recommend", "/v1/similar"})
"""Paths whose work waits for the thread that answers: refused before the body is read where it has no room."""


class Edge:
    """Name, time, count and guard each request."""

    def __init__(self, app: ASGIApp, parts: Parts) -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id, status = time.perf_counter(), secrets.token_hex(8), 500
        scope.setdefault("state", {}).update(request_id=request_id, started=started, parts=self._parts)
        if scope["method"] == "HEAD":  # whoever looks whether the service lives: as GET, and the server sends no body
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(message, request_id)
            await send(message)

        metrics = self._parts.metrics
        metrics.in_flight.inc()
        try:
            if scope["path"] in _QUEUED and self._parts.answering.is_full:
                await self._shed(request_id, send_on)
            else:
                await self._app(scope, receive, send_on)
        finally:
            metrics.in_flight.dec()
            metrics.count_answer(scope["path"], status, time.perf_counter() - started)

    def _add_headers(self, message: Message, request_id: str) -> None:
        headers = message["headers"] = [*message.get("headers", ()), *_SECURITY, (b"x-request-id", request_id.encode())]
        if all(name != _POLICY for name, _ in headers):
            headers.append(_NOTHING_LOADS)
        if self._parts.ending.is_set():
            headers.append((b"connection", b"close"))

    async def _shed(self, request_id: str, send: Send) -> None:
        self._parts.metrics.shed.inc()
        body = write_fault(503, TOO_MANY, request_id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(self._parts.limits.retry_after).encode()),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
