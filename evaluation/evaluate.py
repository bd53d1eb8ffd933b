"""Evaluate a bundle as it is served, beside baselines that answer the same requests.

Letters: B requests, N items, K places of a list, U users that have a target in a view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from evaluation.baselines import Events
from evaluation.holdout import (
    HeldOut,
    Ids,
    contextual_requests,
    group_requests,
    group_situations,
    has_context,
    plain_requests,
    sample_users,
    to_moment,
)
from evaluation.metrics import (
    CUTOFFS,
    RESAMPLES,
    Floats,
    Ints,
    ItemSets,
    Summary,
    Targets,
    describe_lists,
    measure_users,
    summarise,
    summarise_difference,
)
from evaluation.ranking import ScoreRows, find_owned, rank_views, view_targets
from evaluation.slices import Labels, label_column, label_targets, measure_slices
from evaluation.tuning import Criterion, Log, choose_baselines, fit_baselines
from serve.errors import SchemaError, name_nearest
from serve.recommendations import Recommendations
from serve.recommender import Recommender
from serve.requests import DERIVED
from serve.schema import Repeats, Schema

MODEL = "bascule"
WITHOUT_CONTEXT = f"{MODEL} without context"
LIST_LENGTH = max(CUTOFFS)
DEPTH = 10
"""Places of a list that coverage, novelty, popularity lift and exposure are taken from."""
VIEWS = {
    "all": "nothing is excluded; all targets",
    "repeat": "the same ranking among the items a user has; targets are those they have",
    "novel": "items a user has are excluded; targets are those they do not have",
}
NOVEL_ALONE = "items a user has are excluded; all targets, of which those they have are out of reach"

Lists = dict[str, Ints]
"""View -> (B, LIST_LENGTH) item rows."""
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Parts:
    """A data set in the parts of an evaluation."""

    test: pd.DataFrame
    """Interactions to predict."""
    train: pd.DataFrame
    """Interactions that values of the baselines' parameters are fitted on."""
    validation: pd.DataFrame
    """Interactions that the values are chosen by; the baselines are then fitted on both. May be empty."""
    users: pd.DataFrame
    """`user_id`, at most once, and the columns to slice by."""
    group_columns: Sequence[str] = ()
    """Columns of `users` to slice by."""
    at: int | None = None
    """UTC seconds that each user is asked at, once for all their held-out items; None: without a moment."""
    evidence: pd.DataFrame | None = None
    """Interactions of the time of `validation` that nothing is chosen by: known to the test, not to `validation`."""


@dataclass(frozen=True)
class Examined:
    """Lists of one model and their metrics."""

    lists: Lists
    values: dict[str, dict[str, Floats]]
    """View -> metric -> (U,), users ascending."""


@dataclass(frozen=True)
class Examination:
    """Requests, targets and owned items, the same for every model."""

    user: Ints
    """(B,) user row of each request."""
    views: dict[str, Targets]
    owned: ItemSets
    """Items that each request's user already has."""
    n_items: int

    @classmethod
    def prepare(cls, targets: Targets, past: Events, repeats: Repeats) -> Examination:
        """Set the examination of users whose events so far are `past`."""
        owned = past.owned().take(targets.user)
        return cls(targets.user, view_targets(targets, owned, repeats), owned, past.n_items)

    def rank(self, score: ScoreRows) -> Lists:
        """Rank by the scores of a model that scores the whole catalogue for user rows."""
        return rank_views(lambda rows: score(self.user[rows]), self.owned, self.n_items, LIST_LENGTH, self.views)

    def examine(self, lists: Lists) -> Examined:
        """Measure the lists of a model, made for the requests in their order."""
        return Examined(lists, {view: measure_users(lists[view], targets) for view, targets in self.views.items()})

    def describe(self, examined: Examined) -> dict[str, Summary]:
        """Return view -> metrics with intervals, and the targets they are counted over."""
        return {
            view: summarise(examined.values[view]) | self._count_targets(view, targets)
            for view, targets in self.views.items()
        }

    def _count_targets(self, view: str, targets: Targets) -> Summary:
        """Count the targets, and those that no list, or no list without owned items, can hold."""
        return {
            "targets": len(targets.items.item_row),
            "targets_outside_catalogue": int((targets.items.item_row < 0).sum()),
            "unreachable_targets": int(find_owned(targets, self.owned).sum()) if view == "novel" else 0,
        }


def headline_metric(repeats: Repeats) -> str:
    """Return the metric that models are tuned and compared by."""
    return "NDCG@20" if repeats == "allow" else "NDCG@10"


def compare(examined: Examined, other: Examined) -> dict[str, Summary]:
    """Return view -> the first model's metrics minus the other's, with intervals."""
    return {view: summarise_difference(values, other.values[view]) for view, values in examined.values.items()}


