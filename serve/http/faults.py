"""What a caller is told when something is wrong: a code, a sentence and a place, never a value that was sent."""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

from fastapi.exceptions import HTTPException, RequestValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from serve.filters.parsing import WORDS
from serve.http.bodies import FIELDS
from serve.http.redaction import without_values

_LOG = logging.getLogger("serve.http")

TOO_MANY = "too many requests wait; come back later"
MOST_SAID = 400
"""Characters of a message: the whole answer stays below 1 KB."""
_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    500: "internal",
    503: "unavailable",
}
_KEPT = frozenset(
    {
        "missing", "dict_type",
        "greater_than_equal", "less_than_equal", "too_long", "too_short", "string_too_long", "string_too_short",
        "literal_error",
    }
)  # fmt: skip
"""Faults whose words in pydantic hold no value."""
_WORDS = {
    "extra_forbidden": "there is a name that is not known here; see /openapi.json",
    "dict_type": "expected an object",
    "typed_dict_type": "expected an object",
    "model_type": "expected an object",
    "model_attributes_type": "expected an object",
}


_TYPES = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list",
}
"""What a value is expected to be, by the fault of one that is not; some fields take several."""


class Fault(HTTPException):
    """An answer that is an error; what it says must hold nothing that the caller sent."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, dict(headers or {}))


def write_fault(status: int, message: str, request_id: str, field: str | None = None) -> bytes:
    """Write the body of an error."""
    error: dict[str, Any] = {"code": _CODES.get(status, "error"), "message": message[:MOST_SAID]}
    if field:
        error["field"] = field
    return json.dumps({"error": error, "request_id": request_id}).encode()


async def answer_fault(request: Request, fault: Exception) -> Response:
    """Answer what the framework or a route raised as an error of HTTP."""
    status, headers = getattr(fault, "status_code", 500), getattr(fault, "headers", None)
    if isinstance(fault, Fault):
        return _respond(request, status, fault.detail, headers=headers)
    message = _CODES.get(status, "error").replace("_", " ")
    if status == 404:
        message = f"{message}; the paths are in /openapi.json"
    if status == 405:  # the framework names the methods of the first route of this path alone
        methods = ", ".join(_allowed_methods(request))
        message, headers = f"{message}; allowed: {methods}", {"allow": methods}
    return _respond(request, status, message, headers=headers)


async def answer_schema_error(request: Request, fault: Exception) -> Response:
    """Answer what the bundle does not take, naming what it would take."""
    state = request.scope["state"]
    sent = [state.get("body"), *request.path_params.values()]
    said = without_values(str(fault), state["parts"].service.names() | FIELDS | WORDS, sent)
    return _respond(request, 422, said)


async def answer_invalid(request: Request, fault: Exception) -> Response:
    """Answer a body that has not the form of the interface: the first fault of it, and where."""
    faults = fault.errors() if isinstance(fault, RequestValidationError) else []
    first = faults[0] if faults else {}
    kind, field = first.get("type", ""), _name_place(first.get("loc", ()))
    if kind in _TYPES:
        alike = [one["type"] for one in faults if _name_place(one["loc"]) == field]
        return _respond(request, 422, _name_types(alike), field=field)
    message = _WORDS.get(kind) or (first["msg"] if kind in _KEPT else "the value has not the expected form")
    return _respond(request, 422, message, field=field)


async def answer_overload(request: Request, fault: Exception) -> Response:
    """Answer where work waited for too long, or found no room."""
    parts = request.scope["state"]["parts"]
    parts.metrics.shed.inc()
    headers = {"retry-after": str(parts.limits.retry_after)}
    return _respond(request, 503, TOO_MANY, headers=headers)


async def answer_disk_fault(request: Request, fault: Exception) -> Response:
    """Answer where nothing could be kept: it may be sent again."""
    _LOG.error("the disk failed: %s", getattr(fault, "strerror", None))
    is_busy = getattr(fault, "errno", None) == errno.EBUSY
    why = "another process keeps the file, for a while" if is_busy else "the disk is full or fails"
    return _respond(request, 503, f"it could not be kept: {why}", headers={"retry-after": "1"})


async def answer_damage(request: Request, fault: Exception) -> Response:
    """Answer where a file that the service reads while it serves was damaged, such as the list of who was forgotten."""
    _LOG.error("nothing can be answered: %s", fault)
    return _respond(request, 503, "a file of the service is damaged; its log says which")


async def answer_bug(request: Request, fault: Exception) -> Response:
    """Answer what nobody foresaw; the log has the type and place of it."""
    return _respond(request, 500, "the service failed; its log says where")


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that any route of a path has; `serve.http.edge` asks as GET what is asked as HEAD."""
    alike = [route for route in request.app.state.routes if route.matches(request.scope)[0] is Match.PARTIAL]
    methods = {method for route in alike for method in route.methods}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


def _name_types(kinds: Collection[str]) -> str:
    """Say all that a value might have been."""
    is_number = not {"float_type", "finite_number"}.isdisjoint(kinds)
    names = [name for kind, name in _TYPES.items() if kind in kinds and not (kind == "int_type" and is_number)]
    return f"expected {' or '.join(filter(None, [', '.join(names[:-1]), names[-1]]))}"


def _name_place(place: tuple[Any, ...]) -> str:
    """Name a field by what the interface calls it: names that the caller made up are left out."""
    parts = [part for part in place if part not in ("body", "one", "many")]
    named = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if _is_ours(part)]
    return "".join(named).lstrip(".")[:MOST_SAID]


def _is_ours(part: Any) -> bool:
    return isinstance(part, int) or part in FIELDS


def _respond(
    request: Request,
    status: int,
    message: str,
    field: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    body = write_fault(status, message, request.scope["state"].get("request_id", ""), field)
    return Response(body, status, headers=headers, media_type="application/json")
