"""What all routes share: the state of their server, and the form of their answers."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from service.http.access import Access
from service.http.metrics import Metrics
from service.http.middleware import Worker
from service.service import Service

ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class AppState:
    """The state that the routes of one server share."""

    service: Service
    metrics: Metrics
    answers: Worker
    access: Access

    async def refresh(self) -> None:
        """Take the service's own counts into the metrics; the server does so every second."""
        service = self.service
        impressions = service.impressions
        reload = service.last_reload
        gauges = {
            "waiting": self.answers.n_waiting,
            "impressions_waiting": impressions.n_waiting,
            "last_reload_timestamp_seconds": service.current.loaded_at,
        }
        if reload is not None:
            gauges["last_reload_timestamp_seconds"] = reload["time"]
            gauges["last_reload_success"] = reload["is_loaded"]
        self.metrics.refresh(gauges, impressions.n_lost, service.find_faults())

    def close(self) -> None:
        """Finish the calls that wait, and release threads and files."""
        self.answers.close()
        self.service.close()


def get_state(request: Request) -> AppState:
    """Return the state of the server that got a request."""
    return request.app.state.shared  # type: ignore[no-any-return]


def write_answer(request: Request, version: str, content: dict[str, Any]) -> Response:
    """Write an answer behind its head: request id, version and latency."""
    return Response(
        write_json(request, version, content), media_type="application/json"
    )


def write_json(request: Request, version: str, content: dict[str, Any]) -> str:
    """Return the text of an answer."""
    seconds = time.perf_counter() - request.state.started
    head = {
        "request_id": request.state.request_id,
        "version": version,
        "latency_ms": round(seconds * 1000, 3),
    }
    return ENCODER.encode(head | content)
