"""Training on sets: where events have no order, some items of a user are predicted from the others.

Letters: U users, E events, B examples of a batch, P (user, item) pairs, T of them that are targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.batch import FeatureDropout, PartlyHidden, RequestBatch
from datamodules.requests import (
    RequestMaker,
    Targets,
    distinct_targets,
    scale_by_user,
)
from datamodules.sequences import Sequences, count_within, number_pairs
from serve.arrays import Ints, spans
from serve.events import Events

FOLDS = 5  # each fold of a user's items is predicted from the others once an epoch
THINNED = 0.5  # share of examples that see a random share of the other items only


@dataclass(frozen=True)
class SetPlan:
    """The users of one batch to make, the folds to predict, and the seed of its dropout."""

    users: Ints  # (B,)
    folds: Ints  # (B,)
    fold_of_event: Ints  # (E,) of this epoch; -1: never a target
    seed: tuple[int, ...]


class SetExamples:
    """Draw every user's items into folds each epoch; each fold is predicted from the others.

    With a request context each item is a fold of its own.

    Args:
        sequences: the events and features of U users, ordered by user and item.
        maker: makes the requests of a batch.
        batch_size: the most examples of a batch.
        dropout: shares of examples that are predicted without a part of their input.
    """

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
        schema = maker.schema
        self.user = PartlyHidden(sequences.user, schema.user_features, dropout.user)
        self.context = PartlyHidden(
            sequences.context, schema.context_features, dropout.context
        )

        events = sequences.events
        _, first, self.pair = np.unique(  # pair (E,): number of each event's pair
            number_pairs(events), return_index=True, return_inverse=True
        )
        self.pair_user = events.segments[first]  # (P,)
        is_target = np.bincount(self.pair, sequences.target_weight > 0) > 0  # (P,)
        self.target_pairs = np.flatnonzero(is_target)  # (T,)
        target_users = self.pair_user[self.target_pairs]  # (T,) ascending
        self.n_targets = np.bincount(target_users, minlength=len(events))  # (U,)
        self.n_folds = self.n_targets  # (U,)
        if not schema.context_features:
            self.n_folds = np.minimum(self.n_targets, FOLDS)  # (U,)

    def plan(self, seed: int, epoch: int) -> list[SetPlan]:
        """Plan an epoch, a function of seed and epoch alone; every epoch has as many batches."""
        rng = np.random.default_rng([seed, epoch])
        fold_of_event = self.draw_folds(rng)[self.pair]  # (E,)
        users = np.repeat(np.arange(len(self.n_folds)), self.n_folds)  # (examples,)
        folds = count_within(self.n_folds)  # (examples,)

        max_length = self.maker.schema.history_length
        lengths = np.minimum(self.sequences.events.counts, max_length)[users]
        blurred = lengths * rng.uniform(0.8, 1.2, len(users))
        order = np.argsort(blurred, kind="stable")  # similar lengths share a batch
        n_batches = max(1, -(-len(order) // self.batch_size))
        batches = np.array_split(order, n_batches)

        plans = []
        for number in rng.permutation(n_batches).tolist():
            rows = batches[number]
            dropout_seed = (seed, epoch, number)
            plan = SetPlan(users[rows], folds[rows], fold_of_event, dropout_seed)
            plans.append(plan)

        return plans

    def draw_folds(self, rng: np.random.Generator) -> Ints:
        """Draw the fold of each pair, -1 where it is no target, (P,)."""
        users = self.pair_user[self.target_pairs]  # (T,)
        order = np.lexsort((rng.random(len(users)), users))  # (T,)
        rank = count_within(self.n_targets)  # (T,) within the user
        fold = np.full(len(self.pair_user), -1, dtype=np.int64)  # (P,)
        fold[self.target_pairs[order]] = rank % self.n_folds[users]

        return fold

    def __getitem__(self, plan: SetPlan) -> RequestBatch:
        """Make the batch of a plan."""
        events = self.sequences.events
        n = len(plan.users)
        starts = events.offsets[:-1][plan.users]  # (B,)
        stops = events.offsets[1:][plan.users]  # (B,)
        positions = spans(starts, stops)  # (e,) the events of the batch
        example = np.repeat(np.arange(n), stops - starts)  # (e,)
        is_target = plan.fold_of_event[positions] == plan.folds[example]  # (e,)

        rng = np.random.default_rng(plan.seed)
        lot = rng.random(len(positions))  # (e,)
        is_thinned = rng.random(n) < THINNED  # (B,)
        shares = np.where(is_thinned, rng.random(n), 1.0)  # (B,) of items that are seen
        hides_history = rng.random(n) < self.dropout.history  # (B,)
        shares = np.where(hides_history, 0.0, shares)  # (B,)
        is_seen = ~is_target & (lot < shares[example])  # (e,)

        targets = self._weigh_targets(plan, positions[is_target], example[is_target])
        user = self.user.take(plan.users, rng)
        chosen = self._choose_event(positions[is_target], example[is_target], rng)
        context = self.context.take(chosen, rng)
        past = _pick(events, positions[is_seen], example[is_seen], n)
        times = np.zeros(n, dtype=np.int64)  # (B,)

        return self.maker.make(past, times, 0, targets, user, context)

    def _choose_event(
        self, positions: Ints, example: Ints, rng: np.random.Generator
    ) -> Ints:
        """Draw one of the events on the targets of each example, (B,)."""
        order = np.lexsort((rng.random(len(positions)), example))
        _, first = np.unique(example[order], return_index=True)  # (B,)
        return positions[order[first]]

    def _weigh_targets(self, plan: SetPlan, positions: Ints, example: Ints) -> Targets:
        """Return the targets of a batch; the folds of a user weigh together like their root."""
        n = len(plan.users)
        followed = _pick(self.sequences.events, positions, example, n)
        weight = self.sequences.target_weight[positions]
        targets = scale_by_user(distinct_targets(followed, weight), n)
        share = self.n_folds[plan.users] ** -0.5  # (B,)
        weights = targets.weights * share[targets.users]  # (M,)

        return replace(targets, weights=weights.astype(np.float32))


def _pick(events: Events, positions: Ints, example: Ints, n: int) -> Events:
    """Take events at ascending positions as the segments of n examples."""
    return events.pick(positions, np.searchsorted(example, np.arange(n + 1)))
