"""The figures of `metrics.json` laid out for reading: per view a row per model, with what differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.evaluate import MODEL, WITHOUT_CONTEXT
from evaluation.examination import headline_metric
from evaluation.intervals import FEWEST_TO_TELL
from evaluation.report.wording import VIEWS, name_model

OTHER_METRICS = ("HR@10", "Recall@20", "MRR@10")
VERDICTS = {1: "better", 0: "no clear difference", -1: "worse"}

Content = Mapping[str, Any]
"""What `metrics.json` holds."""


@dataclass(frozen=True)
class Figure:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float
    users: int

    @property
    def sign(self) -> int:
        """Of a difference: 1 or -1 where the interval is on one side of 0 and is of enough users, else 0."""
        return 0 if self.users < FEWEST_TO_TELL else int(self.low > 0) - int(self.high < 0)


@dataclass(frozen=True)
class ModelRow:
    """One model in one view."""

    name: str
    label: str
    is_ours: bool
    headline: Figure
    others: dict[str, Figure]
    difference: Figure | None
    """Ours minus this one, user by user; None for ours."""

    @property
    def verdict(self) -> str:
        """Say how ours does against this one."""
        return "" if self.difference is None else VERDICTS[self.difference.sign]


@dataclass(frozen=True)
class ViewResult:
    """All models in one view, the best first."""

    name: str
    title: str
    meaning: str
    metric: str
    users: int
    targets: int
    outside_catalogue: int
    unreachable: int
    rows: tuple[ModelRow, ...]
    """Empty where no user has a target in this view."""

    @property
    def ours(self) -> ModelRow:
        return next(row for row in self.rows if row.is_ours)

    @property
    def rival(self) -> ModelRow | None:
        """The best baseline, None if all were skipped."""
        return next((row for row in self.rows if not row.is_ours), None)


def read_figure(figures: Mapping[str, Any], metric: str) -> Figure:
    """Read a metric and its interval from the summary of a model in a view."""
    low, high = figures[f"{metric}_ci95"]
    return Figure(figures[metric], low, high, figures["users"])


def read_views(content: Content) -> list[ViewResult]:
    """Lay out the test of all models, view by view; nothing where nothing was held out."""
    if "test" not in content:
        return []
    metric = headline_metric(content["protocol"]["repeats"])
    return [_read_view(content, view, metric) for view in content["test"][MODEL]]


@dataclass(frozen=True)
class Contextual:
    """What the context of the same requests adds in one view."""

    title: str
    without: Figure
    informed: Figure
    gain: Figure

    @property
    def verdict(self) -> str:
        return VERDICTS[self.gain.sign]


def read_contextual(content: Content) -> list[Contextual]:
    """Lay out the requests that were answered with context and without, view by view."""
    asked, paired = content.get("with_context", {}), content.get("paired_with_context", {})
    if WITHOUT_CONTEXT not in asked:
        return []
    results = []
    for view in read_views(content):
        parts = [part[view.name] for part in (asked[WITHOUT_CONTEXT], asked[MODEL], paired[WITHOUT_CONTEXT])]
        if all(view.metric in part for part in parts):
            results.append(Contextual(view.title, *(read_figure(part, view.metric) for part in parts)))
    return results


def read_all_metrics(content: Content, view: str) -> dict[str, Figure]:
    """Return every metric of ours in a view."""
    figures = content["test"][MODEL][view]
    return {name: read_figure(figures, name) for name in figures if f"{name}_ci95" in figures}


def find_skipped(content: Content) -> dict[str, str]:
    """Return why baselines were skipped, by the name that people read."""
    records = content.get("baselines", {})
    return {name_model(name): record["skipped"] for name, record in records.items() if "skipped" in record}


def _read_view(content: Content, view: str, metric: str) -> ViewResult:
    ours = content["test"][MODEL][view]
    measured = {name: views[view] for name, views in content["test"].items() if metric in views.get(view, {})}
    rows = [_read_row(name, figures, content["paired"], view, metric) for name, figures in measured.items()]
    return ViewResult(
        name=view,
        title=VIEWS[view],
        meaning=content["protocol"]["views"][view],
        metric=metric,
        users=ours["users"],
        targets=ours["targets"],
        outside_catalogue=ours["targets_outside_catalogue"],
        unreachable=ours["unreachable_targets"],
        rows=tuple(sorted(rows, key=lambda row: -row.headline.value)),
    )


def _read_row(name: str, figures: Mapping[str, Any], paired: Mapping[str, Any], view: str, metric: str) -> ModelRow:
    difference = paired.get(name, {}).get(view, {})
    return ModelRow(
        name=name,
        label=name_model(name),
        is_ours=name == MODEL,
        headline=read_figure(figures, metric),
        others={other: read_figure(figures, other) for other in OTHER_METRICS},
        difference=read_figure(difference, metric) if metric in difference else None,
    )
