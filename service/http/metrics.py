"""Counts and times of a service for Prometheus, of all its workers together."""

from __future__ import annotations

import asyncio
import os
import tomllib
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

        shared = os.environ.get(_SHARED)
        self._faults = faults
        self._n_lost = 0
        self._writing: asyncio.Task[bytes] | None = None
        self.registry = CollectorRegistry()
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
            self.gauges["degraded"].labels(fault).set(fault in faults)

    def write(self) -> bytes:
        """Write everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    async def share(self) -> bytes:
        """Write everything in a thread, once for all who ask meanwhile."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(asyncio.to_thread(self.write))
        return await asyncio.shield(self._writing)

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
