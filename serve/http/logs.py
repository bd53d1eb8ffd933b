"""Logs without persons: no paths, no bodies, and of an error its type and place but not its message."""

from __future__ import annotations

import logging
import logging.config
import threading
import traceback
from types import TracebackType
from typing import Any

LOGGER = "serve.http"

_Fault = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class QuietFormatter(logging.Formatter):
    """Write where an error came from; what it says may hold an id or a feature and is left out."""

    def formatException(self, ei: _Fault) -> str:
        """Return the frames and the type."""
        kind, _, place = ei
        return "".join(traceback.format_tb(place)) + (kind.__name__ if kind else "")


def log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Say which thread an error has ended, and where; Python's own way would write what the error says."""
    name = None if ended.thread is None else ended.thread.name
    fault = None if ended.exc_value is None else (ended.exc_type, ended.exc_value, ended.exc_traceback)
    logging.getLogger(LOGGER).error("an error has ended the thread %s", name, exc_info=fault)


def describe_logs() -> dict[str, Any]:
    """Return the configuration of the server's own loggers: lines on stderr."""
    loggers = {"uvicorn": "WARNING", "uvicorn.error": "WARNING", LOGGER: "INFO"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"quiet": {"()": QuietFormatter, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "quiet"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level, "propagate": False} for name, level in loggers.items()
        },
    }
