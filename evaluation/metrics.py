"""Accuracy of ranked lists, their effect on the catalogue, 95 % bootstrap intervals, and slices.

A request asks for one ranked list: a user at a moment. Lists are item rows, best first; -1 fills
a short list, and a target outside the catalogue is -1: a miss that counts. Letters: B requests,
K places of a list, T targets in all, N items, U users, M metrics. A slice labels each target, (T,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtrit

from serve.arrays import Doubles, Flags, Ints, Repeats
from serve.cells import to_text
from serve.errors import SchemaError
from serve.schema import MIN_USERS

Summary = dict[str, float | list[float]]
# hits (B, K) of lists and the targets of each request (B,) -> a value per request, (B,)
Metric = Callable[[Flags, Ints], Doubles]
Labels = npt.NDArray[Any]

CUTOFFS = (10, 20)
# the interval of fewer users says nothing: that of one is a point
MIN_USERS_TO_COMPARE = 20
# all other slices are columns of the users table
SLICES = ("history", "item_events", "popularity")
COLD_EVENTS = 5  # an item with fewer training events is cold
HEAD_SHARE = 0.8  # share of all events that falls on the head of the catalogue
# pandas' names of numeric columns
NUMBERS = ("integer", "floating", "mixed-integer-float")
NUMBER = r"-?(0|[1-9]\d{0,14})(\.\d+)?"  # a text that is a number; 01234 is a code
MAX_NUMBERS = 12  # above so many distinct numbers, quartiles are the labels
MAX_VALUES = 20  # above so many labels, the rare ones count together
MISSING = "missing"
OTHER = "other"


@dataclass(frozen=True)
class ItemSets:
    """A set of item rows (T,) per request: offsets[b] to offsets[b + 1] are of request b."""

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

    def keep(self, mask: Flags) -> ItemSets:
        """Keep the entries of a mask (T,)."""
        n_requests = len(self.offsets) - 1
        return ItemSets.group(self.request[mask], self.item_row[mask], n_requests)

    def take(self, requests: Ints) -> ItemSets:
        """Return the sets of `requests`, in that order; one may be named twice."""
        counts = self.counts[requests]
        offsets = _to_offsets(counts)
        shift = np.repeat(self.offsets[requests] - offsets[:-1], counts)
        return ItemSets(self.item_row[np.arange(offsets[-1]) + shift], offsets)

    def contain(self, request: Ints, item_row: Ints) -> Flags:
        """Mark the pairs whose item is in the request's set; -1 never is."""
        width = 2 + max(item_row.max(initial=0), self.item_row.max(initial=0))
        members = np.sort(self.request * width + self.item_row)
        pairs = request * width + item_row

        nearest = np.append(members, -1)[np.searchsorted(members, pairs)]
        return np.asarray((nearest == pairs) & (item_row >= 0))


@dataclass(frozen=True)
class Targets:
    """The items that B test requests should find, distinct inside one, and their user rows (B,)."""

    items: ItemSets
    user: Ints

    def keep(self, mask: Flags) -> Targets:
        """Keep the target entries of a mask (T,)."""
        return Targets(self.items.keep(mask), self.user)


def headline_metric(repeats: Repeats) -> str:
    """Return the metric that models are tuned and compared by."""
    return "NDCG@20" if repeats == "allow" else "NDCG@10"


def hit_matrix(lists: Ints, targets: Targets) -> Flags:
    """Mark the places of each list that hold a target of its request, (B, K)."""
    return targets.items.contain(np.arange(len(lists))[:, None], lists)


def ndcg(hits: Flags, n_targets: Ints, k: int) -> Doubles:
    """Return the normalised discounted cumulative gain (Järvelin and Kekäläinen 2002) of each list.

    Args:
        hits: (B, K) places that hold a target.
        n_targets: (B,) targets of each request, at least one.
        k: places that count; the hit at rank r gains 1 / log2(r + 1).

    Returns:
        (B,) gains divided by that of a perfect list, 0 to 1.
    """
    gains = 1.0 / np.log2(np.arange(k) + 2.0)
    best = np.cumsum(gains)[np.minimum(n_targets, k) - 1]
    return np.asarray(hits[:, :k] @ gains[: hits.shape[1]] / best)


