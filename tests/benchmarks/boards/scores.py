"""Score lists of any model against held-out pairs: the whole catalogue was ranked, each user counts once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from tests.benchmarks.boards.protocols import PAIR, is_owned

Figures = dict[str, dict[str, float]]
"""View and metric -> value, standard error over users, and number of users."""


def number_requests(holdout: pd.DataFrame, is_by_row: bool) -> pd.DataFrame:
    """Return the targets, with the number of the request that each belongs to: one a user, or one a row."""
    targets = holdout[PAIR].drop_duplicates(ignore_index=True)
    request = np.arange(len(targets))
    if not is_by_row:
        request = targets.groupby("user_id", sort=False).ngroup().to_numpy()
    return targets.assign(request=request)


def check_lists(lists: pd.DataFrame, train: pd.DataFrame, is_novel: bool) -> None:
    """Refuse lists with an item twice, ranks that are not 1..n, or, where they are novel, what a user has.

    Args:
        lists: `request`, `user_id`, `item_id` and `rank`.
        train: what users have.
        is_novel: no list may hold an item that its user has.
    """
    ordered = lists.sort_values(["request", "rank"])
    if ordered.duplicated(["request", "item_id"]).any():
        raise ValueError("an item stands twice in a list")
    if (ordered["rank"] != ordered.groupby("request").cumcount() + 1).any():
        raise ValueError("the ranks of a list are not 1, 2, 3 ...")
    if is_novel and is_owned(lists, train).any():
        raise ValueError("a list holds an item that its user has in train")


def score_users(lists: pd.DataFrame, targets: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """Score each list, and average the lists of each user.

    Args:
        lists: `request`, `item_id` and `rank` from 1.
        targets: `request`, `user_id` and `item_id`; a request without a list scores 0.
        metrics: such as `NDCG@10`, `HR@10`, `Recall@20`, `MRR@10`.

    Returns:
        A row a user, a column a metric.
    """
    requests = targets.groupby("request")
    users = requests["user_id"].first()
    sizes = requests.size()
    hits = lists[["request", "item_id", "rank"]].merge(targets, on=["request", "item_id"])
    columns = {}
    for metric in metrics:
        kind, cut = metric.split("@")
        within = hits[hits["rank"] <= int(cut)]
        gains = weigh(kind, within).groupby(within["request"]).agg("max" if kind in BEST else "sum")
        gains = gains.reindex(sizes.index, fill_value=0.0)
        columns[metric] = gains / most(kind, sizes.to_numpy(), int(cut))
    return pd.DataFrame(columns).groupby(users.to_numpy()).mean()


BEST = ("HR", "MRR")
"""Metrics of which a list has that of its best hit; of others the sum of all hits."""


def weigh(kind: str, hits: pd.DataFrame) -> pd.Series:
    """Return what each hit counts."""
    rank = hits["rank"].astype(float)
    if kind == "NDCG":
        return 1 / np.log2(rank + 1)
    if kind == "MRR":
        return 1 / rank
    if kind in ("HR", "Recall"):
        return rank * 0 + 1
    raise ValueError(f"'{kind}' is no metric; allowed: NDCG, HR, Recall, MRR")


def most(kind: str, sizes: np.ndarray, cut: int) -> np.ndarray:
    """Return what the best list has of so many targets, by which gains are divided."""
    if kind == "Recall":
        return sizes
    if kind == "NDCG":
        ideal = np.cumsum(1 / np.log2(np.arange(cut) + 2))
        return np.asarray(ideal[np.minimum(sizes, cut) - 1])
    return np.ones(len(sizes))


def summarise(view: str, by_user: pd.DataFrame) -> Figures:
    """Return the mean over users with its standard error."""
    n_users = len(by_user)
    errors = by_user.std(ddof=1) / np.sqrt(n_users)
    return {
        f"{view} {metric}": {
            "value": float(by_user[metric].mean()),
            "error": float(errors[metric]),
            "users": n_users,
        }
        for metric in by_user
    }
