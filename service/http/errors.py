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

from serve.errors import BundleError, SchemaError
from serve.filters import WORDS
from service.http.schemas import FIELDS

LOGGER = "service.http"
MAX_MESSAGE = 400  # characters
RETRY_AFTER = {"retry-after": "1"}
_LOG = logging.getLogger(LOGGER)
_CODES = {
    404: "not_found",
    413: "too_large",
    422: "invalid",
    500: "internal",
    503: "unavailable",
}
_VALUE = re.compile(
    r" is .*; (?=expected|allowed)| is .*(?= is unknown)|(?<=got )(?!the end)[^';]+(?=;|$)",
    re.DOTALL,
)
_QUOTED = re.compile(
    r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|`([^`]*)`|\S+ \((?:int|float|bool|NoneType)\)"
)
_HIDDEN = "…"
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
    """Write an error: a code, a sentence that names no value that was sent, and the field."""
    code = _CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "_")
    error = {"code": code, "message": message[:MAX_MESSAGE]} | (
        {"field": field} if field else {}
    )
    body = json.dumps({"error": error, "request_id": request.state.request_id})
    return Response(body, status, headers=headers, media_type="application/json")


def answer_overload(request: Request) -> Response:
    return answer_error(
        request, 503, "too many requests wait; come back later", headers=RETRY_AFTER
    )


async def _answer_http(request: Request, error: Any) -> Response:
    hint = "; the paths are in /openapi.json" if error.status_code == 404 else ""
    has_two = error.status_code == 405 and request.url.path.startswith(
        "/v1/items/"
    )  # the router names but one of them
    headers = {"allow": "DELETE, PUT"} if has_two else error.headers
    return answer_error(
        request, error.status_code, f"{error.detail}{hint}", headers=headers
    )


async def _answer_invalid(request: Request, error: Any) -> Response:
    """Answer a body that has another form: the first fault of it, and where."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return answer_error(
            request, 400, f"the body is no JSON: {first['ctx']['error']}"
        )
    field = _name_field(first["loc"])
    messages = [
        one["msg"]
        for one in error.errors()[:_MAX_KINDS]
        if _name_field(one["loc"]) == field
    ]
    return answer_error(
        request, 422, "; or ".join(dict.fromkeys(messages)), field=field
    )


def _name_field(place: tuple[Any, ...]) -> str:
    """Name a field by our names alone, not by those that a caller made up."""
    ours = [part for part in place if isinstance(part, int) or part in FIELDS]
    return "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in ours
    ).lstrip(".")


async def _answer_schema_error(request: Request, error: Exception) -> Response:
    names = request.app.state.shared.service.names() | FIELDS | WORDS
    return answer_error(request, 422, hide_values(str(error), names))


def hide_values(message: str, names: frozenset[str]) -> str:
    """Take the values that were sent out of the message of a SchemaError: what is quoted and no known name."""

    def hide(found: re.Match[str]) -> str:
        return (
            found[0] if next(filter(None, found.groups()), None) in names else _HIDDEN
        )

    return _QUOTED.sub(
        hide,
        _VALUE.sub(lambda found: ": " if found[0].endswith("; ") else _HIDDEN, message),
    )


async def _answer_fault(request: Request, error: Exception) -> Response:
    """Answer a fault of the service: too much to do, a disk that fails, a damaged file, an error of ours."""
    if isinstance(error, OverloadError):
        request.app.state.shared.metrics.shed.inc()
        return answer_overload(request)
    if isinstance(error, OSError):
        _LOG.error("the disk failed: %s", error.strerror)
        is_busy = error.errno == errno.EBUSY
        why = (
            "another process keeps the file, for a while"
            if is_busy
            else "the disk is full or fails"
        )
        return answer_error(
            request, 503, f"it could not be kept: {why}", headers=RETRY_AFTER
        )
    if isinstance(error, BundleError):  # such as the list of forgotten users
        _LOG.error("nothing can be answered: %s", error)
        return answer_error(
            request, 503, "a file of the service is damaged; its log says which"
        )
    return answer_error(request, 500, "the service failed; its log says where")


HANDLERS: dict[int | type[Exception], Any] = {
    HTTPException: _answer_http,
    RequestValidationError: _answer_invalid,
    SchemaError: _answer_schema_error,
    **dict.fromkeys((OverloadError, OSError, BundleError, Exception), _answer_fault),
}
