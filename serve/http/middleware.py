"""Request ids, limits, metrics, error answers and logs: everything around the routes."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.exceptions import HTTPException, RequestValidationError
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve.errors import BundleError, SchemaError
from serve.filters import WORDS
from serve.http.schemas import FIELDS

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
LOGGER = "serve.http"
MAX_BODY = 1_000_000  # bytes
MAX_MESSAGE = 400  # characters
RETRY_AFTER = {"retry-after": "1"}
_LOG = logging.getLogger(LOGGER)
_POLICY = b"content-security-policy"
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]
_CODES = {404: "not_found", 413: "too_large", 422: "invalid", 500: "internal", 503: "unavailable"}
_ROUTES = {
    **{f"/v1/{name}": name for name in ("recommend", "similar", "events", "reload", "status")},
    **{f"/{name}": name for name in ("health", "ready", "metrics")},
    "/v1/users/forget": "forget",
    "/openapi.json": "openapi",
    **dict.fromkeys(("/", "/page.css", "/page.js"), "page"),
}
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_VALUE = re.compile(r" is .*; (?=expected|allowed)| is .*(?= is unknown)|(?<=got )(?!the end)[^';]+(?=;|$)", re.DOTALL)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|`([^`]*)`|\S+ \((?:int|float|bool|NoneType)\)")
_HIDDEN = "…"
_MAX_KINDS = 8  # of a value that may have several types


class OverloadError(Exception):
    """More requests wait than can be answered in time."""


class Worker:
    """A thread that runs blocking calls one after the other, so that they do not take the processor from each other."""

    def __init__(self, name: str, max_waiting: int, deadline: float) -> None:
        """Start without calls.

        Args:
            name: of the thread.
            max_waiting: calls that may wait or run at once.
            deadline: seconds in which a call must begin; after that nobody is thought to wait for it.
        """
        self._max_waiting, self._deadline = max_waiting, deadline
        self._thread = ThreadPoolExecutor(1, name)
        self.n_waiting = 0

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call in the thread.

        Raises:
            OverloadError: too many calls wait, or this one waited for too long.
        """
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


class Metrics:
    """Counts and times of one server for Prometheus; the values of labels are few and never a caller's."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers given, by route and status.", ("route", "status"))
        self.seconds = self._histogram("request_seconds", "From the headers of a request to its answer.", ("route",))
        self.compute = self._histogram("answer_seconds", "From the beginning of an answer until it was written.")
        self.in_flight = self._gauge("in_flight", "Requests that are being answered.")
        self.waiting = self._gauge("waiting", "Calls of the thread that answers.")
        self.shed = self._counter("shed", "Requests told to come back.")
        self.asked = self._counter("recommendations", "Lists asked for.")
        self.short = self._counter("short_lists", "Lists with fewer items than asked for.")
        self.unknown_items = self._counter("unknown_history_items", "Items of histories that no bundle knows.")
        self.unknown_values = self._counter("unknown_values", "Features and context with values new to the bundle.")
        self.reloads = self._counter("reloads", "Reloads, by outcome.", ("outcome",))
        self.events = self._counter("events", "Events taken in.")
        self.impressions_lost = self._gauge("impressions_lost", "Impressions that could not be written.")
        self.bundle = self._gauge("bundle_info", "The bundle that answers.", ("version",))

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one answer of HTTP."""
        route = _ROUTES.get(path) or ("items" if path.startswith("/v1/items/") else "other")
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_lists(self, answers: Sequence[Mapping[str, Any]], k: int, seconds: float) -> None:
        """Count the lists of one answer."""
        self.compute.observe(seconds)
        self.asked.inc(len(answers))
        self.short.inc(sum(len(one["items"]) < k for one in answers))
        self.unknown_items.inc(sum(one["unknown_items"] for one in answers))
        self.unknown_values.inc(sum(len(one.get("unknown_values", ())) for one in answers))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"bascule_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"bascule_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"bascule_{name}", text, labels, buckets=_SECONDS, registry=self._registry)


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
        if scope["method"] == "HEAD":  # of probes: as GET, and the server sends no body
            scope = {**scope, "method": "GET"}

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = _complete(message["headers"], request_id)
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, _bounded(scope, receive), send_on)
            finally:
                self._metrics.count(scope["path"], status, time.perf_counter() - started)


