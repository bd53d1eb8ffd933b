"""Requests at a cutoff in users' timelines, as the user tower reads them, and the item trends of that moment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import RequestBatch
from datamodules.sequences import Catalogue
from serve.arrays import Floats, Ints
from serve.clock import DAY
from serve.encode import EncodedFeatures, context_keys
from serve.events import (
    DAY,
    Events,
    Owned,
    history_arrays,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.schema import Schema

PRIOR_BUYERS = 5.0
LEAST_PACE = 0.5  # a window with a smaller share of the events of an even pace reaches further back


@dataclass(frozen=True)
class ItemTrends:
    """Item-side facts as of G moments, from events strictly before each."""

    moments: Ints  # (G,) UTC seconds, ascending
    popularity: Floats  # (G, N, P)
    repeat_rate: Floats  # (G, N)

    def at(self, time: Ints) -> Ints:
        """Return the index of the last moment at or before each time (the first moment where none is)."""
        return np.maximum(np.searchsorted(self.moments, time, side="right") - 1, 0)


def measure_trends(
    events: Events, moments: Ints, days: Sequence[float], n_items: int
) -> ItemTrends:
    """Measure popularity in windows of `days`, and repeat rates, as of each moment."""
    # where the first event of each user with each item stands: they are oldest first
    _, firsts = np.unique(
        events.segments * n_items + events.item_row, return_index=True
    )
    popularity = [popularity_at(events, moment, days, n_items) for moment in moments]
    rates = [_repeat_rate_at(events, firsts, moment, n_items) for moment in moments]
    return ItemTrends(moments, np.stack(popularity), np.stack(rates))


def popularity_at(
    events: Events, moment: int, days: Sequence[float], n_items: int
) -> Floats:
    """Return log(1 + events) of each item in each window before the moment, standardised over items, (N, P)."""
    columns = []
    is_before = events.time < moment
    before = np.sort(events.time[is_before])
    for length in days:
        is_inside = is_before & (events.time >= _window_start(before, moment, length))
        log = np.log1p(np.bincount(events.item_row[is_inside], minlength=n_items))
        columns.append(((log - log.mean()) / max(log.std(), 1e-6)).astype(np.float32))
    return np.stack(columns, axis=1) if columns else np.zeros((n_items, 0), np.float32)


def _window_start(before: Ints, moment: int, length: float) -> float:
    """Return when a window of `length` days before the moment begins, given the times of all events before it."""
    start = moment - length * DAY
    if not len(before):
        return start
    fewest = math.floor(
        LEAST_PACE * len(before) * min(length * DAY / (moment - before[0]), 1.0)
    )
    return min(start, before[-fewest]) if fewest else start


def _repeat_rate_at(events: Events, firsts: Ints, moment: int, n_items: int) -> Floats:
    """Return the log of events per buyer before the moment, shrunk to that of all items, (N,)."""
    lines = np.bincount(events.item_row[events.time < moment], minlength=n_items)
    buyers = np.bincount(
        events.item_row[firsts[events.time[firsts] < moment]], minlength=n_items
    )
    overall = max(lines.sum(), 1) / max(buyers.sum(), 1)
    return np.asarray(
        np.log((lines + PRIOR_BUYERS * overall) / (buyers + PRIOR_BUYERS)), np.float32
    )


@dataclass(frozen=True)
class Targets:
    """M (request, item) pairs with a weight, ordered by request and item."""

    users: Ints
    rows: Ints
    weights: Floats

    def reorder(self, order: Ints) -> Targets:
        """Return the targets of the requests in another order."""
        users = np.argsort(order)[self.users]
        ascending = np.argsort(users, kind="stable")
        return Targets(users[ascending], self.rows[ascending], self.weights[ascending])


def distinct_targets(events: Events, weight: Floats) -> Targets:
    """Return the distinct items of events with a `weight`, (E,): weighted by its mean times 1 + log of their number."""
    is_target = weight > 0
    stride = int(events.item_row.max(initial=0)) + 1
    pairs, index, counts = np.unique(
        _pairs(events)[is_target], return_inverse=True, return_counts=True
    )
    means = np.bincount(index, weight[is_target], minlength=len(pairs)) / counts
    return Targets(
        pairs // stride,
        pairs % stride,
        (means * (1 + np.log(counts))).astype(np.float32),
    )


def first_targets(events: Events, weight: Floats) -> Ints:
    """Return the place of the first event of each of `distinct_targets`, (M,)."""
    places = np.flatnonzero(weight > 0)
    return places[np.unique(_pairs(events)[places], return_index=True)[1]]


def _pairs(events: Events) -> Ints:
    return events.segments * (int(events.item_row.max(initial=0)) + 1) + events.item_row


def scale_by_user(targets: Targets, n_users: int) -> Targets:
    """Divide weights by the root of each request's total: long lists count more, but not in proportion."""
    total = np.bincount(targets.users, targets.weights, minlength=n_users)
    return Targets(
        targets.users,
        targets.rows,
        (targets.weights / np.sqrt(total[targets.users])).astype(np.float32),
    )


class RequestMaker:
    """Make batches of requests."""

    def __init__(
        self, catalogue: Catalogue, trends: ItemTrends, schema: Schema
    ) -> None:
        self.catalogue = catalogue
        self.trends = trends
        self.schema = schema

    def make(
        self,
        past: Events,
        times: Ints,
        trend: int,
        targets: Targets,
        user: EncodedFeatures,
        context: EncodedFeatures,
    ) -> RequestBatch:
        """Make one batch of B requests at `times`, (B,) UTC seconds, with the popularity of moment `trend`."""
        past = past.last(self.schema.memory_length)
        keys = context_keys(self.schema.context_features, context.codes)
        arrays, history_rows = history_arrays(past, self.schema, keys)
        rates = self.trends.repeat_rate[trend]
        n_types = len(self.schema.event_types)
        owned = summarise_owned(past, times, self.schema.decay_days, n_types, rates)
        arrays |= request_arrays(times, user, context, self.schema)
        if self.schema.repeats == "allow":
            arrays |= owned_arrays(
                owned, self.catalogue.categories, self.catalogue.n_categories
            )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        followed = (
            targets.users,
            targets.rows,
            targets.weights,
            find_owned(owned, targets),
        )
        rest = (
            history_rows,
            owned.item_row,
            owned.user,
            *followed,
            self.trends.popularity[trend],
        )
        return RequestBatch(tensors, *map(torch.from_numpy, rest))


def find_owned(owned: Owned, targets: Targets) -> Ints:
    """Return the position of each target among its request's owned items, -1 where it is novel, (M,)."""
    stride = int(max(owned.item_row.max(initial=0), targets.rows.max(initial=0))) + 1
    keys = owned.user * stride + owned.item_row
    wanted = targets.users * stride + targets.rows
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