def measure_requests(
    hits: Flags, n_targets: Ints, cutoffs: tuple[int, ...] = CUTOFFS
) -> dict[str, Doubles]:
    """Return hit rate, recall, NDCG, MRR and MAP at each cutoff.

    The report's words for a metric are in `evaluation/templates/words.jinja`.

    Args:
        hits: (B, K) places that hold a target.
        n_targets: (B,) targets of each request, at least one.
        cutoffs: lengths k at which the lists are cut.

    Returns:
        `<metric>@<k>` -> a value per request, (B,).
    """
    values: dict[str, Doubles] = {}
    for k in cutoffs:
        top = hits[:, :k]
        has_hit = top.any(axis=1)
        precision = np.cumsum(top, axis=1) / np.arange(1, top.shape[1] + 1)

        values[f"HR@{k}"] = np.asarray(has_hit, np.float64)
        values[f"Recall@{k}"] = top.sum(axis=1) / n_targets
        values[f"NDCG@{k}"] = ndcg(hits, n_targets, k)
        values[f"MRR@{k}"] = has_hit / (top.argmax(axis=1) + 1)
        values[f"MAP@{k}"] = (precision * top).sum(axis=1) / np.minimum(n_targets, k)

    return values


def measure_users(
    lists: Ints,
    targets: Targets,
    cutoffs: tuple[int, ...] = CUTOFFS,
    own: Sequence[Metric] = (),
) -> dict[str, Doubles]:
    """Return every metric averaged within each user.

    Args:
        lists: (B, K) item rows, best first.
        targets: the items to find; requests without one do not count.
        cutoffs: lengths k at which the lists are cut.
        own: further metrics, which go by the names of their functions.

    Returns:
        `<metric>@<k>` -> a value per user, (U,), users ascending.

    Raises:
        SchemaError: a metric of one's own gives no number for each request.
    """
    n_targets = targets.items.counts
    has_target = n_targets > 0
    hits = hit_matrix(lists, targets)[has_target]
    values = measure_requests(hits, n_targets[has_target], cutoffs)
    for metric in own:
        found = np.asarray(metric(hits, n_targets[has_target]), np.float64)
        if found.shape != (len(hits),) or not np.isfinite(found).all():
            raise SchemaError(
                f"metric {metric.__name__}: expected a number for each of {len(hits)} requests"
            )
        values[metric.__name__] = found

    _, user = np.unique(targets.user[has_target], return_inverse=True)
    n_requests = np.bincount(user)
    return {
        name: np.bincount(user, weights=value) / n_requests
        for name, value in values.items()
    }


def describe_lists(
    lists: Ints, targets: Targets, event_count: Ints, k: int
) -> dict[str, float]:
    """Return what the first k places of lists do to a catalogue.

    Coverage: share of the catalogue in at least one list. Novelty: mean -log2 of the shown items'
    share of all events. Popularity lift: mean popularity of the shown items over that of the
    targets. Gini index of exposure. Events count plus one, so that a new item is finite.

    Args:
        lists: (B, K) item rows, best first.
        targets: the items that the lists should hold.
        event_count: (N,) training events of each item.
        k: places that count.
    """
    n_items = len(event_count)
    shown = lists[:, :k]
    shown = shown[shown >= 0]
    n_shown = max(len(shown), 1)
    exposure = np.sort(np.bincount(shown, minlength=n_items))
    share = (event_count + 1) / (event_count.sum() + n_items)

    popularity = np.append(event_count, 0) + 1.0  # the last one answers -1
    chosen = popularity[targets.items.item_row].mean()
    lift = float(popularity[shown].sum() / n_shown / chosen)
    novelty = float(-np.log2(share[shown]).mean()) if len(shown) else 0.0
    inequality = (2 * np.arange(1, n_items + 1) - n_items - 1) @ exposure
    gini = float(inequality / (n_items * n_shown))

    return {
        f"coverage@{k}": np.count_nonzero(exposure) / n_items,
        f"novelty@{k}": novelty,
        f"popularity_lift@{k}": lift,
        f"gini@{k}": gini,
    }


