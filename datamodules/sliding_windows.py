"""Training on windows: where events are ordered and no item repeats, each position is a target.

Letters: U users, E events, B windows of a batch, L events of the longest, C codes, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import FeatureDropout, PartlyHidden, WindowBatch
from datamodules.sequences import Sequences, count_within, number_pairs
from serve.arrays import Flags, Floats, Ints
from serve.clock import DAY
from serve.encode import age_values
from serve.events import Arrays, Events, standardise_weight
from serve.schema import Schema


@dataclass(frozen=True)
class WindowPlan:
    """The events of one batch to make, and the seed of its feature dropout."""

    users: Ints  # (B,)
    starts: Ints  # (B,) position of the first event of each window in the flat arrays
    stops: Ints  # (B,) one past the position of the last
    seed: tuple[int, ...]


class WindowExamples:
    """Split long sequences at a random offset into windows, anew each epoch.

    Args:
        sequences: the events and features of U users.
        schema: gives the length of a window, `history_length`.
        batch_size: mean number of windows of a batch.
        dropout: shares of targets that are predicted without a part of their input.

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
        self.weight = standardise_weight(sequences.events.weight, schema)  # (E,)
        is_first = mark_first_times(sequences.events)  # (E,)
        target_weight = np.where(is_first, sequences.target_weight, 0)  # (E,)
        self.target_weight = target_weight.astype(np.float32)  # (E,)
        self.user = PartlyHidden(sequences.user, schema.user_features, dropout.user)
        self.context = PartlyHidden(
            sequences.context, schema.context_features, dropout.context
        )

    def plan(self, seed: int, epoch: int) -> list[WindowPlan]:
        """Plan an epoch, a function of seed and epoch alone."""
        rng = np.random.default_rng([seed, epoch])
        offsets = self.sequences.events.offsets  # (U + 1,)
        length = self.schema.history_length
        users, starts, stops = cut_windows(offsets, length, rng)

        lengths = stops - starts
        blurred = lengths + rng.uniform(0, 2, len(lengths))
        order = np.argsort(blurred, kind="stable")  # similar lengths share a batch
        n_batches = count_batches(np.diff(offsets), length, self.batch_size)
        batches = np.array_split(order, n_batches)

        plans = []
        for number in rng.permutation(n_batches).tolist():
            rows = batches[number]
            dropout_seed = (seed, epoch, number)
            plan = WindowPlan(users[rows], starts[rows], stops[rows], dropout_seed)
            plans.append(plan)

        return plans

    def __getitem__(self, plan: WindowPlan) -> WindowBatch:
        """Make the batch of a plan."""
        lengths = plan.stops - plan.starts  # (B,)
        columns = np.arange(lengths.max(initial=1))  # (L,)
        is_event = columns < lengths[:, None]  # (B, L)
        last = plan.stops[:, None] - 1  # (B, 1)
        positions = np.minimum(plan.starts[:, None] + columns, last)  # (B, L)

        rng = np.random.default_rng(plan.seed)
        context = self.context.take(positions, rng)
        user = self.user.take(plan.users, rng)
        has_time = rng.random(positions.shape) >= self.dropout.time  # (B, L)
        sees_history = rng.random(positions.shape) >= self.dropout.history  # (B, L)

        history = self.history(positions, is_event)
        times = history["history_times"]  # (B, L)
        recency = np.zeros_like(times)  # (B, L)
        recency[:, 1:] = np.diff(times, axis=1) * (is_event & has_time)[:, 1:]

        arrays = {
            **history,
            "history_lengths": lengths,  # (B,)
            "user_codes": user.codes,  # (B, C)
            "user_values": self._age(user.values, times, recency),  # (B, V), (B, L, V)
        }
        history_rows = self.sequences.events.item_row[positions] * is_event  # (B, L)
        target_weights = self._weigh_targets(plan, positions, is_event)  # (B, L)
        others = (
            history_rows,
            context.codes,  # (B, L, C)
            context.values,  # (B, L, V)
            target_weights,
            sees_history,
            recency,
        )
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}

        return WindowBatch(tensors, *map(torch.from_numpy, others))

    def history(self, positions: Ints, is_event: Flags) -> Arrays:
        """Return the history arrays, (B, L) each, in which each event is a group.

        They are those of `serve.events.history_arrays`, byte by byte.
        """
        events = self.sequences.events
        groups = np.arange(1, positions.shape[1] + 1)  # (L,)
        # A product of a weight below 0 and False is -0, so the weights are chosen.
        weights = np.where(is_event, self.weight[positions], np.float32(0))  # (B, L)
        return {
            "history_events": events.event[positions] * is_event,  # (B, L)
            "history_weights": weights,
            "history_times": events.time[positions] * is_event,  # (B, L)
            "history_groups": groups * is_event,  # (B, L)
        }

    def _age(self, values: Floats, times: Ints, recency: Ints) -> Floats:
        """Turn dates of the users (B, V) into ages at each target (B, L, V), if there are dates."""
        features = self.schema.user_features
        if not any(feature.kind == "date" for feature in features):
            return values
        moments = times.copy()  # (B, L)
        moments[:, 1:] = times[:, :-1] + recency[:, 1:]
        days = (moments - self.schema.data_until) / DAY  # (B, L)
        repeated = np.repeat(values[:, None], times.shape[1], axis=1)  # (B, L, V)

        return age_values(features, repeated, days)

    def _weigh_targets(
        self, plan: WindowPlan, positions: Ints, is_event: Flags
    ) -> Floats:
        """Return the weight of each event as a target, (B, L).

        The first event of a later window is only the past of the second.
        """
        weights = self.target_weight[positions] * is_event  # (B, L)
        first_of_user = self.sequences.events.offsets[:-1][plan.users]  # (B,)
        weights[plan.starts != first_of_user, 0] = 0
        return weights


