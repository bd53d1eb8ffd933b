"""Connections that cannot be held open by saying little: bounds of time and number that uvicorn lacks."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.http.crowd import Crowd
from serve.http.faults import write_fault


class BoundedProtocol(HttpToolsProtocol):
    """A connection whose client must send and read on in time."""

    def __init__(self, crowd: Crowd, **given: Any) -> None:
        super().__init__(**given)
        self._crowd = crowd
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._n_raw = 0
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._crowd.enter(self)
        self._start(self._crowd.limits.head_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_whole() and self._is_busy():  # else line ends, or what came after an answer
            self._stop()
            return
        self._n_raw += len(data)
        if self._n_raw > (self._crowd.limits.head if self._in_head else self._crowd.limits.raw_body):
            self.hang_up()
        elif self._timer is None:
            self._start(self._crowd.limits.head_time if self._in_head else self._crowd.limits.body_time)

    def shutdown(self) -> None:
        """End with the answer that is due; where none is, with one that may be asked for at this moment."""
        if self._is_busy():
            super().shutdown()
        else:
            self.loop.call_later(self._crowd.limits.farewell, self._end_if_silent)

    def on_message_begin(self) -> None:
        self._in_head, self._n_raw = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head, self._n_raw = False, 0
        self._stop()
        self._crowd.hear(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy():  # with a request that was sent before this answer
            self._crowd.await_next(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(self._crowd.limits.write_time, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def hang_up(self) -> None:
        self.transport.abort()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _end_if_silent(self) -> None:
        if not self._is_busy():
            self.transport.close()

    def _is_whole(self) -> bool:
        return self.cycle is not None and not self._in_head and not self.cycle.more_body

    def _start(self, seconds: float) -> None:
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        """Hang up, with a word to a client that waits for one and is not in the middle of an answer."""
        self._timer = None
        if self.transport.is_closing():
            return
        cycle, is_busy = self.cycle, self._is_busy()
        if self._in_head != is_busy and not (is_busy and cycle.response_started):
            self.transport.write(_TOO_SLOW)
        if is_busy:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _write_too_slow() -> bytes:
    body = write_fault(408, "the request did not arrive in time", "")
    head = f"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return f"{head}connection: close\r\n\r\n".encode() + body


_TOO_SLOW = _write_too_slow()
