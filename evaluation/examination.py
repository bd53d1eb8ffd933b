"""One examination for all models: the same requests, the same targets per view, the same figures.

Letters: B requests, N items, k places of a list, U users that have a target in a view.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.events import Events
from evaluation.intervals import Summary, summarise, summarise_difference
from evaluation.metrics import CUTOFFS, Floats, measure_users
from evaluation.targets import Ints, ItemSets, Targets
from evaluation.tuning import ScoreUsers
from evaluation.views import find_owned, rank_views, view_targets
from serve.schema import Repeats

LIST_LENGTH = max(CUTOFFS)

Lists = dict[str, Ints]
"""view -> (B, LIST_LENGTH) item rows."""


@dataclass(frozen=True)
class Examined:
    """How one model did."""

    lists: Lists
    values: dict[str, dict[str, Floats]]
    """view -> metric -> (U,), users ascending."""


@dataclass(frozen=True)
class Examination:
    """What every model is asked, and what is right."""

    user: Ints
    """(B,) user row of each request."""
    views: dict[str, Targets]
    owned: ItemSets
    """The items that each request's user already has."""
    n_items: int

    @classmethod
    def prepare(cls, targets: Targets, past: Events, repeats: Repeats) -> Examination:
        """Set the examination of users whose events so far are `past`."""
        owned = past.owned().take(targets.user)
        return cls(targets.user, view_targets(targets, owned, repeats), owned, past.n_items)

    def rank(self, score: ScoreUsers) -> Lists:
        """Rank by the scores of a model that scores the whole catalogue for a user."""
        return rank_views(
            lambda requests: score(self.user[requests]), self.owned, self.n_items, LIST_LENGTH, self.views
        )

    def examine(self, lists: Lists) -> Examined:
        """Measure the lists of a model, made for the requests in their order."""
        return Examined(lists, {view: measure_users(lists[view], targets) for view, targets in self.views.items()})

    def describe(self, examined: Examined) -> dict[str, Summary]:
        """Return view -> metrics with intervals, and what they are counted over."""
        return {
            view: summarise(examined.values[view]) | self._count_targets(view, targets)
            for view, targets in self.views.items()
        }

    def _count_targets(self, view: str, targets: Targets) -> dict[str, int]:
        """Count the targets, and those that no list, or no list without owned items, can hold."""
        unreachable = find_owned(targets, self.owned).sum() if view == "novel" else 0
        return {
            "targets": len(targets.items.item_row),
            "targets_outside_catalogue": int((targets.items.item_row < 0).sum()),
            "unreachable_targets": int(unreachable),
        }


def compare(examined: Examined, other: Examined) -> dict[str, Summary]:
    """Return view -> the first model's metrics minus the other's, with intervals."""
    return {view: summarise_difference(values, other.values[view]) for view, values in examined.values.items()}


def headline_metric(repeats: Repeats) -> str:
    """Name the metric that models are tuned and compared by."""
    return "NDCG@20" if repeats == "allow" else "NDCG@10"


@dataclass(frozen=True)
class TuningCriterion:
    """The headline metric on validation, averaged over the views `all` and `novel` where both exist."""

    examination: Examination
    metric: str

    @classmethod
    def prepare(cls, targets: Targets, past: Events, repeats: Repeats) -> TuningCriterion:
        """Set the validation of users whose events so far are `past`."""
        whole = Examination.prepare(targets, past, repeats)
        views = {view: whole.views[view] for view in whole.views if view != "repeat"}
        return cls(Examination(whole.user, views, whole.owned, whole.n_items), headline_metric(repeats))

    def __call__(self, score: ScoreUsers) -> float:
        """Return how good the scores are; a view without targets says nothing."""
        examined = self.examination.examine(self.examination.rank(score))
        means = [_mean(values, self.metric) for values in examined.values.values() if len(values[self.metric])]
        return float(np.mean(means))


def _mean(values: Mapping[str, Floats], metric: str) -> Any:
    return values[metric].mean()