def make_criterion(targets: Targets, past: Events, repeats: Repeats) -> Criterion:
    """Return the headline metric on validation, averaged over the views `all` and `novel` that have targets."""
    whole, metric = Examination.prepare(targets, past, repeats), headline_metric(repeats)
    views = {view: targets for view, targets in whole.views.items() if view != "repeat"}
    examination = Examination(whole.user, views, whole.owned, whole.n_items)

    def criterion(score: ScoreRows) -> float:
        values = [of_view[metric] for of_view in examination.examine(examination.rank(score)).values.values()]
        return float(np.mean([of_view.mean() for of_view in values if len(of_view)]))

    return criterion


@dataclass(frozen=True)
class Trial:
    """Requests, and what is known of the users and items that they are about."""

    held_out: HeldOut
    examination: Examination
    past: Events
    """The users' histories: training and validation events."""
    groups: dict[str, Labels]
    """Name -> a label per user row."""

    @classmethod
    def prepare(cls, held_out: HeldOut, past: Events, repeats: Repeats, groups: dict[str, Labels]) -> Trial:
        """Prepare the trial of users whose events so far are `past`."""
        return cls(held_out, Examination.prepare(held_out.targets, past, repeats), past, groups)

    @property
    def event_count(self) -> Ints:
        """Events of each item so far, (N,)."""
        return np.bincount(self.past.item_row, minlength=self.past.n_items)

    @property
    def history_length(self) -> Ints:
        """Events that the user of each request has so far, (B,)."""
        per_user = np.bincount(self.past.user_row, minlength=self.past.n_users)
        return np.asarray(per_user[self.held_out.targets.user])

    def slice(self, examined: Examined) -> dict[str, Any]:
        """Return view -> slice -> value -> metrics."""
        slices = {}
        for view, targets in self.examination.views.items():
            labels = label_targets(targets, self.history_length, self.event_count, self.groups)
            slices[view] = measure_slices(examined.lists[view], targets, labels)
        return slices

    def describe_lists(self, examined: Examined) -> dict[str, float]:
        """Describe the lists of the first view, whose targets are all there are."""
        view = next(iter(self.examination.views))
        return describe_lists(examined.lists[view], self.held_out.targets, self.event_count, DEPTH)


def evaluate(
    recommender: Recommender,
    parts: Parts,
    seed: int,
    baselines: Sequence[str] | None = None,
    log: Log = lambda message: None,
) -> dict[str, Any]:
    """Measure a recommender and the baselines on held-out interactions.

    Args:
        recommender: its profiles hold the users' histories: all interactions of `parts` but the test.
        parts: of the data.
        seed: draws the validation users where there are more than are needed.
        baselines: names of those to be fitted; None: all of the protocol.
        log: prints a line before and after each model.

    Returns:
        What `metrics.json` holds: `test` and `paired` by model and view, `slices` by view, `beyond_accuracy`,
        `baselines`, `protocol` and, where requests at a held-out time or with context differ, `with_context` and
        `paired_with_context`: a request per user and time, without times per user and item, answered with its context
        and without.

    Raises:
        SchemaError: nothing is held out, a column to slice by is missing, or there is no such baseline.
    """
    schema = recommender.bundle.schema
    chosen = choose_baselines(schema.repeats, baselines)
    later = parts.validation if parts.evidence is None else pd.concat([parts.validation, parts.evidence])
    ids = Ids.number(recommender.bundle.items.column("item_id").to_pylist(), (parts.train, later, parts.test))
    train, past = ids.events(parts.train), ids.events(later)
    prepare = partial(Trial.prepare, past=train.join(past), repeats=schema.repeats, groups=_label_users(parts, ids))
    trial = prepare(group_requests(parts.test, ids))
    examined = _ask(recommender, trial, plain_requests(trial.held_out.rows, parts.at), log)
    protocol = describe_protocol(trial.examination, parts.at, schema)
    in_context = {}
    if parts.at is None and has_context(parts.test, schema):
        situations = prepare(group_situations(parts.test, ids))
        protocol["with_context"] = _describe_situations(situations.examination, "datetime" in parts.test)
        in_context = _ask_in_context(recommender, situations, trial, examined, log)
    criterion = None
    if len(parts.validation):
        criterion = make_criterion(
            group_requests(sample_users(parts.validation, seed), ids).targets, train, schema.repeats
        )
    models, records = {MODEL: examined}, {}
    for fitted in fit_baselines(chosen, train, past, criterion, log):
        records[fitted.name] = fitted.record
        if fitted.score is not None:
            models[fitted.name] = trial.examination.examine(trial.examination.rank(fitted.score))
    return _compare_models(trial, models) | {"baselines": records} | in_context | {"protocol": protocol}


