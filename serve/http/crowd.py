"""How many connections are open, and which of them to close where they are too many."""

from __future__ import annotations

import resource
from typing import Protocol

from serve.http.limits import Limits

_OTHER_FILES = 64
"""Descriptors kept for anything but connections."""


class Connection(Protocol):
    """What can be closed at once."""

    def hang_up(self) -> None:
        """Close without a word."""


class Crowd:
    """The open connections of a server; of those that wait for a request, the one silent for longest comes first."""

    def __init__(self, limits: Limits) -> None:
        """Bound the connections by the limits, and by what the process may open."""
        self.limits = limits
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(1, min(limits.connections, files - _OTHER_FILES))
        self._open: set[Connection] = set()
        self._silent: dict[Connection, None] = {}

    def enter(self, connection: Connection) -> None:
        """Count a new connection in; where they are too many, close the one that has been silent for longest."""
        self._open.add(connection)
        self._silent[connection] = None
        if len(self._open) > self._most:
            longest = next(iter(self._silent))
            self.leave(longest)
            longest.hang_up()

    def leave(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._silent.pop(connection, None)

    @property
    def n_asking(self) -> int:
        """How many connections have sent the headers of a request and wait for the end of its answer."""
        return len(self._open) - len(self._silent)

    def hear(self, connection: Connection) -> None:
        """Note that a request has come in."""
        self._silent.pop(connection, None)

    def await_next(self, connection: Connection) -> None:
        """Note that the connection waits for its next request."""
        if connection in self._open:
            self._silent[connection] = None
