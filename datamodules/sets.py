"""Training on sets: where events have no order, a random part of a user's items is predicted from the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.batch import FeatureDropout, RequestBatch, encode_missing, hide_rows
from datamodules.requests import RequestMaker, distinct_targets, scale_by_user
from datamodules.sequences import Sequences
from serve.arrays import Ints
from serve.encode import EncodedFeatures
from serve.events import Events, spans

FOLDS = 5  # parts that a user's items are drawn into; each is predicted from the others once an epoch
THINNED = 0.5  # share of examples that see only a random share of the other items: short histories are asked about too


@dataclass(frozen=True)
class SetPlan:
    """One batch to make: users, which of their parts is predicted, and the seed of what is dropped in it."""

    users: Ints
    folds: Ints
    fold_of_event: Ints  # (E,) of this epoch; -1: never a target
    seed: tuple[int, ...]


class SetExamples:
    """Draw every user's items into parts each epoch (or one by one, with a context); each is predicted from others."""

    def __init__(
        self,
        sequences: Sequences,
        maker: RequestMaker,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        self.sequences = sequences
        self.maker = maker
        self.batch_size = batch_size
        self.dropout = dropout
        self.missing_user = encode_missing(maker.schema.user_features)
        self.missing_context = encode_missing(maker.schema.context_features)
        events = sequences.events
        self.unit = number_units(events)
        self.unit_user = events.segments[np.unique(self.unit, return_index=True)[1]]
        is_target = np.bincount(self.unit, sequences.target_weight > 0) > 0
        self.target_units = np.flatnonzero(is_target)
        counts = np.bincount(self.unit_user[self.target_units], minlength=len(events))
        self.n_folds = (
            counts if maker.schema.context_features else np.minimum(counts, FOLDS)
        )  # (U,)

    def plan(self, seed: int, epoch: int) -> list[SetPlan]:
        """Plan an epoch: a function of (seed, epoch) alone, always of as many batches. Similar lengths share one."""
        rng = np.random.default_rng([seed, epoch])
        fold_of_event = self.draw_folds(rng)[self.unit]
        users = np.repeat(np.arange(len(self.n_folds)), self.n_folds)
        folds = np.arange(len(users)) - np.repeat(
            np.cumsum(self.n_folds) - self.n_folds, self.n_folds
        )
        lengths = np.minimum(
            self.sequences.events.counts, self.maker.schema.history_length
        )[users]
        order = np.argsort(lengths * rng.uniform(0.8, 1.2, len(users)), kind="stable")
        batches = np.array_split(order, max(1, -(-len(order) // self.batch_size)))
        return [
            SetPlan(users[rows], folds[rows], fold_of_event, (seed, epoch, int(number)))
            for number in rng.permutation(len(batches))
            for rows in [batches[number]]
        ]

    def draw_folds(self, rng: np.random.Generator) -> Ints:
        """Draw the part of each unit, -1 where it is no target."""
        users = self.unit_user[self.target_units]
        order = np.lexsort((rng.random(len(users)), users))
        counts = np.bincount(users, minlength=len(self.n_folds))
        rank = (
            np.arange(len(users)) - (np.cumsum(counts) - counts)[users]
        )  # users ascend
        fold = np.full(len(self.unit_user), -1, dtype=np.int64)
        fold[self.target_units[order]] = rank % self.n_folds[users]
        return fold

    def __getitem__(self, plan: SetPlan) -> RequestBatch:
        rng = np.random.default_rng(plan.seed)
        events = self.sequences.events
        n = len(plan.users)
        starts = events.offsets[:-1][plan.users]
        stops = events.offsets[1:][plan.users]
        places = spans(starts, stops)
        segment = np.repeat(np.arange(n), stops - starts)
        is_target = plan.fold_of_event[places] == plan.folds[segment]
        lot = rng.random(len(places))
        shares = np.where(rng.random(n) < THINNED, rng.random(n), 1.0)
        shares = np.where(
            rng.random(n) < self.dropout.history, 0.0, shares
        )  # of the other items that are seen
        is_seen = ~is_target & (lot < shares[segment])
        asked = _pick(events, places, segment, is_target, n)
        targets = scale_by_user(
            distinct_targets(asked, self.sequences.target_weight[places[is_target]]), n
        )
        share = (
            self.n_folds[plan.users] ** -0.5
        )  # of each of a user's parts: many items count more, not as many times
        targets = replace(
            targets, weights=(targets.weights * share[targets.users]).astype(np.float32)
        )
        user = self.sequences.user.take(plan.users)
        user = hide_rows(user, rng.random(n) < self.dropout.user, self.missing_user)
        context = self.context(places[is_target], segment[is_target], rng)
        past = _pick(events, places, segment, is_seen, n)
        return self.maker.make(
            past, np.zeros(n, dtype=np.int64), 0, targets, user, context
        )

    def context(
        self, places: Ints, segment: Ints, rng: np.random.Generator
    ) -> EncodedFeatures:
        """Return the request context of each example: that of one of its targets' events."""
        order = np.lexsort((rng.random(len(places)), segment))
        _, first = np.unique(segment[order], return_index=True)
        chosen = places[order[first]]
        is_hidden = rng.random(len(chosen)) < self.dropout.context
        return hide_rows(
            self.sequences.context.take(chosen), is_hidden, self.missing_context
        )


def number_units(events: Events) -> Ints:
    """Number the (user, item) pairs of events that are ordered by them, (E,)."""
    segment = events.segments
    row = events.item_row
    is_new = np.ones(len(row), dtype=bool)
    is_new[1:] = (segment[1:] != segment[:-1]) | (row[1:] != row[:-1])
    return np.asarray(np.cumsum(is_new) - 1, np.int64)


def _pick(
    events: Events, places: Ints, segment: Ints, is_picked: np.ndarray, n: int
) -> Events:
    counts = np.bincount(segment[is_picked], minlength=n)
    return events.pick(
        places[is_picked], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    )
