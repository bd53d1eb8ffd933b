"""What a user's past says of each item in it: counts, recencies, rhythm. The inputs of the tower's memory.

One row per owned item (a distinct item of the user's events), computed as of a moment; the same numpy code
runs in training and in serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.events import Events, Floats, Ints
from serve.schema import FIRST_CODE

DAY = 86_400.0
SCALE_CONSTANT = 2  # index into decay_days: the constant that preferences and profile weights decay with
PREFERENCE_GAIN = 3.0


@dataclass(frozen=True)
class Owned:
    """The owned items of B users, flat, ordered by user and `item_row`; E rows in all."""

    user: Ints
    """Segment of each row, (E,)."""
    item_row: Ints
    statistics: Floats
    """(E, F), columns as in `statistic_names`."""
    preference: Floats
    """(E,): log(1 + 3 x decayed count), how much the item counts in the user's taste."""
    user_statistics: Floats
    """(B, G), columns as in `USER_STATISTICS`."""


USER_STATISTICS = (
    "items",
    "recent_events",
    "events",
    "recent_visits",
    "days_since_visit",
    "days_of_membership",
)


def statistic_names(decay_days: Sequence[float], event_types: Sequence[str]) -> list[str]:
    """Name the columns of `Owned.statistics`; the decayed counts come first."""
    return [
        *(f"decayed_{days:g}" for days in decay_days),
        *("count", "since_last", "since_first", "is_repeated", "due", "mean_gap", "just_bought", "share"),
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
    """Summarise each user's events by item, as of a moment of hers.

    Args:
        events: the events before the moment.
        moment: (B,) UTC seconds; events after it count as happening at it.
        decay_days: time constants of the decayed counts, short to long.
        n_event_types: known event types; counts per type are columns of their own.
        repeat_rate: (N,) per item_row, how often a buyer of the item buys it again.
    """
    segment = events.segments()
    order = np.lexsort((events.item_row, segment))  # stable: an item's events stay oldest first
    segment, item_row = segment[order], events.item_row[order]
    since = np.maximum(moment[segment] - events.time[order], 0) / DAY  # (events,) days
    starts = _run_starts(segment, item_row)
    ends = np.append(starts, len(order))[1:]
    count = ends - starts  # (E,)
    since_first, since_last = since[starts], since[ends - 1]
    decayed = _sum_runs(np.exp(since / -np.array(decay_days)[:, None]), starts)  # (decays, E)
    by_type = _sum_runs(events.event[order] == FIRST_CODE + np.arange(n_event_types)[:, None], starts)
    user, rows = segment[starts], item_row[starts]
    columns = [
        *np.log(decayed + 0.01),
        *_rhythm(count, since_last, since_first),
        np.exp(since_last / (-0.7 * decay_days[0])),
        np.log(count / np.maximum(events.counts, 1)[user]),
        repeat_rate[rows],
        *np.log1p(by_type),
    ]
    preference = np.log1p(PREFERENCE_GAIN * decayed[min(SCALE_CONSTANT, len(decayed) - 1)])
    return Owned(
        user,
        rows,
        _as_columns(columns),
        preference.astype(np.float32),
        _summarise_users(events, moment, np.bincount(user, minlength=len(events)), decay_days),
    )


def _rhythm(count: Ints, since_last: np.ndarray, since_first: np.ndarray) -> list[np.ndarray]:
    """Return the columns from `count` to `mean_gap`, (E,) each."""
    mean_gap = (since_first - since_last) / np.maximum(count - 1, 1)
    is_repeated = count > 1
    log_count, log_last, log_first, log_gap = np.log1p(np.array([count, since_last, since_first, mean_gap]))
    return [log_count, log_last, log_first, is_repeated, is_repeated * (log_last - log_gap), log_gap]


def _run_starts(segment: Ints, item_row: Ints) -> Ints:
    """Return where each (segment, item) run begins."""
    is_start = np.ones(len(segment), dtype=bool)
    is_start[1:] = (segment[1:] != segment[:-1]) | (item_row[1:] != item_row[:-1])
    return np.flatnonzero(is_start)


def _sum_runs(values: np.ndarray, starts: Ints) -> np.ndarray:
    """Sum each run of each row of `values`, (rows, E) float64."""
    return np.add.reduceat(values, starts, axis=1, dtype=np.float64)


def _as_columns(columns: Sequence[np.ndarray]) -> Floats:
    return np.ascontiguousarray(np.array(columns, dtype=np.float32).T)


def _summarise_users(events: Events, moment: Ints, n_items: Ints, decay_days: Sequence[float]) -> Floats:
    """Summarise how much and how lately each user came, (B, G)."""
    segment, n = events.segments(), len(events)
    since = np.maximum(moment[segment] - events.time, 0) / DAY
    is_recent = since < decay_days[min(1, len(decay_days) - 1)]
    is_visit = np.ones(len(segment), dtype=bool)
    is_visit[1:] = (segment[1:] != segment[:-1]) | (events.time[1:] != events.time[:-1])
    has_events = events.counts > 0
    first = np.where(has_events, events.offsets[:-1], 0)
    last = np.where(has_events, events.offsets[1:] - 1, 0)
    days = np.append(since, 0.0)  # so that a table without events has an entry 0 to point to
    counts = [
        n_items,
        np.bincount(segment[is_recent], minlength=n),
        events.counts,
        np.bincount(segment[is_recent & is_visit], minlength=n),
        np.where(has_events, days[last], 0.0),
        np.where(has_events, days[first], 0.0),
    ]
    return _as_columns(list(np.log1p(np.array(counts, dtype=np.float64))))
