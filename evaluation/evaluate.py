"""Evaluate a bundle as it is served, beside baselines that answer the same requests.

Letters: B requests, N items, K places of a list, U users that have a target in a view.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from evaluation import holdout, metrics
from evaluation.audit import Record, audit
from evaluation.baselines import Criterion, Log, choose_baselines, fit_baselines
from evaluation.holdout import Events, HeldOut, Ids, Source
from evaluation.metrics import ItemSets, Labels, Metric, Summary, Targets
from evaluation.ranking import ScoreRows, find_owned, rank_views, view_targets
from evaluation.seen import refuse_known, refuse_learned
from serve.arrays import Doubles, Flags, Floats, Ints, Repeats
from serve.bundle import Bundle
from serve.recommendations import Recommendations
from serve.recommender import Recommender
from serve.schema import Schema

MODEL = "bascule"
WITHOUT_CONTEXT = f"{MODEL} without context"
LIST_LENGTH = max(metrics.CUTOFFS)  # places that are measured
DEPTH = 10  # places whose effect on the catalogue is measured
VIEWS = {
    "all": "nothing is excluded; all targets",
    "repeat": "the same ranking among the items a user has; targets are those they have",
    "novel": "items a user has are excluded; targets are those they do not have",
}
NOVEL_ALONE = {
    "novel": "items a user has are excluded; targets the user already has count as misses"
}

Lists = dict[str, Ints]  # view -> (B, LIST_LENGTH) item rows
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Parts:
    """The tables of an evaluation.

    Attributes:
        test: interactions to predict.
        train: interactions to fit baselines on.
        validation: interactions to choose the parameters of baselines by; it may be empty.
        users: features of users.
        group_columns: columns of `users` to slice by.
        at: UTC seconds at which each user is asked, once for all their held-out items; None
            asks without a moment.
        evidence: interactions of the time of `validation` that only the test knows.
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
        cls,
        test: Source,
        train: Source,
        users: Source | None,
        at: str | None,
        schema: Schema,
    ) -> Parts:
        """Read tables, with no validation apart; single-valued features of users are groups."""
        past = holdout.read_interactions(train, schema)
        table = past[["user_id"]][:0]
        if users is not None:
            table = holdout.read_users(users, schema)
        groups = [
            feature.column
            for feature in schema.user_features
            if (feature.is_categorical or feature.is_numeric)
            and feature.column in table
        ]
        moment = None if at is None else holdout.read_moment(at, schema.timezone)
        future = holdout.read_interactions(test, schema)

        return cls(future, past, past[:0], table, groups, moment)


@dataclass(frozen=True)
class Measured:
    """The lists of one model, and view -> metric -> a value per user, (U,)."""

    lists: Lists
    values: dict[str, dict[str, Doubles]]


@dataclass(frozen=True)
class Examination:
    """Requests, targets of each view, owned items and histories, the same for every model.

    `barred` are the items that no model may list, (N,), `own` metrics beside the usual ones.
    """

    held_out: HeldOut
    views: dict[str, Targets]
    owned: ItemSets
    past: Events
    barred: Flags
    own: Sequence[Metric] = ()

    @classmethod
    def prepare(
        cls,
        held_out: HeldOut,
        past: Events,
        repeats: Repeats,
        barred: Flags | None = None,
        own: Sequence[Metric] = (),
    ) -> Examination:
        """Set the examination of users whose events so far are `past`."""
        owned = past.owned().take(held_out.targets.user)
        views = view_targets(held_out.targets, owned, repeats)
        if barred is None:
            barred = np.zeros(past.n_items, np.bool_)
        return cls(held_out, views, owned, past, barred, own)

    @property
    def user(self) -> Ints:
        """User row of each request, (B,)."""
        return self.held_out.targets.user

    def measure(self, lists: Lists) -> Measured:
        """Measure the lists of a model, made for the requests in their order."""
        values = {
            view: metrics.measure_users(lists[view], targets, own=self.own)
            for view, targets in self.views.items()
        }
        return Measured(lists, values)

    def score(self, score: ScoreRows) -> Measured:
        """Measure a model that scores the whole catalogue for user rows."""

        def score_listed(rows: Ints) -> Floats:
            scores = score(self.user[rows])  # (b, N)
            return np.where(self.barred, np.float32(-np.inf), scores)

        lists = rank_views(
            score_listed,
            self.owned,
            self.past.n_items,
            LIST_LENGTH,
            self.views,
        )
        return self.measure(lists)

    def describe(self, measured: Measured) -> dict[str, Summary]:
        """Return view -> metrics with intervals, and counts of targets."""
        described = {}
        for view, targets in self.views.items():
            is_owned = find_owned(targets, self.owned)
            # An item outside the catalogue is -1: the last flag.
            is_outside = np.append(self.barred, True)[targets.items.item_row]
            counts = {
                "targets": len(is_owned),
                "targets_outside_catalogue": int(is_outside.sum()),
                "unreachable_targets": int(is_owned.sum()) if view == "novel" else 0,
            }
            described[view] = metrics.summarise(measured.values[view]) | counts

        return described

    def label(self, targets: Targets, groups: dict[str, Labels]) -> dict[str, Labels]:
        """Label each target of a view; `groups` are name -> a label per user row."""
        n_events = np.bincount(self.past.user_row, minlength=self.past.n_users)
        return metrics.label_targets(
            targets, n_events[self.user], self.past.count_items(), groups
        )

    def slice(self, measured: Measured, groups: dict[str, Labels]) -> dict[str, Any]:
        """Return view -> slice -> value -> metrics; `groups` are name -> a label per user row."""
        slices = {}
        for view, targets in self.views.items():
            labels = self.label(targets, groups)
            slices[view] = metrics.measure_slices(measured.lists[view], targets, labels)

        return slices


