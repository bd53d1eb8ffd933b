"""Counts and times of a service for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_ROUTE_LABELS = {  # in the metrics; a path that is not here counts as other
    **{f"/v1/{name}": name for name in ("recommend", "similar", "events", "reload", "status")},
    **{f"/{name}": name for name in ("health", "ready", "metrics")},
    "/v1/users/forget": "forget",
    "/openapi.json": "openapi",
    **dict.fromkeys(("/", "/page.css", "/page.js"), "page"),
}
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counts and times of one server for Prometheus; the values of labels are few and never a caller's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ours: Any = {"namespace": "bascule", "registry": self.registry}
        times = ours | {"buckets": _SECONDS}
        self.requests = Counter("requests", "Answers given, by route and status.", ("route", "status"), **ours)
        self.seconds = Histogram("request_seconds", "From the headers of a request to its answer.", ("route",), **times)
        self.compute = Histogram("answer_seconds", "From the beginning of an answer until it was written.", **times)
        self.in_flight = Gauge("in_flight", "Requests that are being answered.", **ours)
        self.waiting = Gauge("waiting", "Calls of the thread that answers.", **ours)
        self.shed = Counter("shed", "Requests told to come back.", **ours)
        self.asked = Counter("recommendations", "Lists asked for.", **ours)
        self.short = Counter("short_lists", "Lists with fewer items than asked for.", **ours)
        self.unknown_items = Counter("unknown_history_items", "Items of histories that no bundle knows.", **ours)
        self.unknown_values = Counter("unknown_values", "Features and context with values new to the bundle.", **ours)
        self.reloads = Counter("reloads", "Reloads, by outcome.", ("outcome",), **ours)
        self.events = Counter("events", "Events taken in.", **ours)
        self.impressions_lost = Gauge("impressions_lost", "Impressions that could not be written.", **ours)
        self.bundle = Gauge("bundle_info", "The bundle that answers.", ("version",), **ours)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count one answer of HTTP."""
        route = _ROUTE_LABELS.get(path) or ("items" if path.startswith("/v1/items/") else "other")
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_lists(self, answers: Sequence[Mapping[str, Any]], k: int, seconds: float) -> None:
        """Count the lists of one answer."""
        self.compute.observe(seconds)
        self.asked.inc(len(answers))
        self.short.inc(sum(len(one["items"]) < k for one in answers))
        self.unknown_items.inc(sum(one["unknown_items"] for one in answers))
        self.unknown_values.inc(sum(len(one.get("unknown_values", ())) for one in answers))
