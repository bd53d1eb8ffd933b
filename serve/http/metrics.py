"""What an operator sees of a server: counts and times, by labels whose values are few and ours."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.http.answers import Written

ROUTES = {
    "/v1/recommend": "recommend",
    "/v1/similar": "similar",
    "/v1/events": "events",
    "/v1/users/forget": "forget",
    "/v1/reload": "reload",
    "/v1/status": "status",
    "/health": "health",
    "/ready": "ready",
    "/metrics": "metrics",
    "/openapi.json": "openapi",
    "/": "page",
    "/page.css": "page",
    "/page.js": "page",
}
"""Path -> label; every other path is one label."""
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def name_route(path: str) -> str:
    """Return the label of a path."""
    return ROUTES.get(path) or ("items" if path.startswith("/v1/items/") else "other")


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers given, by route and status.", ("route", "status"))
        self.seconds = Histogram(
            "bascule_request_seconds",
            "From the headers of a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.compute = Histogram(
            "bascule_answer_seconds",
            "From the beginning of an answer, computed alone or with others, until it was written.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("bascule_in_flight", "Requests that are being answered.", registry=self._registry)
        self.waiting = Gauge("bascule_waiting", "Jobs of the thread that answers.", registry=self._registry)
        self.shed = self._counter("shed", "Requests told to come back.", ())
        self.asked = self._counter("recommendations", "Lists asked for.", ())
        self.short = self._counter("short_lists", "Lists with fewer items than asked for.", ())
        self.unknown_items = self._counter("unknown_history_items", "Items of histories that no bundle knows.", ())
        self.unknown_values = self._counter("unknown_values", "Features and context that training has not seen so.", ())
        self.reloads = self._counter("reloads", "Reloads, by outcome.", ("outcome",))
        self.events = self._counter("events", "Events taken in.", ())
        self.given_again = Gauge(
            "bascule_given_again", "Questions answered so far by a list made before.", registry=self._registry
        )
        self.impressions_lost = Gauge(
            "bascule_impressions_lost", "Impressions that could not be written.", registry=self._registry
        )
        self._bundle = Gauge("bascule_bundle_info", "The bundle that answers.", ("version",), registry=self._registry)

    def name_bundle(self, version: str) -> None:
        """Say which bundle answers from now on; only one is named at a time."""
        self._bundle.clear()
        self._bundle.labels(version).set(1)

    def count_answer(self, path: str, status: int, seconds: float) -> None:
        """Count one answer of HTTP."""
        route = name_route(path)
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def count_lists(self, written: Written) -> None:
        """Count the lists of one answer."""
        self.asked.inc(written.n_lists)
        self.compute.observe(written.seconds)
        if written.n_short:
            self.short.inc(written.n_short)
        if written.n_unknown_items:
            self.unknown_items.inc(written.n_unknown_items)
        if written.n_unknown_values:
            self.unknown_values.inc(written.n_unknown_values)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"bascule_{name}", what, labels, registry=self._registry)