def _label_users(parts: Parts, ids: Ids) -> dict[str, Labels]:
    """Return every group column as a label per user row, missing for users that the table does not have."""
    users = parts.users
    for column in parts.group_columns:
        if column not in users:
            raise SchemaError(f"users have no column '{column}' to slice by; {name_nearest(column, map(str, users))}")
    distinct = dict.fromkeys(parts.group_columns)  # two features may be read from one column
    labels = {column: pd.Series(label_column(users[column]), users["user_id"]) for column in distinct}
    return {column: known.reindex(ids.users).to_numpy(object) for column, known in labels.items()}


def _ask(recommender: Recommender, trial: Trial, requests: Requests, log: Log) -> Examined:
    log(f"{MODEL}: answering {len(requests):,} requests")
    start = time.perf_counter()
    examination = trial.examination
    examined = examination.examine(recommend_views(recommender, requests, examination.views))
    log(f"{MODEL}: {len(requests):,} requests, {time.perf_counter() - start:.1f} s")
    return examined


def recommend_views(recommender: Recommender, requests: Requests, views: Mapping[str, Any]) -> Lists:
    """Ask a recommender for the lists of each view: of everything, of owned items, of the others."""
    ask: dict[str, Callable[[Requests, int], Recommendations]] = {
        "all": partial(recommender.recommend, filter_viewed=False),
        "repeat": recommender.rank_owned,
        "novel": partial(recommender.recommend, filter_viewed=True),
    }
    return {view: as_lists(ask[view](requests, LIST_LENGTH), LIST_LENGTH) for view in views}


def as_lists(recommendations: Recommendations, k: int) -> Ints:
    """Lay ranked items out as (B, k) item rows; -1 fills a short list."""
    lengths = np.diff(recommendations.offsets)
    lists = np.full((len(lengths), k), -1, np.int64)
    lists[np.repeat(np.arange(len(lengths)), lengths), recommendations.rank - 1] = recommendations.item_row
    return lists


def _ask_in_context(
    recommender: Recommender, situations: Trial, trial: Trial, plain: Examined, log: Log
) -> dict[str, Any]:
    """Ask at the times and in the context of the targets, and measure the plain answers by the same targets.

    Without context an answer depends on the user alone, so it is taken from the trial.
    """
    examination = situations.examination
    requests = contextual_requests(situations.held_out.rows, recommender.bundle.schema)
    informed = _ask(recommender, situations, requests, log)
    same = np.searchsorted(trial.examination.user, examination.user)  # users ascend, one request each
    uninformed = examination.examine({view: lists[same] for view, lists in plain.lists.items()})
    models = {MODEL: informed, WITHOUT_CONTEXT: uninformed}
    return {
        "with_context": {name: examination.describe(examined) for name, examined in models.items()},
        "paired_with_context": {WITHOUT_CONTEXT: compare(informed, uninformed)},
    }


def _compare_models(trial: Trial, models: dict[str, Examined]) -> dict[str, Any]:
    ours = models[MODEL]
    return {
        "test": {name: trial.examination.describe(model) for name, model in models.items()},
        "paired": {name: compare(ours, model) for name, model in models.items() if name != MODEL},
        "slices": trial.slice(ours),
        "beyond_accuracy": {name: trial.describe_lists(model) for name, model in models.items()},
    }


def describe_protocol(examination: Examination, at: int | None, schema: Schema) -> dict[str, Any]:
    """Return how the requests were made and the figures averaged, in words and numbers beside them."""
    repeats = schema.repeats
    metric = headline_metric(repeats)
    criterion = f"{metric}, mean of the views all and novel" if repeats == "allow" else f"{metric}, view novel"
    return {
        "split": "held-out interactions" if at is None else "time",
        "requests": _describe_requests(at, schema),
        "n_requests": len(examination.user),
        "n_users": len(np.unique(examination.user)),
        "n_items": examination.n_items,
        "repeats": repeats,
        "views": VIEWS if repeats == "allow" else {"novel": NOVEL_ALONE},
        "k": LIST_LENGTH,
        "ranking": "exact, the whole catalogue; equal scores in the order of the catalogue",
        "history": "training and validation interactions",
        "average": "within a user, then over users; users without history count",
        "intervals": f"95 %, {RESAMPLES} bootstrap samples of users; differences are paired",
        "tuning": f"baselines: {criterion}, on validation",
        "beyond_accuracy": f"lists of the view {next(iter(examination.views))}",
    }


def _describe_requests(at: int | None, schema: Schema) -> str:
    if at is None:
        without = "datetime and context" if schema.has_datetime else "context"
        return f"one per user of the holdout, for all their items there, without {without}"
    derived = ", ".join(feature.name for feature in schema.context_features if feature.kind in DERIVED)
    context = f"{derived} of that moment, no other context" if derived else "without context"
    return f"one per user of the holdout, at {to_moment(at).isoformat()}, {context}"


def _describe_situations(examination: Examination, has_times: bool) -> str:
    each = "user and time" if has_times else "user and item"
    return (
        f"{len(examination.user):,} requests, one per {each} of the holdout, in the context of its first event; the "
        "figure without context beside it is of the same requests, and only that one compares"
    )
