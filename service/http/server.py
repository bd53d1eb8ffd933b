"""The server: uvicorn, its addresses, its connections and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from ipaddress import ip_address

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.command_line import handling
from service.http.errors import LOGGER
from service.http.workers import is_orphan, say_ready

_CONNECTIONS = 512
_IDLE_SECONDS = 60
_DRAIN_SECONDS = 5
_LEAVE_SECONDS = (
    1.0  # in which a client learns by an answer that the connection ends with it
)
_CLOSE = (b"connection", b"close")
_SWITCH_INTERVAL = 0.0005  # seconds; at Python's 5 ms the event loop waits for the thread that computes
_LOG = logging.getLogger(LOGGER)


class Connection(H11Protocol):
    """A connection that gives way: above the bound, of the client that holds most the one that waits longest ends."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.idle_since = self.loop.time()
        self.address = self.client[0] if self.client else ""
        if len(self.connections) > _CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        """End one of those that wait for their client: for a request, or the rest of one."""
        ours = [one for one in self.connections if isinstance(one, Connection)]
        held = Counter(one.address for one in ours)
        idle = [
            one
            for one in ours
            if one.cycle is None or one.cycle.response_complete or one.cycle.more_body
        ]
        last = min(idle, key=lambda one: (-held[one.address], one.idle_since))
        self.connections.discard(last)
        last.transport.abort()
        self.config.app.state.shared.metrics.dropped.inc()  # type: ignore[union-attr]

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer was given before that was seen; none follows."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True

    def _should_upgrade(self) -> bool:
        return False  # the body of a request that asks for it is read like any other


class Server(uvicorn.Server):
    """A server whose connections end with an answer that says so: none is closed under a request that is on its way."""

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether to end."""
        if is_orphan():
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let clients leave for a moment, take no more of them, and end as uvicorn does."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _LEAVE_SECONDS
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        while self.server_state.connections and loop.time() < until:
            await asyncio.sleep(0.02)
        for listener in sockets or []:
            loop.remove_reader(listener)
        await asyncio.sleep(0.02)  # whoever was accepted becomes a connection
        await super().shutdown(sockets)


def serve(app: FastAPI, listeners: Sequence[socket.socket]) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was asked and close the service."""
    state = app.state.shared
    config = uvicorn.Config(
        app,
        http=Connection,  # over h11: under httptools a POST with the header `upgrade` is read as two requests
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # paths hold ids
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS + 64,  # more come only where none can give way
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
        callback_notify=state.refresh,
        timeout_notify=1,  # second
    )
    for listener in listeners:
        listener.listen(config.backlog)
    host, port = listeners[0].getsockname()[:2]
    _LOG.info(
        "version %s at http://%s:%d",
        state.service.version,
        f"[{host}]" if ":" in host else host,
        port,
    )
    for note in state.service.note_age():
        _LOG.warning("%s", note)
    if state.access.keys is None and not ip_address(host).is_loopback:
        _LOG.warning(
            "without --keys, whoever reaches this address may ask, send events and erase users"
        )
    if state.service.last_reload is not None:
        _LOG.warning("%s", state.service.last_reload["reason"])
    sys.setswitchinterval(_SWITCH_INTERVAL)
    gc.freeze()  # what was loaded stays: looking through it for garbage takes up to a tenth of a second
    server = Server(config)
    try:
        # uvicorn has handlers of its own from its loop on, and raises the signal again after it has drained
        with handling(server.handle_exit):
            say_ready()
            server.run([*listeners])
    finally:
        state.close()
