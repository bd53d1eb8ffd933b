"""Impressions are written behind the answers: nobody waits for the disk, and nothing is left when the process ends."""

from __future__ import annotations

import errno
import logging
import sqlite3
import time
from collections import deque
from collections.abc import Sequence
from threading import Event, Lock, Thread

from serve.errors import BundleError
from serve.state.impressions import Impressions
from serve.state.store import StateStore

_MOST_WAITING = 250_000
"""Items of the lists in the queue: where the disk does not keep up, answers wait for it."""
_MOST_AT_ONCE = 50_000
"""Items of one transaction, and those of one list more: events wait for its end."""
_PAUSE = 0.1
"""Seconds between looks at the queue: whoever answers wakes no thread, and one transaction holds many lists."""
_HOUR = 3600.0
_FAULTS = (OSError, BundleError, sqlite3.Error)
"""Of the disk or the file; `BundleError`: who was forgotten cannot be told."""
_LOG = logging.getLogger("serve.http")


class ImpressionLog:
    """A thread that writes what was shown, and takes out once an hour what is older than the retention."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._waiting: deque[Impressions] = deque()
        self._taken: list[Impressions] = []
        """What is being written."""
        self._n_items = 0
        self._counting = Lock()
        self._is_over = False
        self._expire_at = 0.0
        self._is_closing = Event()
        self.n_lost = 0
        """Impressions that could not be written."""
        self._thread = Thread(target=self._work, name="bascule-impressions", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Would `add` wait for the disk now."""
        return self._n_items >= _MOST_WAITING and self.is_running

    @property
    def is_running(self) -> bool:
        """False once an error that nobody foresaw has ended the thread: what is added from then on is lost."""
        return not self._is_over

    @property
    def notes(self) -> list[str]:
        """Say that nothing is logged any more, where that is so."""
        if self.is_running:
            return []
        since = "since an error that the log of the service has: start it again"
        return [f"what is shown is no longer logged, and what is old no longer taken out, {since}"]

    def add(self, impressions: Sequence[Impressions]) -> None:
        """Let impressions be written soon."""
        while self.is_full:
            time.sleep(_PAUSE)
        with self._counting:  # the thread, where it ends, counts what waits: these as well, or it has ended before
            if self._is_over:
                self.n_lost += len(impressions)
                return
            self._n_items += sum(map(_size, impressions))
            self._waiting.extend(impressions)

    def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing.set()
        self._thread.join()

    def _work(self) -> None:
        try:
            while not self._is_closing.wait(_PAUSE):
                self._write()
                if time.monotonic() >= self._expire_at:
                    self._expire()
            self._write()
        finally:
            with self._counting:
                self._is_over = True
                self.n_lost += len(self._taken) + len(self._waiting)

    def _write(self) -> None:
        while taken := self._take():
            try:
                self._store.log_impressions(taken)
            except _FAULTS as error:
                if self._may_wait(error):
                    self._waiting.extendleft(reversed(taken))
                    self._taken = []
                    return
                self.n_lost += len(taken)
                _log_fault(f"{len(taken)} impressions could not be written", error)
            with self._counting:
                self._n_items -= sum(map(_size, taken))
            self._taken = []

    def _may_wait(self, error: Exception) -> bool:
        """Tell whether to try again: a file that is written anew, to forget somebody, is free again in a while.

        Where it is not, what waits the longest is given up before the queue is full: answers would wait for it.
        """
        is_busy = isinstance(error, OSError) and error.errno == errno.EBUSY
        return is_busy and self._n_items < _MOST_WAITING // 2 and not self._is_closing.is_set()

    def _take(self) -> list[Impressions]:
        """Take the next lists from the queue, not more than one transaction should hold."""
        taken: list[Impressions] = []
        n_items = 0
        while self._waiting and n_items < _MOST_AT_ONCE:
            taken.append(self._waiting.popleft())
            n_items += _size(taken[-1])
        self._taken = taken
        return taken

    def _expire(self) -> None:
        self._expire_at = time.monotonic() + _HOUR
        try:
            self._store.expire(int(time.time()))
        except _FAULTS as error:
            _log_fault("nothing was taken out for its age", error)


def _log_fault(what: str, error: Exception) -> None:
    """Say what went wrong, without an id."""
    if isinstance(error, OSError):
        why = error.strerror
    else:
        why = "the tombstones are damaged" if isinstance(error, BundleError) else type(error).__name__
    _LOG.error("%s: %s", what, why)


def _size(one: Impressions) -> int:
    """Return how many items a list counts as: an empty one takes room too."""
    return max(1, len(one.item_ids))
