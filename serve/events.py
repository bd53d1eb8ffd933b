"""Events of many users as flat arrays, and the named arrays that the user tower reads of them.

A field that clients send with an event is declared in `service/event_log.py` (`Observation`) and in
`service/http/schemas.py`; here is what the towers read of it.

The same numpy code runs in training and in serving. The tower reads item *vectors*; here are item
rows, for which training gathers vectors from its table and serving from the bundle's.
Letters: B requests, L history positions, E owned items of all requests, C codes, V values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Flags, Floats, Ints, spans
from serve.clock import DAY, LAST_SECOND
from serve.encode import EncodedFeatures, age_values
from serve.kinds import FIRST_CODE, LIMIT
from serve.schema import Schema

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
_ITEM_STATISTICS = (
    "count",
    "since_last",
    "since_first",
    "is_repeated",
    "due",
    "mean_gap",
    "just_bought",
    "share",
    "repeat_rate",
)

SCALE_CONSTANT = 2  # index into decay_days: how preferences and profile weights decay
RECENT_CONSTANT = 1  # index into decay_days: how long ago events are recent
PREFERENCE_GAIN = 3.0

_SCATTER = 2654435761  # multiplicative hashing (Knuth, TAOCP 3, 6.4)
_SCATTERED = 1 << 32


@dataclass(frozen=True)
class Events:
    """Events in segments: `offsets[b]:offsets[b + 1]` are of one user or request, oldest first.

    Attributes:
        item_row: (E,) rows of items.
        time: (E,) UTC seconds; 0 where the data has no time.
        event: (E,) code of the event type; 1 = unknown or none.
        weight: (E,) as in the data.
        offsets: (B + 1,) where each segment begins, and where the last one ends.
        context: (E,) keys of what they happened in, 0 where unknown; None: nothing is known.
    """

    item_row: Ints
    time: Ints
    event: Ints
    weight: Floats
    offsets: Ints
    context: np.ndarray | None = None

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
    def is_first_of_time(self) -> Flags:
        """Which events are the first at their time in their segment, (E,)."""
        is_edge = _find_edges(self.time)
        # Empty segments at the end begin one past the events.
        is_edge[self.offsets[:-1]] = True
        return is_edge[:-1]

    def between(self, start: Ints, stop: Ints) -> Events:
        """Take the events `start[b]:stop[b]` as segment b."""
        offsets = np.concatenate([[0], np.cumsum(stop - start)])
        return self.pick(spans(start, stop), offsets)

    def pick(self, index: Ints, offsets: Ints) -> Events:
        """Take events by their index in the flat arrays, in the segments of `offsets`."""
        context = None if self.context is None else self.context[index]
        return Events(
            self.item_row[index],
            self.time[index],
            self.event[index],
            self.weight[index],
            offsets,
            context,
        )

    def last(self, length: int) -> Events:
        """Keep the last `length` events of each segment."""
        if self.counts.max(initial=0) <= length:
            return self
        stop = self.offsets[1:]
        return self.between(np.maximum(self.offsets[:-1], stop - length), stop)


def last_moments(events: Events, empty: int = 0) -> Ints:
    """Return the time of each segment's last event, `empty` for one without events, (B,)."""
    return _pick_values(events, events.offsets[1:] - 1, events.time, empty)


def limit_moments(events: Events, moments: Ints, schema: Schema) -> Ints:
    """Return the moments (B,) at which requests stand to the memory and the user tower.

    They are no further after the last event of a segment than training has seen: what was learned
    of recencies holds for these alone. Popularity, ages and filters keep the real moment.
    """
    latest = last_moments(events, LAST_SECOND)
    return np.minimum(moments, latest + schema.longest_gap)


def _pick_values(
    events: Events, index: Ints, values: NDArray[Any], empty: float
) -> NDArray[Any]:
    """Return the value (B,) at an index of each segment, `empty` for one without events."""
    picked = np.where(events.counts > 0, index, -1)
    return np.append(values, empty)[picked]


def _find_edges(values: Ints) -> Flags:
    """Return flags (n + 1,): where a run of equal values begins, and where the last one ends."""
    is_edge = np.ones(len(values) + 1, dtype=bool)
    np.not_equal(values[1:], values[:-1], out=is_edge[1:-1])
    return is_edge


# ---- histories and requests


@dataclass(frozen=True)
class TowerInputs:
    """The inputs of the user tower, but for vectors.

    Attributes:
        arrays: input name -> array.
        history_rows: (B, L) item rows whose vectors the histories read.
        owned_rows: (E,) item rows whose vectors the memory reads.
    """

    arrays: Arrays
    history_rows: Ints
    owned_rows: Ints


