"""Requests at a cutoff, as the user tower reads them, item trends, and plans of examples.

Letters: G moments, N items, P popularity windows, E events, B requests, M targets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
import torch

from datamodules.batch import (
    FeatureDropout,
    PartlyHidden,
    RequestBatch,
    find_place,
    take_share,
)
from datamodules.sequences import Catalogue, Sequences, number_pairs
from serve.arrays import Floats, Ints, spans
from serve.clock import DAY
from serve.encode import EncodedFeatures, context_keys
from serve.events import (
    Events,
    Owned,
    history_arrays,
    limit_moments,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.schema import Schema

PRIOR_BUYERS = 5.0
MIN_PACE = 0.5  # a window with a smaller share of an even pace's events reaches back


@dataclass(frozen=True)
class ItemTrends:
    """The popularity of N items as of G moments, from events strictly before each."""

    moments: Ints  # (G,) UTC seconds, ascending
    popularity: Floats  # (G, N, P)
    repeat_rate: Floats  # (G, N)

    def at(self, time: Ints) -> Ints:
        """Return the index of the last moment at or before each time, or else of the first."""
        n_before = np.searchsorted(self.moments, time, side="right")
        return np.maximum(n_before - 1, 0)


def measure_trends(
    events: Events, moments: Ints, days: Sequence[float], n_items: int
) -> ItemTrends:
    """Measure popularity and repeat rates as of each moment.

    Args:
        events: oldest first within each user.
        moments: UTC seconds, (G,).
        days: lengths of the P windows of popularity.
        n_items: N.
    """
    _, first = np.unique(number_pairs(events), return_index=True)  # of each pair
    popularity = [popularity_at(events, moment, days, n_items) for moment in moments]
    rates = [_repeat_rate_at(events, first, moment, n_items) for moment in moments]
    return ItemTrends(moments, np.stack(popularity), np.stack(rates))


def popularity_at(
    events: Events, moment: int, days: Sequence[float], n_items: int
) -> Floats:
    """Return log(1 + events) of each item before a moment, standardised over items, (N, P)."""
    is_before = events.time < moment  # (E,)
    past = np.sort(events.time[is_before])
    popularity = np.zeros((n_items, len(days)), np.float32)  # (N, P)

    for column, length in enumerate(days):
        start = _window_start(past, moment, length)
        rows = events.item_row[is_before & (events.time >= start)]
        log = np.log1p(np.bincount(rows, minlength=n_items))  # (N,)
        popularity[:, column] = (log - log.mean()) / max(log.std(), 1e-6)

    return popularity


def _window_start(past: Ints, moment: int, length: float) -> float:
    """Return the start of a window of `length` days, given the sorted times before the moment."""
    start = moment - length * DAY
    if not len(past):
        return start
    share = min(length * DAY / (moment - past[0]), 1.0)
    min_events = math.floor(MIN_PACE * len(past) * share)
    return min(start, past[-min_events]) if min_events else start


def _repeat_rate_at(events: Events, first: Ints, moment: int, n_items: int) -> Floats:
    """Return the log of events per buyer before a moment, shrunk to that of all items, (N,).

    `first` holds the position of the first event of each (user, item) pair.
    """
    bought = events.item_row[events.time < moment]
    n_bought = np.bincount(bought, minlength=n_items)  # (N,)
    first_bought = events.item_row[first[events.time[first] < moment]]
    n_buyers = np.bincount(first_bought, minlength=n_items)  # (N,)
    overall = max(n_bought.sum(), 1) / max(n_buyers.sum(), 1)
    rates = (n_bought + PRIOR_BUYERS * overall) / (n_buyers + PRIOR_BUYERS)  # (N,)

    return np.asarray(np.log(rates), np.float32)


@dataclass(frozen=True)
class Targets:
    """M (request, item) pairs with a weight, ordered by request and item."""

    users: Ints
    rows: Ints
    weights: Floats

    def take(self, requests: Ints) -> Targets:
        """Return the targets of some requests, each numbered by its position in `requests`."""
        starts = np.searchsorted(self.users, requests)
        stops = np.searchsorted(self.users, requests, side="right")
        users = np.repeat(np.arange(len(requests)), stops - starts)
        chosen = spans(starts, stops)

        return Targets(users, self.rows[chosen], self.weights[chosen])


def distinct_targets(events: Events, weight: Floats) -> Targets:
    """Return the distinct items of the events of requests.

    Args:
        events: segment b is what followed request b.
        weight: weight of each event, (E,); 0: no target.

    Returns:
        targets that weigh the mean of their events, times 1 + log of the events' number.
    """
    is_target = weight > 0  # (E,)
    pairs = number_pairs(events)[is_target]
    _, first, index, counts = np.unique(
        pairs, return_index=True, return_inverse=True, return_counts=True
    )
    means = np.bincount(index, weight[is_target], minlength=len(counts)) / counts
    weights = means * (1 + np.log(counts))  # (M,)
    users = events.segments[is_target][first]
    rows = events.item_row[is_target][first]

    return Targets(users, rows, weights.astype(np.float32))


def scale_by_user(targets: Targets, n_users: int) -> Targets:
    """Divide weights by the root of each request's total.

    So long lists count more, but not in proportion.
    """
    total = np.bincount(targets.users, targets.weights, minlength=n_users)  # (B,)
    weights = targets.weights / np.sqrt(total[targets.users])  # (M,)
    return replace(targets, weights=weights.astype(np.float32))


@dataclass(frozen=True)
class Plan:
    """Examples to make: arrays of one row an example, and the seed of their dropout."""

    seed: tuple[int, ...] = field(default=(), kw_only=True)

    def take(self, rows: Ints) -> Self:
        """Return some of the examples, in the order of `rows`."""
        columns = dict(vars(self))
        del columns["seed"]
        taken = {name: column[rows] for name, column in columns.items()}
        return replace(self, **taken)


class Examples:
    """Draw the examples of an epoch, plan its batches, and make one batch of a plan.

    Args:
        sequences: the events and features of U users.
        schema: says how everything is encoded.
        batch_size: mean number of examples of a batch, or fewer.
        dropout: shares of examples that are predicted without a part of their input.

    Example:
        batches = [examples[plan] for plan in examples.plan(seed=7, epoch=0)]
    """

    def __init__(
        self,
        sequences: Sequences,
        schema: Schema,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        self.sequences = sequences
        self.schema = schema
        self.batch_size = batch_size
        self.dropout = dropout
        self.user = PartlyHidden(sequences.user, schema.user_features, dropout.user)
        self.context = PartlyHidden(
            sequences.context, schema.context_features, dropout.context
        )

    def plan(self, seed: int, epoch: int) -> list[Any]:
        """Plan an epoch, a function of seed and epoch alone; every epoch has as many batches.

        Processes that train together share the examples of each batch.
        """
        rng = np.random.default_rng([seed, epoch])
        drawn, batches = self.draw(rng)
        plans = []
        rank, _ = find_place()
        rank_seed = (rank,)[:rank]  # the first draws as one process does

        for number in rng.permutation(len(batches)).tolist():
            # Similar lengths lie side by side: the shares are as much work.
            plan = drawn.take(take_share(batches[number]))
            plans.append(replace(plan, seed=(seed, epoch, number, *rank_seed)))

        return plans

    def draw(self, rng: np.random.Generator) -> tuple[Plan, list[Ints]]:
        """Draw all examples of an epoch, and the rows of each batch."""
        raise NotImplementedError

    def __getitem__(self, plan: Any) -> Any:
        """Make the batch of a plan."""
        raise NotImplementedError


class RequestMaker:
    """Make batches of requests.

    Args:
        catalogue: N items.
        trends: their popularity and repeat rates.
        schema: lengths and kinds of what the user tower reads.
    """

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
        """Make one batch of B requests.

        Args:
            past: the events before each request.
            times: moment of each request in UTC seconds, (B,).
            trend: index of the moment whose popularity the batch reads.
            targets: the items that followed.
            user: one row per request.
            context: one row per request.
        """
        schema = self.schema
        past = past.last(schema.memory_length)
        keys = context_keys(schema.context_features, context.codes)
        arrays, history_rows = history_arrays(past, schema, keys)
        arrays |= request_arrays(times, user, context, schema)
        times = limit_moments(past, times, schema)
        arrays["request_times"] = times

        rates = self.trends.repeat_rate[trend]  # (N,)
        n_types = len(schema.event_types)
        owned = summarise_owned(past, times, schema.decay_days, n_types, rates)

        if schema.repeats == "allow":
            catalogue = self.catalogue
            arrays |= owned_arrays(owned, catalogue.categories, catalogue.n_categories)

        target_owned = find_owned(owned, targets)
        popularity = self.trends.popularity[trend]
        others = (
            history_rows,  # (B, L)
            owned.item_row,  # (E,)
            owned.user,  # (E,)
            targets.users,  # (M,)
            targets.rows,  # (M,)
            targets.weights,  # (M,)
            target_owned,  # (M,)
            popularity,  # (N, P)
        )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        return RequestBatch(tensors, *map(torch.from_numpy, others))


def find_owned(owned: Owned, targets: Targets) -> Ints:
    """Return the position of each target among its request's owned items, -1 if novel, (M,)."""
    stride = max(owned.item_row.max(initial=0), targets.rows.max(initial=0)) + 1
    keys = pd.Index(owned.user * stride + owned.item_row)  # (E,)
    wanted = pd.Index(targets.users * stride + targets.rows)  # (M,)
    return np.asarray(keys.get_indexer(wanted), np.int64)
