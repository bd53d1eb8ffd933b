"""What all routes share: the state of the server, and the form of an answer."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from service.http.access import Access
from service.http.metrics import Metrics
from service.http.middleware import Gathering, Worker
from service.service import Service

ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
DEFAULT_K = 10  # items of a list


@dataclass(frozen=True)
class AppState:
    """The state that the routes of one server share."""

    service: Service
    metrics: Metrics
    answers: Worker
    gathering: Gathering
    access: Access

    async def refresh(self) -> None:
        """Take the service's own counts into the metrics; the server does so every second."""
        service = self.service
        impressions = service.impressions
        reload = service.last_reload or {
            "time": service.current.loaded_at,
            "is_loaded": True,
        }
        self.metrics.refresh(
            self.answers.n_waiting,
            impressions.n_waiting,
            impressions.n_lost,
            reload,
            service.find_faults(),
        )

    def close(self) -> None:
        """Finish the calls that wait, and release threads and files."""
        self.answers.close()
        self.service.close()


def get_state(request: Request) -> AppState:
    """Return the state of the server that got a request."""
    return request.app.state.shared  # type: ignore[no-any-return]


def write_answer(request: Request, version: str, content: dict[str, Any]) -> Response:
    """Write an answer behind its head: request id, version and latency."""
    text = write_json(request, version, content)
    return Response(text, media_type="application/json")


def write_json(request: Request, version: str, content: dict[str, Any]) -> str:
    """Return the text of an answer."""
    seconds = time.perf_counter() - request.state.started
    head = {
        "request_id": request.state.request_id,
        "version": version,
        "latency_ms": round(seconds * 1000, 3),
    }
    return ENCODER.encode(head | content)