def compare(measured: Measured, other: Measured) -> dict[str, Summary]:
    """Return view -> the first model's metrics minus the other's, user by user, with intervals."""
    compared = {}
    for view, values in measured.values.items():
        differences = {name: values[name] - other.values[view][name] for name in values}
        compared[view] = metrics.summarise(differences)

    return compared


def make_criterion(
    held_out: HeldOut, past: Events, repeats: Repeats, barred: Flags | None
) -> Criterion:
    """Return the headline metric on validation: the mean of the views `all` and `novel`."""
    whole = Examination.prepare(held_out, past, repeats, barred)
    views = {view: part for view, part in whole.views.items() if view != "repeat"}
    examination = replace(whole, views=views)
    metric = metrics.headline_metric(repeats)

    def criterion(score: ScoreRows) -> float:
        views = examination.score(score).values.values()
        return float(
            np.mean([values[metric].mean() for values in views if len(values[metric])])
        )

    return criterion


def evaluate(
    recommender: Recommender,
    parts: Parts,
    seed: int,
    baselines: Sequence[str] | None = None,
    log: Log = lambda message: None,
    own: Sequence[Metric] = (),
) -> dict[str, Any]:
    """Measure a recommender and baselines on held-out interactions.

    Args:
        recommender: its profiles hold all interactions but the test.
        parts: the tables of the evaluation.
        seed: draws validation users where there are more than are needed.
        baselines: names of those to fit; None means all of the protocol.
        log: takes a line after each model.
        own: metrics beside the usual ones.

    Returns:
        `metrics.json`. Where test interactions have a time or context of their own,
        `with_context` is of a request per user and time (per user and item without times),
        answered with its context and without.

    Raises:
        SchemaError: a baseline is unknown, or the recommender has seen the test.
    """
    schema = recommender.bundle.schema
    refuse_learned(recommender.bundle, parts.test)
    chosen = choose_baselines(schema.repeats, baselines)
    later = pd.concat([parts.validation, parts.evidence])  # drops None
    item_ids = recommender.bundle.items.column("item_id").to_pylist()
    ids = Ids.number(item_ids, (parts.train, later, parts.test))
    groups = label_users(parts, ids)

    refuse_known(recommender.profiles, pd.concat([parts.train, later]), parts.test)
    train = ids.events(parts.train)
    late = ids.events(later)
    past = train.join(late)

    barred = recommender.bundle.index.is_hidden
    held_out = holdout.group_requests(parts.test, ids)
    examination = Examination.prepare(held_out, past, schema.repeats, barred, own)
    requests = holdout.plain_requests(examination.held_out.rows, parts.at)
    ours = _recommend(recommender, examination, requests, log)
    protocol = describe_protocol(examination, parts.at, schema)

    in_context = {}
    if parts.at is None and holdout.has_context(parts.test, schema):
        held_out = holdout.group_situations(parts.test, ids)
        situations = Examination.prepare(held_out, past, schema.repeats, barred)
        each = "user and time" if "datetime" in parts.test else "user and item"
        protocol["with_context"] = (
            f"{len(situations.user):,} requests, one per {each} of the holdout, "
            "in the context of its first event; the figure without context beside it is of the "
            "same requests, and only that one compares"
        )
        plain = (examination, ours)
        in_context = _measure_in_context(recommender, situations, plain, log)

    criterion = None
    if len(parts.validation):
        sample = holdout.sample_users(parts.validation, seed)
        held_out = holdout.group_requests(sample, ids)
        criterion = make_criterion(held_out, train, schema.repeats, barred)

    models = {MODEL: ours}
    records = {}
    for name, record, score in fit_baselines(chosen, train, late, criterion, log):
        records[name] = record
        if score is not None:
            models[name] = examination.score(score)

    everything = next(iter(ours.lists.values()))
    return {
        **_compare_models(examination, models, groups),
        "audit": audit_lists(examination, everything, groups, recommender.bundle, ids),
        "baselines": records,
        **in_context,
        "protocol": protocol,
    }


def _compare_models(
    examination: Examination, models: Mapping[str, Measured], groups: dict[str, Labels]
) -> dict[str, Any]:
    """Return figures of each model, of the first against the others and in slices, and of lists."""
    first, *others = models
    view = next(iter(examination.views))  # whose targets are all there are
    targets = examination.held_out.targets
    n_events = examination.past.count_items()

    test = {}
    effects = {}
    for name, model in models.items():
        lists = model.lists[view]
        test[name] = examination.describe(model)
        effects[name] = metrics.describe_lists(lists, targets, n_events, DEPTH)

    paired = {name: compare(models[first], models[name]) for name in others}
    return {
        "test": test,
        "paired": paired,
        "slices": examination.slice(models[first], groups),
        "beyond_accuracy": effects,
    }


