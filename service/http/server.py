"""The server: uvicorn, its addresses, its connections and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.command_line import handling
from service.http.errors import LOGGER
from service.http.workers import PARENT, say_ready

_CONNECTIONS = 512
_IDLE_SECONDS = 60
_DRAIN_SECONDS = 5
_LEAVE_SECONDS = 1.0  # in which clients learn by an answer that their connection ends
_CLOSE = (b"connection", b"close")
_SWITCH_SECONDS = 0.0005  # at Python's 5 ms the event loop waits for computing threads
_OPEN_TO_ALL = (
    "without --keys, whoever reaches this address may ask, send events and erase users"
)
_LOG = logging.getLogger(LOGGER)


class Connection(H11Protocol):
    """A connection that may be closed for others.

    Above the limit, the client with the most connections loses its idlest one. uvicorn's
    `limit_concurrency` alone refuses the newest: 512 silent connections would shut everybody out.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self.address = self.client[0] if self.client else ""
        if len(self.connections) > _CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        connections: Any = self.connections
        n_open = Counter(other.address for other in connections)
        idlest = min(
            filter(Connection.is_idle, connections),
            key=lambda other: (-n_open[other.address], other.idle_since),
        )
        connections.discard(idlest)
        idlest.transport.abort()
        app: Any = self.config.app
        app.state.shared.metrics.counters["dropped_connections"].inc()

    def is_idle(self) -> bool:
        """Tell whether the connection waits for its client: for a request, or the rest of one."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer has begun; nothing follows."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True

    def _should_upgrade(self) -> bool:
        return False  # the body of a request that asks for it is read like any other


class Server(uvicorn.Server):
    """A server that finishes each request on shutdown and closes with `Connection: close`.

    uvicorn alone closes idle connections at once, under a request that is on its way.
    """

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to end; a worker ends with its parent."""
        if PARENT not in (None, os.getppid()):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients leave for a moment, admit no more of them, and end as uvicorn does."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LEAVE_SECONDS
        self.server_state.default_headers.append(_CLOSE)
        while self.server_state.connections and loop.time() < until:
            await asyncio.sleep(0.02)
        for listener in sockets or []:
            loop.remove_reader(listener)
        await asyncio.sleep(0.02)  # whoever was accepted becomes a connection
        await super().shutdown(sockets)


def serve(app: FastAPI, listeners: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish open requests and close the service.

    Args:
        app: the application of `make_app`.
        listeners: bound sockets; the first one is that of the address to name.
    """
    state = app.state.shared
    config = uvicorn.Config(
        app,
        http=Connection,  # over h11: httptools reads a POST with `upgrade` as two requests
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # paths hold ids
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS + 64,  # for the case that no connection is idle
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        callback_notify=state.refresh,
        timeout_notify=1,  # second
    )
    for listener in listeners:
        listener.listen(config.backlog)
    host, port = listeners[0].getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    _LOG.info("version %s at http://%s:%d", state.service.version, shown, port)

    notes = state.service.list_notes()
    if state.access.keys is None and not ip_address(host).is_loopback:
        notes.append(_OPEN_TO_ALL)
    if state.service.last_reload is not None:
        notes.append(state.service.last_reload["reason"])
    for note in notes:
        _LOG.warning("%s", note)

    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # a look through what was loaded would take up to a tenth of a second
    server = Server(config)
    try:
        # uvicorn has handlers of its own from its loop on, and raises the signal again at its end
        with handling(server.handle_exit):
            say_ready()
            server.run([*listeners])
    finally:
        state.close()