def history_arrays(
    events: Events, schema: Schema, keys: Ints | None = None
) -> tuple[Arrays, Ints]:
    """Pad the last `history_length` events of each request to rectangles (B, L), L at least 1.

    Args:
        events: one segment a request.
        schema: says how long a history is, and whether it has an order.
        keys: (B,) keys of the requests' contexts: with them there is also `history_matches`, 1
            where an event happened in the same context.

    Returns:
        The arrays of `HISTORY_INPUTS`, and item rows (B, L).
    """
    if keys is not None:
        events = replace(events, context=_match_contexts(events, keys))
    if schema.is_set:
        events = as_sets(events)

    recent = events.last(schema.history_length)
    longest = max(1, recent.counts.max(initial=0))
    is_event = np.arange(longest) < recent.counts[:, None]  # (B, L)

    def pad(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(is_event.shape, dtype=values.dtype)
        padded[is_event] = values
        return padded

    weights = standardise_weight(recent.weight, schema)
    groups = number_groups(recent, schema)
    arrays = {
        "history_events": pad(recent.event),
        "history_weights": pad(weights),
        "history_times": pad(recent.time),
        "history_groups": pad(groups),
        "history_lengths": recent.counts,
    }
    if recent.context is not None and keys is not None:
        arrays["history_matches"] = pad(recent.context)
    return arrays, pad(recent.item_row)


def _match_contexts(events: Events, keys: Ints) -> Floats:
    """Return 1 for each event in the context of its request, if that is known, (E,)."""
    key_of_request = keys[events.segments]
    if events.context is None:
        return np.zeros(len(key_of_request), np.float32)
    is_same = (events.context == key_of_request) & (key_of_request != 0)
    return np.asarray(is_same, np.float32)


def as_sets(events: Events) -> Events:
    """Keep one event of each item, the heaviest, in an order that depends on the items alone.

    The greatest context of its events goes with it, so that one that matches a request is enough.
    """
    scattered = events.item_row * _SCATTER % _SCATTERED
    order = np.lexsort((events.event, events.weight, scattered, events.segments))
    n_rows = events.item_row.max(initial=0) + 1
    owned = events.segments * n_rows + events.item_row
    is_edge = _find_edges(owned[order])
    heaviest = order[is_edge[1:]]
    counts = np.bincount(events.segments[heaviest], minlength=len(events))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    distinct = events.pick(heaviest, offsets)
    if events.context is None or not len(order):
        return distinct

    starts = np.flatnonzero(is_edge[:-1])
    contexts = np.maximum.reduceat(events.context[order], starts)
    return replace(distinct, context=contexts)


def number_groups(events: Events, schema: Schema) -> Ints:
    """Number the groups of events that see each other, from 1 in each segment.

    Returns:
        (E,) ordered events are alone in their group; simultaneous ones share it with their time.
    """
    first = events.offsets[events.segments]
    if schema.ties == "ordered":
        return np.arange(1, len(first) + 1) - first
    running = events.is_first_of_time.cumsum()
    return np.asarray(running - running[first] + 1, np.int64)


def standardise_weight(weight: np.ndarray, schema: Schema) -> Floats:
    """Standardise log(1 + weight) as over the training rows; 0 if the data has no weight."""
    if not schema.has_weight:
        return np.zeros(len(weight), dtype=np.float32)
    logarithm = np.log1p(np.maximum(weight, 0))
    standard = (logarithm - schema.weight_mean) / schema.weight_scale
    return np.asarray(np.clip(standard, -LIMIT, LIMIT), np.float32)


def request_arrays(
    moment: Ints, user: EncodedFeatures, context: EncodedFeatures, schema: Schema
) -> Arrays:
    """Name the request's own arrays; dates of users become ages at its moment (B,)."""
    days = (moment - schema.data_until) / DAY
    return {
        "request_times": moment,
        "user_codes": user.codes,
        "user_values": age_values(schema.user_features, user.values, days),
        "context_codes": context.codes,
        "context_values": context.values,
    }


# ---- owned items: counts, recencies and rhythm of each, the inputs of the memory


@dataclass(frozen=True)
class Owned:
    """The owned items of B users, flat, ordered by user and `item_row`.

    Attributes:
        user: (E,) segment of each row.
        item_row: (E,) rows of items.
        statistics: (E, F), columns as of `statistic_names`.
        preference: (E,) log(1 + 3 x decayed count).
        user_statistics: (B, G), columns as in `USER_STATISTICS`.
    """

    user: Ints
    item_row: Ints
    statistics: Floats
    preference: Floats
    user_statistics: Floats


def statistic_names(
    decay_days: Sequence[float], event_types: Sequence[str]
) -> list[str]:
    """Name the columns of `Owned.statistics`; the decayed counts come first."""
    names = [f"decayed_{days:g}" for days in decay_days]
    names += _ITEM_STATISTICS
    return names + [f"event_{name}" for name in event_types]


def summarise_owned(
    events: Events,
    moment: Ints,
    decay_days: Sequence[float],
    n_event_types: int,
    repeat_rate: Floats,
) -> Owned:
    """Summarise each user's events by item, as of a moment of theirs.

    Args:
        events: one segment a user.
        moment: (B,) UTC seconds; events after it count as happening at it.
        decay_days: time constants of the decayed counts, short to long.
        n_event_types: number of event types.
        repeat_rate: (N,) share of an item's events that are repeats.
    """
    # One run of equal keys for each owned item.
    segment = events.segments
    since = np.maximum(moment[segment] - events.time, 0) / DAY  # days, (events,)
    key = segment * len(repeat_rate) + events.item_row
    order = key.argsort(kind="stable")  # an item's events stay oldest first
    runs = _find_edges(key[order]).nonzero()[0]  # (E + 1,)

    firsts = order[runs[:-1]]  # (E,) an item's first event
    lasts = order[runs[1:] - 1]  # (E,) an item's last event
    user = segment[firsts]
    row = events.item_row[firsts]
    count = runs[1:] - runs[:-1]

    decays = np.array(decay_days)[:, None]
    decayed = np.add.reduceat(np.exp(since[order] / -decays), runs[:-1], axis=1)
    types = np.arange(FIRST_CODE, FIRST_CODE + n_event_types)[:, None]
    is_of_type = (events.event[order] == types).astype(np.float64)
    by_type = np.add.reduceat(is_of_type, runs[:-1], axis=1)
    rhythm = _rhythm(count, since[lasts], since[firsts])
    just_bought = np.exp(since[lasts] / (-0.7 * decay_days[0]))
    share = np.log(count / events.counts[user])
    others = np.array([just_bought, share, repeat_rate[row]])
    columns = [np.log(decayed + 0.01), rhythm, others, np.log1p(by_type)]
    statistics = np.concatenate(columns).T

    scale = min(SCALE_CONSTANT, len(decayed) - 1)
    preference = np.log1p(PREFERENCE_GAIN * decayed[scale])
    n_items = np.bincount(user, minlength=len(events))
    of_users = _summarise_users(events, since, n_items, decay_days)
    return Owned(
        user=user,
        item_row=row,
        statistics=statistics.astype(np.float32, order="C"),
        preference=preference.astype(np.float32),
        user_statistics=of_users,
    )


def _rhythm(count: Ints, since_last: Doubles, since_first: Doubles) -> Doubles:
    """Return the columns from `count` to `mean_gap`, (6, E)."""
    is_repeated = count > 1
    mean_gap = (since_first - since_last) / np.maximum(count - 1, 1)
    logs = np.log1p(np.array([count, since_last, since_first, mean_gap]))
    log_count, log_last, log_first, log_gap = logs
    due = is_repeated * (log_last - log_gap)
    return np.array([log_count, log_last, log_first, is_repeated, due, log_gap])


def _summarise_users(
    events: Events, since: Doubles, n_items: Ints, decay_days: Sequence[float]
) -> Floats:
    """Summarise how much and how lately each user came, (B, G)."""
    recent_days = decay_days[min(RECENT_CONSTANT, len(decay_days) - 1)]
    is_recent = since < recent_days
    is_visit = is_recent & events.is_first_of_time
    n_recent = np.bincount(events.segments, is_recent, len(events))
    n_visits = np.bincount(events.segments, is_visit, len(events))
    since_last = _pick_values(events, events.offsets[1:] - 1, since, 0.0)
    since_first = _pick_values(events, events.offsets[:-1], since, 0.0)
    columns = [n_items, n_recent, events.counts, n_visits, since_last, since_first]
    summed = np.log1p(np.array(columns, dtype=np.float64))
    return summed.T.astype(np.float32, order="C")


def owned_arrays(owned: Owned, categories: Ints, n_categories: int) -> Arrays:
    """Name the memory's arrays, and sum each user's preferences by category.

    Args:
        owned: the owned items of B users.
        categories: (N, F) categories of items, as of `serve.encode.category_rows`.
        n_categories: Q, the number of categories.
    """
    n_users = len(owned.user_statistics)
    cell = owned.user[:, None] * n_categories + categories[owned.item_row]  # (E, F)
    weights = owned.preference.repeat(cell.shape[1])
    summed = np.bincount(cell.ravel(), weights, minlength=n_users * n_categories)
    preferences = summed.reshape(n_users, n_categories).astype(np.float32)

    return {
        "owned_users": owned.user,
        "owned_statistics": owned.statistics,
        "owned_preferences": owned.preference,
        "user_statistics": owned.user_statistics,
        "category_preferences": preferences,
    }
