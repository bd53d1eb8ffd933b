"""Everything around the routes: request ids, limits of bodies and of waiting, and headers of security."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.exceptions import HTTPException

from serve.http.logs import ACCESS, AUDITED, REQUEST_ID, log_request
from serve.http.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
R = TypeVar("R")
MAX_BODY = 1_000_000  # bytes
_BODY_SECONDS = 10  # in which a body must have arrived
MAX_GATHERED = 16  # requests that are answered in one call: more would only wait for each other
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]


class OverloadError(Exception):
    """More requests wait than can be answered in time."""


class Worker:
    """A thread that runs blocking calls one after the other, so that they do not take the processor from each other."""

    def __init__(self, max_waiting: int, deadline: float) -> None:
        """Bound the calls that wait or run at once, and the seconds in which one must begin."""
        self._max_waiting, self._deadline = max_waiting, deadline
        self._thread = ThreadPoolExecutor(1)
        self.n_waiting = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call in the thread, or raise OverloadError: too many wait, or this one waited for too long."""
        if self.n_waiting >= self._max_waiting:
            raise OverloadError
        begin_by = time.monotonic() + self._deadline

        def begin() -> T:
            if time.monotonic() > begin_by:
                raise OverloadError
            return call()

        self.n_waiting += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(begin))
        finally:
            self.n_waiting -= 1

    def close(self) -> None:
        """Finish the calls that wait, then end the thread."""
        self._thread.shutdown()


class Gathering:
    """Requests that came at the same time and can be answered in one call: sixteen cost little more than four."""

    def __init__(self) -> None:
        self._open: dict[Hashable, tuple[list[Any], asyncio.Task[list[Any]]]] = {}  # by what they have in common

    async def answer(self, key: Hashable, one: T, call: Callable[[list[T]], Iterable[R]]) -> R:
        """Return what `call` gives for one request, called with the others of the same key that come now."""
        if key not in self._open:
            asked: list[T] = []
            self._open[key] = asked, asyncio.ensure_future(self._call(key, asked, call))
        together, task = self._open[key]
        place = len(together)
        together.append(one)
        if len(together) == MAX_GATHERED:
            del self._open[key]
        return (await asyncio.shield(task))[place]  # type: ignore[no-any-return]

    async def _call(self, key: Hashable, asked: list[T], call: Callable[[list[T]], Iterable[R]]) -> list[R]:
        """Begin after all that came at the same time have joined."""
        if key in self._open and self._open[key][0] is asked:
            del self._open[key]
        return list(call(asked))


class RequestMiddleware:
    """Give each request an id, bound its body, add the headers of security to its answer, and count it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, request_id, status = time.perf_counter(), secrets.token_hex(8), 500
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        REQUEST_ID.set(request_id)
        if scope["method"] == "HEAD":  # of probes: as GET, and the server sends no body
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, _bounded(scope, receive), send_on)
            finally:
                seconds = time.perf_counter() - started
                route = self._metrics.count(scope["path"], status, seconds)
                if route in AUDITED or ACCESS.isEnabledFor(logging.INFO):
                    log_request(route, scope, status, seconds)


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Refuse a body that is no JSON, too long or too slow, as soon as that is seen."""
    n_bytes, kind = 0, dict(scope["headers"]).get(b"content-type", b"")
    until = asyncio.get_running_loop().time() + _BODY_SECONDS

    async def receive_some() -> Message:
        nonlocal n_bytes
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body took over {_BODY_SECONDS} seconds", {"connection": "close"}) from None
        n_bytes += len(message.get("body", b""))
        if n_bytes > MAX_BODY:
            raise HTTPException(413, f"the body is too long; allowed: {MAX_BODY} bytes")
        if n_bytes and kind.partition(b";")[0].strip().lower() != b"application/json":
            raise HTTPException(415, "the content-type is not application/json")
        return message

    return receive_some