def _complete(headers: list[tuple[bytes, bytes]], request_id: str) -> list[tuple[bytes, bytes]]:
    more = [*_HEADERS, (b"x-request-id", request_id.encode())]
    if all(name != _POLICY for name, _ in headers):
        more.append((_POLICY, b"default-src 'none'; frame-ancestors 'none'"))
    return [*headers, *more]


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Refuse a body that is no JSON or too long, as soon as that is seen."""
    n_bytes = 0

    async def receive_some() -> Message:
        nonlocal n_bytes
        message = await receive()
        n_bytes += len(message.get("body", b""))
        if n_bytes > MAX_BODY:
            raise HTTPException(413, f"the body is too long; allowed: {MAX_BODY} bytes")
        if n_bytes and not _is_json(scope):
            raise HTTPException(415, "the content-type is not application/json")
        return message

    return receive_some


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return bool(kinds) and kinds[0].split(b";")[0].strip().lower() == b"application/json"


def answer_error(
    request: Request, status: int, message: str, field: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    """Write an error: a code, a sentence that names no value that was sent, and the field."""
    code = _CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
    error = {"code": code, "message": message[:MAX_MESSAGE]} | ({"field": field} if field else {})
    body = json.dumps({"error": error, "request_id": request.state.request_id})
    return Response(body, status, headers=headers, media_type="application/json")


async def _answer_http(request: Request, error: Any) -> Response:
    hint = "; the paths are in /openapi.json" if error.status_code == 404 else ""
    return answer_error(request, error.status_code, f"{error.detail}{hint}", headers=error.headers)


async def _answer_invalid(request: Request, error: Any) -> Response:
    """Answer a body that has another form: the first fault of it, and where."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer_error(request, 400, f"the body is no JSON: {first['ctx']['error']}")
    field = _name_field(first["loc"])
    messages = [one["msg"] for one in error.errors()[:_MAX_KINDS] if _name_field(one["loc"]) == field]
    return answer_error(request, 422, "; or ".join(dict.fromkeys(messages)), field=field)


def _name_field(place: tuple[Any, ...]) -> str:
    """Name a field by our names alone, not by those that a caller made up."""
    named = (
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in place if type(part) is int or part in FIELDS
    )
    return "".join(named).lstrip(".")


async def _answer_schema_error(request: Request, error: Exception) -> Response:
    """Answer a request that does not fit the bundle."""
    names = request.app.state.shared.service.names() | FIELDS | WORDS
    return answer_error(request, 422, hide_values(str(error), names))


def hide_values(message: str, names: frozenset[str]) -> str:
    """Take out of the message of an error the values that were sent: what is quoted or said to be a value.

    Args:
        message: of a SchemaError.
        names: of fields, features and columns, which stay.
    """

    def hide(found: re.Match[str]) -> str:
        return found[0] if next(filter(None, found.groups()), None) in names else _HIDDEN

    return _QUOTED.sub(hide, _VALUE.sub(lambda found: ": " if found[0].endswith("; ") else _HIDDEN, message))


async def _answer_overload(request: Request, error: Exception) -> Response:
    request.app.state.shared.metrics.shed.inc()
    return answer_error(request, 503, "too many requests wait; come back later", headers=RETRY_AFTER)


async def _answer_disk(request: Request, error: Any) -> Response:
    """Answer that nothing could be kept: it may be sent again."""
    _LOG.error("the disk failed: %s", error.strerror)
    is_busy = error.errno == errno.EBUSY
    why = "another process keeps the file, for a while" if is_busy else "the disk is full or fails"
    return answer_error(request, 503, f"it could not be kept: {why}", headers=RETRY_AFTER)


async def _answer_damage(request: Request, error: Exception) -> Response:
    """Answer that a file which the service reads was damaged, such as the list of forgotten users."""
    _LOG.error("nothing can be answered: %s", error)
    return answer_error(request, 503, "a file of the service is damaged; its log says which")


async def _answer_bug(request: Request, error: Exception) -> Response:
    return answer_error(request, 500, "the service failed; its log says where")


HANDLERS: dict[int | type[Exception], Any] = {
    StarletteHTTPException: _answer_http,
    RequestValidationError: _answer_invalid,
    SchemaError: _answer_schema_error,
    OverloadError: _answer_overload,
    OSError: _answer_disk,
    BundleError: _answer_damage,
    Exception: _answer_bug,
}


class QuietFormatter(logging.Formatter):
    """Write where an error came from, without its message, which may hold an id or a feature."""

    def formatException(self, ei: Any) -> str:
        """Return the frames and the type."""
        kind, _, place = ei
        return "".join(traceback.format_tb(place)) + (kind.__name__ if kind else "")


def set_up_logs() -> None:
    """Write the server's logs to stderr, without paths, bodies or persons."""
    handler = logging.StreamHandler()
    handler.setFormatter(QuietFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name, level in (("uvicorn", logging.WARNING), (LOGGER, logging.INFO)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
