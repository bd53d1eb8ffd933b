"""Requests at a cut in users' timelines, as the user tower reads them: for training by cuts and for validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import RequestBatch
from datamodules.catalogue import Catalogue
from datamodules.popularity import ItemTrends
from datamodules.sequences import Sequences
from serve.encoding import EncodedFeatures
from serve.events import Events, Floats, Ints
from serve.owned import Owned, summarise_owned
from serve.schema import Schema
from serve.tower_inputs import history_arrays, owned_arrays, request_arrays


@dataclass(frozen=True)
class Cuts:
    """B requests at a moment: all before `stops` is known, the targets follow.

    Positions are into the flat arrays of the sequences.
    """

    users: Ints
    starts: Ints
    """First known event of each request."""
    stops: Ints
    """One past the last known event."""
    times: Ints
    """Moment of each request, UTC seconds."""
    trend: int
    """Index of the moment whose popularity holds for the batch."""


@dataclass(frozen=True)
class Targets:
    """M (request, item) pairs with a weight, ordered by request and item."""

    users: Ints
    rows: Ints
    weights: Floats


def distinct_targets(events: Events) -> Targets:
    """Return the distinct items of each segment; the weight is 1 + log of how often it occurs there."""
    segment = events.segments()
    stride = int(events.item_row.max(initial=0)) + 1
    pairs, counts = np.unique(segment * stride + events.item_row, return_counts=True)
    return Targets(pairs // stride, pairs % stride, (1 + np.log(counts)).astype(np.float32))


class RequestMaker:
    """Make batches of requests from sequences."""

    def __init__(self, sequences: Sequences, catalogue: Catalogue, trends: ItemTrends, schema: Schema) -> None:
        self.sequences = sequences
        self.catalogue = catalogue
        self.trends = trends
        self.schema = schema

    def make(self, cuts: Cuts, targets: Targets, user: EncodedFeatures, context: EncodedFeatures) -> RequestBatch:
        """Make one batch.

        Args:
            cuts: B requests.
            targets: what followed each.
            user: demographics, one row per request.
            context: request context, one row per request.
        """
        past = self.sequences.events.between(cuts.starts, cuts.stops).last(self.schema.memory_length)
        arrays, history_rows = history_arrays(past, self.schema)
        owned = self.summarise(past, cuts)
        arrays |= request_arrays(cuts.times, user, context)
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
                    self.trends.popularity[cuts.trend],
                ),
            ),
        )

    def summarise(self, past: Events, cuts: Cuts) -> Owned:
        return summarise_owned(
            past,
            cuts.times,
            self.schema.decay_days,
            len(self.schema.event_types),
            self.trends.repeat_rate[cuts.trend],
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
