"""Impressions are written behind the answers: nobody waits for the disk, and nothing is left when the process ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from queue import Empty, Queue
from threading import Thread

from serve.state.impressions import Impressions
from serve.state.store import StateStore

_MOST_WAITING = 1000
"""Answers of HTTP in the queue: where the disk does not keep up, answers wait for it."""
_MOST_AT_ONCE = 200
_HOUR = 3600.0
_LOG = logging.getLogger(__name__)

Batch = Sequence[Impressions]


class ImpressionLog:
    """A thread that writes what was shown, and takes out once an hour what is older than the retention."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._batches: Queue[Batch | None] = Queue(_MOST_WAITING)
        self._expire_at = 0.0
        self.n_lost = 0
        """Impressions that could not be written."""
        self._thread = Thread(target=self._work, name="bascule-impressions", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Would `add` wait for the disk now."""
        return self._batches.full()

    def add(self, batch: Batch) -> None:
        """Let impressions be written soon."""
        self._batches.put(batch)

    def close(self) -> None:
        """Write what waits, then end."""
        self._batches.put(None)
        self._thread.join()

    def _work(self) -> None:
        is_open = True
        while is_open:
            batches = self._take()
            is_open = None not in batches
            self._write([one for batch in batches if batch is not None for one in batch])
            if is_open and time.monotonic() >= self._expire_at:
                self._expire()

    def _take(self) -> list[Batch | None]:
        """Wait for a batch, at most until something may have grown too old, and take all that came meanwhile."""
        batches: list[Batch | None] = []
        try:
            batches.append(self._batches.get(timeout=max(0.0, self._expire_at - time.monotonic())))
            while batches[-1] is not None and len(batches) < _MOST_AT_ONCE:
                batches.append(self._batches.get_nowait())
        except Empty:
            pass
        return batches

    def _write(self, impressions: Batch) -> None:
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
