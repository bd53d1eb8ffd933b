"""Impressions are written behind the answers: nobody waits for the disk, and nothing is left when the process ends."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from threading import Event, Thread

from serve.state.impressions import Impressions
from serve.state.store import StateStore

_MOST_WAITING = 20_000
"""Lists in the queue: where the disk does not keep up, answers wait for it."""
_PAUSE = 0.1
"""Seconds between looks at the queue: whoever answers wakes no thread, and one transaction holds many lists."""
_HOUR = 3600.0
_LOG = logging.getLogger("serve.http")


class ImpressionLog:
    """A thread that writes what was shown, and takes out once an hour what is older than the retention."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._waiting: deque[Impressions] = deque()
        self._expire_at = 0.0
        self._is_closing = Event()
        self.n_lost = 0
        """Impressions that could not be written."""
        self._thread = Thread(target=self._work, name="bascule-impressions", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Would `add` wait for the disk now."""
        return len(self._waiting) >= _MOST_WAITING

    def add(self, impressions: Sequence[Impressions]) -> None:
        """Let impressions be written soon."""
        while self.is_full:
            time.sleep(_PAUSE)
        self._waiting.extend(impressions)

    def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closing.wait(_PAUSE):
            self._write()
            if time.monotonic() >= self._expire_at:
                self._expire()
        self._write()

    def _write(self) -> None:
        impressions = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not impressions:
            return
        try:
            self._store.log_impressions(impressions)
        except OSError as error:
            self.n_lost += len(impressions)
            _LOG.error("%d impressions could not be written: %s", len(impressions), error.strerror)

    def _expire(self) -> None:
        self._expire_at = time.monotonic() + _HOUR
        try:
            self._store.expire(int(time.time()))
        except OSError as error:
            _LOG.error("nothing was taken out for its age: %s", error.strerror)
