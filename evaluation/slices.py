"""Metrics of the same lists on parts of the targets: short histories, new items, the tail, groups of users.

A slice gives every target a label, (T,); the metrics of a value are those of the targets with that label.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evaluation.metrics import Bools, Floats, Ints, Summary, Targets, measure_users, summarise
from serve.encode import to_text

Labels = npt.NDArray[Any]

SLICES = ("history", "item_events", "popularity")
"""Slices that every evaluation has; all others are columns of the users table."""
COLD_EVENTS, HEAD_SHARE = 5, 0.8
NUMBERS, NUMBER = ("integer", "floating", "mixed-integer-float"), r"-?(0|[1-9]\d{0,14})(\.\d+)?"
"""Types of columns, and texts, that are numbers: 01234 is a code."""
MAX_NUMBERS, MAX_VALUES = 12, 20
"""Distinct numbers above which quartiles are labels, and labels above which the rare ones count together."""
MISSING, OTHER = "missing", "other"


def measure_slices(lists: Ints, targets: Targets, labels: Mapping[str, Labels]) -> dict[str, dict[str, Summary]]:
    """Return slice -> value -> metrics with intervals of lists (B, K), given a label per target (T,).

    None and NaN become the value `missing`. A label of this text, or `other`, as the rare ones together are called,
    becomes `missing (value)`, `other (value)`.
    """
    return {name: _measure_slice(lists, targets, column) for name, column in labels.items()}


def label_targets(
    targets: Targets, history_length: Ints, event_count: Ints, groups: Mapping[str, Labels]
) -> dict[str, Labels]:
    """Label every target by the history of its user (B,), the events of its item (N,) and each group of user rows.

    A group that is named like one of ours keeps its labels under `NAME (column)`.
    """
    request, item_row = targets.items.request, targets.items.item_row
    is_cold, is_tail = event_count < COLD_EVENTS, ~find_head(event_count)  # (N,) each
    labels: dict[str, Labels] = {  # a target outside the catalogue, -1, is new
        "history": label_history(history_length)[request],
        "item_events": np.where(np.append(is_cold, True)[item_row], "0-4", "5+"),
        "popularity": np.where(np.append(is_tail, True)[item_row], "tail", "head"),
    }
    named = {f"{name} (column)" if name in labels else name: column for name, column in groups.items()}
    return labels | {name: column[targets.user][request] for name, column in named.items()}


def label_history(history_length: Ints) -> Labels:
    """Return the group of each history by its number of events."""
    return np.array(["0", "1-4", "5-19", "20+"])[np.searchsorted([1, 5, 20], history_length, side="right")]


def find_head(event_count: Ints) -> Bools:
    """Mark the most popular items that together have 80 % of the events, (N,); the others are the tail."""
    order = np.argsort(-event_count, kind="stable")
    before = np.cumsum(event_count[order]) - event_count[order]
    is_head = np.zeros(len(event_count), np.bool_)
    is_head[order] = before < HEAD_SHARE * event_count.sum()
    return is_head


def label_column(column: pd.Series[Any]) -> Labels:
    """Label each row by its value, or by quartile where there are many numbers; None or NaN where missing.

    Texts count as numbers where all are written so and there are many: a CSV column that no feature reads is text.
    """
    if pd.api.types.infer_dtype(column, skipna=True) not in NUMBERS:
        column = pd.Series([to_text(value) for value in column], dtype="str")
        is_many = column.nunique() > MAX_VALUES
        if not (is_many and column.dropna().str.fullmatch(NUMBER).all()):
            return column.to_numpy(object)
        column = pd.to_numeric(column)
    if column.nunique() <= MAX_NUMBERS:
        return column.to_numpy(object)
    return _label_quartiles(pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan))


def _label_quartiles(numbers: Floats) -> Labels:
    is_finite = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[is_finite], [0, 0.25, 0.5, 0.75, 1]))
    names = np.array([f"{low} to {high}" for low, high in pairwise(_write_apart(edges))], object)
    labels: Labels = names[np.searchsorted(edges[1:-1], numbers, side="right").clip(max=len(names) - 1)]
    labels[~is_finite] = None
    return labels


def _write_apart(numbers: Floats) -> list[str]:
    """Write distinct numbers in 6 digits, or in the 17 in which no two look alike."""
    short = [f"{number:.6g}" for number in numbers]
    are_apart = len(set(short)) == len(short) and np.abs(numbers).max() < 1e6
    return short if are_apart else [f"{number:.17g}" for number in numbers]


def _measure_slice(lists: Ints, targets: Targets, labels: Labels) -> dict[str, Summary]:
    code, distinct = pd.factorize(labels)  # missing is -1
    names = [f"{value} (value)" if value in (MISSING, OTHER) else str(to_text(value)) for value in distinct]
    values = _join_rare(np.array([*names, MISSING], object)[code])
    return {value: summarise(measure_users(lists, targets.keep(values == value))) for value in sorted(set(values))}


def _join_rare(values: Labels) -> Labels:
    """Rename all but the most frequent values; of equally frequent ones the first in order stay."""
    code, distinct = pd.factorize(values, sort=True)
    is_frequent = np.zeros(len(distinct), np.bool_)
    is_frequent[np.argsort(-np.bincount(code), kind="stable")[:MAX_VALUES]] = True
    return np.where(is_frequent[code], values, OTHER)
