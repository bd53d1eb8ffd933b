"""Events of many users as flat arrays, and the named arrays that the user tower reads of them.

The same numpy code runs in training and in serving. The tower reads item *vectors*; here are item rows, for which
training gathers vectors from its table and serving from the bundle's.
Letters: B requests, L history positions, E owned items of all requests, C codes, V values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Floats, Ints
from serve.clock import DAY
from serve.encode import EncodedFeatures, age_values
from serve.schema import FIRST_CODE, Schema

Arrays = dict[str, np.ndarray]

HISTORY_INPUTS = (
    "history_events",
    "history_weights",
    "history_times",
    "history_groups",
    "history_lengths",
)
REQUEST_INPUTS = (
    "request_times",
    "user_codes",
    "user_values",
    "context_codes",
    "context_values",
)
OWNED_INPUTS = (
    "owned_users",
    "owned_statistics",
    "owned_preferences",
    "user_statistics",
    "category_preferences",
)
VECTOR_INPUTS = ("history_vectors", "owned_vectors")
USER_STATISTICS = (
    "items",
    "recent_events",
    "events",
    "recent_visits",
    "days_since_visit",
    "days_of_membership",
)

SCALE_CONSTANT = 2  # index into decay_days: the constant that preferences and profile weights decay with
PREFERENCE_GAIN = 3.0

_SCATTER = 2654435761  # multiplicative hashing (Knuth, TAOCP 3, 6.4)
_SCATTERED = 1 << 32


@dataclass(frozen=True)
class Events:
    """Segment b, `offsets[b]:offsets[b + 1]`, holds the events of one user or request, oldest first.

    Shapes: `offsets` (B + 1,), every other array (E,).
    """

    item_row: Ints
    time: Ints  # UTC seconds; 0 where the data has no time
    event: Ints  # code of the event type; 1 = unknown or none
    weight: Floats
    offsets: Ints
    context: np.ndarray | None = (
        None  # keys of what they happened in, 0 where unknown; None: nothing is known
    )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> Ints:
        """Events per segment, (B,)."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def segments(self) -> Ints:
        """Segment of each event, (E,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    @cached_property
    def is_first_of_time(self) -> NDArray[np.bool_]:
        """Which events are the first at their time in their segment, (E,)."""
        is_first = np.ones(len(self.time) + 1, dtype=bool)
        np.not_equal(self.time[1:], self.time[:-1], out=is_first[1:-1])
        is_first[self.offsets[:-1]] = (
            True  # empty segments at the end begin one past the events
        )
        return is_first[:-1]

    def between(self, start: Ints, stop: Ints) -> Events:
        """Take the events `start[b]:stop[b]` as segment b."""
        return self.pick(
            spans(start, stop), np.concatenate([[0], np.cumsum(stop - start)])
        )

    def pick(self, places: Ints, offsets: Ints) -> Events:
        """Take events by their place in the flat arrays, as the segments that `offsets` says."""
        columns = (
            self.item_row[places],
            self.time[places],
            self.event[places],
            self.weight[places],
        )
        return Events(
            *columns, offsets, None if self.context is None else self.context[places]
        )

    def last(self, length: int) -> Events:
        """Keep the last `length` events of each segment."""
        if len(self.item_row) <= length or self.counts.max(initial=0) <= length:
            return self
        stop = self.offsets[1:]
        return self.between(np.maximum(self.offsets[:-1], stop - length), stop)


def spans(start: Ints, stop: Ints) -> Ints:
    """Return the places `start[b]:stop[b]` of all b one after the other."""
    counts = stop - start
    ends = np.cumsum(counts)
    return np.asarray(
        np.repeat(start - ends + counts, counts) + np.arange(counts.sum()), np.int64
    )


# ---- histories and requests


@dataclass(frozen=True)
class TowerInputs:
    """`arrays` by name, and the item rows whose vectors complete them: history (B, L), owned (E,)."""

    arrays: Arrays
    history_rows: Ints
    owned_rows: Ints


def history_arrays(
    events: Events, schema: Schema, keys: Ints | None = None
) -> tuple[Arrays, Ints]:
    """Pad the last `history_length` events of each request to rectangles (B, L), L at least 1: arrays and item rows.

    With the keys of the requests' contexts, (B,), there is also `history_matches`: 1 where an event had the same.
    """
    is_same = (
        np.zeros(len(events.item_row))
        if keys is None
        else _match_contexts(events, keys)
    )
    events = replace(events, context=is_same)
    recent = (as_sets(events) if schema.is_set else events).last(schema.history_length)
    is_event = (
        np.arange(max(1, recent.counts.max(initial=0))) < recent.counts[:, None]
    )  # (B, L)

    def pad(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(is_event.shape, dtype=values.dtype)
        padded[is_event] = values
        return padded

    arrays = {
        "history_events": pad(recent.event),
        "history_weights": pad(standardise_weight(recent.weight, schema)),
        "history_times": pad(recent.time),
        "history_groups": pad(number_groups(recent, schema)),
        "history_lengths": recent.counts,
    }
    if keys is not None:
        arrays["history_matches"] = pad(np.asarray(recent.context))
    return arrays, pad(recent.item_row)


def _match_contexts(events: Events, keys: Ints) -> Floats:
    of_request = keys[events.segments]
    is_same = (
        False
        if events.context is None
        else (events.context == of_request) & (of_request != 0)
    )
    return np.broadcast_to(is_same, of_request.shape).astype(np.float32)


def as_sets(events: Events) -> Events:
    """Keep one event of each item, the heaviest, in an order that depends on the items alone.

    The greatest context of its events goes with it, so that one that matches a request is enough.
    """
    segment = events.segments
    order = np.lexsort(
        (events.event, events.weight, events.item_row * _SCATTER % _SCATTERED, segment)
    )
    segment = segment[order]
    row = events.item_row[order]
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (segment[1:] != segment[:-1]) | (row[1:] != row[:-1])
    counts = np.bincount(segment[is_last], minlength=len(events))
    kept = events.pick(order[is_last], np.concatenate([[0], np.cumsum(counts)]))
    if events.context is None or not len(order):
        return kept
    starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
    return replace(kept, context=np.maximum.reduceat(events.context[order], starts))


def number_groups(events: Events, schema: Schema) -> Ints:
    """Number the groups of events that see each other, from 1 in each segment: each alone, or all of one time."""
    segment = events.segments
    if schema.ties == "ordered":
        return np.arange(1, len(segment) + 1) - events.offsets[segment]
    running = events.is_first_of_time.cumsum()
    return np.asarray(running - running[events.offsets[segment]] + 1, np.int64)


def standardise_weight(weight: np.ndarray, schema: Schema) -> Floats:
    """Scale log(1 + weight) by its mean and deviation over training rows; 0 where the data has no weight."""
    if not schema.has_weight:
        return np.zeros(len(weight), dtype=np.float32)
    standard = (
        np.log1p(np.maximum(weight, 0)) - schema.weight_mean
    ) / schema.weight_scale
    return np.asarray(np.clip(standard, -10, 10), np.float32)


def request_arrays(
    moment: Ints, user: EncodedFeatures, context: EncodedFeatures, schema: Schema
) -> Arrays:
    """Name the request's own arrays; dates of users become ages at its moment."""
    aged = age_values(
        schema.user_features, user.values, (moment - schema.data_until) / DAY
    )
    return dict(
        zip(
            REQUEST_INPUTS,
            (moment, user.codes, aged, context.codes, context.values),
            strict=True,
        )
    )


