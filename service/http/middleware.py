"""Everything around the routes: request ids, limits of bodies and of waiting, and headers of security."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Hashable,
    Iterable,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fastapi.exceptions import HTTPException
from starlette.requests import Request

from service.http.errors import OverloadError, answer_overload
from service.http.logs import ACCESS, AUDITED, REQUEST_ID, log_request
from service.http.metrics import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
R = TypeVar("R")
MAX_BODY = 1_000_000  # bytes
_BODY_SECONDS = 10  # in which a body must have arrived
_FIRST, _SHORT, _LONG = range(
    3
)  # who has the next turn: single requests, short calls, long ones
_TURN_SECONDS = 0.002  # of computing in one go; a call that takes more turns is long
_SHORT_TURNS = 4
_LONGEST = 5  # deadlines that a long call may take
_COURTESY = (
    10  # milliseconds that a turn waits at most while single requests are answered
)
_TOO_LONG = 0.1  # seconds of a single request, and how many may wait even then
_MIN_SINGLE = 48
_ASKING = frozenset(
    {"/v1/recommend", "/v1/similar", "/v1/due", "/openapi.json", "/metrics"}
)  # refused when too many wait
MAX_GATHERED = (
    16  # requests that are answered in one call: more would only wait for each other
)
_JSON = b"application/json"
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


class Worker:
    """A thread that computes in turns: between those of long calls go all that are short, so that nobody waits long."""

    def __init__(self, max_waiting: int, deadline: float) -> None:
        """Bound the calls that wait or run at once, and the seconds until the end of their first turn."""
        self._max_waiting = max_waiting
        self._deadline = deadline
        self._thread = ThreadPoolExecutor(1)
        self._places: list[
            tuple[int, int, asyncio.Future[None]]
        ] = []  # a heap of those who wait for the turn
        self._numbers = count()
        self._is_taken = False
        self.n_waiting = 0
        self.n_admitted = 0
        self._max_single = self._most_single = 2.0 * max_waiting

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call of one turn in the thread, or raise OverloadError."""
        return await self.run_steps(_in_one_step(call))

    async def run_steps(
        self,
        steps: Generator[None, None, T],
        is_gone: Callable[[], Awaitable[bool]] | None = None,
    ) -> T:
        """Run a generator in the thread, some of its steps at each turn, and return its result.

        Raise OverloadError: too many wait, the deadline is over, which is later for what takes several turns, or the
        caller is gone. What is left of the generator is not begun then.
        """
        if self.n_waiting >= self._max_waiting:
            raise OverloadError
        number = next(self._numbers)
        n_turns = 0
        self.n_waiting += 1
        try:
            async with asyncio.timeout(self._deadline) as limit:
                while True:
                    if n_turns:
                        await self._let_singles_pass()
                    async with self._turn(
                        _SHORT if n_turns < _SHORT_TURNS else _LONG, number
                    ):
                        if is_gone is not None and await is_gone():
                            raise OverloadError
                        is_over, result = await asyncio.wrap_future(
                            self._thread.submit(_advance, steps)
                        )
                    if is_over:
                        return cast(T, result)
                    if n_turns == 0:
                        limit.reschedule(
                            asyncio.get_running_loop().time()
                            + _LONGEST * self._deadline
                        )
                    n_turns += 1
        except TimeoutError as error:
            raise OverloadError from error
        finally:
            self.n_waiting -= 1

    async def run_first(self, prepare: Callable[[], Callable[[], T]]) -> T:
        """Prepare a call when it has the turn, before all others, and run it in the thread."""
        try:
            async with (
                asyncio.timeout(self._deadline),
                self._turn(_FIRST, next(self._numbers)),
            ):
                return await asyncio.wrap_future(self._thread.submit(prepare()))
        except TimeoutError as error:
            raise OverloadError from error

    @property
    def n_single(self) -> int:
        """Count the requests that are answered now, without those that wait for the thread."""
        return self.n_admitted - self.n_waiting

    @property
    def is_full(self) -> bool:
        return self.n_single >= self._max_single

    def adapt(self, seconds: float) -> None:
        """Let fewer single requests wait after one that took long, and by and by more after others."""
        if seconds > _TOO_LONG:
            self._max_single = max(_MIN_SINGLE, self._max_single * 0.97)
        else:
            self._max_single = min(self._most_single, self._max_single + 0.5)

    async def _let_singles_pass(self) -> None:
        """Wait until no single request is answered, but not for long: two threads of Python hinder each other."""
        for _ in range(_COURTESY):
            if self.n_single <= 0:
                break
            await asyncio.sleep(0.001)

    def close(self) -> None:
        """Finish the calls that run, then end the thread."""
        self._thread.shutdown()

    @asynccontextmanager
    async def _turn(self, rank: int, number: int) -> AsyncIterator[None]:
        """Wait for the turn, and pass it on at the end."""
        place = asyncio.get_running_loop().create_future()
        heappush(self._places, (rank, number, place))
        if not self._is_taken:
            self._pass_on()
        try:
            await place
            yield
        finally:
            if (
                not place.cancel() and not place.cancelled()
            ):  # it had come; whoever had it may ask again first
                asyncio.get_running_loop().call_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._is_taken = False
        while self._places and not self._is_taken:
            *_, place = heappop(self._places)
            if not place.done():
                place.set_result(None)
                self._is_taken = True


