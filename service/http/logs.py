"""Logs on stderr, as text or JSON: each line knows its request, none holds a path, a value that was sent or a person.

service.http    what the service says of itself; the place of an error, but not its message
serve.access  a line per answer, in JSON alone: route, status, seconds, name of the key
serve.audit   a line per change that a caller asked for: forget, items, reload; users by the hashes of the receipt
"""

from __future__ import annotations

import json
import logging
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Scope

AUDITED = frozenset({"forget", "items", "reload"})  # routes
ACCESS = logging.getLogger("serve.access")
AUDIT = logging.getLogger("serve.audit")
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_OUTCOMES = {2: "done", 4: "refused", 5: "failed"}  # by the first digit of the status


class TextFormatter(logging.Formatter):
    """Write a line of text, and below it where an error came from."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line with the facts of the record behind it."""
        record.message = _first_line(record)
        return " ".join(
            [
                super().formatMessage(record),
                *(f"{name}={value}" for name, value in _facts(record).items()),
            ]
        )

    def formatException(self, ei: Any) -> str:
        """Return the frames and the type, without the message, which may hold an id or a feature."""
        kind, _, place = ei
        return "".join(traceback.format_tb(place)) + (kind.__name__ if kind else "")


class JsonFormatter(TextFormatter):
    """Write an object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(
            timespec="milliseconds"
        )
        head = {"time": time, "level": record.levelname, "logger": record.name}
        line = head | {"message": _first_line(record)} | _facts(record)
        return json.dumps(
            line
            | (
                {"error": self.formatException(record.exc_info)}
                if record.exc_info
                else {}
            )
        )


def _first_line(record: logging.LogRecord) -> str:
    """Return what libraries put first: below it they repeat exceptions, and so the values in them."""
    return record.getMessage().partition("\n")[0]


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    request_id = REQUEST_ID.get()
    return getattr(record, "facts", {}) | (
        {"request_id": request_id} if request_id else {}
    )


def log_request(route: str, scope: Scope, status: int, seconds: float) -> None:
    """Write the line of an answer, and of what it changed."""
    key, users = (scope["state"].get(name) for name in ("key", "users"))
    facts = {"key": key, "status": status}
    ACCESS.info(
        "answered",
        extra={"facts": facts | {"route": route, "seconds": round(seconds, 6)}},
    )
    if route in AUDITED:
        facts |= {} if users is None else {"users": users}
        outcome = _OUTCOMES.get(status // 100, "refused")
        method = (
            scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
        )  # a caller may make one up
        AUDIT.info("%s %s %s", method, route, outcome, extra={"facts": facts})


def set_up_logs(form: str) -> None:
    """Write the server's logs to stderr as `text` or `json`."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter(_TEXT))
    access = logging.INFO if form == "json" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name, level in (
        ("service.http", logging.INFO),
        (ACCESS.name, access),
        (AUDIT.name, logging.INFO),
    ):
        logging.getLogger(name).setLevel(level)
