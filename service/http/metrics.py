"""Counts and times of a service for Prometheus, of all its workers together, and what other commands measured of it."""

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

_ROUTE_LABELS = {  # in the metrics; a path that is not here counts as other
    **{
        f"/v1/{name}": name
        for name in (
            "recommend",
            "similar",
            "due",
            "events",
            "reload",
            "status",
            "items",
            "page",
        )
    },
    **{f"/{name}": name for name in ("health", "ready", "metrics")},
    "/v1/users/forget": "forget",
    "/openapi.json": "openapi",
    **dict.fromkeys(("/", "/docs", "/page.css", "/page.js"), "page"),
}
_SECONDS = (
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.02,
    0.05,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
    30.0,
    60.0,
)
_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # names the folder in which the workers of one service count together
_MEASURED = {
    "items": "Items of the catalogue.",
    "live_items": "Items that were added, changed or removed live.",
    "state_bytes": "Size of the files of the state.",
    "state_free_bytes": "Bytes that are free on the disk of the state.",
}
GAUGES = {  # what they are, and their labels; `value` is empty for all
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
        """Count for a service that can be measured, with files of figures beside its state; it may have faults."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a gauge beside each counter
        shared = os.environ.get(_SHARED)
        self._faults = faults
        self._n_lost = 0
        self.registry = CollectorRegistry()
        ours: Any = {
            "namespace": "bascule",
            "registry": None if shared else self.registry,
        }
        times = ours | {"buckets": _SECONDS}
        queue = ours | {"multiprocess_mode": "livesum"}
        self.requests = Counter(
            "requests",
            "Answers given, by route and status.",
            ("route", "status"),
            **ours,
        )
        self.seconds = Histogram(
            "request_seconds",
            "From the headers of a request to its answer.",
            ("route",),
            **times,
        )
        self.compute = Histogram(
            "answer_seconds",
            "From the beginning of an answer until it was written.",
            **times,
        )
        self.in_flight = Gauge(
            "in_flight", "Requests that are being answered.", **queue
        )
        self.waiting = Gauge("waiting", "Calls of the thread that answers.", **queue)
        self.impressions_waiting = Gauge(
            "impressions_waiting", "Impressions that are yet to be written.", **queue
        )
        self.shed = Counter("shed", "Requests told to come back.", **ours)
        self.dropped = Counter(
            "dropped_connections", "Slow connections ended to make room.", **ours
        )
        self.asked = Counter("recommendations", "Lists asked for.", **ours)
        self.short = Counter(
            "short_lists", "Lists with fewer items than asked for.", **ours
        )
        self.unknown_items = Counter(
            "unknown_history_items", "Items of histories that no bundle knows.", **ours
        )
        self.unknown_values = Counter(
            "unknown_values",
            "Features and context with values new to the bundle.",
            **ours,
        )
        self.unknown_users = Counter(
            "unknown_users", "Lists for a user about whom there is nothing.", **ours
        )
        self.reloads = Counter("reloads", "Reloads, by outcome.", ("outcome",), **ours)
        self.events = Counter("events", "Events taken in.", **ours)
        self.impressions_lost = Counter(
            "impressions_lost", "Impressions that could not be written.", **ours
        )
        highest, lowest = (
            ours | {"multiprocess_mode": mode} for mode in ("livemax", "livemin")
        )
        self.degraded = Gauge(
            "degraded", "1 for each fault that /ready names now.", ("fault",), **highest
        )
        self.reloaded_at = Gauge(
            "last_reload_timestamp_seconds",
            "Time of the last reload, or the start.",
            **highest,
        )
        self.is_loaded = Gauge(
            "last_reload_success", "1 if it was loaded, 0 if it was refused.", **lowest
        )
        self.is_loaded.set(1)  # of a worker that is about to start, too
        self.registry.register(_ServiceCollector(measure, beside))
        if shared:
            MultiProcessCollector(self.registry, shared)  # type: ignore[no-untyped-call]
            self.registry.register(_WorkersCollector(Path(shared)))
        else:
            ProcessCollector(registry=self.registry)

    def refresh(
        self,
        waiting: int,
        shown: int,
        lost: int,
        reload: Mapping[str, Any],
        faults: Collection[str],
    ) -> None:
        """Take over what the service counts itself; each worker does so every second, for whoever is asked."""
        self.waiting.set(waiting)
        self.impressions_waiting.set(shown)
        self.impressions_lost.inc(lost - self._n_lost)
        self._n_lost = lost
        self.reloaded_at.set(reload["time"])
        self.is_loaded.set(reload["is_loaded"])
        for fault in self._faults:
            self.degraded.labels(fault).set(fault in faults)

    def write(self) -> bytes:
        """Write everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def count(self, path: str, status: int, seconds: float) -> str:
        """Count one answer of HTTP; return the name of its route."""
        route = _ROUTE_LABELS.get(path) or (
            "items" if path.startswith("/v1/items/") else "other"
        )
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        return route

    def count_lists(
        self, answers: Sequence[Mapping[str, Any]], k: int, seconds: float
    ) -> None:
        """Count the lists of one answer."""
        self.compute.observe(seconds)
        self.asked.inc(len(answers))
        self.short.inc(sum(len(one["items"]) < k for one in answers))
        self.unknown_users.inc(sum(one.get("user_known") is False for one in answers))
        self.unknown_items.inc(sum(one["unknown_items"] for one in answers))
        self.unknown_values.inc(
            sum(len(one.get("unknown_values", ())) for one in answers)
        )


class _ServiceCollector(Collector):
    """Read at each scrape what is the same for all workers."""

    def __init__(self, measure: Callable[[], Mapping[str, Any]], beside: Path) -> None:
        self._measure = measure
        self._beside = beside

    def collect(self) -> Iterator[Metric]:
        measured = self._measure()
        yield from (
            GaugeMetricFamily(f"bascule_{name}", about, measured[name])
            for name, about in _MEASURED.items()
        )
        yield InfoMetricFamily(
            "bascule_bundle",
            "The bundle that answers.",
            {"version": measured["version"]},
        )
        for name, samples in read_figures(self._beside).items():
            about, labels = GAUGES[name]
            family = GaugeMetricFamily(f"bascule_{name}", about, labels=labels)
            for values, number in samples.items():
                family.add_metric(values, number)
            yield family


class _WorkersCollector(Collector):
    """Read the standard metrics of the process of each worker that lives, by its `pid`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        found: dict[str, Metric] = {}
        for path in self._folder.glob("gauge_livesum_*.db"):
            pid = path.stem.rpartition("_")[2]
            for metric in ProcessCollector(pid=pid.__str__, registry=None).collect():
                samples = [
                    sample._replace(labels={"pid": pid}) for sample in metric.samples
                ]
                metric.samples = [
                    *(found[metric.name].samples if metric.name in found else ()),
                    *samples,
                ]
                found[metric.name] = metric
        return found.values()
