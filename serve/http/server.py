"""The server: uvicorn, with our connections and our way to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import APIRouter

from serve.http.app import make_app
from serve.http.edge import Edge
from serve.http.listening import accept_waiting, turn_away
from serve.http.logs import LOGGER, describe_logs, log_end_of_thread
from serve.http.parts import Parts
from serve.http.protocol import BoundedProtocol

_SWITCH_INTERVAL = 0.0005
"""Seconds after which the thread that computes lets the one that talks go on: 10 times as often as Python's own."""


class DrainingServer(uvicorn.Server):
    """A server that ends without dropping what it was asked, and with status 0."""

    def __init__(self, config: uvicorn.Config, parts: Parts) -> None:
        super().__init__(config)
        self._parts = parts

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, say where, and say it where another version answers than the current one."""
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        where, log, service = f"[{host}]" if ":" in host else host, logging.getLogger(LOGGER), self._parts.service
        log.info("version %s at http://%s:%d", service.version, where, port)
        if (fallen_back := service.describe()["last_reload"]) is not None:
            log.warning("%s", fallen_back["reason"])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Say at once that no more requests should come; a second Ctrl-C does not wait."""
        self._parts.ending.set()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer for a moment more, each answer the last of its connection; then close what is silent and wait."""
        if not self.force_exit:
            await asyncio.sleep(self._parts.limits.farewell)
            for listener in sockets or []:
                turn_away(listener)
            await asyncio.sleep(self._parts.limits.handshake)
            await self._accept_last(sockets or [])
        await super().shutdown(sockets)

    async def _accept_last(self, listeners: Sequence[socket.socket]) -> None:
        """Take in who has connected already, and close: that alone would reset them."""
        late = [connection for listener in listeners for connection in accept_waiting(listener)]
        for server in self.servers:
            server.close()
        protocol: Any = self.config.http_protocol_class
        make = partial(protocol, config=self.config, server_state=self.server_state, app_state={})
        for connection in late:
            await asyncio.get_running_loop().connect_accepted_socket(make, connection)


def serve(parts: Parts, listener: socket.socket, more: Sequence[APIRouter] = ()) -> None:
    """Serve until a signal, then drain; `more` are routes beside our own."""
    server = DrainingServer(_configure(make_app(parts, more), parts), parts)
    before = signal.set_wakeup_fd(-1)  # whoever ends the process on signals leaves that to the server now
    interval, hook = sys.getswitchinterval(), threading.excepthook
    sys.setswitchinterval(_SWITCH_INTERVAL)
    threading.excepthook = log_end_of_thread
    gc.freeze()  # what was loaded stays: looking through it for garbage took up to a tenth of a second
    try:
        server.run([listener])
    finally:
        gc.unfreeze()
        sys.setswitchinterval(interval)
        signal.set_wakeup_fd(before)
        parts.close()
        threading.excepthook = hook  # the threads have ended by now


def _configure(app: Edge, parts: Parts) -> uvicorn.Config:
    http: Any = partial(BoundedProtocol, parts.crowd)
    return uvicorn.Config(
        app,
        http=http,
        ws="none",
        lifespan="off",
        log_config=describe_logs(),
        access_log=False,  # paths hold ids
        proxy_headers=False,  # an address is the connection's, whatever a header says
        server_header=False,
        timeout_keep_alive=parts.limits.idle_time,
        timeout_graceful_shutdown=parts.limits.drain,
    )
