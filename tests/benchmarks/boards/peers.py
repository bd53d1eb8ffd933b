"""Peers where the baselines of a run answer other requests: popularity and EASE of each row, and of strangers.

EASE: Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import sparse
from tests.benchmarks.boards.protocols import Parts
from tests.benchmarks.boards.scores import number_requests, score_users

Weigh = Callable[[np.ndarray], np.ndarray]
"""Histories (b, N) -> scores of all items (b, N)."""

REGULARISATIONS = (30.0, 100.0, 300.0, 1000.0)
DEPTH = 100
ROWS = 512


def compare(
    parts: Parts, inner: Parts, metrics: Sequence[str], is_by_row: bool
) -> dict[str, pd.DataFrame]:
    """Judge popularity and EASE on a holdout.

    Args:
        parts: what trains, what is known of those who ask, and the holdout.
        inner: the same split once more inside of what trains; it chooses the regularisation, by the first metric.
        metrics: of the result.
        is_by_row: every target is a request of its own, otherwise every user.

    Returns:
        The metrics of each user, by model.
    """
    tried = [
        judge(weigh, inner, metrics[:1], is_by_row).iloc[:, 0].mean()
        for weigh in fit_ease(inner, REGULARISATIONS)
    ]
    best = REGULARISATIONS[int(np.argmax(tried))]
    (ease,) = fit_ease(parts, [best])
    models = {"popularity": fit_popularity(parts), "ease": ease}
    return {name: judge(weigh, parts, metrics, is_by_row) for name, weigh in models.items()}


def fit_popularity(parts: Parts) -> Weigh:
    """Rank by the number of users, whatever the history."""
    popularity = tabulate_training(parts).sum(axis=0)
    return lambda histories: np.tile(popularity, (len(histories), 1))


def fit_ease(parts: Parts, regularisations: Sequence[float]) -> Iterator[Weigh]:
    """Yield EASE of each regularisation."""
    matrix = tabulate_training(parts)
    gram = (matrix.T @ matrix).toarray()
    for regularisation in regularisations:
        inverse = np.linalg.inv(gram + regularisation * np.eye(len(gram)))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
        yield lambda histories, weights=weights: histories @ weights


def judge(weigh: Weigh, parts: Parts, metrics: Sequence[str], is_by_row: bool) -> pd.DataFrame:
    """Return the metrics of each user of the holdout."""
    items = list_items(parts)
    targets = number_requests(parts.holdout, is_by_row)
    users = targets.drop_duplicates("request")["user_id"]
    histories = tabulate(parts.train, items, np.unique(parts.holdout["user_id"]))
    rows = np.searchsorted(np.unique(parts.holdout["user_id"]), users)
    lists = []
    for start in range(0, len(rows), ROWS):
        own = histories[rows[start : start + ROWS]].toarray()
        scores = np.where(own > 0, -np.inf, weigh(own))
        top = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
        request = np.repeat(np.arange(start, start + len(own)), top.shape[1])
        rank = np.tile(np.arange(1, top.shape[1] + 1), len(own))
        ranked = {"request": request, "item_id": items[top.ravel()], "rank": rank}
        lists.append(pd.DataFrame(ranked))
    return score_users(pd.concat(lists), targets, metrics)


def list_items(parts: Parts) -> np.ndarray:
    """Return the items of training: the catalogue."""
    return np.unique(parts.interactions["item_id"])


def tabulate(rows: pd.DataFrame, items: np.ndarray, users: np.ndarray) -> sparse.csr_array:
    """Return 1 where a user had an item, (users, items); both are ascending, and others are left out."""
    rows = rows[rows["item_id"].isin(items) & rows["user_id"].isin(users)]
    cells = (np.searchsorted(users, rows["user_id"]), np.searchsorted(items, rows["item_id"]))
    matrix = sparse.csr_array((np.ones(len(rows)), cells), shape=(len(users), len(items)))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def tabulate_training(parts: Parts) -> sparse.csr_array:
    """Return who of training had which item."""
    return tabulate(parts.interactions, list_items(parts), np.unique(parts.interactions["user_id"]))
