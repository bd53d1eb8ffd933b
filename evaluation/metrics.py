"""Accuracy of ranked lists, their effect on the catalogue, 95 % bootstrap intervals over users, and slices.

A request asks for one ranked list: a user at a moment. Lists are item rows, best first; -1 fills a short list and a
target outside the catalogue is -1: a miss that counts. Letters: B requests, K places of a list, T targets in all,
N items, U users, M metrics. A slice gives every target a label, (T,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from serve.arrays import Doubles, Flags, Ints
from serve.encode import to_text
from serve.schema import MIN_USERS

Summary = dict[str, float | list[float]]
Labels = npt.NDArray[Any]

CUTOFFS = (10, 20)
RESAMPLES = 1000
SEED = 20260101
BLOCK_BYTES = 2**26
MIN_USERS_TO_COMPARE = 20  # users below which the interval of a difference says nothing: that of one user is a point
SLICES = (
    "history",
    "item_events",
    "popularity",
)  # of every evaluation; all others are columns of the users table
COLD_EVENTS = 5
HEAD_SHARE = 0.8
NUMBERS = ("integer", "floating", "mixed-integer-float")
NUMBER = r"-?(0|[1-9]\d{0,14})(\.\d+)?"
"""Types of columns, and texts, that are numbers: 01234 is a code."""
MAX_NUMBERS = 12
MAX_VALUES = 20
"""Distinct numbers above which quartiles are labels, and labels above which the rare ones count together."""
MISSING = "missing"
OTHER = "other"


@dataclass(frozen=True)
class ItemSets:
    """A set of item rows (T,) per request; request b has the entries offsets[b] to offsets[b + 1]."""

    item_row: Ints
    offsets: Ints

    @classmethod
    def group(cls, request: Ints, item_row: Ints, n_requests: int) -> ItemSets:
        """Gather (request, item) pairs; their order inside a request stays."""
        order = np.argsort(request, kind="stable")
        return cls(
            item_row[order].astype(np.int64),
            _to_offsets(np.bincount(request, minlength=n_requests)),
        )

    @property
    def counts(self) -> Ints:
        """Entries of each request, (B,)."""
        return np.diff(self.offsets)

    @property
    def request(self) -> Ints:
        """Request of each entry, (T,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def keep(self, kept: Flags) -> ItemSets:
        """Keep the entries of the mask `kept` (T,)."""
        return ItemSets.group(
            self.request[kept], self.item_row[kept], len(self.offsets) - 1
        )

    def take(self, requests: Ints) -> ItemSets:
        """Return the sets of `requests`, in that order; one may be named twice."""
        counts = self.counts[requests]
        offsets = _to_offsets(counts)
        shift = np.repeat(self.offsets[requests] - offsets[:-1], counts)
        return ItemSets(self.item_row[np.arange(offsets[-1]) + shift], offsets)

    def contain(self, request: Ints, item_row: Ints) -> Flags:
        """Mark the pairs whose item is in the request's set; -1 never is."""
        width = 2 + max(item_row.max(initial=0), self.item_row.max(initial=0))
        held = np.append(
            np.sort(self.request * width + self.item_row), -1
        )  # -1: never empty
        asked = request * width + item_row
        return np.asarray(
            (held[np.searchsorted(held[:-1], asked)] == asked) & (item_row >= 0)
        )


@dataclass(frozen=True)
class Targets:
    """The items that B test requests should find, distinct inside a request, and the user row of each, (B,)."""

    items: ItemSets
    user: Ints

    def keep(self, kept: Flags) -> Targets:
        """Keep the target entries of the mask `kept` (T,)."""
        return Targets(self.items.keep(kept), self.user)


def hit_matrix(lists: Ints, targets: Targets) -> Flags:
    """Mark the places of each list that hold a target of its request, (B, K)."""
    return targets.items.contain(np.arange(len(lists))[:, None], lists)


def ndcg(hits: Flags, n_targets: Ints, k: int) -> Doubles:
    """Return the gain 1 / log2(rank + 1) of the hits among the first k over that of a perfect list."""
    gains = 1.0 / np.log2(np.arange(k) + 2.0)
    best = np.cumsum(gains)[np.minimum(n_targets, k) - 1]
    return np.asarray(hits[:, :k] @ gains[: hits.shape[1]] / best)


def measure_requests(
    hits: Flags, n_targets: Ints, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, Doubles]:
    """Return hit rate, recall, NDCG, MRR and MAP at each cutoff per request, (B,); each needs a target.

    The report's words for a metric are in `evaluation/templates/words.jinja`.
    """
    values: dict[str, Doubles] = {}
    for k in cutoffs:
        seen = hits[:, :k]
        precision = np.cumsum(seen, axis=1) / np.arange(1, seen.shape[1] + 1)
        values[f"HR@{k}"] = np.asarray(seen.any(axis=1), np.float64)
        values[f"Recall@{k}"] = seen.sum(axis=1) / n_targets
        values[f"NDCG@{k}"] = ndcg(hits, n_targets, k)
        values[f"MRR@{k}"] = seen.any(axis=1) / (seen.argmax(axis=1) + 1)
        values[f"MAP@{k}"] = (precision * seen).sum(axis=1) / np.minimum(n_targets, k)
    return values


def measure_users(
    lists: Ints, targets: Targets, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, Doubles]:
    """Return every metric averaged within each user, (U,), users ascending; requests need a target to count."""
    n_targets = targets.items.counts
    has_target = n_targets > 0
    values = measure_requests(
        hit_matrix(lists, targets)[has_target], n_targets[has_target], cutoffs
    )
    _, user = np.unique(targets.user[has_target], return_inverse=True)
    return {
        name: np.bincount(user, weights=value) / np.bincount(user)
        for name, value in values.items()
    }


def describe_lists(
    lists: Ints, targets: Targets, event_count: Ints, k: int
) -> dict[str, float]:
    """Return what the first k places of lists do to a catalogue whose items have `event_count` (N,) training events.

    Coverage: share of the catalogue in at least one list. Novelty: mean -log2 of the shown items' share of all events.
    Popularity lift: mean popularity of the shown items over that of the targets. Gini index of exposure. Events are
    counted plus one, so that a new item is finite.
    """
    shown = lists[:, :k]
    shown = shown[shown >= 0]
    n_shown = max(len(shown), 1)
    n_items = len(event_count)
    exposure = np.sort(np.bincount(shown, minlength=len(event_count)))
    share = (event_count + 1) / (event_count.sum() + len(event_count))
    popularity = np.append(event_count, 0) + 1.0  # the last one answers -1
    return {
        f"coverage@{k}": len(np.unique(shown)) / n_items,
        f"novelty@{k}": float(-np.log2(share[shown]).mean()) if len(shown) else 0.0,
        f"popularity_lift@{k}": float(
            popularity[shown].sum()
            / n_shown
            / popularity[targets.items.item_row].mean()
        ),
        f"gini@{k}": float(
            (2 * np.arange(1, n_items + 1) - n_items - 1)
            @ exposure
            / (n_items * n_shown)
        ),
    }


def summarise(values: Mapping[str, Doubles]) -> Summary:
    """Return the mean of each metric's values (U,), `<metric>_ci95` = [low, high] if there are users, and `users`."""
    matrix = np.stack(list(values.values()), axis=1)  # (U, M)
    summary: Summary = {"users": len(matrix)}
    if len(matrix):
        bounds = np.quantile(resample_means(matrix), (0.025, 0.975), axis=0)  # (2, M)
        for column, name in enumerate(values):
            summary[name] = float(matrix[:, column].mean())
            summary[f"{name}_ci95"] = bounds[:, column].tolist()
    return summary


def sign(difference: Mapping[str, Any], metric: str) -> int:
    """Return 1 or -1 where the interval of a difference is on one side of 0 and is of enough users, else 0."""
    low, high = difference[f"{metric}_ci95"]
    return (
        0
        if difference["users"] < MIN_USERS_TO_COMPARE
        else int(low > 0) - int(high < 0)
    )


def resample_means(values: Doubles) -> Doubles:
    """Return the column means of `RESAMPLES` bootstrap samples of the rows (U, M), drawn as counts, (RESAMPLES, M)."""
    rng = np.random.default_rng(SEED)
    n_users = len(values)
    block = max(1, BLOCK_BYTES // (8 * n_users))
    means = []
    for start in range(0, RESAMPLES, block):
        draws = range(start, min(start + block, RESAMPLES))
        counts = [
            np.bincount(rng.integers(n_users, size=n_users), minlength=n_users)
            for _ in draws
        ]
        means.append(np.stack(counts).astype(np.float64) @ values / n_users)
    return np.concatenate(means)


def measure_slices(
    lists: Ints, targets: Targets, labels: Mapping[str, Labels]
) -> dict[str, dict[str, Summary]]:
    """Return slice -> value -> metrics with intervals of lists (B, K), given a label per target (T,)."""
    return {
        name: {
            value: summarise(measure_users(lists, part))
            for value, part in values.items()
        }
        for name, values in slice_targets(targets, labels).items()
    }


def slice_targets(
    targets: Targets, labels: Mapping[str, Labels]
) -> dict[str, dict[str, Targets]]:
    """Return slice -> value -> the targets of that value, given a label per target (T,).

    None and NaN become the value `missing`, rare values `other`, and labels of these texts `missing (value)`, `other
    (value)`. Of equally frequent values the first in order stay. Those of fewer than `MIN_USERS` users are rare, too.
    """
    user = pd.Series(targets.user[targets.items.request])
    slices: dict[str, dict[str, Targets]] = {}
    for name, column in labels.items():
        code, distinct = pd.factorize(column)  # missing is -1
        names = [
            f"{value} (value)" if value in (MISSING, OTHER) else str(to_text(value))
            for value in distinct
        ]
        values = pd.Series(np.array([*names, MISSING], object)[code])
        frequent = (
            values.value_counts()
            .sort_index()
            .sort_values(ascending=False, kind="stable")
            .index[:MAX_VALUES]
        )
        n_users = user.groupby(values).transform("nunique")
        values = values.where(values.isin(frequent) & (n_users >= MIN_USERS), OTHER)
        n_left = user.groupby(values).nunique()  # `other` may have too few
        masks = {
            value: (values == value).to_numpy()
            for value in sorted(n_left.index[n_left >= MIN_USERS])
        }
        slices[name] = {value: targets.keep(mask) for value, mask in masks.items()}
    return slices


def label_targets(
    targets: Targets,
    history_length: Ints,
    event_count: Ints,
    groups: Mapping[str, Labels],
) -> dict[str, Labels]:
    """Label every target by the history of its user (B,), the events of its item (N,) and each group of user rows.

    A group that is named like one of ours keeps its labels under `NAME (column)`.
    """
    request = targets.items.request
    item_row = targets.items.item_row
    history = np.searchsorted([1, 5, 20], history_length, side="right")
    is_cold = event_count < COLD_EVENTS  # (N,) each
    is_tail = ~find_head(event_count)
    labels: dict[str, Labels] = {  # a target outside the catalogue, -1, is new
        "history": np.array(["0", "1-4", "5-19", "20+"])[history][request],
        "item_events": np.where(np.append(is_cold, True)[item_row], "0-4", "5+"),
        "popularity": np.where(np.append(is_tail, True)[item_row], "tail", "head"),
    }
    named = {
        f"{name} (column)" if name in labels else name: column
        for name, column in groups.items()
    }
    return labels | {
        name: column[targets.user][request] for name, column in named.items()
    }


def find_head(event_count: Ints) -> Flags:
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


def _label_quartiles(numbers: Doubles) -> Labels:
    is_finite = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[is_finite], [0, 0.25, 0.5, 0.75, 1]))
    written = [f"{edge:.6g}" for edge in edges]
    if len(set(written)) < len(written) or np.abs(edges).max() >= 1e6:
        written = [f"{edge:.17g}" for edge in edges]  # in which no two look alike
    names = np.array([f"{low} to {high}" for low, high in pairwise(written)], object)
    labels: Labels = names[
        np.searchsorted(edges[1:-1], numbers, side="right").clip(max=len(names) - 1)
    ]
    labels[~is_finite] = None
    return labels


def _to_offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
