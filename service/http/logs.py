"""Logs on stderr, as text or JSON: each line knows its request, and none holds a path or a person.

service.http  messages of the service; the place of an error, but not its text
serve.access  a line per answer, in JSON alone: route, status, seconds, name of the key
serve.audit   a line per change that a caller asked for: forget, items, reload; users are hashed
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
_OUTCOMES = {2: "done", 5: "failed"}  # by the first digit of the status; else refused


class TextFormatter(logging.Formatter):
    """Write a line of text, and below it where an error came from."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line with the facts of the record behind it."""
        record.message = _first_line(record)
        facts = [f"{name}={value}" for name, value in _facts(record).items()]
        return " ".join([super().formatMessage(record), *facts])

    def formatException(self, ei: Any) -> str:
        """Return the frames and the type, without the message, which may hold an id."""
        kind, _, frames = ei
        return "".join(traceback.format_tb(frames)) + (kind.__name__ if kind else "")


class JsonFormatter(TextFormatter):
    """Write an object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _first_line(record),
            **_facts(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _first_line(record: logging.LogRecord) -> str:
    """Return the first line: below it libraries repeat exceptions, and so the values in them."""
    return record.getMessage().partition("\n")[0]


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts = getattr(record, "facts", {})
    request_id = REQUEST_ID.get()
    return facts | {"request_id": request_id} if request_id else facts


def log_request(route: str, scope: Scope, status: int, seconds: float) -> None:
    """Write the line of an answer, and of what it changed."""
    facts = {"key": scope["state"].get("key"), "status": status}
    timed = facts | {"route": route, "seconds": round(seconds, 6)}
    ACCESS.info("answered", extra={"facts": timed})
    if route in AUDITED:
        if "users" in scope["state"]:
            facts["users"] = scope["state"]["users"]
        is_method = scope["method"] in HTTPMethod.__members__  # a caller may invent one
        method = scope["method"] if is_method else "other"
        outcome = _OUTCOMES.get(status // 100, "refused")
        AUDIT.info("%s %s %s", method, route, outcome, extra={"facts": facts})


def set_up_logs(form: str) -> None:
    """Write the server's logs to stderr as `text` or `json`."""
    is_json = form == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if is_json else TextFormatter(_TEXT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("service.http").setLevel(logging.INFO)
    AUDIT.setLevel(logging.INFO)
    ACCESS.setLevel(logging.INFO if is_json else logging.WARNING)
