"""The LightningDataModule of training examples and validation requests, and the fingerprint of its data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import (
    EpochSampler,
    Examples,
    FeatureDropout,
    RequestBatch,
    make_loader,
)
from datamodules.cutoffs import CutoffExamples, HorizonTimeline, NextGroupTimeline
from datamodules.requests import (
    ItemTrends,
    RequestMaker,
    Targets,
    distinct_targets,
    first_targets,
    measure_trends,
)
from datamodules.sequences import Catalogue, build_sequences
from datamodules.sets import SetExamples
from datamodules.sliding_windows import WindowExamples
from serve.arrays import Ints
from serve.encode import EncodedFeatures, encode_features
from serve.events import as_sets, last_moments
from serve.schema import Schema

N_CUTOFF_MOMENTS = 4
MOMENTS_PER_HORIZON = 3
N_TREND_MOMENTS = 16
REQUESTS_PER_BATCH = 256


class InteractionsDataModule(pl.LightningDataModule):
    """Batches of training rows, and of requests whose targets are the validation rows."""

    def __init__(
        self,
        train: pd.DataFrame,
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
        """Index the tables; batches have `batch_size` windows or users, and `validation` may be empty.

        Targets of a cutoff lie within `horizon` seconds, by default in the next time group; validation requests are at
        `validation_at`, by default at each user's last training event.
        """
        super().__init__()
        self.catalogue = catalogue
        self.schema = schema
        self.batch_size = batch_size
        self.seed = seed
        self.horizon = horizon
        self.validation_at = validation_at
        self.dropout = dropout or FeatureDropout()
        everyone = pd.concat([users, validation[["user_id"]]]).drop_duplicates(
            "user_id"
        )
        self.sequences = build_sequences(train, everyone, catalogue.item_ids, schema)
        self.trends = self._measure_trends()
        self.maker = RequestMaker(catalogue, self.trends, schema)
        self.examples = self._make_examples()
        self.validation_batches, self.validation_users = self._make_validation(
            validation
        )  # requests, (R,) user ids

    @property
    def trains_on_windows(self) -> bool:
        """Return whether every position of a window is a target; else examples are cutoffs or sets."""
        return self.schema.ties == "ordered" and self.schema.repeats == "exclude"

    def train_dataloader(self) -> DataLoader[Any]:
        return make_loader(self.examples, EpochSampler(self.examples, self.seed))

    def val_dataloader(self) -> DataLoader[Any]:
        return make_loader(self.validation_batches)

    def _measure_trends(self) -> ItemTrends:
        """Measure item trends at the moments that cutoffs are taken at, and last as of the end of training."""
        events = self.sequences.events
        end = self.schema.data_until
        first = int(events.time.min(initial=end))
        if self.trains_on_windows:
            moments = np.array([end], dtype=np.int64)
        elif self.schema.is_set:
            events = as_sets(events)
            moments = np.array(
                [end + 1], dtype=np.int64
            )  # after all events, which are at 0
        elif self.horizon is None:
            moments = np.linspace(first, end, N_TREND_MOMENTS).astype(np.int64)
        else:
            step = max(self.horizon // MOMENTS_PER_HORIZON, 1)
            moments = (
                end - self.horizon - step * np.arange(N_CUTOFF_MOMENTS, dtype=np.int64)
            )
            earliest = min(
                first + self.horizon, end - self.horizon
            )  # one moment stays, however short the past
            moments = np.append(np.sort(moments[moments >= earliest]), end)
        return measure_trends(
            events, moments, self.schema.popularity_days, len(self.catalogue)
        )

    def _make_examples(self) -> Examples:
        if self.trains_on_windows:
            return WindowExamples(
                self.sequences, self.schema, self.batch_size, self.dropout
            )
        if self.schema.is_set:
            return SetExamples(
                self.sequences, self.maker, self.batch_size, self.dropout
            )
        events = self.sequences.events
        weight = self.sequences.target_weight
        timeline = (
            NextGroupTimeline(events, weight, self.trends, self.schema)
            if self.horizon is None
            else HorizonTimeline(events, weight, self.trends.moments[:-1], self.horizon)
        )
        return CutoffExamples(
            self.sequences, self.maker, timeline, self.batch_size, self.dropout
        )

    def count_targets(self) -> Ints:
        """Count how often each item can be a target of an epoch, (N,)."""
        is_target = self.sequences.target_weight > 0
        return np.bincount(
            self.sequences.events.item_row[is_target], minlength=len(self.catalogue)
        )

    def early_pairs(self) -> tuple[Ints, Ints]:
        """Return user and item row of the events that factors may be taken from.

        With a horizon these are the events before the first cutoff: from factors that had seen the targets, the towers
        would learn to trust them too much.
        """
        events = self.sequences.events
        limit = (
            events.time.max(initial=0) + 1
            if self.horizon is None
            else self.trends.moments[0]
        )
        is_early = events.time < limit
        if (
            not is_early.any()
        ):  # a past shorter than the horizon: late factors are better than none
            is_early = np.ones_like(is_early)
        return events.segments[is_early], events.item_row[is_early]

    def final_requests(self) -> Iterator[RequestBatch]:
        """Yield a request of every user with all their training events, and no target."""
        return self._requests_of(np.arange(len(self.sequences.user_ids)))

    def drawn_requests(self, most_users: int) -> Iterator[RequestBatch]:
        """Do as `final_requests` for some users who have events, drawn by the seed."""
        active = np.flatnonzero(np.diff(self.sequences.events.offsets))
        users = np.random.default_rng(self.seed).permutation(len(active))[:most_users]
        return self._requests_of(np.sort(active[users]))

    def _requests_of(self, users: Ints) -> Iterator[RequestBatch]:
        nothing = Targets(
            np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        )
        context = encode_features(self.schema.context_features, {}, len(users))
        for rows in _tiles(len(users), REQUESTS_PER_BATCH):
            yield self._final_batch(users, nothing, rows, context)

    def _make_validation(
        self, validation: pd.DataFrame
    ) -> tuple[list[RequestBatch], np.ndarray]:
        """Make requests, those of like histories in one batch, in a drawn order; and return the ids of their users.

        In a context each target is asked about by a request of its own.
        """
        known = validation[["user_id"]].drop_duplicates()
        held_out = build_sequences(
            validation, known, self.catalogue.item_ids, self.schema
        )
        targets = distinct_targets(held_out.events, held_out.target_weight)
        user_ids = held_out.user_ids
        context = encode_features(
            self.schema.context_features, {}, len(held_out.user_ids)
        )
        if self.schema.context_features and self.schema.repeats == "exclude":
            user_ids = user_ids[targets.users]
            context = held_out.context.take(
                first_targets(held_out.events, held_out.target_weight)
            )
            targets = replace(targets, users=np.arange(len(user_ids)))
        users = np.searchsorted(self.sequences.user_ids, user_ids)
        lengths = np.diff(self.sequences.events.offsets)[users].clip(
            max=self.schema.history_length
        )
        by_length = np.argsort(lengths, kind="stable")
        tiles = _tiles(len(users), REQUESTS_PER_BATCH)
        chosen = [
            by_length[tiles[place]]
            for place in np.random.default_rng(self.seed).permutation(len(tiles))
        ]
        order = np.concatenate([by_length[:0], *chosen])
        users = users[order]
        targets = targets.reorder(order)
        context = context.take(order)
        stops = np.cumsum([len(part) for part in chosen], dtype=np.int64)
        batches = [
            self._final_batch(
                users, targets, np.arange(stop - len(part), stop), context
            )
            for part, stop in zip(chosen, stops, strict=True)
        ]
        return batches, user_ids[order]

    def _final_batch(
        self, users: Ints, targets: Targets, rows: Ints, context: EncodedFeatures
    ) -> RequestBatch:
        """Make the requests of some users, with the context of each and all their training events."""
        offsets = self.sequences.events.offsets
        chosen = users[rows]
        starts = offsets[:-1][chosen]
        stops = offsets[1:][chosen]
        past = self.sequences.events.between(starts, stops)
        times = last_moments(past)
        if self.validation_at is not None:
            times = np.full(len(rows), self.validation_at, dtype=np.int64)
        is_mine = (targets.users >= rows[0]) & (targets.users <= rows[-1])
        mine = Targets(
            targets.users[is_mine] - rows[0],
            targets.rows[is_mine],
            targets.weights[is_mine],
        )
        last = len(self.trends.moments) - 1
        return self.maker.make(
            past,
            times,
            last,
            mine,
            self.sequences.user.take(chosen),
            context.take(rows),
        )


def _tiles(n: int, size: int) -> list[Ints]:
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def fingerprint(*parts: Any) -> str:
    """Hash arrays, tensors and what is made of them (dataclasses, mappings, sequences), type and shape included."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def fingerprint_rows(*frames: pd.DataFrame) -> str:
    """Hash the names and the values of all columns."""
    return fingerprint(
        *((str(name), frame[name].to_numpy()) for frame in frames for name in frame)
    )


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield the bytes of a value and of what it is made of."""
    value = value.numpy() if isinstance(value, Tensor) else value
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield (
            value.tobytes()
            if value.dtype.kind in "biuf"
            else repr(value.tolist()).encode()
        )
        return
    yield type(value).__name__.encode()
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    elif is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if not isinstance(value, (list, tuple)):
        yield repr(value).encode()
        return
    yield str(len(value)).encode()
    for member in value:
        yield from _pieces(member)
