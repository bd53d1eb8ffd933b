"""Answers to faults: a code, a sentence and a field, never a value that was sent."""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from serve.errors import MAX_SHOWN, BundleError, SchemaError, name_nearest
from service.engine import ServerError
from service.http.schemas import FIELDS

LOGGER = "service.http"
MAX_MESSAGE = 400  # characters
RETRY_AFTER = {"retry-after": "1"}
OVERLOAD = "too many requests wait; come back later"
_LOG = logging.getLogger(LOGGER)
_CODES = {
    404: "not_found",
    413: "too_large",
    422: "invalid",
    500: "internal",
    503: "unavailable",
}
# the values in messages of `serve`, which are not always quoted
_VALUE = re.compile(
    r"(?<= is ).*(?=; expected|; allowed| is unknown)|(?<=got )(?!the end)[^';]+(?=;|$)",
    re.DOTALL,
)
_QUOTED = re.compile(
    r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|`([^`]*)`|\S+ \((?:int|float|bool|NoneType)\)"
)
_HIDDEN = "…"
_EXTRA = (
    "extra_forbidden"  # pydantic's type of an unknown field; it explains missing ones
)
_PLAIN_NAME = re.compile(r"[A-Za-z_]{1,40}")
# instead of pydantic's words, for those who do not know Python
_MESSAGES = {
    "dict_type": "expected a JSON object of names and values",
    "list_type": "expected a JSON array",
}
_MAX_KINDS = 8  # of a value that may have several types


class OverloadError(Exception):
    """More requests wait than can be answered in time."""


def answer_error(
    request: Request,
    status: int,
    message: str,
    field: str = "",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Write an error.

    Args:
        request: the request that failed.
        status: the HTTP status, which decides the code.
        message: a sentence that names no value that was sent.
        field: the place in the body, as in `history[0].item_id`.
        headers: further headers.
    """
    code = _CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
    error = {"code": code, "message": message[:MAX_MESSAGE]}
    if field:
        error["field"] = field

    body = json.dumps({"error": error, "request_id": request.state.request_id})
    return Response(body, status, headers=headers, media_type="application/json")


async def _answer_http(request: Request, error: Any) -> Response:
    hint = "; the paths are in /openapi.json" if error.status_code == 404 else ""
    headers = error.headers
    if error.status_code == 405:
        if request.url.path.startswith("/v1/items/"):
            headers = {"Allow": "DELETE, PUT"}  # the router names but one of them
        hint = f"; use {headers['Allow']}"

    message = f"{error.detail}{hint}"
    return answer_error(request, error.status_code, message, headers=headers)


async def _answer_invalid(request: Request, error: Any) -> Response:
    """Name the first fault of a body of another form; pydantic's messages hold no input."""
    faults = error.errors()[:_MAX_KINDS]
    first = next((fault for fault in faults if fault["type"] == _EXTRA), faults[0])
    if first["type"] == "json_invalid":
        return answer_error(
            request, 400, f"the body is no JSON: {first['ctx']['error']}"
        )

    field = _name_field(first["loc"])
    if first["type"] == _EXTRA:
        return answer_error(request, 422, _name_unknown(first["loc"][-1]), field)

    messages = [
        _MESSAGES.get(fault["type"], fault["msg"])
        for fault in faults
        if _name_field(fault["loc"]) == field
    ]
    return answer_error(request, 422, "; or ".join(dict.fromkeys(messages)), field)


def _name_unknown(name: str) -> str:
    """Name an unknown field, if it is of letters alone, which no id of a person is."""
    shown = name if _PLAIN_NAME.fullmatch(name) else _HIDDEN
    hint, _, _ = name_nearest(name[:MAX_SHOWN], FIELDS - {name}).partition("allowed")
    return f"unknown field '{shown}'; {hint or 'the fields of each path are in /docs'}"


def _name_field(location: tuple[Any, ...]) -> str:
    """Name a field by our names alone, not by those that a caller made up."""
    field = ""
    for part in location:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part in FIELDS:
            field += f".{part}"

    return field.lstrip(".")


async def _answer_schema_error(request: Request, error: Exception) -> Response:
    names = request.app.state.shared.service.names() | FIELDS
    return answer_error(request, 422, hide_values(str(error), names))


def hide_values(message: str, names: frozenset[str]) -> str:
    """Take the sent values out of the message of a SchemaError: what is quoted and no name."""

    def hide_quoted(match: re.Match[str]) -> str:
        text = next(filter(None, match.groups()), None)
        return match[0] if text in names else _HIDDEN

    return _QUOTED.sub(hide_quoted, _VALUE.sub(_HIDDEN, message))


async def _answer_fault(request: Request, error: Exception) -> Response:
    return answer_error(request, 500, "the service failed; its log says where")


async def _answer_overload(request: Request, error: Exception) -> Response:
    request.app.state.shared.metrics.counters["shed"].inc()
    return answer_error(request, 503, OVERLOAD, headers=RETRY_AFTER)


async def _answer_disk(request: Request, error: Any) -> Response:
    _LOG.error("the disk failed: %s", error.strerror)
    reason = "the disk is full or fails"
    if error.errno == errno.EBUSY:
        reason = "the file is locked by another process"
    return answer_error(request, 503, f"not saved: {reason}", headers=RETRY_AFTER)


async def _answer_server(request: Request, error: Exception) -> Response:
    _LOG.error("%s", error)
    reason = "the server of the state does not answer; come back later"
    return answer_error(request, 503, reason, headers=RETRY_AFTER)


async def _answer_damage(request: Request, error: Exception) -> Response:
    """Answer while a file is damaged, such as the list of forgotten users."""
    _LOG.error("nothing can be answered: %s", error)
    return answer_error(
        request, 503, "a file of the service is damaged; its log says which"
    )


HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _answer_http,
    RequestValidationError: _answer_invalid,
    SchemaError: _answer_schema_error,
    OverloadError: _answer_overload,
    ServerError: _answer_server,
    OSError: _answer_disk,
    BundleError: _answer_damage,
    Exception: _answer_fault,
}
