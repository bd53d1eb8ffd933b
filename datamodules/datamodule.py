"""The LightningDataModule of training examples and validation requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from torch.utils.data import DataLoader

from datamodules.batch import (
    EpochSampler,
    FeatureDropout,
    RequestBatch,
    make_loader,
    take_share,
)
from datamodules.cutoffs import (
    CutoffExamples,
    HorizonTimeline,
    NextGroupTimeline,
    Timeline,
)
from datamodules.requests import (
    Examples,
    ItemTrends,
    RequestMaker,
    Targets,
    distinct_targets,
    measure_trends,
)
from datamodules.sequences import (
    Catalogue,
    Sequences,
    build_sequences,
    number_pairs,
)
from datamodules.sets import SetExamples
from datamodules.sliding_windows import WindowExamples
from serve.arrays import Floats, Ints, spans
from serve.encode import EncodedFeatures, encode_features
from serve.events import Events, as_sets, last_moments
from serve.schema import Schema

N_CUTOFF_MOMENTS = 4
MOMENTS_PER_HORIZON = 3
N_TREND_MOMENTS = 16
REQUESTS_PER_BATCH = 256
MAX_SCORES = 2**23  # of a batch of requests and all items: 32 MiB
MAX_VALIDATION_SCORES = 2**32  # of all validation requests: else users are drawn
MAX_FITTED = 10_000_000  # events that item-item weights and factors are taken from


class InteractionsDataModule(pl.LightningDataModule):
    """Batches of training rows, and of requests whose targets are the validation rows.

    Args:
        train: interactions to train on, or the sequences of all users.
        validation: interactions to stop training by; may be empty.
        users: the users table.
        catalogue: N items.
        schema: says how everything is encoded, and what a training example is.
        batch_size: windows or users of a batch.
        seed: of the order of batches, of feature dropout and of drawn users.
        horizon: seconds after a cutoff that targets lie within. Default: the next time group.
        validation_at: UTC seconds of the validation requests. Default: each user's last event.
        dropout: shares of targets that are predicted without a part of their input.
    """

    def __init__(
        self,
        train: pd.DataFrame | Sequences,
        validation: pd.DataFrame,
        users: pd.DataFrame,
        catalogue: Catalogue,
        schema: Schema,
        batch_size: int,
        seed: int,
        horizon: int | None = None,
        validation_at: int | None = None,
        dropout: FeatureDropout | None = None,
    ) -> None:
        super().__init__()
        self.catalogue = catalogue
        self.schema = schema
        self.batch_size = batch_size
        self.seed = seed
        self.horizon = horizon
        self.validation_at = validation_at
        self.dropout = dropout or FeatureDropout()

        everyone = pd.concat([users, validation[["user_id"]]])
        everyone = everyone.drop_duplicates("user_id")
        if isinstance(train, pd.DataFrame):
            train = build_sequences(train, everyone, catalogue.item_ids, schema)
        self.sequences = train
        self.trends = self._measure_trends()
        self.maker = RequestMaker(catalogue, self.trends, schema)
        self.examples = self._make_examples()
        self.validation_batches = list(self._validation_requests(validation))

    @property
    def trains_on_windows(self) -> bool:
        """Whether every position of a window is a target; else examples are cutoffs or sets."""
        return self.schema.ties == "ordered" and self.schema.repeats == "exclude"

    def train_dataloader(self) -> DataLoader[Any]:
        return make_loader(self.examples, EpochSampler(self.examples, self.seed))

    def val_dataloader(self) -> DataLoader[Any]:
        return make_loader(take_share(self.validation_batches))

    def _measure_trends(self) -> ItemTrends:
        """Measure item trends at the moments of the cutoffs, and last at the end of training."""
        events = self.sequences.events
        end = self.schema.data_until
        days = self.schema.popularity_days
        n_items = len(self.catalogue)
        if self.trains_on_windows and not days:  # neither is read
            moments = np.array([end], dtype=np.int64)
            unread = np.zeros((1, n_items, 1), np.float32)
            return ItemTrends(moments, unread[:, :, :0], unread[:, :, 0])
        first = int(events.time.min(initial=end))
        if self.trains_on_windows:
            moments = np.array([end], dtype=np.int64)
        elif self.schema.is_set:
            events = as_sets(events)
            moments = np.array([end + 1], dtype=np.int64)  # all events are at 0
        elif self.horizon is None:
            moments = np.linspace(first, end, N_TREND_MOMENTS).astype(np.int64)
        else:
            moments = _cutoff_moments(first, end, self.horizon)

        return measure_trends(events, moments, days, n_items)

    def _make_examples(self) -> Examples:
        sequences = self.sequences
        size = self.batch_size
        if self.trains_on_windows:
            return WindowExamples(sequences, self.schema, size, self.dropout)
        if self.schema.is_set:
            return SetExamples(sequences, self.maker, size, self.dropout)
        timeline: Timeline
        dropout = self.dropout

        if self.horizon is None:
            timeline = NextGroupTimeline(sequences, self.trends, self.schema)
            dropout = replace(dropout, time=dropout.time_of_next)
        else:
            moments = self.trends.moments[:-1]
            timeline = HorizonTimeline(sequences, moments, self.horizon)

        return CutoffExamples(sequences, self.maker, timeline, size, dropout)

    def count_targets(self) -> Ints:
        """Count how often each item can be a target of an epoch, (N,)."""
        rows = self.sequences.events.item_row[self.sequences.target_weight > 0]
        return np.bincount(rows, minlength=len(self.catalogue))

    def sample_events(self, max_events: int = MAX_FITTED) -> tuple[Events, Floats]:
        """Return the events of users drawn by the seed, and their weights as targets.

        The other users stay as segments without events. All are there if they are few enough.
        """
        events = self.sequences.events
        weights = self.sequences.target_weight
        if len(weights) <= max_events:
            return events, weights
        drawn = np.random.default_rng(self.seed).permutation(len(events))
        is_kept = np.zeros(len(events), np.bool_)
        is_kept[drawn[np.cumsum(events.counts[drawn]) <= max_events]] = True
        starts = events.offsets[:-1]
        stops = starts + events.counts * is_kept
        return events.between(starts, stops), weights[spans(starts, stops)]

    def early_pairs(self) -> tuple[Ints, Ints]:
        """Return user and item row of the events that initial factors may be taken from.

        With cutoffs these are the events before the first one, of all or of each user: the towers
        would learn to trust factors that had seen the targets too much.
        """
        events, _ = self.sample_events()
        is_early = np.ones(len(events.time), np.bool_)  # (E,)
        if isinstance(self.examples, CutoffExamples):
            is_early = self.examples.timeline.mark_early(events)
        # Late factors are better than none.
        if not is_early.any():
            is_early[:] = True
        return events.segments[is_early], events.item_row[is_early]

    def final_requests(self) -> Iterator[RequestBatch]:
        """Yield a request of every user with all their training events, and no target."""
        return self._requests_of(np.arange(len(self.sequences.user_ids)))

    def drawn_requests(self, max_users: int) -> Iterator[RequestBatch]:
        """Yield the final requests of some users who have events, drawn by the seed."""
        active = np.flatnonzero(self.sequences.events.counts)
        drawn = np.random.default_rng(self.seed).permutation(len(active))[:max_users]
        return self._requests_of(np.sort(active[drawn]))

    def _requests_of(self, users: Ints) -> Iterator[RequestBatch]:
        no_targets = Targets(users[:0], users[:0], np.zeros(0, np.float32))
        context = encode_features(self.schema.context_features, {}, len(users))
        tiles = _tile(np.arange(len(users)), len(self.catalogue))
        return self._make_requests(users, no_targets, context, tiles)

    def _validation_requests(self, validation: pd.DataFrame) -> Iterator[RequestBatch]:
        """Make requests in a drawn order, those of like histories in one batch.

        In a context each target is asked about by a request of its own.
        """
        held_out_users = validation[["user_id"]].drop_duplicates()
        max_users = MAX_VALIDATION_SCORES // len(self.catalogue)
        if len(held_out_users) > max_users:
            held_out_users = held_out_users.sample(max_users, random_state=self.seed)
            validation = validation.merge(held_out_users)

        held_out = build_sequences(
            validation, held_out_users, self.catalogue.item_ids, self.schema
        )
        targets = distinct_targets(held_out.events, held_out.target_weight)
        users = np.searchsorted(self.sequences.user_ids, held_out.user_ids)  # (R,)
        context = encode_features(self.schema.context_features, {}, len(users))

        if self.schema.context_features and self.schema.repeats == "exclude":
            positions = np.flatnonzero(held_out.target_weight > 0)
            pairs = number_pairs(held_out.events)[positions]
            _, first = np.unique(pairs, return_index=True)  # (M,)
            context = held_out.context.take(positions[first])
            users = users[targets.users]
            targets = replace(targets, users=np.arange(len(users)))

        counts = self.sequences.events.counts[users]  # (R,)
        lengths = np.minimum(counts, self.schema.history_length)
        tiles = _tile(np.argsort(lengths, kind="stable"), len(self.catalogue))
        order = np.random.default_rng(self.seed).permutation(len(tiles))
        tiles = [tiles[number] for number in order]

        return self._make_requests(users, targets, context, tiles)

    def _make_requests(
        self,
        users: Ints,
        targets: Targets,
        context: EncodedFeatures,
        tiles: Sequence[Ints],
    ) -> Iterator[RequestBatch]:
        """Yield batches of requests of users, with all their training events."""
        events = self.sequences.events
        last = len(self.trends.moments) - 1

        for rows in tiles:
            of_batch = users[rows]
            past = events.between(
                events.offsets[of_batch], events.offsets[of_batch + 1]
            )
            times = last_moments(past)
            if self.validation_at is not None:
                times = np.full(len(rows), self.validation_at, dtype=np.int64)
            user = self.sequences.user.take(of_batch)
            chosen = targets.take(rows)
            yield self.maker.make(past, times, last, chosen, user, context.take(rows))


def _cutoff_moments(first: int, end: int, horizon: int) -> Ints:
    """Return the moments of cutoffs whose past and horizon lie within the data, and its end.

    One cutoff stays, however short the past is.
    """
    step = max(horizon // MOMENTS_PER_HORIZON, 1)
    moments = end - horizon - step * np.arange(N_CUTOFF_MOMENTS, dtype=np.int64)
    earliest = min(first + horizon, end - horizon)
    return np.append(np.sort(moments[moments >= earliest]), end)


def _tile(rows: Ints, n_items: int) -> list[Ints]:
    """Cut rows into those of each batch, fewer where there are many items to score."""
    size = min(REQUESTS_PER_BATCH, 1 + MAX_SCORES // n_items)
    return [rows[start : start + size] for start in range(0, len(rows), size)]
