"""The form of answers."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import Request, Response

ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def find_service(request: Request) -> Any:
    """Return the `Service` of the application that a request came to."""
    return request.app.state.shared.service


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
