"""Users that training never saw: with their histories, and by their demographics alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from evaluation.baselines import Events, as_counts, fit_popularity, fit_recent_popularity
from evaluation.evaluate import Examination, recommend_views
from evaluation.holdout import HeldOut, Ids, group_requests, number_ids, plain_requests
from evaluation.metrics import measure_users as measure
from serve.recommender import Recommender
from tests.benchmarks.cold_figures import METRICS, Values, describe, join
from tests.benchmarks.cold_training import Opened, know_everyone

SHARE = 0.2
RECENT_DAYS = (7, 14, 28, 56, 112)
SEEN, UNSEEN = "in training", "not in training"


def measure_users(board: Opened, n_folds: int) -> dict[str, Any]:
    """Ask for each user of the folds twice: where she was left out, and where the next fold was."""
    folds = draw_folds(board, n_folds)
    trained = [know_everyone(train_without(board, number, fold), board) for number, fold in enumerate(folds)]
    found: dict[str, dict[str, list[Values]]] = {}
    for number, fold in enumerate(folds):
        for name, source in ((UNSEEN, trained[number]), (SEEN, trained[(number + 1) % n_folds])):
            for view, values in answer(source, board, fold).items():
                found.setdefault(view, {}).setdefault(name, []).append(values)
    return {view: describe({name: join(parts) for name, parts in of.items()}, SEEN) for view, of in found.items()}


def draw_folds(board: Opened, n_folds: int) -> list[np.ndarray]:
    """Draw folds of a fifth of the users each, of all that train."""
    users = np.random.default_rng(board.config.seed).permutation(np.unique(board.split.refit["user_id"]))
    size = int(SHARE * len(users))
    return [users[number * size : (number + 1) * size] for number in range(n_folds)]


def train_without(board: Opened, number: int, fold: np.ndarray) -> Recommender:
    return board.without("user_id", fold).train(f"without-users-{number}")


def answer(recommender: Recommender, board: Opened, fold: np.ndarray) -> dict[str, Values]:
    """Return each view's values of a fold's users, asked with their histories."""
    held_out, ids = hold_out(recommender, board, fold)
    past = ids.events(board.split.refit[board.split.refit["user_id"].isin(fold)])
    examination = Examination.prepare(held_out.targets, past, board.config.data.repeats)
    lists = recommend_views(recommender, plain_requests(held_out.rows, board.split.test_at), examination.views)
    return {view: measure(lists[view], targets) for view, targets in examination.views.items()}


def hold_out(recommender: Recommender, board: Opened, users: np.ndarray) -> tuple[HeldOut, Ids]:
    test = board.split.test[board.split.test["user_id"].isin(users)]
    ids = number_ids(recommender.bundle.items.column("item_id").to_pylist(), (board.split.refit, test))
    return group_requests(test, ids), ids


def measure_demographics(board: Opened, n_folds: int) -> dict[str, Any]:
    """Ask for users of whom something is known, without history, where they were left out of training."""
    columns = [str(feature.column) for feature in board.config.data.features.of("user").values()]
    users = board.tables.users
    told = users.loc[users[columns].notna().any(axis=1), "user_id"]
    found: dict[str, list[Values]] = {}
    for number, fold in enumerate(draw_folds(board, n_folds)):
        recommender = train_without(board, number, fold)
        for name, values in introduce(recommender, board, np.intersect1d(fold, told), fold):
            found.setdefault(name, []).append(values)
    joined = {name: join(parts) for name, parts in found.items()}
    return {"no history": describe(joined, best_popularity(joined))}


def introduce(
    recommender: Recommender, board: Opened, users: np.ndarray, fold: np.ndarray
) -> Iterator[tuple[str, Values]]:
    """Yield what users get who tell their demographics alone, another user's, nothing; and what is popular."""
    held_out, ids = hold_out(recommender, board, users)
    names = {name: str(feature.column) for name, feature in board.config.data.features.of("user").items()}
    known = board.tables.users.set_index("user_id").loc[held_out.rows["user_id"], list(names.values())]
    plain = [{**request, "user_id": None} for request in plain_requests(held_out.rows, board.split.test_at)]
    other = known.iloc[np.random.default_rng(board.config.seed).permutation(len(known))]
    asked = {
        "demographics": describe_users(plain, known, names),
        "demographics of another": describe_users(plain, other, names),
        "nothing known": plain,
    }
    nothing = Events(np.zeros(0, int), np.zeros(0, int), None, len(ids.users), len(ids.items))
    examination = Examination.prepare(held_out.targets, nothing, "exclude")
    for name, requests in asked.items():
        yield name, measure(*_only(recommend_views(recommender, requests, ["novel"]), examination))
    trained = board.split.refit[~board.split.refit["user_id"].isin(fold)]
    past = ids.events(trained)
    yield "popularity", measure(*_only(examination.rank(fit_popularity(past, as_counts).score), examination))
    for days, model in zip(RECENT_DAYS, fit_recent_popularity(past, RECENT_DAYS, as_counts), strict=True):
        yield f"popularity of {days} days", measure(*_only(examination.rank(model.score), examination))


def _only(lists: dict[str, np.ndarray], examination: Examination) -> tuple[np.ndarray, Any]:
    return lists["novel"], examination.views["novel"]


def describe_users(plain: list[dict[str, Any]], known: pd.DataFrame, names: dict[str, str]) -> list[dict[str, Any]]:
    """Give each request what is known of a user."""
    values = known.astype(object).where(known.notna(), None)
    rows = [{name: row[column] for name, column in names.items()} for row in values.to_dict("records")]
    return [{**request, "features": row} for request, row in zip(plain, rows, strict=True)]


def best_popularity(values: dict[str, Values]) -> str:
    """Name the window that does best on these very targets: the baseline is chosen by the test."""
    names = [name for name in values if name.startswith("popularity")]
    return max(names, key=lambda name: values[name][METRICS[0]].mean())
