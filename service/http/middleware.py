"""Everything around the routes: request ids, limits of bodies and of waiting, security headers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Hashable,
    Iterable,
)
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.access import Access, Key, find_network
from service.http.errors import HANDLERS, OverloadError
from service.http.logs import ACCESS, AUDITED, REQUEST_ID, log_request
from service.http.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
Caller = Key | str  # a key, or without keys the network of a client
CALLER: ContextVar[Caller] = ContextVar("caller", default="")
R = TypeVar("R")
MAX_BODY = 1_000_000  # bytes
MAX_GATHERED = 16  # requests of one call: more would only wait for each other
_BODY_SECONDS = 10  # in which a body must have arrived
_MAX_LONG = 5  # deadlines that a long call may take
_MIN_OWN = (
    4  # calls of one caller that may always wait; else places are left for others
)
_TURN_SECONDS = 0.002  # of a long call, after which the event loop sees what has come
_SLOW_SECONDS = 0.1  # of a single request: fewer may wait
_MIN_SINGLE = 48  # single requests that may always wait
_SHEDDING = frozenset(  # paths that are refused when too many requests wait
    {"/v1/recommend", "/v1/similar", "/v1/due", "/openapi.json", "/metrics"}
)
_JSON = b"application/json"
_LAST = {"connection": "close"}
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


class Turns:
    """A thread in whose queue each caller has one call at most: so their turns rotate."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._locks: WeakValueDictionary[Caller, asyncio.Lock] = WeakValueDictionary()

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call in its caller's turn; the time that it takes counts in the rate of a key."""
        caller = CALLER.get()
        own = self._locks.setdefault(caller, asyncio.Lock())
        async with own:
            return await self._measure(call, caller)

    async def _measure(self, call: Callable[[], T], caller: Caller) -> T:
        started = time.perf_counter()
        try:
            return await asyncio.wrap_future(self._thread.submit(call))
        finally:
            if isinstance(caller, Key):
                caller.charge(time.perf_counter() - started)

    def close(self) -> None:
        """Finish the call that runs, then end the thread."""
        self._thread.shutdown()


