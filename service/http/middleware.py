"""Everything around the routes: request ids, limits of bodies and of waiting, security headers."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Hashable,
    Iterable,
)
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from starlette.requests import Request

from service.http.access import Access, Key, find_network
from service.http.errors import (
    HANDLERS,
    OVERLOAD,
    RETRY_AFTER,
    OverloadError,
    answer_error,
)
from service.http.logs import ACCESS, AUDITED, REQUEST_ID, log_request
from service.http.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
Caller = Key | str  # a key, or without keys the network of a client
CALLER: ContextVar[Caller] = ContextVar("caller", default="")
# seconds that the calls of the present turn took in the thread
_SPENT: ContextVar[list[float]] = ContextVar("spent")
R = TypeVar("R")
MAX_BODY = 1_000_000  # bytes
MAX_GATHERED = 16  # requests of one call: more would only wait for each other
_BODY_SECONDS = 10  # in which a body must have arrived
_MAX_LONG = 5  # deadlines that a long call may take
_TURN_SECONDS = 0.002  # of a long call, after which the event loop sees what has come
_SINGLE_SECONDS = 0.08  # that a single request may be expected to wait
_MIN_SINGLE = 32  # that may always wait, two batches: alone, one takes longer
_FIRST_CALLS = 20  # of a caller that are admitted before it is known how long one takes
_NEWEST = 0.1  # weight of the latest call in the average
# paths that are refused where too many single requests wait; the threads serve these alone
SHED = frozenset({"/v1/recommend", "/v1/similar", "/v1/due", "/v1/items"})
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
    """A thread in which the calls of a caller follow one another, and callers take turns.

    A call that is expected to end after the deadline is refused at once: the calls of its caller
    that wait come before it, and the thread is shared with the other callers.
    """

    def __init__(self, deadline: float) -> None:
        """Start a thread; the deadline is in seconds, waiting included."""
        self._deadline = deadline
        self._thread = ThreadPoolExecutor(1)
        self._locks: WeakValueDictionary[Caller, asyncio.Lock] = WeakValueDictionary()
        self.n_waiting: Counter[Caller] = Counter()  # calls that wait or run
        self._seconds = deadline / _FIRST_CALLS  # that a call takes, on average

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call.

        Raises:
            OverloadError: it would end too late, or did.
        """
        return await self.take_turn(partial(self.compute, call))

    async def run_steps(
        self,
        steps: Generator[None, None, T],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Run a call that yields where it may be stopped.

        Raises:
            OverloadError: it would end too late, or did, or the client is gone.
        """
        return await self.take_turn(partial(self._compute_steps, steps, is_gone))

    async def take_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that computes in the thread; its time counts in the rate of a key.

        Raises:
            OverloadError: the work would end too late, or did.
        """
        caller = CALLER.get()
        self.n_waiting[caller] += 1
        own = self._locks.setdefault(caller, asyncio.Lock())
        try:
            n_turns = self.n_waiting[caller] * len(self.n_waiting)
            if n_turns > 1 and n_turns * self._seconds > self._deadline:
                raise OverloadError
            async with asyncio.timeout(self._deadline), own:
                return await self._measure(work, caller)
        except TimeoutError as error:
            raise OverloadError from error
        finally:
            self.n_waiting -= Counter({caller: 1})  # who has none is not held

    async def _measure(self, work: Callable[[], Awaitable[T]], caller: Caller) -> T:
        started = time.perf_counter()
        spent: list[float] = []
        _SPENT.set(spent)
        try:
            return await work()
        finally:
            seconds = sum(spent)
            # A call that was given up has spent nothing yet, and is no short one.
            waited = (time.perf_counter() - started) / len(self.n_waiting)
            self._seconds += _NEWEST * ((seconds or waited) - self._seconds)
            if isinstance(caller, Key):
                caller.charge(seconds)

    async def compute(self, call: Callable[[], T]) -> T:
        """Run a call in the thread."""
        timed = self._thread.submit(_note_time, call, _SPENT.get())
        return await asyncio.wrap_future(timed)

    async def _compute_steps(
        self,
        steps: Generator[None, None, T],
        is_gone: Callable[[], Awaitable[bool]],
    ) -> T:
        """Run some steps at a time: in between, the event loop answers what has come."""
        end = await self.compute(partial(_advance, steps))
        while end is None:
            if await is_gone():
                raise OverloadError
            end = await self.compute(partial(_advance, steps))

        return cast(T, end.value)

    def close(self) -> None:
        """Finish the call that runs, then end the thread."""
        self._thread.shutdown()


class Worker:
    """Two threads that compute answers, so that a short call does not wait for a long one.

    Single requests are answered in the event loop. One that is expected to wait for too long is
    refused at once: as many wait before it as are there, each for as long as the latest took, by
    those that were there with it (Little 1961).
    """

    def __init__(self, deadline: float) -> None:
        """Start threads; the deadline is that of a short call, in seconds."""
        self.short = Turns(deadline)
        self.long = Turns(_MAX_LONG * deadline)
        # batches that others may join
        self._open: dict[Hashable, tuple[list[Any], asyncio.Task[list[Any]]]] = {}
        # connections of requests that have come as a whole, and are not answered to the end
        self.admitted: set[Any] = set()
        self._seconds = 0.001  # that a single request takes, on average

    @property
    def n_waiting(self) -> int:
        """The number of calls that wait for a thread, or run in it."""
        return self.short.n_waiting.total() + self.long.n_waiting.total()

    @property
    def n_single(self) -> int:
        """The number of requests that are being answered outside the threads."""
        unanswered = [one for one in self.admitted if one.is_unanswered()]
        return len(unanswered) - self.n_waiting

    @property
    def n_excess(self) -> float:
        """By how many there are more single requests than can be answered soon enough."""
        return self.n_single - max(_MIN_SINGLE, _SINGLE_SECONDS / self._seconds)

    def note(self, seconds: float, n_single: int) -> None:
        """Note how long a single request took, and how many were there when it came."""
        self._seconds += _NEWEST * (seconds / max(1, n_single) - self._seconds)

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
        if key not in self._open:
            new: list[T] = []

            async def work() -> list[R]:
                self._close(key, new)
                if is_brief:
                    return list(call(new))
                return await self.short.compute(lambda: list(call(new)))

            coming = work() if is_brief else self.short.take_turn(work)
            self._open[key] = new, asyncio.ensure_future(coming)

        batch, task = self._open[key]
        position = len(batch)
        batch.append(request)
        if len(batch) == MAX_GATHERED:
            del self._open[key]
        try:
            answers: list[R] = await asyncio.shield(task)
            return answers[position]
        finally:
            self._close(key, batch)

    def _close(self, key: Hashable, batch: list[Any]) -> None:
        """Let no further request join a batch."""
        if key in self._open and self._open[key][0] is batch:
            del self._open[key]

    def close(self) -> None:
        """Finish the calls that run, then end the threads."""
        self.short.close()
        self.long.close()


def _note_time(call: Callable[[], T], spent: list[float]) -> T:
    """Call, and note the seconds that the call itself took: others may have come before it."""
    started = time.perf_counter()
    try:
        return call()
    finally:
        spent.append(time.perf_counter() - started)


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
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *_HEADERS, own]

            await send(message)

        app = self._app
        try:  # what is refused costs nothing: its body is not read
            if scope["path"] in SHED and self._worker.n_excess > 1:
                raise OverloadError
            self._access.admit(scope)
            CALLER.set(_find_caller(scope))
        except (OverloadError, HTTPException) as error:
            app = await HANDLERS[type(error)](Request(scope), error)

        with self._metrics.gauges["in_flight"].track_inprogress():
            try:
                await app(scope, _bound(scope, receive), send_on)
            finally:
                seconds = time.perf_counter() - started
                route = self._metrics.count(scope["path"], status, seconds)
                if route in AUDITED or ACCESS.isEnabledFor(logging.INFO):
                    log_request(route, scope, status, seconds)


def refuse_single(metrics: Metrics, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the whole answer to a request that is refused by overload, before it is read.

    Args:
        metrics: in which it counts.
        headers: those of the server.
    """
    request_id = secrets.token_hex(8)
    request = Request({"type": "http", "state": {"request_id": request_id}})
    response = answer_error(request, 503, OVERLOAD, headers=RETRY_AFTER)
    lines = [b"HTTP/1.1 503 Service Unavailable"]
    lines += map(b": ".join, (*headers, *response.raw_headers, *_HEADERS))
    lines.append(b"x-request-id: " + request_id.encode())
    metrics.counters["shed"].inc()
    metrics.counters["requests"].labels("recommend", "503").inc()
    return b"\r\n".join([*lines, b"", response.body])


def _find_caller(scope: Scope) -> Caller:
    """Return who asks: a key, or without keys whoever has the address."""
    caller: Caller | None = scope["state"].get("caller")
    if caller is None and scope["client"] is not None:
        return find_network(scope["client"][0])
    return caller or ""


def _bound(scope: Scope, receive: Receive) -> Receive:
    """Refuse a body that is no JSON, too long or too slow."""
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
        return message

    return receive_some
