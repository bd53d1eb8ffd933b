"""Logs on stderr, as text or JSON: each line knows its request, and none holds a path or a person.

service.http  messages of the service; the place of an error, but not its text
serve.access  a line per answer, in JSON alone: route, status, seconds, name of the key
serve.audit   a line per change that a caller asked for: forget, profiling, items,
              reload; users are hashed
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.types import Scope

AUDITED = frozenset({"forget", "items", "profiling", "reload"})  # routes
ACCESS = logging.getLogger("serve.access")
AUDIT = logging.getLogger("serve.audit")
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_HEAD = ("time", "level", "logger", "message")
_OUTCOMES = {2: "done", 5: "failed"}  # by the first digit of the status; else refused


class _Formatter(logging.Formatter):
    """Write the fields of a record; no text of an exception, for it may hold an id."""

    def __init__(self, write: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._write = write

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        # below the first line libraries repeat exceptions
        message, _, _ = record.getMessage().partition("\n")
        fields: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        fields |= getattr(record, "facts", {})

        if request_id := REQUEST_ID.get():
            fields["request_id"] = request_id

        if record.exc_info:
            _, error, frames = record.exc_info
            places = "".join(traceback.format_tb(frames))
            fields["error"] = f"{places}{type(error).__name__}"

        return self._write(fields)


def _write_text(fields: dict[str, Any]) -> str:
    """Write a line of text, and below it where an error came from."""
    head = "{time} {level} {logger}: {message}".format_map(fields)
    facts = [f"{name}={fields[name]}" for name in fields if name not in _HEAD]
    return " ".join([head, *facts])


def log_request(route: str, scope: Scope, status: int, seconds: float) -> None:
    """Write the line of an answer, and of what it changed."""
    facts = {"key": scope["state"].get("key"), "status": status}
    ACCESS.info(
        "answered",
        extra={"facts": (facts | {"route": route, "seconds": round(seconds, 6)})},
    )
    if route in AUDITED and scope["method"] not in ("GET", "HEAD"):
        if "users" in scope["state"]:
            facts["users"] = scope["state"]["users"]
        outcome = _OUTCOMES.get(status // 100, "refused")
        AUDIT.info("%s %s %s", scope["method"], route, outcome, extra={"facts": facts})


def set_up_logs(form: str) -> None:
    """Write the server's logs to stderr as `text` or `json`."""
    is_json = form == "json"
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter(json.dumps if is_json else _write_text))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("service.http").setLevel(logging.INFO)
    AUDIT.setLevel(logging.INFO)
    ACCESS.setLevel(logging.INFO if is_json else logging.WARNING)