def last_moments(events: Events, empty: int = 0) -> Ints:
    """Return the time of each segment's last event, `empty` for one without events, (B,)."""
    last = np.where(events.counts > 0, events.offsets[1:], 0) - 1
    return np.asarray(np.append(events.time, empty)[last], np.int64)


# ---- owned items: counts, recencies and rhythm of each, the inputs of the memory


@dataclass(frozen=True)
class Owned:
    """The owned items of B users, flat, ordered by user and `item_row`; E rows in all."""

    user: Ints  # segment of each row, (E,)
    item_row: Ints
    statistics: Floats  # (E, F): decayed counts, `_rhythm`, just bought, share, rate of repeats, counts by type
    preference: Floats  # (E,): log(1 + 3 x decayed count)
    user_statistics: Floats  # (B, G), columns as in `USER_STATISTICS`


def statistic_names(
    decay_days: Sequence[float], event_types: Sequence[str]
) -> list[str]:
    """Name the columns of `Owned.statistics`; the decayed counts come first."""
    return [
        *(f"decayed_{days:g}" for days in decay_days),
        *(
            "count",
            "since_last",
            "since_first",
            "is_repeated",
            "due",
            "mean_gap",
            "just_bought",
            "share",
        ),
        "repeat_rate",
        *(f"event_{name}" for name in event_types),
    ]


