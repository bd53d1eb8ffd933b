"""Slices laid out for reading: groups in a sensible order, those of a few people hidden, and the largest gaps."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.examination import headline_metric
from evaluation.report.figures import Content, Figure, read_figure
from evaluation.report.wording import SLICES
from evaluation.slices import MISSING, OTHER

FEWEST_USERS = 20
"""Groups of fewer users are not shown: a figure of a few people is noise, and may say who they are."""
_LAST = {OTHER: 1, MISSING: 2}
_BELOW = ("under", "below", "less", "up to", "<")
"""Begins the label of a range without a lower end."""


@dataclass(frozen=True)
class Group:
    """One value of a slice."""

    label: str
    by_view: dict[str, tuple[int, Figure]]
    """View -> users and headline figure, for views where the group is large enough."""


@dataclass(frozen=True)
class Slice:
    """One way of parting users or items."""

    name: str
    title: str
    is_of_users: bool
    """By a column of the users table."""
    views: tuple[str, ...]
    groups: tuple[Group, ...]
    hidden: int
    """Groups that are too small in every view."""


@dataclass(frozen=True)
class Gap:
    """The groups of one slice that differ most in the first view."""

    title: str
    best: str
    worst: str
    best_figure: Figure
    worst_figure: Figure
    best_users: int
    worst_users: int
    unknown: tuple[int, Figure] | None
    """Users and figure of those whose value is missing."""

    @property
    def size(self) -> float:
        return self.best_figure.value - self.worst_figure.value

    @property
    def is_clear(self) -> bool:
        """Whether the two intervals are apart."""
        return self.best_figure.low > self.worst_figure.high


def read_slices(content: Content) -> list[Slice]:
    """Lay out the slices of all views; nothing where nothing was held out."""
    slices: Mapping[str, Any] = content.get("slices", {})
    if not slices:
        return []
    metric = headline_metric(content["protocol"]["repeats"])
    names = next(iter(slices.values()))
    return [_read_slice(name, slices, metric) for name in names]


def find_gaps(slices: list[Slice]) -> list[Gap]:
    """Find the largest gap of each column of the users table; `missing` and `other` are no groups of people."""
    gaps = []
    for one in slices:
        view = one.views[0]
        figures = {group.label: group.by_view[view] for group in one.groups if view in group.by_view}
        unknown = figures.pop(MISSING, None)
        figures.pop(OTHER, None)
        if one.is_of_users and len(figures) > 1:
            gaps.append(_find_gap(one.title, figures, unknown))
    return gaps


def _find_gap(title: str, figures: dict[str, tuple[int, Figure]], unknown: tuple[int, Figure] | None) -> Gap:
    ordered = sorted(figures, key=lambda label: figures[label][1].value)
    worst, best = ordered[0], ordered[-1]
    (worst_users, worst_figure), (best_users, best_figure) = figures[worst], figures[best]
    return Gap(title, best, worst, best_figure, worst_figure, best_users, worst_users, unknown)


def _read_slice(name: str, slices: Mapping[str, Any], metric: str) -> Slice:
    views = tuple(slices)
    labels = dict.fromkeys(label for view in views for label in slices[view].get(name, {}))
    groups = [_read_group(label, name, slices, metric) for label in sorted(labels, key=_order)]
    shown = tuple(group for group in groups if group.by_view)
    return Slice(name, SLICES.get(name, _name_column(name)), name not in SLICES, views, shown, len(groups) - len(shown))


def _name_column(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]


def _read_group(label: str, name: str, slices: Mapping[str, Any], metric: str) -> Group:
    by_view = {}
    for view, of_view in slices.items():
        figures = of_view.get(name, {}).get(label, {"users": 0})
        if figures["users"] >= FEWEST_USERS:
            by_view[view] = (figures["users"], read_figure(figures, metric))
    return Group(label, by_view)


def _order(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; the rest last."""
    number = re.search(r"(^-)?\d+(\.\d+)?(e[+-]\d+)?", label)
    start = float(number.group()) if number else float("inf")
    return _LAST.get(label, 0), start - label.lower().startswith(_BELOW) / 2, label
