"""Connections: what a client may send, how long it may take, and who gives way to whom."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.http.access import find_network
from service.http.middleware import SHED, refuse_single

CONNECTIONS = 512
MAX_HEAD = 16_384  # bytes of the head of a request
_HEAD_SECONDS = 10.0  # in which a head must have arrived
_MAX_CHUNKS = 256  # of a body, and one more for each:
_CHUNK_BYTES = 64  # a chunk of one byte costs as much time as one of a kilobyte
# Behind an answer that came before the end of a body: time to read it, bytes that are dropped.
_LINGER_SECONDS = 2.0
_LINGER_BYTES = 2_000_000
# The head of a single request, framed by its length alone, that lets the connection go on.
_FIELDS = (
    rb"(?:(?!content-length|transfer|expect|upgrade|connection(?!: ?keep-alive\r))"
    rb"[\w-]+:[^\r\n]*\r\n)*"
)
_SINGLE = re.compile(
    rb"POST /v1/recommend HTTP/1\.1\r\n%bcontent-length: ?(\d{1,7})\r\n%b\r\n"
    % (_FIELDS, _FIELDS),
    re.IGNORECASE,
)
_IDLE = {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}


class _Parser(h11.Connection):
    """A parser that counts chunks, and refuses a body of tiny ones."""

    _n_chunks = 0
    _n_bytes = 0

    def next_event(self) -> Any:
        """Return what h11 does."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._n_chunks = 0
            self._n_bytes = 0
        elif isinstance(event, h11.Data) and event.chunk_end:
            self._n_chunks += 1
            self._n_bytes += len(event.data)
            if self._n_chunks > _MAX_CHUNKS + self._n_bytes // _CHUNK_BYTES:
                raise h11.RemoteProtocolError("the chunks are too small")

        return event


class Connection(H11Protocol):
    """A connection that may be closed for others.

    Above the limit another one that waits for its client is closed: first those that never got an
    answer, then those of the client with the most, the idlest first. uvicorn's `limit_concurrency`
    alone refuses the newest: 512 silent connections would shut everybody out.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.conn = _Parser(h11.SERVER, MAX_HEAD)
        self.has_answered = False
        self._state: Any = self.config.app.state.shared  # type: ignore[union-attr]
        self._answers = self._state.answers
        self._may_drop: int | None = None  # bytes that may come after the end
        self.idle_since = self.loop.time()
        self._wait_for_head()
        self.network = find_network(self.client[0]) if self.client else ""
        if len(self.connections) > CONNECTIONS:
            self._make_room()

    def _make_room(self) -> None:
        connections: Any = self.connections
        n_open = Counter(other.network for other in connections)
        idle = list(filter(Connection.is_idle, connections - {self})) or [self]
        least = min(
            idle,
            key=lambda one: (one.has_answered, -n_open[one.network], one.idle_since),
        )
        connections.discard(least)
        least.transport.abort()
        self._state.metrics.counters["dropped_connections"].inc()

    def is_idle(self) -> bool:
        """Tell whether the connection waits for its client: for a request, or the rest of one."""
        cycle = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Read on; behind an answer that came before the end, read nothing of it."""
        if self._may_drop is not None:
            self._may_drop -= len(data)
            if self._may_drop < 0:
                self.transport.abort()
            return

        if self._answers.n_excess >= 0 and self._is_single(data):
            self._late.cancel()
            headers = self.server_state.default_headers
            self.transport.write(refuse_single(self._state.metrics, headers))
            self.has_answered = True
            super().on_response_complete()
            return

        former = self.cycle
        if (former is None or former.response_complete) and self._late.cancelled():
            self._wait_for_head()
        super().data_received(data)
        if self.cycle is not former:
            self._late.cancel()
        self._count()

    def _count(self) -> None:
        """Let a request that has come as a whole be counted."""
        if not self.is_idle() and self.scope["path"] in SHED:
            self._answers.admitted.add(self)
        else:
            self._answers.admitted.discard(self)

    def is_unanswered(self) -> bool:
        """Tell whether no answer has begun; how fast its client reads is no matter."""
        return not self.cycle.response_started

    def connection_lost(self, exc: Exception | None) -> None:
        """Count nothing of a client that is gone."""
        super().connection_lost(exc)
        self._answers.admitted.discard(self)

    def _is_single(self, data: bytes) -> bool:
        """Tell whether this is one whole request for a list, and the server goes on.

        Where too many wait, to refuse it here costs a tenth of what h11 and the application do.
        What is framed in another way goes through both.
        """
        if self.conn.states != _IDLE or self.conn.trailing_data[0]:
            return False
        if self.flow.write_paused:  # a client that does not read gets no more to read
            return False
        head = _SINGLE.match(data)
        return head is not None and head.end() + int(head[1]) == len(data)

    def _wait_for_head(self) -> None:
        self._late = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        """Note the answer; end the connection if the body goes on behind it."""
        self.idle_since = self.loop.time()
        self.has_answered = True
        self._count()
        if not self.cycle.more_body or self.transport.is_closing():
            super().on_response_complete()
            return

        # a socket that is closed over unread bytes resets its client, who may lose the answer
        self._may_drop = _LINGER_BYTES
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless an answer has begun; nothing follows."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        self.transport.close()
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _should_upgrade(self) -> bool:
        return False  # the body of a request that asks for it is read like any other
