"""Evaluate a bundle as it is served, beside baselines that answer the same requests.

Letters: B requests, N items, K places of a list, U users that have a target in a view.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation import holdout, metrics
from evaluation.baselines import Criterion, Log, choose_baselines, fit_baselines
from evaluation.holdout import Events, HeldOut, Ids
from evaluation.metrics import ItemSets, Labels, Summary, Targets
from evaluation.ranking import ScoreRows, find_owned, rank_views, view_targets
from serve.arrays import Doubles, Ints
from serve.errors import SchemaError, name_nearest
from serve.recommendations import Recommendations
from serve.recommender import Recommender
from serve.schema import DERIVED, Repeats, Schema

MODEL = "bascule"
WITHOUT_CONTEXT = f"{MODEL} without context"
LIST_LENGTH = max(
    metrics.CUTOFFS
)  # places that are measured, and whose effect on the catalogue is
DEPTH = 10
VIEWS = {
    "all": "nothing is excluded; all targets",
    "repeat": "the same ranking among the items a user has; targets are those they have",
    "novel": "items a user has are excluded; targets are those they do not have",
}
NOVEL_ALONE = {
    "novel": "items a user has are excluded; all targets, of which those they have are out of reach"
}

Lists = dict[str, Ints]  # view -> (B, LIST_LENGTH) item rows
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Parts:
    """Interactions to predict, to fit baselines on and to choose their parameters by, and users to slice by.

    Each user is asked at the UTC seconds `at`, once for all their held-out items, or without a moment. `evidence` is of
    the time of `validation`, which may be empty, and known to the test alone.
    """

    test: pd.DataFrame
    train: pd.DataFrame
    validation: pd.DataFrame
    users: pd.DataFrame
    group_columns: Sequence[str] = ()
    at: int | None = None
    evidence: pd.DataFrame | None = None

    @classmethod
    def read(
        cls, test: Path, train: Path, users: Path | None, at: str | None, schema: Schema
    ) -> Parts:
        """Read the files of an evaluation, with no validation apart; single-valued features of users are groups."""
        past = holdout.read_interactions(train, schema)
        known = (
            past[["user_id"]][:0]
            if users is None
            else holdout.read_users(users, schema)
        )
        single = [
            feature.column
            for feature in schema.user_features
            if feature.kind in ("categorical", "numeric")
        ]
        groups = [column for column in single if column in known]
        moment = None if at is None else holdout.read_moment(at, schema.timezone)
        return cls(
            holdout.read_interactions(test, schema),
            past,
            past[:0],
            known,
            groups,
            moment,
        )


@dataclass(frozen=True)
class Examined:
    """Lists of one model, and view -> metric -> a value per user, (U,)."""

    lists: Lists
    values: dict[str, dict[str, Doubles]]


@dataclass(frozen=True)
class Examination:
    """Requests, targets of each view, owned items and histories, the same for every model."""

    held_out: HeldOut
    views: dict[str, Targets]
    owned: ItemSets
    past: Events

    @classmethod
    def prepare(cls, held_out: HeldOut, past: Events, repeats: Repeats) -> Examination:
        """Set the examination of users whose events so far are `past`."""
        owned = past.owned().take(held_out.targets.user)
        return cls(
            held_out, view_targets(held_out.targets, owned, repeats), owned, past
        )

    @property
    def user(self) -> Ints:
        """User row of each request, (B,)."""
        return self.held_out.targets.user

    def examine(self, lists: Lists) -> Examined:
        """Measure the lists of a model, made for the requests in their order."""
        values = {
            view: metrics.measure_users(lists[view], targets)
            for view, targets in self.views.items()
        }
        return Examined(lists, values)

    def score(self, score: ScoreRows) -> Examined:
        """Measure a model that scores the whole catalogue for user rows."""
        n_items = self.past.n_items
        user = self.held_out.targets.user
        return self.examine(
            rank_views(
                lambda rows: score(user[rows]),
                self.owned,
                n_items,
                LIST_LENGTH,
                self.views,
            )
        )

    def describe(self, examined: Examined) -> dict[str, Summary]:
        """Return view -> metrics with intervals, and the targets, among them those that no list can hold."""
        described = {}
        for view, targets in self.views.items():
            is_owned = find_owned(targets, self.owned)
            described[view] = metrics.summarise(examined.values[view]) | {
                "targets": len(is_owned),
                "targets_outside_catalogue": int((targets.items.item_row < 0).sum()),
                "unreachable_targets": int(is_owned.sum()) if view == "novel" else 0,
            }
        return described

    def label(self, targets: Targets, groups: dict[str, Labels]) -> dict[str, Labels]:
        """Label each target of a view; `groups` are name -> a label per user row."""
        history = np.bincount(self.past.user_row, minlength=self.past.n_users)[
            self.user
        ]
        return metrics.label_targets(targets, history, self.past.count_items(), groups)

    def slice(self, examined: Examined, groups: dict[str, Labels]) -> dict[str, Any]:
        """Return view -> slice -> value -> metrics; `groups` are name -> a label per user row."""
        views = self.views.items()
        return {
            view: metrics.measure_slices(
                examined.lists[view], one, self.label(one, groups)
            )
            for view, one in views
        }


def headline_metric(repeats: Repeats) -> str:
    """Return the metric that models are tuned and compared by."""
    return "NDCG@20" if repeats == "allow" else "NDCG@10"


def compare(examined: Examined, other: Examined) -> dict[str, Summary]:
    """Return view -> the first model's metrics minus the other's, user by user, with intervals."""
    return {
        view: metrics.summarise(
            {name: values[name] - other.values[view][name] for name in values}
        )
        for view, values in examined.values.items()
    }


def make_criterion(held_out: HeldOut, past: Events, repeats: Repeats) -> Criterion:
    """Return the headline metric on validation, averaged over the views `all` and `novel` that have targets."""
    whole = Examination.prepare(held_out, past, repeats)
    metric = headline_metric(repeats)
    examination = replace(
        whole,
        views={view: whole.views[view] for view in whole.views if view != "repeat"},
    )

    def criterion(score: ScoreRows) -> float:
        values = [
            of_view[metric] for of_view in examination.score(score).values.values()
        ]
        return float(np.mean([of_view.mean() for of_view in values if len(of_view)]))

    return criterion


def evaluate(
    recommender: Recommender,
    parts: Parts,
    seed: int,
    baselines: Sequence[str] | None = None,
    log: Log = lambda message: None,
) -> dict[str, Any]:
    """Measure a recommender, whose profiles hold all interactions but the test, and baselines: `metrics.json`.

    Where test interactions have a time or context of their own, `with_context` is of a request per user and time,
    without times per user and item, answered with its context and without. The seed draws validation users where there
    are more than are needed; of `baselines`, None means all of the protocol.
    """
    schema = recommender.bundle.schema
    chosen = choose_baselines(schema.repeats, baselines)
    later = pd.concat(
        [parts.validation, *([] if parts.evidence is None else [parts.evidence])]
    )
    ids = Ids.number(
        recommender.bundle.items.column("item_id").to_pylist(),
        (parts.train, later, parts.test),
    )
    groups = label_users(parts, ids)
    train = ids.events(parts.train)
    late = ids.events(later)
    prepare = partial(
        Examination.prepare, past=train.join(late), repeats=schema.repeats
    )
    examination = prepare(holdout.group_requests(parts.test, ids))
    examined = _ask(
        recommender,
        examination,
        holdout.plain_requests(examination.held_out.rows, parts.at),
        log,
    )
    protocol = describe_protocol(examination, parts.at, schema)
    in_context = {}
    if parts.at is None and holdout.has_context(parts.test, schema):
        situations = prepare(holdout.group_situations(parts.test, ids))
        each = "user and time" if "datetime" in parts.test else "user and item"
        protocol["with_context"] = (
            f"{len(situations.user):,} requests, one per {each} of the holdout, in the context of its first event; the "
            "figure without context beside it is of the same requests, and only that one compares"
        )
        in_context = _ask_in_context(
            recommender, situations, (examination, examined), log
        )
    criterion = None
    if len(parts.validation):
        sample = holdout.group_requests(
            holdout.sample_users(parts.validation, seed), ids
        )
        criterion = make_criterion(sample, train, schema.repeats)
    models = {MODEL: examined}  # whose targets are all there are
    records = {}
    first = next(iter(examination.views))
    for name, record, score in fit_baselines(chosen, train, late, criterion, log):
        records[name] = record
        if score is not None:
            models[name] = examination.score(score)
    n_events = examination.past.count_items()
    return {
        "test": {name: examination.describe(model) for name, model in models.items()},
        "paired": {
            name: compare(examined, model)
            for name, model in models.items()
            if name != MODEL
        },
        "slices": examination.slice(examined, groups),
        "beyond_accuracy": {
            name: metrics.describe_lists(
                model.lists[first], examination.held_out.targets, n_events, DEPTH
            )
            for name, model in models.items()
        },
        "baselines": records,
        **in_context,
        "protocol": protocol,
    }


def label_users(parts: Parts, ids: Ids) -> dict[str, Labels]:
    """Return group column -> a label per user row."""
    labels = {}
    for column in parts.group_columns:
        if column not in parts.users:
            nearest = name_nearest(column, map(str, parts.users))
            raise SchemaError(f"users have no column '{column}' to slice by; {nearest}")
        known = pd.Series(
            metrics.label_column(parts.users[column]), parts.users["user_id"]
        )
        labels[column] = known.reindex(ids.users).to_numpy(object)
    return labels


def _ask(
    recommender: Recommender, examination: Examination, requests: Requests, log: Log
) -> Examined:
    """Ask for the lists of each view, of everything, of owned items, or of the others, and measure them."""
    start = time.perf_counter()
    ask: dict[str, Callable[[Requests, int], Recommendations]] = {
        "all": partial(recommender.recommend, filter_viewed=False),
        "repeat": recommender.rank_owned,
        "novel": partial(recommender.recommend, filter_viewed=True),
    }
    lists = {
        view: as_lists(ask[view](requests, LIST_LENGTH), LIST_LENGTH)
        for view in examination.views
    }
    log(f"{MODEL}: {len(requests):,} requests, {time.perf_counter() - start:.1f} s")
    return examination.examine(lists)


def as_lists(recommendations: Recommendations, k: int) -> Ints:
    """Lay ranked items out as (B, k) item rows; -1 fills a short list."""
    lengths = np.diff(recommendations.offsets)
    lists = np.full((len(lengths), k), -1, np.int64)
    lists[np.repeat(np.arange(len(lengths)), lengths), recommendations.rank - 1] = (
        recommendations.item_row
    )
    return lists


def _ask_in_context(
    recommender: Recommender,
    situations: Examination,
    plain: tuple[Examination, Examined],
    log: Log,
) -> dict[str, Any]:
    """Ask in the context of the targets, and measure the plain answers, one per user, by the same targets."""
    requests = holdout.contextual_requests(
        situations.held_out.rows, recommender.bundle.schema
    )
    informed = _ask(recommender, situations, requests, log)
    same = np.searchsorted(plain[0].user, situations.user)  # users ascend
    uninformed = situations.examine(
        {view: lists[same] for view, lists in plain[1].lists.items()}
    )
    models = {MODEL: informed, WITHOUT_CONTEXT: uninformed}
    return {
        "with_context": {
            name: situations.describe(examined) for name, examined in models.items()
        },
        "paired_with_context": {WITHOUT_CONTEXT: compare(informed, uninformed)},
    }


def describe_protocol(
    examination: Examination, at: int | None, schema: Schema
) -> dict[str, Any]:
    """Return how the requests were made and the figures averaged, in words and numbers beside them."""
    is_repeating = schema.repeats == "allow"
    criterion = f"{headline_metric(schema.repeats)}, {'mean of the views all and' if is_repeating else 'view'} novel"
    without = "datetime and context" if schema.has_datetime else "context"
    requests = (
        f"one per user of the holdout, for all their items there, without {without}"
    )
    if at is not None:
        derived = ", ".join(
            feature.name
            for feature in schema.context_features
            if feature.kind in DERIVED
        )
        context = (
            f"{derived} of that moment, no other context"
            if derived
            else "without context"
        )
        requests = f"one per user of the holdout, at {holdout.to_moment(at).isoformat()}, {context}"
    return {
        "split": "held-out interactions" if at is None else "time",
        "requests": requests,
        "n_requests": len(examination.user),
        "n_users": len(np.unique(examination.user)),
        "n_items": examination.past.n_items,
        "repeats": schema.repeats,
        "views": VIEWS if is_repeating else NOVEL_ALONE,
        "k": LIST_LENGTH,
        "ranking": "exact, the whole catalogue; equal scores in the order of the catalogue",
        "history": "training and validation interactions",
        "average": "within a user, then over users; users without history count",
        "intervals": f"95 %, {metrics.RESAMPLES} bootstrap samples of users; differences are paired",
        "tuning": f"baselines: {criterion}, on validation",
        "beyond_accuracy": f"lists of the view {next(iter(examination.views))}",
    }
