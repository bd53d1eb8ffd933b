"""Logs without persons: no paths, no bodies, and of an error its type and place but not its message."""

from __future__ import annotations

import logging
import logging.config
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
