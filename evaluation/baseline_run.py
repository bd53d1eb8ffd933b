"""The baselines in the same examination, tuned on validation and fitted on all that came before the test."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evaluation.baselines import Baseline
from evaluation.events import Events, join_events
from evaluation.examination import Examination, Examined, TuningCriterion
from evaluation.holdout import Ids, group_requests
from evaluation.progress import Progress
from evaluation.tuning import Criterion, FittedBaseline, ScoreUsers, SkippedBaseline, fit_baselines
from evaluation.validation import sample_users
from serve.schema import Repeats


@dataclass(frozen=True)
class BaselineRun:
    """What became of one baseline."""

    name: str
    record: dict[str, Any]
    """Its parameter, the validation of each value tried and the seconds of the fit; or why it was skipped."""
    examined: Examined | None
    """None if it was skipped."""


@dataclass(frozen=True)
class Knowledge:
    """What baselines learn from."""

    train: Events
    later: Events
    """Those between training and test: of the validation, and what else happened in its time."""
    criterion: Criterion | None
    """None without validation events."""

    @property
    def past(self) -> Events:
        """All events before the test."""
        return join_events(self.train, self.later)

    @classmethod
    def prepare(
        cls,
        ids: Ids,
        train: pd.DataFrame,
        validation: pd.DataFrame,
        later: pd.DataFrame,
        repeats: Repeats,
        seed: int,
    ) -> Knowledge:
        """Number the interactions and make requests of the validation as the holdout's are made."""
        events = ids.events(train)
        criterion = None
        if len(validation):
            held_out = group_requests(sample_users(validation, seed), ids)
            criterion = TuningCriterion.prepare(held_out.targets, events, repeats)
        return cls(events, ids.events(later), criterion)


def run_baselines(
    examination: Examination, knowledge: Knowledge, baselines: Sequence[Baseline], progress: Progress
) -> Iterator[BaselineRun]:
    """Fit and examine one baseline after the other; none stays in memory."""
    criterion = None if knowledge.criterion is None else _Stepwise(knowledge.criterion, progress)
    n_fits = [_count_values(baseline, criterion) + 1 for baseline in baselines]
    progress.expect(sum(n_fits))
    for baseline, n_steps in zip(baselines, n_fits, strict=True):
        start = time.perf_counter()
        progress.say(f"{baseline.name}: {_announce(baseline, knowledge.train, n_steps - 1)}")
        (fitted,) = fit_baselines([baseline], knowledge.train, knowledge.later, criterion)
        run = _run(examination, fitted)
        progress.advance(n_steps if run.examined is None else 1)
        progress.say(f"{baseline.name}: {_say(run.record)}, {time.perf_counter() - start:.1f} s")
        yield run


@dataclass(frozen=True)
class _Stepwise:
    """A criterion that counts what it was asked."""

    criterion: Criterion
    progress: Progress

    def __call__(self, score: ScoreUsers) -> float:
        value = self.criterion(score)
        self.progress.advance(1)
        return value


def _count_values(baseline: Baseline, criterion: Criterion | None) -> int:
    """Return how many values of its parameter are tried."""
    return 0 if baseline.parameter is None or criterion is None else len(baseline.values)


def _announce(baseline: Baseline, events: Events, n_values: int) -> str:
    """Say what is going to be computed."""
    size = f"{events.n_items:,} items, {events.n_users:,} users"
    if not n_values:
        return f"{size}, one fit"
    ends = f"{baseline.values[0]:g} to {baseline.values[-1]:g}"
    return f"{size}, {n_values} fits to choose {baseline.parameter} from {ends}, then one on all events"


def _run(examination: Examination, fitted: FittedBaseline | SkippedBaseline) -> BaselineRun:
    if isinstance(fitted, SkippedBaseline):
        return BaselineRun(fitted.name, {"skipped": fitted.reason}, None)
    record = {
        "parameter": fitted.parameter,
        "validation": {f"{value:g}": score for value, score in fitted.validation.items()},
        "seconds": round(fitted.seconds, 3),
    }
    return BaselineRun(fitted.name, record, examination.examine(examination.rank(fitted.score)))


def _say(record: dict[str, Any]) -> str:
    if "skipped" in record:
        return f"skipped, {record['skipped']}"
    return ", ".join(f"{name} {value:g}" for name, value in record["parameter"].items()) or "no parameter"