def label_users(parts: Parts, ids: Ids) -> dict[str, Labels]:
    """Return group column -> a label per user row."""
    labels = {}
    for column in parts.group_columns:
        values = metrics.label_column(parts.users[column])
        label_by_user = pd.Series(values, parts.users["user_id"])
        labels[column] = label_by_user.reindex(ids.users).to_numpy(object)

    return labels


def audit_lists(
    examination: Examination,
    lists: Ints,
    groups: Mapping[str, Labels],
    bundle: Bundle,
    ids: Ids,
) -> list[Record]:
    """Audit lists of the first view (B, K), where each request has a target.

    Items are compared as new or known, as of the head or the tail, and by their categories: by
    the brand or the seller, too, where that is a feature.
    """
    targets = examination.held_out.targets
    user_labels = {name: labels[targets.user] for name, labels in groups.items()}
    item_labels = metrics.label_items(examination.past.count_items())
    items = bundle.items.to_pandas().set_index("item_id").reindex(ids.items)
    for feature in bundle.schema.item_features:
        if feature.is_categorical:
            item_labels[feature.name] = items[feature.column].to_numpy(object)

    return audit(lists, targets, examination.past, user_labels, item_labels)


def _recommend(
    recommender: Recommender, examination: Examination, requests: Requests, log: Log
) -> Measured:
    """Measure the lists of each view: of everything, of owned items, or of the others."""
    start = time.perf_counter()
    lists = {}
    for view in examination.views:
        if view == "repeat":
            answers = recommender.rank_owned(requests, LIST_LENGTH)
        else:
            answers = recommender.recommend(requests, LIST_LENGTH, view == "novel")
        lists[view] = as_lists(answers, LIST_LENGTH)

    log(f"{MODEL}: {len(requests):,} requests, {time.perf_counter() - start:.1f} s")
    return examination.measure(lists)


def as_lists(recommendations: Recommendations, k: int) -> Ints:
    """Lay ranked items out as (B, k) item rows; -1 fills a short list."""
    lengths = np.diff(recommendations.offsets)
    lists = np.full((len(lengths), k), -1, np.int64)
    request = np.repeat(np.arange(len(lengths)), lengths)
    lists[request, recommendations.rank - 1] = recommendations.item_row
    return lists


def _measure_in_context(
    recommender: Recommender,
    situations: Examination,
    plain: tuple[Examination, Measured],
    log: Log,
) -> dict[str, Any]:
    """Ask in the context of the targets, and measure the plain answers by the same targets."""
    requests = holdout.contextual_requests(
        situations.held_out.rows, recommender.bundle.schema
    )
    informed = _recommend(recommender, situations, requests, log)

    examination, measured = plain  # one list per user
    row = np.searchsorted(examination.user, situations.user)  # users ascend
    repeated = {view: lists[row] for view, lists in measured.lists.items()}
    uninformed = situations.measure(repeated)
    return {
        "with_context": {
            MODEL: situations.describe(informed),
            WITHOUT_CONTEXT: situations.describe(uninformed),
        },
        "paired_with_context": {WITHOUT_CONTEXT: compare(informed, uninformed)},
    }


def describe_protocol(
    examination: Examination, at: int | None, schema: Schema
) -> dict[str, Any]:
    """Return how the requests were made and the figures averaged, in words and numbers."""
    is_repeating = schema.repeats == "allow"
    views = "mean of the views all and novel" if is_repeating else "view novel"
    return {
        "split": "held-out interactions" if at is None else "time",
        "requests": f"one per user of the holdout, {_describe_moment(at, schema)}",
        "n_requests": len(examination.user),
        "n_users": len(np.unique(examination.user)),
        "n_items": examination.past.n_items,
        "repeats": schema.repeats,
        "views": VIEWS if is_repeating else NOVEL_ALONE,
        "k": LIST_LENGTH,
        "ranking": "exact, the whole catalogue; equal scores in the order of the catalogue",
        "history": "training and validation interactions",
        "average": "within a user, then over users; users without history count",
        "intervals": "95 %, Student's t over users, skewed as they are; differences "
        "are paired",
        "tuning": f"baselines: {metrics.headline_metric(schema.repeats)}, {views}, on validation",
        "beyond_accuracy": f"lists of the view {next(iter(examination.views))}",
    }


def _describe_moment(at: int | None, schema: Schema) -> str:
    if at is None:
        absent = "datetime and context" if schema.has_datetime else "context"
        return f"for all their items there, without {absent}"

    derived = [part.name for part in schema.context_features if part.is_derived]
    context = "without context"
    if derived:
        context = f"{', '.join(derived)} of that moment, no other context"
    return f"at {holdout.to_moment(at).isoformat()}, {context}"
