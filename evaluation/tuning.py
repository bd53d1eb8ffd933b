"""The baselines of each protocol: their one parameter is chosen on validation, then they are fitted on all events."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import baselines
from evaluation.baselines import NEAR_NOTHING, Events, Fit, as_binary, as_counts, as_logs, fit_used
from evaluation.ranking import ScoreRows
from serve.errors import SchemaError, name_nearest
from serve.schema import Repeats

Criterion = Callable[[ScoreRows], float]
"""Quality of a scorer on validation; more is better."""
Fitted = tuple[str, dict[str, Any], ScoreRows | None]
"""Name of a baseline, its entry in `metrics.json`, and its scorer, None if it was skipped."""
Log = Callable[[str], None]
"""Prints what an evaluation is doing."""

MEMORY_SHARE = 0.5
TOO_LARGE = "needs more than half of the free memory"
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Baseline:
    """A baseline before it is fitted, the candidates for its parameter, and the memory of a cell of its matrix."""

    name: str
    fit: Fit
    parameter: str | None = None
    values: tuple[float, ...] = (0.0,)
    needs_time: bool = False
    bytes_per_cell: int = 0


def choose_baselines(repeats: Repeats, names: Sequence[str] | None) -> list[Baseline]:
    """Return the named baselines of a protocol, the cheapest first; None names all."""
    declared = declare_baselines(repeats == "allow")
    allowed = [baseline.name for baseline in declared]
    for name in names or []:
        if name not in allowed:
            raise SchemaError(f"'{name}' is no baseline where repeats is {repeats}; {name_nearest(name, allowed)}")
    return [baseline for baseline in declared if names is None or baseline.name in names]


def declare_baselines(is_repeating: bool) -> list[Baseline]:
    """Declare all baselines: counts carry the signal where repeats are allowed, elsewhere a pair counts once."""
    counted, logged = (as_counts, as_logs) if is_repeating else (as_binary, as_binary)
    neighbours = (2, 5, 20, 100, 400) if is_repeating else (20, 50, 100, 200, 400)
    regularisations = (3, 10, 30, 100, 300) if is_repeating else (10, 30, 100, 300, 1000)
    recent = partial(baselines.fit_recent_popularity, strength=counted)
    itemknn = partial(fit_used, partial(baselines.fit_itemknn, strength=counted), NEAR_NOTHING)
    ease = partial(fit_used, partial(baselines.fit_ease, strength=logged), 0.0)
    personal = [
        Baseline("personal", lambda events, _: iter([baselines.fit_personal(events)])),
        Baseline("personal-decayed", baselines.fit_decayed_personal, "days", (15, 30, 60, 120, 240), needs_time=True),
    ]
    return [
        Baseline("popularity", lambda events, _: iter([baselines.fit_popularity(events, counted)])),
        Baseline("popularity-recent", recent, "days", (7, 14, 28, 56, 112), needs_time=True),
        *(personal if is_repeating else []),
        Baseline("itemknn", itemknn, "neighbours", neighbours, bytes_per_cell=36),  # 400 neighbours, thrice
        Baseline("ease", ease, "lambda", regularisations, bytes_per_cell=20),  # five matrices
    ]


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
        record, score = _fit(baseline, train, whole, criterion)
        yield baseline.name, record, score
        parameter = [f"{name} {value:g}" for name, value in record.get("parameter", {}).items()]
        outcome = record.get("skipped") or " ".join(parameter) or "no parameter"
        log(f"{baseline.name}: {outcome}, {time.perf_counter() - start:.1f} s")


def _fit(
    baseline: Baseline, train: Events, whole: Events, criterion: Criterion | None
) -> tuple[dict[str, Any], ScoreRows | None]:
    obstacle = _find_obstacle(baseline, whole)
    if obstacle is not None:
        return {"skipped": obstacle}, None
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
    return record, score


def _find_obstacle(baseline: Baseline, events: Events) -> str | None:
    if baseline.needs_time and events.time is None:
        return "the interactions have no times"
    n_items = int(np.count_nonzero(events.count_items()))
    n_cells = n_items * min(n_items, 400)
    if baseline.name == "ease":  # in float64 of users or float32 of items
        n_cells = min(n_items**2, 2 * events.n_users**2)
    return TOO_LARGE if baseline.bytes_per_cell * n_cells > MEMORY_SHARE * read_free_bytes() else None


def read_free_bytes() -> int:
    """Return the memory this process can still get: what the machine has free, within a container's limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # of macOS, which has no estimate
    if _MEMINFO.exists():
        free = int(_MEMINFO.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return free
    return min(free, max(int(limit) - int(used), 0)) if limit.isdecimal() else free