def summarise(values: Mapping[str, Doubles]) -> Summary:
    """Return means and intervals over users.

    Args:
        values: metric -> a value per user, (U,).

    Returns:
        `users`, and if there are any, `<metric>` and `<metric>_ci95` = [low, high].
    """
    matrix = np.stack(list(values.values()), axis=1)  # (U, M)
    summary: Summary = {"users": len(matrix)}
    if len(matrix):
        bounds = find_bounds(matrix)
        for column, name in enumerate(values):
            summary[name] = float(matrix[:, column].mean())
            summary[f"{name}_ci95"] = bounds[:, column].tolist()

    return summary


def find_bounds(values: Doubles) -> Doubles:
    """Return the bounds of 95 % of the column means.

    They are those of Student's t, the one on the side of the skew further out (Johnson, JASA 1978):
    the percentiles of a bootstrap hold the truth too seldom where rows are few.

    Args:
        values: (U, M).

    Returns:
        (2, M).
    """
    n_users = len(values)
    mean = values.mean(axis=0)
    if n_users == 1:
        return np.stack([mean, mean])

    quantile = stdtrit(n_users - 1, 0.975)
    variance = np.maximum(values.var(axis=0, ddof=1), 1e-18)
    half = quantile * np.sqrt(variance / n_users)
    cubes = ((values - mean) ** 3).mean(axis=0)
    shift = cubes / variance * (1 + 2 * quantile**2) / (6 * n_users)
    return np.stack([mean - half + shift.clip(max=0), mean + half + shift.clip(min=0)])


def sign(difference: Mapping[str, Any], metric: str) -> int:
    """Return 1 or -1 if enough users put the interval of a difference on one side of 0, else 0."""
    if difference["users"] < MIN_USERS_TO_COMPARE:
        return 0
    low, high = difference[f"{metric}_ci95"]
    return int(low > 0) - int(high < 0)


def measure_slices(
    lists: Ints, targets: Targets, labels: Mapping[str, Labels]
) -> dict[str, dict[str, Summary]]:
    """Return slice -> value -> metrics with intervals.

    Args:
        lists: (B, K) item rows, best first.
        targets: the items to find.
        labels: slice -> a label per target, (T,).
    """
    measured = {}
    for name, targets_by_value in slice_targets(targets, labels).items():
        measured[name] = {
            value: summarise(measure_users(lists, part))
            for value, part in targets_by_value.items()
        }

    return measured


def slice_targets(
    targets: Targets, labels: Mapping[str, Labels]
) -> dict[str, dict[str, Targets]]:
    """Return slice -> value -> the targets of that value, given a label per target (T,).

    None and NaN become the value `missing`; rare values, and those of fewer than `MIN_USERS`
    users, become `other`. Of equally frequent values the first in order stay.
    """
    user = targets.user[targets.items.request]
    slices: dict[str, dict[str, Targets]] = {}
    for name, column in labels.items():
        values = merge_rare(name_labels(column), user)
        n_left = pd.Series(user).groupby(values).nunique()  # `other` may have too few
        large = sorted(n_left.index[n_left >= MIN_USERS])
        slices[name] = {
            value: targets.keep((values == value).to_numpy()) for value in large
        }

    return slices


def name_labels(column: Labels) -> pd.Series[Any]:
    """Return labels as texts; None and NaN become `missing`."""
    codes, distinct = pd.factorize(column)  # missing is -1
    names = np.array([*map(to_text, distinct), MISSING], object)
    return pd.Series(names[codes])


