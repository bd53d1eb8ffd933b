"""Each baseline's one parameter is chosen on validation; the best is fitted again on all training events."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evaluation.baselines import Baseline, Scorer
from evaluation.events import Events, join_events
from evaluation.ranking import Scores
from evaluation.targets import Ints

ScoreUsers = Callable[[Ints], Scores]
"""User rows (b,) -> scores of the whole catalogue, float32 (b, N)."""

Criterion = Callable[[ScoreUsers], float]
"""How good a scorer is on validation; more is better."""

MEMORY_SHARE = 0.5
TOO_LARGE = "needs more than half of the free memory"

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline ready to be tested."""

    name: str
    score: ScoreUsers
    parameter: dict[str, float]
    """What was chosen, e.g. {"days": 28}; empty without a parameter."""
    validation: dict[float, float]
    """Every value tried -> the criterion; empty without a parameter."""
    seconds: float


@dataclass(frozen=True)
class SkippedBaseline:
    """A baseline that was not fitted."""

    name: str
    reason: str


def fit_baselines(
    baselines: Iterable[Baseline], train: Events, later: Events, criterion: Criterion | None
) -> Iterator[FittedBaseline | SkippedBaseline]:
    """Tune and fit each baseline, or say why not; one after the other, so that one can be used and let go.

    Args:
        baselines: from `declare_baselines`.
        train: what the parameter is tried on.
        later: joined to `train` for the final fit.
        criterion: asked once per value, of a model fitted on `train`; None, for want of validation events,
            takes the middle value.
    """
    whole = join_events(train, later)
    for baseline in baselines:
        reason = _find_obstacle(baseline, whole)
        if reason is None:
            yield _tune(baseline, train, whole, criterion)
        else:
            yield SkippedBaseline(baseline.name, reason)


def read_free_bytes() -> int:
    """Return the memory this process can still get: what the machine has free, within a container's limit."""
    return int(min(_free_of_machine(), _left_of_limit()))


def _free_of_machine() -> int:
    """Return the kernel's own estimate where it gives one, else the free pages, or all of them (macOS)."""
    if _MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemAvailable" in fields:
            return int(fields["MemAvailable"].split()[0]) * 1024
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _left_of_limit() -> float:
    """Return what the limit of the control group leaves, infinite without one."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return math.inf
    return max(int(limit) - int(used), 0) if limit.isdecimal() and used.isdecimal() else math.inf


def _find_obstacle(baseline: Baseline, events: Events) -> str | None:
    if baseline.needs_time and events.time is None:
        return "the interactions have no times"
    return TOO_LARGE if baseline.estimate_bytes(events) > MEMORY_SHARE * read_free_bytes() else None


def _tune(baseline: Baseline, train: Events, whole: Events, criterion: Criterion | None) -> FittedBaseline:
    start = time.perf_counter()
    validation: dict[float, float] = {}
    best = baseline.values[len(baseline.values) // 2]
    if baseline.parameter is not None and criterion is not None:
        validation = _try_values(baseline, train, criterion)
        best = max(validation, key=lambda value: validation[value])
    (scorer,) = baseline.fit(whole, [best])
    parameter = {} if baseline.parameter is None else {baseline.parameter: best}
    return FittedBaseline(baseline.name, scorer.score, parameter, validation, time.perf_counter() - start)


def _try_values(baseline: Baseline, train: Events, criterion: Criterion) -> dict[float, float]:
    scorers: Iterator[Scorer] = baseline.fit(train, baseline.values)
    return {value: criterion(scorer.score) for value, scorer in zip(baseline.values, scorers, strict=True)}
