"""The server: uvicorn, its addresses, its connections and its end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import sys
from collections.abc import Sequence
from threading import Event
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.command_line import handling
from service.http.connections import CONNECTIONS, MAX_HEAD, Connection
from service.http.errors import LOGGER
from service.http.workers import PARENT, admit_no_more, say_ready

_IDLE_SECONDS = 60
_DRAIN_SECONDS = 5
_LEAVE_SECONDS = 1.0  # in which clients learn by an answer that their connection ends
_ACCEPT_SECONDS = 0.05
_CLOSE = (b"connection", b"close")
_SWITCH_SECONDS = 0.0005  # at Python's 5 ms the event loop waits for computing threads
_LOG = logging.getLogger(LOGGER)


class Server(uvicorn.Server):
    """A server that finishes each request on shutdown and closes with `Connection: close`.

    uvicorn alone closes idle connections at once, under a request that is on its way.
    """

    def __init__(self, config: uvicorn.Config, leaving: Event) -> None:
        super().__init__(config)
        self._leaving = leaving

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End soon; `/ready` says so at once."""
        self._leaving.set()
        super().handle_exit(sig, frame)

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
        if PARENT is None:  # one that others share admits whom they answer
            admit_no_more(sockets or [])
        await asyncio.sleep(_ACCEPT_SECONDS)  # the loop accepts whoever had connected
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
        limit_concurrency=CONNECTIONS + 64,  # for the case that no connection is idle
        h11_max_incomplete_event_size=MAX_HEAD,
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
    if state.service.last_reload is not None:
        notes.append(state.service.last_reload["reason"])
    for note in notes:
        _LOG.warning("%s", note)

    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # a look through what was loaded would take up to a tenth of a second
    server = Server(config, state.leaving)
    try:
        # uvicorn has handlers of its own from its loop on, and raises the signal again at its end
        with handling(server.handle_exit):
            say_ready()
            server.run([*listeners])
    finally:
        state.close()
