"""Counts and times of a service for Prometheus, of all its workers together."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from service.figures import read_figures

_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # names the folder in which workers count together
_ROUTES = (
    *("/v1/recommend", "/v1/similar", "/v1/due", "/v1/events", "/v1/users/forget"),
    *("/v1/reload", "/v1/status", "/v1/items", "/v1/page"),
    *("/health", "/ready", "/metrics"),
)
_ROUTE_LABELS = {  # path -> label, so that labels are few; a path that is not here is `other`
    **{path: path.rpartition("/")[2] for path in _ROUTES},
    **dict.fromkeys(("/", "/docs", "/page.css", "/page.js"), "page"),
    "/openapi.json": "openapi",
}
_SECONDS = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1),
    *(0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
)
_COUNTERS = {
    "shed": "Requests refused by overload (503).",
    "dropped_connections": "Idle connections closed to make room.",
    "recommendations": "Lists asked for.",
    "short_lists": "Lists with fewer items than asked for.",
    "unknown_history_items": "Items of histories that the bundle does not know.",
    "unknown_values": "Features and context with values new to the bundle.",
    "unknown_users": "Lists for a user about whom nothing is known.",
    "events": "Events saved.",
    "impressions_lost": "Impressions that could not be written.",
}
_LABELLED = {  # counters
    "requests": ("Answers given, by route and status.", ("route", "status")),
    "reloads": ("Reloads, by outcome.", ("outcome",)),
}
_HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "request_seconds": ("From the headers of a request to its answer.", ("route",)),
    "answer_seconds": ("From the beginning of an answer until it was written.", ()),
}
_GAUGES: dict[str, tuple[str, Any]] = {  # with what becomes of those of all workers
    "in_flight": ("Requests that are being answered.", "livesum"),
    "waiting": ("Calls that wait for a computing thread, or run in it.", "livesum"),
    "impressions_waiting": ("Impressions that are yet to be written.", "livesum"),
    "last_reload_timestamp_seconds": (
        "Time of the last reload, or the start.",
        "livemax",
    ),
    "last_reload_success": ("1 if it was loaded, 0 if it was refused.", "livemin"),
}
_MEASURED = {
    "items": "Items of the catalogue.",
    "live_items": "Items that were added, changed or removed live.",
    "state_bytes": "Size of the files of the state.",
    "state_free_bytes": "Bytes that are free on the disk of the state.",
}
_FIGURES = {  # help text and labels; `value` is empty for all
    "use": (
        "Figures of use, of all lists and by arm, version and segment.",
        ("figure", "group", "value"),
    ),
    "drift_index": ("How far something has moved since training.", ("name",)),
    "drift_status": ("0 ok, 1 watch, 2 red.", ("name",)),
    "figures_timestamp_seconds": (
        "When figures of use and drift were written.",
        ("file",),
    ),
}


class Metrics:
    """Counts and times of one service; the values of labels are few and never a caller's."""

    def __init__(
        self,
        measure: Callable[[], Mapping[str, Any]],
        beside: Path,
        faults: Collection[str],
    ) -> None:
        """Set up the metrics.

        Args:
            measure: returns the figures that are the same for all workers.
            beside: folder with the files of figures that other commands measured.
            faults: names of the faults that the service may have.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter
        shared = os.environ.get(_SHARED)
        self._faults = faults
        self._n_lost = 0
        self.registry = CollectorRegistry()
        options: Any = {
            "namespace": "bascule",
            "registry": None if shared else self.registry,
        }
        self.counters = {
            name: Counter(name, text, **options) for name, text in _COUNTERS.items()
        }
        for name, (text, labels) in _LABELLED.items():
            self.counters[name] = Counter(name, text, labels, **options)
        self._histograms = {
            name: Histogram(name, text, labels, buckets=_SECONDS, **options)
            for name, (text, labels) in _HISTOGRAMS.items()
        }
        self.gauges = {
            name: Gauge(name, text, multiprocess_mode=mode, **options)
            for name, (text, mode) in _GAUGES.items()
        }
        self.gauges["last_reload_success"].set(1)  # of a worker that is about to start
        self._degraded = Gauge(
            "degraded",
            "1 for each fault that /ready names now.",
            ("fault",),
            multiprocess_mode="livemax",
            **options,
        )

        self.registry.register(_ServiceCollector(measure, beside))
        if shared:
            MultiProcessCollector(self.registry, shared)  # type: ignore[no-untyped-call]
            self.registry.register(_WorkersCollector(Path(shared)))
        else:
            ProcessCollector(registry=self.registry)

    def refresh(
        self, gauges: Mapping[str, float], n_lost: int, faults: Collection[str]
    ) -> None:
        """Take over the service's own counts; each worker does so every second.

        Args:
            gauges: name -> value.
            n_lost: impressions that could not be written, since the start.
            faults: names of the present faults.
        """
        for name, value in gauges.items():
            self.gauges[name].set(value)
        self.counters["impressions_lost"].inc(n_lost - self._n_lost)
        self._n_lost = n_lost
        for fault in self._faults:
            self._degraded.labels(fault).set(fault in faults)

    def write(self) -> bytes:
        """Write everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def count(self, path: str, status: int, seconds: float) -> str:
        """Count one answer of HTTP; return the label of its route."""
        default = "items" if path.startswith("/v1/items/") else "other"
        route = _ROUTE_LABELS.get(path, default)
        self.counters["requests"].labels(route, str(status)).inc()
        self._histograms["request_seconds"].labels(route).observe(seconds)
        return route

    def count_lists(
        self, answers: Sequence[Mapping[str, Any]], k: int, seconds: float
    ) -> None:
        """Count the lists of one answer, which took some seconds."""
        self._histograms["answer_seconds"].observe(seconds)
        counters = self.counters
        counters["recommendations"].inc(len(answers))
        for answer in answers:
            counters["short_lists"].inc(len(answer["items"]) < k)
            counters["unknown_users"].inc(answer.get("user_known") is False)
            counters["unknown_history_items"].inc(answer["unknown_items"])
            counters["unknown_values"].inc(len(answer.get("unknown_values", ())))


class _ServiceCollector(Collector):
    """Read at each scrape what is the same for all workers."""

    def __init__(self, measure: Callable[[], Mapping[str, Any]], beside: Path) -> None:
        self._measure = measure
        self._beside = beside

    def collect(self) -> Iterator[Metric]:
        measured = self._measure()
        for name, text in _MEASURED.items():
            yield GaugeMetricFamily(f"bascule_{name}", text, measured[name])
        version = {"version": measured["version"]}
        yield InfoMetricFamily("bascule_bundle", "The bundle that answers.", version)

        figures = read_figures(self._beside)
        for name, (text, labels) in _FIGURES.items():
            family = GaugeMetricFamily(f"bascule_{name}", text, labels=labels)
            for values, number in figures[name].items():
                family.add_metric(values, number)
            yield family


class _WorkersCollector(Collector):
    """Read the standard metrics of the process of each worker that lives, by its `pid`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        for path in self._folder.glob("gauge_livesum_*.db"):
            pid = path.stem.rpartition("_")[2]
            for metric in ProcessCollector(pid=pid.__str__, registry=None).collect():
                total = metrics.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                for sample in metric.samples:
                    total.samples.append(sample._replace(labels={"pid": pid}))
        return metrics.values()
