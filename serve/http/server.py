"""The server: uvicorn, its address, its logs and its end."""

from __future__ import annotations

import gc
import logging
import socket
import sys
import traceback
from typing import Any

import uvicorn
from fastapi import FastAPI

from serve.command_line import undisturbed
from serve.http.errors import LOGGER

_CONNECTIONS, _IDLE_SECONDS, _DRAIN_SECONDS = 512, 60, 5
_SWITCH_INTERVAL = 0.0005  # seconds; at Python's 5 ms the event loop waits for the thread that computes
_LOG = logging.getLogger(LOGGER)


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded; raise ValueError if it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # of 0 asyncio would not set TCP_NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(f"cannot listen at {host}:{port}: {getattr(error, 'strerror', error)}") from error
    return listener


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was asked and close the service."""
    state = app.state.shared
    config = uvicorn.Config(
        app,
        http="h11",  # under httptools a POST with the header `upgrade` is read as two requests
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # paths hold ids
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    set_up_logs()
    listener.listen(config.backlog)
    host, port = listener.getsockname()[:2]
    _LOG.info("version %s at http://%s:%d", state.service.version, f"[{host}]" if ":" in host else host, port)
    if state.service.last_reload is not None:
        _LOG.warning("%s", state.service.last_reload["reason"])
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.freeze()  # what was loaded stays: looking through it for garbage takes up to a tenth of a second
    try:
        with undisturbed():  # uvicorn raises the signal again after it has drained
            uvicorn.Server(config).run([listener])
    finally:
        state.close()


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
