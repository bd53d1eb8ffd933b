"""The baselines of each protocol: their one parameter is chosen on validation, then they are fitted on all events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from evaluation import baselines
from evaluation.baselines import NEAR_NOTHING, Events, Fit, Strength, as_binary, as_counts, as_logs, fit_used
from evaluation.ranking import ScoreRows
from serve.errors import SchemaError, name_nearest
from serve.schema import Repeats

Criterion = Callable[[ScoreRows], float]
"""Quality of a scorer on validation; more is better."""
Log = Callable[[str], None]
"""Prints what an evaluation is doing."""

MEMORY_SHARE = 0.5
TOO_LARGE = "needs more than half of the free memory"
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Baseline:
    """A baseline before it is fitted: the candidates for its parameter, and the peak memory of a fit."""

    name: str
    fit: Fit
    parameter: str | None = None
    values: tuple[float, ...] = (0.0,)
    needs_time: bool = False
    estimate_bytes: Callable[[Events], int] = lambda events: 0


@dataclass(frozen=True)
class Fitted:
    """A baseline after tuning."""

    name: str
    record: dict[str, Any]
    """Its parameter, the criterion of each value tried and the seconds of the fit; or why it was skipped."""
    score: ScoreRows | None
    """None if it was skipped."""


def choose_baselines(repeats: Repeats, names: Sequence[str] | None) -> list[Baseline]:
    """Return the named baselines of a protocol, the cheapest first; None names all.

    Where repeats are allowed counts carry the signal; where they are not, a pair counts once.

    Raises:
        SchemaError: the protocol has no baseline of a name.
    """
    declared = _declare_repeating() if repeats == "allow" else _declare_excluding()
    allowed = [baseline.name for baseline in declared]
    for name in names or []:
        if name not in allowed:
            raise SchemaError(f"'{name}' is no baseline where repeats is {repeats}; {name_nearest(name, allowed)}")
    return [baseline for baseline in declared if names is None or baseline.name in names]


def _declare_repeating() -> list[Baseline]:
    return [
        *_declare_popularity(as_counts),
        Baseline("personal", lambda events, _: iter([baselines.fit_personal(events)])),
        Baseline("personal-decayed", baselines.fit_decayed_personal, "days", (15, 30, 60, 120, 240), needs_time=True),
        _declare_itemknn((2, 5, 20, 100, 400), as_counts),
        _declare_ease((3, 10, 30, 100, 300), as_logs),
    ]


def _declare_excluding() -> list[Baseline]:
    return [
        *_declare_popularity(as_binary),
        _declare_itemknn((20, 50, 100, 200, 400), as_binary),
        _declare_ease((10, 30, 100, 300, 1000), as_binary),
    ]


def _declare_popularity(strength: Strength) -> list[Baseline]:
    recent = partial(baselines.fit_recent_popularity, strength=strength)
    return [
        Baseline("popularity", lambda events, _: iter([baselines.fit_popularity(events, strength)])),
        Baseline("popularity-recent", recent, "days", (7, 14, 28, 56, 112), needs_time=True),
    ]


def _declare_itemknn(neighbours: tuple[float, ...], strength: Strength) -> Baseline:
    def estimate_bytes(events: Events) -> int:
        """Count the neighbours as pairs and as a matrix."""
        n_items = len(baselines.renumber_used(events)[0])
        return int(n_items * min(max(neighbours), n_items) * (8 + 4) * 3)

    fit = partial(fit_used, partial(baselines.fit_itemknn, strength=strength), NEAR_NOTHING)
    return Baseline("itemknn", fit, "neighbours", neighbours, estimate_bytes=estimate_bytes)


def _declare_ease(regularisations: tuple[float, ...], strength: Strength) -> Baseline:
    def estimate_bytes(events: Events) -> int:
        """Count about five matrices, in float64 of users or float32 of items."""
        n_items = len(baselines.renumber_used(events)[0])
        return 5 * 8 * events.n_users**2 if events.n_users < n_items else 5 * 4 * n_items**2

    fit = partial(fit_used, partial(baselines.fit_ease, strength=strength), 0.0)
    return Baseline("ease", fit, "lambda", regularisations, estimate_bytes=estimate_bytes)


def fit_baselines(
    chosen: Sequence[Baseline], train: Events, later: Events, criterion: Criterion | None, log: Log
) -> Iterator[Fitted]:
    """Tune each baseline on `train` and fit it with the `later` events, one after the other: none stays in memory.

    Without a criterion the middle value is taken.
    """
    whole = train.join(later)
    for baseline in chosen:
        n_fits = 1 if criterion is None or baseline.parameter is None else len(baseline.values) + 1
        log(f"{baseline.name}: {train.n_items:,} items, {train.n_users:,} users, fits: {n_fits}")
        start = time.perf_counter()
        fitted = _fit(baseline, train, whole, criterion)
        yield fitted
        parameter = [f"{name} {value:g}" for name, value in fitted.record.get("parameter", {}).items()]
        outcome = fitted.record.get("skipped") or " ".join(parameter) or "no parameter"
        log(f"{baseline.name}: {outcome}, {time.perf_counter() - start:.1f} s")


def _fit(baseline: Baseline, train: Events, whole: Events, criterion: Criterion | None) -> Fitted:
    obstacle = _find_obstacle(baseline, whole)
    if obstacle is not None:
        return Fitted(baseline.name, {"skipped": obstacle}, None)
    start = time.perf_counter()
    validation: dict[float, float] = {}
    best = baseline.values[len(baseline.values) // 2]
    if baseline.parameter is not None and criterion is not None:
        scorers = baseline.fit(train, baseline.values)
        validation = {value: criterion(score) for value, score in zip(baseline.values, scorers, strict=True)}
        best = max(validation, key=lambda value: validation[value])
    (score,) = baseline.fit(whole, [best])
    record = {
        "parameter": {} if baseline.parameter is None else {baseline.parameter: best},
        "validation": {f"{value:g}": quality for value, quality in validation.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Fitted(baseline.name, record, score)


def _find_obstacle(baseline: Baseline, events: Events) -> str | None:
    if baseline.needs_time and events.time is None:
        return "the interactions have no times"
    return TOO_LARGE if baseline.estimate_bytes(events) > MEMORY_SHARE * read_free_bytes() else None


def read_free_bytes() -> int:
    """Return the memory this process can still get: what the machine has free, within a container's limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of macOS, which has no estimate
    if _MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return min(free, max(int(limit) - int(used), 0)) if limit.isdecimal() else free
