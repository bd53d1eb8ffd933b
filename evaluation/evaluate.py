"""Evaluate a bundle as it is served, beside baselines that answer the same requests."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.baseline_run import BaselineRun, Knowledge, run_baselines
from evaluation.baselines import choose_baselines
from evaluation.beyond_accuracy import describe_lists
from evaluation.events import Events
from evaluation.examination import Examination, Examined, compare
from evaluation.holdout import (
    HeldOut,
    Ids,
    contextual_requests,
    group_requests,
    group_situations,
    has_context,
    number_ids,
    plain_requests,
)
from evaluation.progress import UNWATCHED, Progress
from evaluation.protocol import describe_protocol, describe_situations
from evaluation.recommended import recommend_views
from evaluation.slices import Labels, label_column, label_targets, measure_slices
from evaluation.targets import Ints
from serve.errors import SchemaError, name_nearest
from serve.recommender import Recommender
from serve.schema import Repeats

MODEL = "bascule"
WITHOUT_CONTEXT = f"{MODEL} without context"
DEPTH = 10
"""Places of a list that coverage, novelty, popularity lift and exposure are taken from."""

Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Trial:
    """What is asked, and what is known of the users and items that are asked about."""

    held_out: HeldOut
    examination: Examination
    past: Events
    """The users' histories: training and validation events."""
    groups: dict[str, Labels]
    """Name -> (users,), a label per user row."""

    @classmethod
    def prepare(cls, held_out: HeldOut, past: Events, repeats: Repeats, groups: dict[str, Labels]) -> Trial:
        """Prepare the trial of users whose events so far are `past`."""
        return cls(held_out, Examination.prepare(held_out.targets, past, repeats), past, groups)

    @property
    def event_count(self) -> Ints:
        """How many events each item has so far, (N,)."""
        return np.bincount(self.past.item_row, minlength=self.past.n_items)

    @property
    def history_length(self) -> Ints:
        """How many events the user of each request has so far, (B,)."""
        per_user = np.bincount(self.past.user_row, minlength=self.past.n_users)
        return np.asarray(per_user[self.held_out.targets.user])


def evaluate(
    recommender: Recommender,
    holdout: pd.DataFrame,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    users: pd.DataFrame,
    at: int | None,
    group_columns: list[str],
    seed: int,
    progress: Progress = UNWATCHED,
    baselines: Sequence[str] | None = None,
    evidence: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Measure a recommender and the baselines on held-out interactions.

    Args:
        recommender: its profiles hold the users' histories: the interactions of `train`, `validation`, `evidence`.
        holdout: interactions to predict.
        train: what values of the baselines' parameters are tried on.
        validation: what they are chosen by; the baselines are then fitted on both. May be empty.
        users: `user_id`, at most once, and the columns to slice by.
        at: UTC seconds that each user is asked at, once for all her held-out items; None: without a moment.
        group_columns: the columns of `users` to slice by.
        seed: draws the validation users where there are more than are needed.
        progress: is told what comes, and what was done with its seconds.
        baselines: names of those to be fitted; None: all of the protocol.
        evidence: interactions of the time of `validation` that are nothing to choose by. They are known where the test
            is asked, not where `validation` is.

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
    later = validation if evidence is None else pd.concat([validation, evidence])
    ids = number_ids(recommender.bundle.items.column("item_id").to_pylist(), (train, later, holdout))
    knowledge = Knowledge.prepare(ids, train, validation, later, schema.repeats, seed)
    groups = _label_users(users, ids, group_columns)
    trial = Trial.prepare(group_requests(holdout, ids), knowledge.past, schema.repeats, groups)
    examined = _ask(recommender, trial, plain_requests(trial.held_out.rows, at), progress)
    protocol = describe_protocol(trial.examination, at, schema)
    in_context = {}
    if at is None and has_context(holdout, schema):
        situations = Trial.prepare(group_situations(holdout, ids), knowledge.past, schema.repeats, groups)
        protocol["with_context"] = describe_situations(situations.examination, "datetime" in holdout)
        in_context = _ask_in_context(recommender, situations, trial, examined, progress)
    runs = list(run_baselines(trial.examination, knowledge, chosen, progress))
    return _compare_models(trial, examined, runs) | in_context | {"protocol": protocol}


def _label_users(users: pd.DataFrame, ids: Ids, columns: list[str]) -> dict[str, Labels]:
    """Return every column as a label per user row, missing for users that the table does not have."""
    for column in columns:
        if column not in users:
            raise SchemaError(f"users have no column '{column}' to slice by; {name_nearest(column, map(str, users))}")
    distinct = dict.fromkeys(columns)  # two features may be read from one column
    labels = {column: pd.Series(label_column(users[column]), users["user_id"]) for column in distinct}
    return {column: known.reindex(ids.users).to_numpy(object) for column, known in labels.items()}


def _ask(recommender: Recommender, trial: Trial, requests: Requests, progress: Progress) -> Examined:
    start = time.perf_counter()
    progress.say(f"{MODEL}: answering {len(requests):,} requests")
    examination = trial.examination
    examined = examination.examine(recommend_views(recommender, requests, examination.views))
    progress.say(f"{MODEL}: {len(requests):,} requests, {time.perf_counter() - start:.1f} s")
    return examined


def _ask_in_context(
    recommender: Recommender, situations: Trial, trial: Trial, plain: Examined, progress: Progress
) -> dict[str, Any]:
    """Ask again at the times and in the context of the targets, and judge the answers without it by the same targets.

    Without context an answer depends on the user alone, so hers is taken from the trial.
    """
    examination = situations.examination
    requests = contextual_requests(situations.held_out.rows, recommender.bundle.schema)
    informed = _ask(recommender, situations, requests, progress)
    same = np.searchsorted(trial.examination.user, examination.user)  # asked once each, in ascending order
    uninformed = examination.examine({view: lists[same] for view, lists in plain.lists.items()})
    models = {MODEL: informed, WITHOUT_CONTEXT: uninformed}
    return {
        "with_context": {name: examination.describe(examined) for name, examined in models.items()},
        "paired_with_context": {WITHOUT_CONTEXT: compare(informed, uninformed)},
    }


def _compare_models(trial: Trial, examined: Examined, runs: Sequence[BaselineRun]) -> dict[str, Any]:
    baselines = {run.name: run.examined for run in runs if run.examined is not None}
    models = {MODEL: examined} | baselines
    return {
        "test": {name: trial.examination.describe(model) for name, model in models.items()},
        "paired": {name: compare(examined, baseline) for name, baseline in baselines.items()},
        "slices": _slice(trial, examined),
        "beyond_accuracy": {name: _look_beyond(trial, model) for name, model in models.items()},
        "baselines": {run.name: run.record for run in runs},
    }


def _slice(trial: Trial, examined: Examined) -> dict[str, Any]:
    """Return view -> slice -> value -> metrics."""
    slices = {}
    for view, targets in trial.examination.views.items():
        labels = label_targets(targets, trial.history_length, trial.event_count, trial.groups)
        slices[view] = measure_slices(examined.lists[view], targets, labels)
    return slices


def _look_beyond(trial: Trial, examined: Examined) -> dict[str, float]:
    """Describe the lists of the first view, whose targets are all there are."""
    view = next(iter(trial.examination.views))
    return describe_lists(examined.lists[view], trial.held_out.targets, trial.event_count, DEPTH)
