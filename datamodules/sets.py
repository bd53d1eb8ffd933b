"""Training on sets: where events have no order, some items of a user are predicted from the others.

Letters: U users, E events, B examples of a batch, P (user, item) pairs, T of them that are targets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.batch import FeatureDropout, RequestBatch
from datamodules.requests import (
    Examples,
    Plan,
    RequestMaker,
    Targets,
    distinct_targets,
    scale_by_user,
)
from datamodules.sequences import (
    FOLDS,
    Sequences,
    count_within,
    draw_one_each,
    number_pairs,
)
from serve.arrays import Ints, spans
from serve.events import Events

THINNED = 0.5  # share of examples that see a random share of the other items only


@dataclass(frozen=True)
class SetPlan(Plan):
    """Folds of B users to predict."""

    users: Ints  # (B,)
    folds: Ints  # (B,)
    fold_of_event: Ints  # (E,) of this epoch; -1: never a target

    def take(self, rows: Ints) -> SetPlan:
        return replace(self, users=self.users[rows], folds=self.folds[rows])


class SetExamples(Examples):
    """Draw every user's items into folds each epoch; each fold is predicted from the others.

    With a request context each item is a fold of its own.

    Args:
        sequences: the events and features of U users, ordered by user and item.
        maker: makes the requests of a batch.
    """

    def __init__(
        self,
        sequences: Sequences,
        maker: RequestMaker,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        super().__init__(sequences, maker.schema, batch_size, dropout)
        self.maker = maker
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

        if not self.schema.context_features:
            self.n_folds = np.minimum(self.n_targets, FOLDS)  # (U,)

    def draw(self, rng: np.random.Generator) -> tuple[SetPlan, list[Ints]]:
        target_users = self.pair_user[self.target_pairs]  # (T,)
        order = np.lexsort((rng.random(len(target_users)), target_users))  # (T,)
        rank = count_within(self.n_targets)  # (T,) within the user
        fold = np.full(len(self.pair_user), -1, dtype=np.int64)  # (P,)
        fold[self.target_pairs[order]] = rank % self.n_folds[target_users]
        fold_of_event = fold[self.pair]  # (E,)

        users = np.repeat(np.arange(len(self.n_folds)), self.n_folds)  # (examples,)
        plan = SetPlan(users, count_within(self.n_folds), fold_of_event)

        max_length = self.schema.history_length
        lengths = np.minimum(self.sequences.events.counts, max_length)[users]
        blurred = lengths * rng.uniform(0.8, 1.2, len(users))
        order = np.argsort(blurred, kind="stable")  # similar lengths share a batch
        n_batches = max(1, -(-len(order) // self.batch_size))

        return plan, np.array_split(order, n_batches)

    def __getitem__(self, plan: SetPlan) -> RequestBatch:
        events = self.sequences.events
        n = len(plan.users)
        starts = events.offsets[plan.users]  # (B,)
        stops = events.offsets[plan.users + 1]  # (B,)
        positions = spans(starts, stops)  # (e,) the events of the batch
        example = np.repeat(np.arange(n), stops - starts)  # (e,)
        is_target = plan.fold_of_event[positions] == plan.folds[example]  # (e,)

        rng = np.random.default_rng(plan.seed)
        lot = rng.random(len(positions))  # (e,)
        is_thinned = rng.random(n) < THINNED  # (B,)
        shares = np.where(is_thinned, rng.random(n), 1.0)  # (B,) of items that are seen
        shares[rng.random(n) < self.dropout.history] = 0.0
        is_seen = ~is_target & (lot < shares[example])  # (e,)

        user = self.user.take(plan.users, rng)
        drawn = draw_one_each(example[is_target], rng)  # (B,) an event on the targets
        context = self.context.take(positions[is_target][drawn], rng)
        targets = self._weigh_targets(plan, positions[is_target], example[is_target])
        past = _pick(events, positions[is_seen], example[is_seen], n)
        times = np.zeros(n, dtype=np.int64)  # (B,)

        return self.maker.make(past, times, 0, targets, user, context)

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
