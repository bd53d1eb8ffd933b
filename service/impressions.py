"""The log of impressions: a thread writes what was shown, behind the answers."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from serve.errors import BundleError
from service.engine import State
from service.event_log import Impressions

_LOG = logging.getLogger("service.http")
_MAX_LISTS = 20_000  # in the queue: more are lost, since no answer waits for a disk
_MAX_AT_ONCE = 1000  # lists of one transaction: events wait for its end
_PAUSE = 0.1  # seconds between looks at the queue: one transaction holds many lists
_HOUR = 3600.0
_WRITE_ERRORS = (OSError, BundleError, sqlite3.Error)


class ImpressionLog:
    """A thread that writes impressions, and removes once an hour what is too old."""

    def __init__(self, store: State, expires_most: bool = False) -> None:
        """Start the thread.

        Args:
            store: where impressions are kept.
            expires_most: whether more than half of the log may be removed at once.
        """
        self.store = store
        self.keeps_old = False  # whether what is too old waits for the operator's word
        self.is_short = False  # of room on the disk: then nothing more is logged
        self._expires_most = expires_most
        self.n_lost = 0  # impressions that could not be written
        self._waiting: deque[Impressions] = deque()
        self._is_closing = threading.Event()
        self._expire_at = 0.0
        self._expiring: Iterator[Counter[str]] = iter(())
        self._thread = threading.Thread(
            target=self._work, name="bascule-impressions", daemon=True
        )
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_stopped(self) -> bool:
        """Whether nothing is logged any more."""
        return not self._thread.is_alive()

    def add(self, impressions: Sequence[Impressions]) -> None:
        """Let impressions be written soon; they are lost if the disk does not keep up."""
        if self.has_stopped or self.is_short or self.n_waiting >= _MAX_LISTS:
            self.n_lost += len(impressions)
        else:
            self._waiting.extend(impressions)

    def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closing.wait(_PAUSE):
            self._write()
            self._expire()

        self._write()

    def _expire(self) -> None:
        """Remove a slice of what is too old; begin anew once an hour."""
        try:
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _HOUR
                now = int(time.time())
                if not self._expires_most:
                    now = self.store.date_expiry(now)
                self.keeps_old = False
                self._expiring = self.store.expire_slices(now)
            next(self._expiring, None)
        except BundleError as error:
            self.keeps_old = True
            _LOG.error("old events stay: %s", error)
        except _WRITE_ERRORS as error:
            _LOG.error("old events could not be removed: %s", type(error).__name__)

    def _write(self) -> None:
        while self._waiting:
            n_lists = min(_MAX_AT_ONCE, len(self._waiting))
            impressions = [self._waiting.popleft() for _ in range(n_lists)]
            try:
                self.store.log_impressions(impressions)
            except _WRITE_ERRORS as error:
                is_closing = self._is_closing.is_set()
                if getattr(error, "errno", None) == errno.EBUSY and not is_closing:
                    self._waiting.extendleft(reversed(impressions))
                    return
                self.n_lost += n_lists
                _LOG.error(
                    "%d impressions could not be written: %s",
                    n_lists,
                    type(error).__name__,
                )