def summarise_owned(
    events: Events,
    moment: Ints,
    decay_days: Sequence[float],
    n_event_types: int,
    repeat_rate: Floats,
) -> Owned:
    """Summarise each user's events by item, as of a moment of theirs (B,); events after it count as happening at it."""
    segment = events.segments
    since = np.maximum(moment[segment] - events.time, 0) / DAY  # (events,) days
    key = segment * len(repeat_rate) + events.item_row
    order = key.argsort(kind="stable")  # an item's events stay oldest first
    sorted_key = key[order]
    is_edge = np.ones(len(order) + 1, dtype=bool)
    np.not_equal(sorted_key[1:], sorted_key[:-1], out=is_edge[1:-1])
    runs = is_edge.nonzero()[
        0
    ]  # (E + 1,) where each run of equal keys begins, and where the last one ends
    firsts = order[runs[:-1]]  # (E,) where an item's first event is
    user = segment[firsts]
    rows = events.item_row[firsts]
    count = runs[1:] - runs[:-1]
    since_first = since[firsts]
    since_last = since[order[runs[1:] - 1]]
    decayed, by_type = _sum_runs(
        since[order], events.event[order], runs, decay_days, n_event_types
    )
    columns = [
        np.log(decayed + 0.01),
        _rhythm(count, since_last, since_first),
        [
            np.exp(since_last / (-0.7 * decay_days[0])),
            np.log(count / events.counts[user]),
            repeat_rate[rows],
        ],
        np.log1p(by_type),
    ]
    preference = np.log1p(
        PREFERENCE_GAIN * decayed[min(SCALE_CONSTANT, len(decayed) - 1)]
    )
    return Owned(
        user,
        rows,
        np.concatenate(columns).T.astype(np.float32, order="C"),
        preference.astype(np.float32),
        _summarise_users(
            events, since, np.bincount(user, minlength=len(events)), decay_days
        ),
    )


def _rhythm(
    count: Ints, since_last: np.ndarray, since_first: np.ndarray
) -> list[np.ndarray]:
    """Return the columns from `count` to `mean_gap`, (E,) each."""
    mean_gap = (since_first - since_last) / np.maximum(count - 1, 1)
    log_count, log_last, log_first, log_gap = np.log1p(
        np.array([count, since_last, since_first, mean_gap])
    )
    return [
        log_count,
        log_last,
        log_first,
        count > 1,
        (count > 1) * (log_last - log_gap),
        log_gap,
    ]


def _sum_runs(
    since: np.ndarray,
    event: Ints,
    runs: Ints,
    decay_days: Sequence[float],
    n_event_types: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Count the events of each run: with each decay (decays, E), and of each type (types, E), float64."""
    decays = np.array(decay_days)[:, None]
    types = np.arange(FIRST_CODE, FIRST_CODE + n_event_types)[:, None]
    terms = np.concatenate(
        [np.exp(since / -decays), event == types]
    )  # (decays + types, events)
    sums = np.add.reduceat(terms, runs[:-1], axis=1)
    return sums[: len(decays)], sums[len(decays) :]


def _summarise_users(
    events: Events, since: np.ndarray, n_items: Ints, decay_days: Sequence[float]
) -> Floats:
    """Summarise how much and how lately each user came, (B, G)."""
    segment = events.segments
    n = len(events)
    is_recent = since < decay_days[min(1, len(decay_days) - 1)]
    spans = [*pairwise(events.offsets.tolist())]
    counts = [
        n_items,
        np.bincount(segment, is_recent, n),
        events.counts,
        np.bincount(segment, is_recent & events.is_first_of_time, n),
        [since[stop - 1] if stop > start else 0.0 for start, stop in spans],
        [since[start] if stop > start else 0.0 for start, stop in spans],
    ]
    return np.log1p(np.array(counts, dtype=np.float64)).T.astype(np.float32, order="C")


def owned_arrays(owned: Owned, categories: Ints, n_categories: int) -> Arrays:
    """Name the memory's arrays and sum each user's preference by category, of items (N, F) with Q categories in all."""
    n_users = len(owned.user_statistics)
    cell = owned.user[:, None] * n_categories + categories[owned.item_row]  # (E, F)
    weights = owned.preference.repeat(cell.shape[1])
    summed = np.bincount(cell.ravel(), weights, minlength=n_users * n_categories)
    preferences = summed.reshape(n_users, n_categories).astype(np.float32)
    values = (
        owned.user,
        owned.statistics,
        owned.preference,
        owned.user_statistics,
        preferences,
    )
    return dict(zip(OWNED_INPUTS, values, strict=True))
