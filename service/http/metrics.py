"""Counts and times of a service for Prometheus, of all its workers together."""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    values,
)
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.values import MultiProcessValue

from service.figures import read_figures
from service.http.workers import PARENT, PLACE, SHARED

_KEPT_SECONDS = 0.5  # for which everybody gets the same text
_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("metrics.toml").read_text()
)


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

        shared = os.environ.get(SHARED)
        self._faults = faults
        self._n_lost = 0
        self._lock = Lock()
        self._write_at = 0.0
        self.registry = CollectorRegistry()
        self.registry.register(_ServiceCollector(measure, beside))
        if shared:
            # by place, not by pid: who ended leaves counts, but no file of their own
            values.ValueClass = MultiProcessValue(lambda: PLACE)  # type: ignore[no-untyped-call]
            MultiProcessCollector(self.registry, shared)  # type: ignore[no-untyped-call]
            self.registry.register(_WorkersCollector())
        else:
            ProcessCollector(registry=self.registry)

        options: Any = {
            "namespace": "bascule",
            "registry": None if shared else self.registry,
        }

        self.counters = {
            name: Counter(name, **options, **arguments)
            for name, arguments in _TABLE["counters"].items()
        }
        self._histograms = {
            name: Histogram(name, **options, **arguments)
            for name, arguments in _TABLE["histograms"].items()
        }
        self.gauges = {
            name: Gauge(name, **options, **arguments)
            for name, arguments in _TABLE["gauges"].items()
        }
        self.gauges["last_reload_success"].set(1)  # of a worker that is about to start

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
            self.gauges["degraded"].labels(fault).set(fault in faults)

    def write(self) -> bytes:
        """Write everything in the text format of Prometheus, twice a second at most."""
        with self._lock:
            if time.monotonic() >= self._write_at:
                self._text = generate_latest(self.registry)
                self._write_at = time.monotonic() + _KEPT_SECONDS
            return self._text

    def count(self, path: str, status: int, seconds: float) -> str:
        """Count one answer of HTTP; return the label of its route."""
        default = "items" if path.startswith("/v1/items/") else "other"
        route: str = _TABLE["routes"].get(path, default)
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
        for name, text in _TABLE["measured"].items():
            yield GaugeMetricFamily(f"bascule_{name}", text, measured[name])
        yield InfoMetricFamily(
            "bascule_bundle",
            "The bundle that answers.",
            {"version": measured["version"]},
        )

        figures = read_figures(self._beside)
        for name, arguments in _TABLE["figures"].items():
            family = GaugeMetricFamily(f"bascule_{name}", **arguments)
            for labels, number in figures[name].items():
                family.add_metric(labels, number)
            yield family


class _WorkersCollector(Collector):
    """Read the standard metrics of the process of each worker that lives, by its `pid`."""

    def collect(self) -> Iterable[Metric]:
        metrics: dict[str, Metric] = {}
        workers = Path(f"/proc/{PARENT}/task/{PARENT}/children")
        for pid in workers.read_text().split() if workers.exists() else []:
            for metric in ProcessCollector(pid=pid.__str__, registry=None).collect():
                samples = metric.samples
                metric.samples = []
                total = metrics.setdefault(metric.name, metric)
                for sample in samples:
                    total.samples.append(sample._replace(labels={"pid": pid}))

        return metrics.values()
