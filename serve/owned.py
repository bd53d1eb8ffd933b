"""What a user's past says of each item in it: counts, recencies, rhythm. The inputs of the tower's memory.

One row per owned item (a distinct item of the user's events), computed as of a moment; the same numpy code
runs in training and in serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    since = np.maximum(moment[segment] - events.time, 0) / DAY  # (events,) days
    key = segment * len(repeat_rate) + events.item_row
    order = key.argsort(kind="stable")  # an item's events stay oldest first
    runs = _run_offsets(key[order])
    firsts = order[runs[:-1]]  # (E,) where an item's first event is
    user, rows = segment[firsts], events.item_row[firsts]
    count = runs[1:] - runs[:-1]
    since_first, since_last = since[firsts], since[order[runs[1:] - 1]]
    decayed, by_type = _sum_runs(since[order], events.event[order], runs, decay_days, n_event_types)
    columns = [
        np.log(decayed + 0.01),
        _rhythm(count, since_last, since_first),
        [np.exp(since_last / (-0.7 * decay_days[0])), np.log(count / events.counts[user]), repeat_rate[rows]],
        np.log1p(by_type),
    ]
    preference = np.log1p(PREFERENCE_GAIN * decayed[min(SCALE_CONSTANT, len(decayed) - 1)])
    return Owned(
        user,
        rows,
        np.concatenate(columns).T.astype(np.float32, order="C"),
        preference.astype(np.float32),
        _summarise_users(events, since, np.bincount(user, minlength=len(events)), decay_days),
    )


def _rhythm(count: Ints, since_last: np.ndarray, since_first: np.ndarray) -> list[np.ndarray]:
    """Return the columns from `count` to `mean_gap`, (E,) each."""
    mean_gap = (since_first - since_last) / np.maximum(count - 1, 1)
    is_repeated = count > 1
    log_count, log_last, log_first, log_gap = np.log1p(np.array([count, since_last, since_first, mean_gap]))
    return [log_count, log_last, log_first, is_repeated, is_repeated * (log_last - log_gap), log_gap]


def _run_offsets(keys: Ints) -> Ints:
    """Return where each run of equal keys begins, and after these where the last one ends, (runs + 1,)."""
    is_edge = np.ones(len(keys) + 1, dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=is_edge[1:-1])
    return is_edge.nonzero()[0]


def _sum_runs(
    since: np.ndarray, event: Ints, runs: Ints, decay_days: Sequence[float], n_event_types: int
) -> tuple[np.ndarray, np.ndarray]:
    """Count the events of each run: with each decay (decays, E), and of each type (types, E), float64."""
    decays = np.array(decay_days)[:, None]
    types = np.arange(FIRST_CODE, FIRST_CODE + n_event_types)[:, None]
    terms = np.concatenate([np.exp(since / -decays), event == types])  # (decays + types, events)
    sums = np.add.reduceat(terms, runs[:-1], axis=1)
    return sums[: len(decays)], sums[len(decays) :]


def _summarise_users(events: Events, since: np.ndarray, n_items: Ints, decay_days: Sequence[float]) -> Floats:
    """Summarise how much and how lately each user came, (B, G)."""
    segment, n = events.segments(), len(events)
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