def count_batches(counts: Ints, length: int, batch_size: int) -> int:
    """Return the batches of every epoch, of users with `counts` events, (U,).

    Lightning counts the batches of the first epoch only, so the mean number of windows decides.
    """
    stride = max(length - 1, 1)
    has_events = counts > 0  # (U,)
    n_steps = -(-(counts - 1) // stride)  # (U,)
    min_windows = int(np.maximum(n_steps, has_events).sum())
    n_later = np.maximum(counts[counts > length] - 2, 0).sum()
    mean_windows = has_events.sum() + n_later / stride  # over the random offsets
    n_batches = int(np.ceil(mean_windows / batch_size))

    return max(1, min(n_batches, min_windows))


def mark_first_times(events: Events) -> Flags:
    """Mark the first event of each user on each item, (E,): an owned item is never listed again."""
    _, first = np.unique(number_pairs(events), return_index=True)
    is_first = np.zeros(len(events.item_row), dtype=bool)  # (E,)
    is_first[first] = True
    return is_first


def cut_windows(
    offsets: Ints, length: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Split each sequence into windows of at most `length` events that overlap by one.

    The first window of a longer sequence ends at a random event, so that over the epochs each
    target is seen at every depth.

    Args:
        offsets: bounds of the users' events in the flat arrays, (U + 1,).
        length: the most events of a window.
        rng: draws the ends of the first windows.

    Returns:
        user, start and stop of each window, (windows,) each.
    """
    stride = max(length - 1, 1)
    counts = np.diff(offsets)  # (U,)
    ends = rng.integers(2, stride + 2, len(counts))  # (U,) of the first window
    ends = np.where(counts <= length, length, ends)  # (U,)
    n_later = -(-np.maximum(counts - ends, 0) // stride)  # (U,)
    n_windows = np.where(counts > 0, 1 + n_later, 0)  # (U,)

    users = np.repeat(np.arange(len(counts)), n_windows)  # (windows,)
    number = count_within(n_windows)  # (windows,)
    last = ends[users] + number * stride  # (windows,)
    stops = np.minimum(last, counts[users])  # (windows,)
    starts = np.where(number > 0, last - stride - 1, 0)  # (windows,)

    return users, offsets[users] + starts, offsets[users] + stops
