"""Requests at a cut in users' timelines, as the user tower reads them: for training by cuts and for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import RequestBatch
from datamodules.popularity import ItemTrends
from datamodules.sequences import Catalogue
from serve.encode import EncodedFeatures
from serve.events import Events, Floats, Ints, Owned, history_arrays, owned_arrays, request_arrays, summarise_owned
from serve.schema import Schema


@dataclass(frozen=True)
class Targets:
    """M (request, item) pairs with a weight, ordered by request and item."""

    users: Ints
    rows: Ints
    weights: Floats

    def reorder(self, order: Ints) -> Targets:
        """Do as if the requests came in another order: which of them is the first one, the second and so on."""
        users = np.argsort(order)[self.users]
        ascending = np.argsort(users, kind="stable")
        return Targets(users[ascending], self.rows[ascending], self.weights[ascending])


def distinct_targets(events: Events, weight: Floats) -> Targets:
    """Return the distinct items of each segment's targets.

    Args:
        events: E of them.
        weight: (E,) of each event as a target; those of 0 are none. The weight of an item is their mean times
            1 + log of their number.
    """
    is_target = weight > 0
    stride = int(events.item_row.max(initial=0)) + 1
    keys = events.segments()[is_target] * stride + events.item_row[is_target]
    pairs, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    means = np.bincount(index, weight[is_target], minlength=len(pairs)) / counts
    return Targets(pairs // stride, pairs % stride, (means * (1 + np.log(counts))).astype(np.float32))


def scale_by_user(targets: Targets, n_users: int) -> Targets:
    """Divide weights by the root of each request's total: long lists count more, but not in proportion."""
    total = np.bincount(targets.users, targets.weights, minlength=n_users)
    return Targets(targets.users, targets.rows, (targets.weights / np.sqrt(total[targets.users])).astype(np.float32))


class RequestMaker:
    """Make batches of requests."""

    def __init__(self, catalogue: Catalogue, trends: ItemTrends, schema: Schema) -> None:
        self.catalogue = catalogue
        self.trends = trends
        self.schema = schema

    def make(
        self, past: Events, times: Ints, trend: int, targets: Targets, user: EncodedFeatures, context: EncodedFeatures
    ) -> RequestBatch:
        """Make one batch.

        Args:
            past: what is known of each of B requests.
            times: (B,) moment of each, UTC seconds.
            trend: index of the moment whose popularity holds for the batch.
            targets: what followed each.
            user: demographics, one row per request.
            context: request context, one row per request.
        """
        past = past.last(self.schema.memory_length)
        arrays, history_rows = history_arrays(past, self.schema)
        owned = self.summarise(past, times, trend)
        arrays |= request_arrays(times, user, context)
        if self.schema.repeats == "allow":
            arrays |= owned_arrays(owned, self.catalogue.categories, self.catalogue.n_categories)
        return RequestBatch(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            *map(
                torch.from_numpy,
                (
                    history_rows,
                    owned.item_row,
                    owned.user,
                    targets.users,
                    targets.rows,
                    targets.weights,
                    find_owned(owned, targets),
                    self.trends.popularity[trend],
                ),
            ),
        )

    def summarise(self, past: Events, times: Ints, trend: int) -> Owned:
        return summarise_owned(
            past,
            times,
            self.schema.decay_days,
            len(self.schema.event_types),
            self.trends.repeat_rate[trend],
        )


def find_owned(owned: Owned, targets: Targets) -> Ints:
    """Return the position of each target among its request's owned items, -1 where it is novel, (M,)."""
    stride = int(max(owned.item_row.max(initial=0), targets.rows.max(initial=0))) + 1
    keys = owned.user * stride + owned.item_row
    wanted = targets.users * stride + targets.rows
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
