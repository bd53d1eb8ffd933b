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
    writing: Worker
    """The thread that keeps events and items, and waits for the disk."""
    forgetting: Worker
    """The thread that erases users, which takes seconds: what is written meanwhile waits for the file alone."""
    crowd: Crowd
    """The open connections."""
    ending: Event = field(default_factory=Event)
    """Set by the signal to end: answers are still given, each as the last of its connection."""

    def close(self) -> None:
        """Finish what waits, and let go of threads and files."""
        self.answering.close()
        self.writing.close()
        self.forgetting.close()
        self.service.close()
