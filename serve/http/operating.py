"""Routes for whoever runs the service: is it there, what answers, how is it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from serve.http.documents import Faults, describe_faults
from serve.http.faults import Fault
from serve.http.parts import Parts

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_ENDING = describe_faults(503)
_METRICS: Faults = {200: {"content": {_TEXT: {"schema": {"type": "string"}}}}}


def make_operating(parts: Parts) -> APIRouter:
    """Make the routes."""
    router = APIRouter()

    @router.get("/health", summary="The process lives")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", responses=_ENDING, summary="Requests may be sent: 503 once the service is about to end")
    async def ready() -> dict[str, str]:
        if parts.ending.is_set():
            raise Fault(503, "the service ends", {"retry-after": str(parts.limits.retry_after)})
        return {"status": "ready"}

    @router.get("/v1/status", summary="What answers, and what became of the last reload")
    async def status() -> dict[str, Any]:
        return parts.service.describe()

    @router.get("/metrics", response_class=Response, responses=_METRICS, summary="Counts and times for Prometheus")
    async def metrics() -> Response:
        parts.metrics.waiting.set(parts.answering.n_jobs)
        parts.metrics.given_again.set(parts.service.kept.n_found)
        parts.metrics.impressions_lost.set(parts.service.impressions.n_lost)
        parts.metrics.name_bundle(parts.service.version)
        return Response(parts.metrics.render(), media_type=_TEXT)

    return router