def _in_one_step(call: Callable[[], T]) -> Generator[None, None, T]:
    yield from ()
    return call()


def _advance(steps: Generator[None, None, T]) -> tuple[bool, T | None]:
    """Take steps for the time of a turn; return whether they are over, and their result."""
    until = time.perf_counter() + _TURN_SECONDS
    try:
        while True:
            next(steps)
            if time.perf_counter() >= until:
                return False, None
    except StopIteration as end:
        return True, end.value


class Gathering:
    """Requests that came at the same time and can be answered in one call: sixteen cost little more than four."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._open: dict[
            Hashable, tuple[list[Any], asyncio.Task[list[Any]]]
        ] = {}  # by what they have in common

    async def answer(
        self,
        key: Hashable,
        one: T,
        call: Callable[[list[T]], Iterable[R]],
        is_brief: bool,
    ) -> R:
        """Return what `call` gives for one request, called with the others of the same key that come meanwhile.

        A brief call does not go into the thread.
        """
        if key not in self._open:
            asked: list[T] = []
            self._open[key] = (
                asked,
                asyncio.ensure_future(self._call(key, asked, call, is_brief)),
            )
        together, task = self._open[key]
        place = len(together)
        together.append(one)
        if len(together) == MAX_GATHERED:
            del self._open[key]
        return (await asyncio.shield(task))[place]  # type: ignore[no-any-return]

    async def _call(
        self,
        key: Hashable,
        asked: list[T],
        call: Callable[[list[T]], Iterable[R]],
        is_brief: bool,
    ) -> list[R]:
        """Begin after all that came at the same time, or while the thread was taken, have joined."""

        def begin() -> Callable[[], list[R]]:
            if key in self._open and self._open[key][0] is asked:
                del self._open[key]
            return lambda: list(call(asked))

        return begin()() if is_brief else await self._worker.run_first(begin)


class RequestMiddleware:
    """Give each request an id, bound its body, add the headers of security to its answer, and count it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, worker: Worker) -> None:
        self._app = app
        self._metrics = metrics
        self._worker = worker

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
        status = 500
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        REQUEST_ID.set(request_id)
        if scope["method"] == "HEAD":  # of probes: as GET, and the server sends no body
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._release(scope)  # how fast its client reads does not count
                message["headers"] = [
                    *message["headers"],
                    *_HEADERS,
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        app = self._app
        is_asking = scope["path"] in _ASKING
        if is_asking and self._worker.is_full:  # refused before it costs anything
            self._metrics.shed.inc()
            app = answer_overload(Request(scope))
        with self._metrics.in_flight.track_inprogress():
            try:
                await app(
                    scope,
                    _bounded(scope, receive, self._worker if is_asking else None),
                    send_on,
                )
            finally:
                self._release(scope)
                seconds = time.perf_counter() - started
                route = self._metrics.count(scope["path"], status, seconds)
                if route in AUDITED or ACCESS.isEnabledFor(logging.INFO):
                    log_request(route, scope, status, seconds)

    def _release(self, scope: Scope) -> None:
        self._worker.n_admitted -= scope["state"].pop("is_admitted", False)


def _bounded(scope: Scope, receive: Receive, worker: Worker | None) -> Receive:
    """Refuse a body that is no JSON, too long or too slow, as soon as that is seen; count who waits after its end."""
    headers = dict(
        scope["headers"]
    )  # without a content-type it is JSON, unless a page of whatever site sends it
    n_bytes = 0
    kind = headers.get(b"content-type", b"" if b"origin" in headers else _JSON)
    until = asyncio.get_running_loop().time() + _BODY_SECONDS

    async def receive_some() -> Message:
        nonlocal n_bytes
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"the body took over {_BODY_SECONDS} seconds",
                {"connection": "close"},
            ) from None
        n_bytes += len(message.get("body", b""))
        if n_bytes > MAX_BODY:
            raise HTTPException(413, f"the body is too long; allowed: {MAX_BODY} bytes")
        if n_bytes and kind.partition(b";")[0].strip().lower() != _JSON:
            raise HTTPException(415, "the content-type is not application/json")
        if (
            worker
            and message["type"] == "http.request"
            and not message.get("more_body")
        ):
            scope["state"]["is_admitted"] = True
            worker.n_admitted += 1
        return message

    return receive_some
