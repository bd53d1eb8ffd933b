"""Audit: is a group of users served worse than others, is one of items shown less than it is taken?

A group of users is compared with all others of its column, by figures of their lists; a group of
items by its exposure, beside its merit: its share of what users took. Each comparison has a
one-sided probability, and all of an audit are corrected together (Holm 1979): where nothing is
wrong, at most one audit of twenty finds something.

Letters: B requests, one per user; K places of a list; N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit
from scipy.stats import sem

from evaluation.holdout import Events
from evaluation.metrics import (
    HEAD_SHARE,
    MIN_USERS_TO_COMPARE,
    OTHER,
    Labels,
    Targets,
    find_head,
    hit_matrix,
    measure_requests,
    merge_rare,
    name_labels,
)
from serve.arrays import Ints

Record = dict[str, Any]  # a comparison

K = 10
LEVEL = 0.05  # probability that an audit of equal groups finds something
TINY = 1e-9  # nothing is as much as nothing
DISCOUNT = 1 / np.log2(np.arange(K) + 2)  # exposure of a place, as in NDCG
LIFT = "popularity_lift@10"
EXPOSURE = "exposure@10"
MISCALIBRATION = "miscalibration@10"
WORSE_ABOVE = [LIFT, MISCALIBRATION]  # of other figures, less is worse


def audit(
    lists: Ints,
    targets: Targets,
    past: Events,
    user_labels: Mapping[str, Labels],
    item_labels: Mapping[str, Labels],
) -> list[Record]:
    """Compare groups of users, and groups of items.

    Args:
        lists: (B, K or more) item rows, best first; -1 fills a short list.
        targets: what each user took, at least one item.
        past: events before the test.
        user_labels: column -> a label per request, (B,).
        item_labels: column -> a label per item, (N,).

    Returns:
        Comparisons, the surest first: `value` of the group; `base`, that of the others or the
        merit; `ratio`, below 1 where the group is worse off; `lost`, their difference, above 0
        where it is worse off, with its interval `lost_ci95`, which of the popularity lift are
        logs; `p`, corrected.
    """
    lists = lists[:, :K]
    figures = measure_lists(lists, targets, past)
    records: list[Record] = []
    for column, labels in user_labels.items():
        names = merge_rare(name_labels(labels), targets.user)
        records += compare_users(column, names, figures)

    for column, labels in item_labels.items():
        records += compare_items(column, name_labels(labels), lists, targets)

    return correct(records)


def correct(records: Sequence[Record]) -> list[Record]:
    """Correct the probabilities for their number (Holm 1979), and sort by them."""
    ordered = sorted(records, key=itemgetter("p"))
    surest = 0.0
    for place, record in enumerate(ordered):
        surest = max(surest, record["p"] * (len(ordered) - place))
        record["p"] = float(min(surest, 1.0))
    return ordered


def find_failures(
    comparisons: Sequence[Record], least_of_users: float, least_of_items: float
) -> list[str]:
    """Describe what chance does not explain and whose ratio is below what is allowed.

    Args:
        comparisons: as `audit` returns them.
        least_of_users: ratio that each group of users must have; 0 allows any.
        least_of_items: the same of items.
    """
    limits = {EXPOSURE: least_of_items}
    text = "{column} '{group}': {figure} {value:.3g} beside {base:.3g}"
    found = [record for record in comparisons if record["p"] <= LEVEL]
    return [
        text.format(**record)
        for record in found
        if record["ratio"] < limits.get(record["figure"], least_of_users)
    ]


def describe(
    figure: str, value: float, base: float, error: float, n_users: int
) -> Record:
    """Describe a comparison, by Student's t with as many degrees as the group has users.

    Args:
        figure: its name.
        value: its mean in the group.
        base: what that is compared with.
        error: standard error of their difference.
        n_users: users of the group.
    """
    sign = -1 if figure in WORSE_ABOVE else 1
    lost = sign * (base - value)
    reach = stdtrit(n_users - 1, 0.975) * error
    p = stdtr(n_users - 1, -lost / (error + TINY))
    if figure == LIFT:
        value = np.exp(value)
        base = np.exp(base)

    ratio = ((value + TINY) / (base + TINY)) ** sign
    interval = [lost - reach, lost + reach]
    record = {"value": value, "base": base, "ratio": ratio, "lost": lost, "p": p}
    return record | {"figure": figure, "users": n_users, "lost_ci95": interval}


# ---- users


def measure_lists(lists: Ints, targets: Targets, past: Events) -> pd.DataFrame:
    """Return the figures of each list, (B, figures).

    NDCG and hit rate. Coverage: how many items the list adds to those of all lists, one that is in
    n of them counting 1 / n. Popularity lift: mean log of the events of what is shown, less that
    of what was taken. Miscalibration: how far the share of popular items is from that in the
    user's past (Steck 2018, by total variation); without a past, from that of all events.
    """
    items = targets.items
    n_events = np.append(past.count_items(), 0)  # the last one answers -1
    n_lists = np.bincount(lists[lists >= 0], minlength=len(n_events))
    added = (n_lists > 0) / np.maximum(n_lists, 1)
    log = np.log1p(n_events)
    taken = np.bincount(items.request, log[items.item_row]) / items.counts

    is_head = np.append(find_head(n_events[:-1]), False)
    habits = pd.Series(is_head[past.item_row]).groupby(past.user_row).mean()
    habit = habits.reindex(targets.user, fill_value=HEAD_SHARE).to_numpy()

    quality = measure_requests(hit_matrix(lists, targets), items.counts, (K,))
    figures = pd.DataFrame({name: quality[name] for name in ("NDCG@10", "HR@10")})
    figures["coverage@10"] = added[lists].sum(axis=1)
    figures[LIFT] = log[lists].mean(axis=1) - taken
    figures[MISCALIBRATION] = np.abs(is_head[lists].mean(axis=1) - habit)
    return figures


def compare_users(
    column: str, names: pd.Series[Any], figures: pd.DataFrame
) -> Iterator[Record]:
    """Compare each group of enough users with all others, by each figure.

    The larger of two errors counts: that of a draw from all, which sees no proof where few users
    happen to be alike, and Welch's, for groups whose users differ more.

    Args:
        column: by which users are grouped.
        names: (B,) group of each user.
        figures: (B, figures), as of `measure_lists`.
    """
    is_large = names.groupby(names).transform("size") >= MIN_USERS_TO_COMPARE
    names = names[is_large]
    table = figures[is_large]
    if names.nunique() < 2:
        return

    for group in sorted(names.unique()):
        own = table[names == group]
        others = table[names != group]
        means = pd.DataFrame({"value": own.mean(), "base": others.mean()})
        drawn = table.var() * (1 / len(own) + 1 / len(others))
        welch = own.var() / len(own) + others.var() / len(others)
        means["error"] = np.sqrt(np.maximum(drawn, welch))
        for figure, value, base, error in means.itertuples():
            record = describe(str(figure), value, base, error, len(own))
            yield {"column": column, "group": group, **record}


# ---- items


def compare_items(
    column: str, names: pd.Series[Any], lists: Ints, targets: Targets
) -> Iterator[Record]:
    """Compare the exposure of each group of items with its merit, user by user.

    Args:
        column: by which items are grouped.
        names: (N,) group of each item; those of which few users took an item count together.
        lists: (B, K) item rows.
        targets: what each user took.
    """
    items = targets.items
    taken = np.append(names, OTHER)[items.item_row]  # the last one answers -1
    large = merge_rare(pd.Series(taken), items.request)
    names = names.where(names.isin(large), OTHER)

    total = np.maximum((lists >= 0) @ DISCOUNT, 1)
    for group in sorted(names.unique()):
        is_own = np.append(names == group, False)
        merit = np.bincount(items.request, is_own[items.item_row]) / items.counts
        exposure = is_own[lists] @ DISCOUNT / total
        n_users = int(np.count_nonzero(merit))
        if n_users >= MIN_USERS_TO_COMPARE:
            error = sem(merit - exposure)
            pair = (exposure.mean(), merit.mean())
            record = describe(EXPOSURE, *pair, error, n_users)
            is_shown = np.isin(np.flatnonzero(is_own), lists)
            record["coverage"] = float(is_shown.mean())
            yield {"column": column, "group": group, **record}
