"""How popular each item was, and how often its buyers came back for it, as of moments of the past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.events import DAY, Events, Floats, Ints

PRIOR_BUYERS = 5.0
LEAST_PACE = 0.5
"""Of the events that a window would hold had they come evenly: one that holds fewer reaches further back. Where users
are gone in the end, the last days hold a few events, which would stand out far above all the others."""


@dataclass(frozen=True)
class ItemTrends:
    """Item-side facts as of G moments, from events strictly before each."""

    moments: Ints
    """(G,) UTC seconds, ascending."""
    popularity: Floats
    """(G, N, P)."""
    repeat_rate: Floats
    """(G, N)."""

    def at(self, time: Ints) -> Ints:
        """Return the index of the last moment at or before each time (the first moment where none is)."""
        return np.maximum(np.searchsorted(self.moments, time, side="right") - 1, 0)


def measure_trends(events: Events, moments: Ints, days: Sequence[float], n_items: int) -> ItemTrends:
    """Measure popularity in windows of `days`, and repeat rates, as of each moment."""
    # where the first event of each user with each item stands: they are oldest first
    _, firsts = np.unique(events.segments() * n_items + events.item_row, return_index=True)
    popularity = [popularity_at(events, moment, days, n_items) for moment in moments]
    rates = [_repeat_rate_at(events, firsts, moment, n_items) for moment in moments]
    return ItemTrends(moments, np.stack(popularity), np.stack(rates))


def popularity_at(events: Events, moment: int, days: Sequence[float], n_items: int) -> Floats:
    """Return log(1 + events) of each item in each window before the moment, standardised over items, (N, P)."""
    columns = []
    is_before = events.time < moment
    before = np.sort(events.time[is_before])
    for length in days:
        is_inside = is_before & (events.time >= _window_start(before, moment, length))
        columns.append(standardise_counts(np.bincount(events.item_row[is_inside], minlength=n_items)))
    return np.stack(columns, axis=1) if columns else np.zeros((n_items, 0), np.float32)


def _window_start(before: Ints, moment: int, length: float) -> float:
    """Return when a window of `length` days before the moment begins, given the times of all events before it."""
    start = moment - length * DAY
    if not len(before):
        return start
    fewest = math.floor(LEAST_PACE * len(before) * min(length * DAY / (moment - before[0]), 1.0))
    return min(start, before[-fewest]) if fewest else start


def standardise_counts(counts: Ints) -> Floats:
    """Return log(1 + counts), standardised, (N,)."""
    log = np.log1p(counts)
    standardised: Floats = ((log - log.mean()) / max(log.std(), 1e-6)).astype(np.float32)
    return standardised


def _repeat_rate_at(events: Events, firsts: Ints, moment: int, n_items: int) -> Floats:
    """Return the log of events per buyer before the moment, shrunk to that of all items, (N,).

    `firsts` says where the first event of each buyer of an item stands: who has one before the moment is one by then.
    """
    lines = np.bincount(events.item_row[events.time < moment], minlength=n_items)
    buyers = np.bincount(events.item_row[firsts[events.time[firsts] < moment]], minlength=n_items)
    overall = max(lines.sum(), 1) / max(buyers.sum(), 1)
    rates: Floats = np.log((lines + PRIOR_BUYERS * overall) / (buyers + PRIOR_BUYERS)).astype(np.float32)
    return rates