class Worker:
    """Two threads that compute answers, so that a short call does not wait for a long one."""

    def __init__(self, max_waiting: int, deadline: float) -> None:
        """Start threads.

        Args:
            max_waiting: calls that may wait or run at once.
            deadline: seconds that a short call may take with its waiting.
        """
        self._max_waiting = max_waiting
        self._deadline = deadline
        self._short = Turns()
        self._long = Turns()
        self._lock = threading.Lock()  # of the batches that others may join
        self._open: dict[Hashable, tuple[list[Any], asyncio.Task[list[Any]]]] = {}
        self.n_waiting = 0
        self._callers: Counter[Caller] = Counter()
        # requests whose body is read and whose answer has not begun
        self.n_admitted = 0
        self._most_single = 2.0 * max_waiting
        self._max_single = self._most_single

    @property
    def is_full(self) -> bool:
        """Whether too many requests are being answered outside the threads."""
        return self.n_admitted - self.n_waiting >= self._max_single

    def adapt(self, seconds: float) -> None:
        """Let fewer single requests wait after one that took long, and slowly more after others."""
        fewer = max(_MIN_SINGLE, self._max_single * 0.97)
        more = min(self._most_single, self._max_single + 0.5)
        self._max_single = fewer if seconds > _SLOW_SECONDS else more

    async def run(self, call: Callable[[], T]) -> T:
        """Run a short call.

        Raises:
            OverloadError: too many calls wait, or the deadline is over.
        """
        return await self._admit(self._short.run(call), self._deadline)

    async def run_steps(
        self,
        steps: Generator[None, None, T],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Run a long call, a generator that yields where it may be stopped, and return its result.

        Raises:
            OverloadError: too many calls wait, five deadlines are over, or the client is gone.
        """
        seconds = _MAX_LONG * self._deadline
        return await self._admit(self._run_in_turns(steps, is_gone), seconds)

    async def _run_in_turns(
        self,
        steps: Generator[None, None, T],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Run some steps at a time: in between, the event loop answers what has come."""
        end = await self._long.run(lambda: _advance(steps))
        while end is None:
            if await is_gone():
                raise OverloadError
            end = await self._long.run(lambda: _advance(steps))

        return cast(T, end.value)

    async def _admit(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        caller = CALLER.get()
        most = max(_MIN_OWN, self._max_waiting // (1 + len(self._callers)))
        if self.n_waiting >= self._max_waiting or self._callers[caller] >= most:
            work.close()
            raise OverloadError

        self.n_waiting += 1
        self._callers[caller] += 1
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError as error:
            raise OverloadError from error
        finally:
            self.n_waiting -= 1
            self._callers -= Counter({caller: 1})  # who has none is not held

    async def answer(
        self,
        key: Hashable,
        request: T,
        call: Callable[[list[T]], Iterable[R]],
        is_brief: bool,
    ) -> R:
        """Return what `call` gives for a request, called with others that come meanwhile.

        Sixteen requests of one call cost little more than four.

        Args:
            key: requests of one key may be answered together.
            request: one argument of the call.
            call: gives an answer for each request of a batch, in order.
            is_brief: whether the call may run in the event loop, not in the thread.
        """
        with self._lock:
            if key not in self._open:
                new: list[T] = []
                task = asyncio.ensure_future(self._call(key, new, call, is_brief))
                self._open[key] = new, task
            batch, task = self._open[key]
            position = len(batch)
            batch.append(request)
            if len(batch) == MAX_GATHERED:
                del self._open[key]

        return (await asyncio.shield(task))[position]

    async def _call(
        self,
        key: Hashable,
        batch: list[T],
        call: Callable[[list[T]], Iterable[R]],
        is_brief: bool,
    ) -> list[R]:
        """Answer all that came at the same time, or while the thread was taken."""

        def close_and_call() -> list[R]:
            self._close(key, batch)
            return list(call(batch))

        try:
            if is_brief:
                return close_and_call()
            return await self.run(close_and_call)
        finally:
            self._close(key, batch)

    def _close(self, key: Hashable, batch: list[Any]) -> None:
        """Let no further request join a batch."""
        with self._lock:
            if key in self._open and self._open[key][0] is batch:
                del self._open[key]

    def close(self) -> None:
        """Finish the calls that run, then end the threads."""
        self._short.close()
        self._long.close()


def _advance(steps: Generator[None, None, Any]) -> StopIteration | None:
    """Run steps for one turn; return the end of the generator once it comes."""
    turn_ends = time.perf_counter() + _TURN_SECONDS
    try:
        while time.perf_counter() < turn_ends:
            next(steps)
    except StopIteration as end:
        return end

    return None


class RequestMiddleware:
    """Admit requests with an id and a bounded body, count them, and add headers to answers."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, worker: Worker, access: Access
    ) -> None:
        self._app = app
        self._access = access
        self._metrics = metrics
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
        status = 500
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        REQUEST_ID.set(request_id)
        if scope["method"] == "HEAD":  # as GET; the server sends no body
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._release(scope)  # how fast its client reads does not count
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *_HEADERS, own]

            await send(message)

        app = self._app
        counted = self._worker if scope["path"] in _SHEDDING else None
        try:  # what is refused costs nothing: its body is not read
            if counted is not None and counted.is_full:
                raise OverloadError
            self._access.admit(scope)
            CALLER.set(_find_caller(scope))
        except (OverloadError, HTTPException) as error:
            app = await HANDLERS[type(error)](Request(scope), error)

        with self._metrics.gauges["in_flight"].track_inprogress():
            try:
                await app(scope, _bound(scope, receive, counted), send_on)
            finally:
                self._release(scope)
                seconds = time.perf_counter() - started
                route = self._metrics.count(scope["path"], status, seconds)
                if route in AUDITED or ACCESS.isEnabledFor(logging.INFO):
                    log_request(route, scope, status, seconds)

    def _release(self, scope: Scope) -> None:
        self._worker.n_admitted -= scope["state"].pop("is_admitted", False)


def _find_caller(scope: Scope) -> Caller:
    """Return who asks: a key, or without keys whoever has the address."""
    caller: Caller | None = scope["state"].get("caller")
    if caller is None and scope["client"] is not None:
        return find_network(scope["client"][0])
    return caller or ""


def _bound(scope: Scope, receive: Receive, worker: Worker | None) -> Receive:
    """Refuse a body that is no JSON, too long or too slow; count in `worker` those that arrived."""
    headers = dict(scope["headers"])
    default = b"" if b"origin" in headers else _JSON  # any web page may send no type
    kind = headers.get(b"content-type", default).partition(b";")[0].strip().lower()
    until = asyncio.get_running_loop().time() + _BODY_SECONDS
    n_bytes = 0

    async def receive_some() -> Message:
        nonlocal n_bytes
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            reason = f"the body took over {_BODY_SECONDS} seconds"
            raise HTTPException(408, reason, _LAST) from None

        n_bytes += len(message.get("body", b""))
        # The connection ends behind an answer that comes before the end of the body.
        ends = _LAST if message.get("more_body") else None
        if n_bytes > MAX_BODY:
            reason = f"the body is too long; allowed: {MAX_BODY} bytes"
            raise HTTPException(413, reason, ends)
        if n_bytes and kind != _JSON:
            reason = "the content-type is not application/json"
            raise HTTPException(415, reason, ends)
        is_body = message["type"] == "http.request"
        if worker and is_body and not message.get("more_body"):
            scope["state"]["is_admitted"] = True
            worker.n_admitted += 1

        return message

    return receive_some
