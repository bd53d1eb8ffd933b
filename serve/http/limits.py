"""How much a caller may ask for, and how long anything may take."""

from __future__ import annotations

from dataclasses import dataclass

MOST_REQUESTS = 256
"""Requests, or events, in one body."""
MOST_EVENTS = 500
"""Events of a history."""
MOST_IDS = 10_000
"""Ids of a list: excluded items, admissible ones."""
MOST_ITEMS = 1000
"""Items of a list: k."""
MOST_LISTED = 32_000
"""Items of all lists of an answer, k times the requests: others wait while they are found."""
MOST_TEXT = 4096
"""Characters of a text."""
MOST_NAMES = 64
"""Features, columns and whatever else goes by name."""

MOST_TOGETHER = 16
"""Callers with one request each that are answered together."""


@dataclass(frozen=True)
class Limits:
    """Of one server: sizes in bytes, times in seconds."""

    body: int = 1_000_000
    head: int = 500_000
    """Of a request's first line and headers; what came in one piece with them, the end of another body, counts too."""
    raw_body: int = 8_000_000
    """Of a body as it is sent, with the sizes of its pieces and what follows them."""
    head_time: float = 5.0
    """From the first byte of a request, or from the connection, to the end of its headers."""
    body_time: float = 5.0
    """From the end of the headers to the end of the body."""
    idle_time: int = 60
    """Between an answer and the next request of a connection."""
    write_time: float = 10.0
    """For a client to read on, once what it has not read fills the buffers."""
    connections: int = 512
    """Open at once; one more closes the one that has been silent for longest."""
    waiting: int = 64
    """Requests that wait for the thread that answers; one more is told to come back."""
    deadline: float = 1.0
    """In which a waiting request must have begun; after that nobody is thought to wait for it."""
    write_waiting: int = 256
    """Callers whose events or items wait for the disk."""
    write_deadline: float = 10.0
    """In which a write must have begun: longer, since it waits where a user is forgotten and the file written anew."""
    retry_after: int = 1
    farewell: float = 0.5
    """After a signal to end: answers are still given, each as the last of its connection."""
    handshake: float = 0.05
    """After that: for connections that have begun, while no further one may begin."""
    drain: int = 5
    """After that: for answers that are on their way."""
