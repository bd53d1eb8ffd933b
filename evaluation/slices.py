"""The same lists, judged on parts of the targets: short histories, new items, the tail, groups of users.

A slice gives every target a label; the metrics of a value are those of the targets with that label. Lists
stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evaluation.intervals import Summary, summarise
from evaluation.metrics import CUTOFFS, measure_users
from evaluation.targets import Bools, Ints, Targets

Labels = npt.NDArray[Any]

HISTORY_GROUPS = {0: "0", 1: "1-4", 5: "5-19", 20: "20+"}
COLD_EVENTS = 5
HEAD_SHARE = 0.8
MISSING = "missing"


def measure_slices(
    lists: Ints, targets: Targets, labels: Mapping[str, Labels], cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, dict[str, Summary]]:
    """Return slice -> value -> metrics with intervals and the number of users.

    Args:
        lists: (B, K).
        targets: of the B requests, T in all.
        labels: slice -> (T,), a label per target; None and NaN become the value `missing`.
        cutoffs: of the metrics.
    """
    return {name: _measure_slice(lists, targets, column, cutoffs) for name, column in labels.items()}


def label_targets(
    targets: Targets, history_length: Ints, event_count: Ints, groups: Mapping[str, Labels]
) -> dict[str, Labels]:
    """Label every target, (T,), by the history of its user, the events of its item and each group.

    Args:
        targets: T in all.
        history_length: (B,) training events of each request's user.
        event_count: (N,) training events of each item.
        groups: name -> (users,), a label per user, indexed by `targets.user`.
    """
    request = targets.items.request
    labels: dict[str, Labels] = {
        "history": label_history(history_length)[request],
        "item_events": np.where(_of_items(event_count < COLD_EVENTS, targets), "0-4", "5+"),
        "popularity": np.where(_of_items(~find_head(event_count), targets), "tail", "head"),
    }
    return labels | {name: column[targets.user][request] for name, column in groups.items()}


def label_history(history_length: Ints) -> Labels:
    """Name the group of each history by its number of events."""
    group = np.searchsorted(np.array(list(HISTORY_GROUPS)), history_length, side="right") - 1
    return np.array(list(HISTORY_GROUPS.values()))[group]


def find_head(event_count: Ints) -> Bools:
    """Mark the most popular items that together have 80 % of the events, (N,); the others are the tail."""
    order = np.argsort(-event_count, kind="stable")
    counts = event_count[order]
    before = np.cumsum(counts) - counts
    is_head = np.zeros(len(event_count), np.bool_)
    is_head[order] = before < HEAD_SHARE * event_count.sum()
    return is_head


def _of_items(marked: Bools, targets: Targets) -> Bools:
    """Look a mark (N,) up for every target; one outside the catalogue is new, so marked."""
    return np.append(marked, True)[targets.items.item_row]


def _measure_slice(lists: Ints, targets: Targets, labels: Labels, cutoffs: tuple[int, ...]) -> dict[str, Summary]:
    values = np.where(pd.isna(labels), MISSING, labels.astype(str))
    return {
        str(value): summarise(measure_users(lists, targets.keep(values == value), cutoffs))
        for value in np.unique(values)
    }
