"""The same lists, judged on parts of the targets: short histories, new items, the tail, groups of users.

A slice gives every target a label; the metrics of a value are those of the targets with that label. Lists
stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evaluation.intervals import Summary, summarise
from evaluation.metrics import Floats, measure_users
from evaluation.targets import Bools, Ints, Targets
from serve.encoding import to_text

Labels = npt.NDArray[Any]

HISTORY_GROUPS = {0: "0", 1: "1-4", 5: "5-19", 20: "20+"}
COLD_EVENTS = 5
HEAD_SHARE = 0.8
NUMBERS = ("integer", "floating", "mixed-integer-float")
NUMBER = r"-?(0|[1-9]\d{0,14})(\.\d+)?"
"""A text that is a number: 01234 is a code."""
MOST_NUMBERS = 12
"""Numbers with more distinct values are labelled by quartile."""
FEWEST_DIGITS, MOST_DIGITS = 6, 17
"""That the ends of quartiles are written with; two different numbers differ in 17 digits."""
MOST_VALUES = 20
"""Values of a slice that are measured, the most frequent ones; the others count together."""
MISSING, OTHER = "missing", "other"


def measure_slices(lists: Ints, targets: Targets, labels: Mapping[str, Labels]) -> dict[str, dict[str, Summary]]:
    """Return slice -> value -> metrics with intervals and the number of users.

    Args:
        lists: (B, K).
        targets: of the B requests, T in all.
        labels: slice -> (T,), a label per target; None and NaN become the value `missing`. A label of this text, or
            `other`, as the rare ones together are called, becomes `missing (value)`, `other (value)`.
    """
    return {name: _measure_slice(lists, targets, column) for name, column in labels.items()}


def label_targets(
    targets: Targets, history_length: Ints, event_count: Ints, groups: Mapping[str, Labels]
) -> dict[str, Labels]:
    """Label every target, (T,), by the history of its user, the events of its item and each group.

    Args:
        targets: T in all.
        history_length: (B,) training events of each request's user.
        event_count: (N,) training events of each item.
        groups: name -> (users,), a label per user, indexed by `targets.user`. One that is called as ours are keeps its
            labels under `NAME (column)`.
    """
    request = targets.items.request
    labels: dict[str, Labels] = {
        "history": label_history(history_length)[request],
        "item_events": np.where(_of_items(event_count < COLD_EVENTS, targets), "0-4", "5+"),
        "popularity": np.where(_of_items(~find_head(event_count), targets), "tail", "head"),
    }
    named = {f"{name} (column)" if name in labels else name: column for name, column in groups.items()}
    return labels | {name: column[targets.user][request] for name, column in named.items()}


def label_column(column: pd.Series[Any]) -> Labels:
    """Label each row by its value, or by quartile where there are many numbers; None or NaN where missing.

    What is one value to a vocabulary is one label, whatever the space around it, and an empty text is missing. Texts
    are numbers where all are written so and they are too many to be measured one by one: a column of a CSV file that
    no feature reads is text.
    """
    if pd.api.types.infer_dtype(column, skipna=True) not in NUMBERS:
        column = pd.Series([to_text(value) for value in column], dtype="str")
    if _are_many_numbers(column):
        column = pd.to_numeric(column)
    labels: Labels = column.to_numpy(object)
    if pd.api.types.infer_dtype(column, skipna=True) not in NUMBERS or column.nunique() <= MOST_NUMBERS:
        return labels
    numbers = pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan)
    is_finite = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[is_finite], [0, 0.25, 0.5, 0.75, 1]))
    names = np.array([f"{low} to {high}" for low, high in pairwise(_write_apart(edges))], object)
    quartile = np.searchsorted(edges[1:-1], numbers, side="right")
    labels = names[quartile.clip(max=len(names) - 1)]
    labels[~is_finite] = None
    return labels


def _are_many_numbers(column: pd.Series[Any]) -> bool:
    if not isinstance(column.dtype, pd.StringDtype) or column.nunique() <= MOST_VALUES:
        return False
    return bool(column.dropna().str.fullmatch(NUMBER).all())


def _write_apart(numbers: Floats) -> list[str]:
    """Write distinct numbers so that no two look alike, and whole ones of up to 17 digits without an exponent."""
    whole_digits = len(f"{np.abs(numbers).max():.0f}")
    for digits in range(min(max(FEWEST_DIGITS, whole_digits), MOST_DIGITS), MOST_DIGITS):
        texts = [f"{number:.{digits}g}" for number in numbers]
        if len(set(texts)) == len(texts):
            return texts
    return [f"{number:.{MOST_DIGITS}g}" for number in numbers]


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


def _measure_slice(lists: Ints, targets: Targets, labels: Labels) -> dict[str, Summary]:
    code, distinct = pd.factorize(labels)  # missing is -1
    values = _join_rare(np.array([*map(_name_value, distinct), MISSING], object)[code])
    return {value: summarise(measure_users(lists, targets.keep(values == value))) for value in sorted(set(values))}


def _name_value(value: Any) -> str:
    """Write a value; "other", which may be what people say of themselves, and "missing" are told from ours."""
    return f"{value} (value)" if value in (MISSING, OTHER) else str(to_text(value))


def _join_rare(values: Labels) -> Labels:
    """Rename all but the most frequent values; of equally frequent ones the first in order stay."""
    code, distinct = pd.factorize(values, sort=True)
    is_frequent = np.zeros(len(distinct), np.bool_)
    is_frequent[np.argsort(-np.bincount(code), kind="stable")[:MOST_VALUES]] = True
    return np.where(is_frequent[code], values, OTHER)