def merge_rare(values: pd.Series[Any], user: Ints) -> pd.Series[Any]:
    """Name rare values, and those of fewer than `MIN_USERS` users, `other`.

    Args:
        values: a text per row; of equally frequent ones the first in order stay.
        user: the user of each row.
    """
    frequent = (
        values.value_counts()
        .sort_index()
        .sort_values(ascending=False, kind="stable")
        .index[:MAX_VALUES]
    )
    n_users = pd.Series(user).groupby(values).transform("nunique")
    is_own = values.isin(frequent) & (n_users >= MIN_USERS)
    return values.where(is_own, OTHER)


def label_targets(
    targets: Targets,
    history_length: Ints,
    event_count: Ints,
    groups: Mapping[str, Labels],
) -> dict[str, Labels]:
    """Label every target by the history of its user, the events of its item, and groups of users.

    Args:
        targets: the items to find; one outside the catalogue, -1, is new.
        history_length: (B,) events of each request's user.
        event_count: (N,) training events of each item.
        groups: name -> a label per user row. A group that is named like one of ours becomes
            `NAME (column)`.

    Returns:
        slice -> a label per target, (T,).
    """
    request = targets.items.request
    item_row = targets.items.item_row
    length = np.searchsorted([1, 5, 20], history_length, side="right")
    lengths = np.array(["0", "1-4", "5-19", "20+"])[length]
    labels: dict[str, Labels] = {"history": lengths[request]}
    for name, of_items in label_items(np.append(event_count, 0)).items():
        labels[name] = of_items[item_row]  # the last one answers -1

    for name, column in groups.items():
        unique_name = f"{name} (column)" if name in SLICES else name
        labels[unique_name] = column[targets.user][request]

    return labels


def label_items(event_count: Ints) -> dict[str, Labels]:
    """Label each item (N,) as new or known, and as of the head or the tail, by its events."""
    return {
        "item_events": np.where(event_count < COLD_EVENTS, "0-4", "5+"),
        "popularity": np.where(find_head(event_count), "head", "tail"),
    }


def find_head(event_count: Ints) -> Flags:
    """Mark the most popular items that together have 80 % of the events; the others are the tail.

    Args:
        event_count: (N,) training events of each item.

    Returns:
        (N,); of equally popular items the first come first.
    """
    order = np.argsort(-event_count, kind="stable")
    before = np.cumsum(event_count[order]) - event_count[order]
    n_head = np.count_nonzero(before < HEAD_SHARE * event_count.sum())
    return np.isin(np.arange(len(order)), order[:n_head])


def label_column(column: pd.Series[Any]) -> Labels:
    """Label each row by its value, or by quartile where there are many numbers.

    Texts count as numbers where all are written so and there are many: a CSV column that no
    feature reads is text.

    Returns:
        A label per row; None or NaN where missing.
    """
    if pd.api.types.infer_dtype(column, skipna=True) not in NUMBERS:
        texts = pd.Series([to_text(value) for value in column], dtype="str")
        has_numbers = texts.dropna().str.fullmatch(NUMBER).all()
        if texts.nunique() <= MAX_VALUES or not has_numbers:
            return texts.to_numpy(object)
        column = pd.to_numeric(texts)

    if column.nunique() <= MAX_NUMBERS:
        return column.to_numpy(object)
    return _label_quartiles(pd.to_numeric(column).to_numpy(np.float64, na_value=np.nan))


def _label_quartiles(numbers: Doubles) -> Labels:
    is_finite = np.isfinite(numbers)
    edges = np.unique(np.quantile(numbers[is_finite], [0, 0.25, 0.5, 0.75, 1]))
    texts = [f"{edge:.6g}" for edge in edges]
    if len(set(texts)) < len(texts) or np.abs(edges).max() >= 1e6:
        texts = [f"{edge:.17g}" for edge in edges]  # no two of these look alike

    names = np.array([f"{low} to {high}" for low, high in pairwise(texts)], object)
    quartile = np.searchsorted(edges[1:-1], numbers, side="right")
    labels: Labels = names[quartile.clip(max=len(names) - 1)]
    labels[~is_finite] = None
    return labels


def _to_offsets(counts: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
