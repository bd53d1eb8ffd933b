"""What the edge and the routes of one server share."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event

from serve.http.crowd import Crowd
from serve.http.limits import Limits
from serve.http.metrics import Metrics
from serve.http.worker import Worker
from serve.service import Service


@dataclass(frozen=True)
class Parts:
    """Of one server; nothing of it is global."""

    service: Service
    limits: Limits
    metrics: Metrics
    answering: Worker
    """The thread that computes."""
    telling: Worker
    """The thread that keeps events, and waits for the disk."""
    stocking: Worker
    """The thread that changes items: not the one of events, which wait while a user is erased."""
    forgetting: Worker
    """The thread that erases users, which takes seconds."""
    crowd: Crowd
    """The open connections."""
    ending: Event = field(default_factory=Event)
    """Set by the signal to end: answers are still given, each as the last of its connection."""

    def close(self) -> None:
        """Finish what waits, and let go of threads and files."""
        for worker in (self.answering, self.telling, self.stocking, self.forgetting):
            worker.close()
        self.service.close()
