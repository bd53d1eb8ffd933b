"""Training on windows: where events are ordered and no item repeats, each position is a target.

Letters: U users, E events, B windows of a batch, L events of the longest, C codes, V values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import FeatureDropout, WindowBatch
from datamodules.requests import Examples, Plan
from datamodules.sequences import Sequences, count_within, mark_repeats
from serve.arrays import Floats, Ints
from serve.clock import DAY
from serve.encode import age_values
from serve.events import history_arrays
from serve.schema import Schema


@dataclass(frozen=True)
class WindowPlan(Plan):
    """B windows to make."""

    users: Ints  # (B,)
    starts: Ints  # (B,) position of the first event of each window in the flat arrays
    stops: Ints  # (B,) one past the position of the last


class WindowExamples(Examples):
    """Split long sequences at a random offset into windows, anew each epoch."""

    def __init__(
        self,
        sequences: Sequences,
        schema: Schema,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        super().__init__(sequences, schema, batch_size, dropout)
        # An owned item is never listed again, so that only its first event is a target.
        is_repeat = mark_repeats(sequences.events)  # (E,)
        target_weight = np.where(is_repeat, 0, sequences.target_weight)
        self.target_weight = target_weight.astype(np.float32)  # (E,)

    def draw(self, rng: np.random.Generator) -> tuple[WindowPlan, list[Ints]]:
        offsets = self.sequences.events.offsets  # (U + 1,)
        length = self.schema.history_length
        users, starts, stops = cut_windows(offsets, length, rng)
        lengths = stops - starts
        blurred = lengths + rng.uniform(0, 2, len(lengths))
        order = np.argsort(blurred, kind="stable")  # similar lengths share a batch
        n_batches = count_batches(np.diff(offsets), length, self.batch_size)

        return WindowPlan(users, starts, stops), np.array_split(order, n_batches)

    def __getitem__(self, plan: WindowPlan) -> WindowBatch:
        events = self.sequences.events
        windows = events.between(plan.starts, plan.stops)
        arrays, history_rows = history_arrays(windows, self.schema)
        times = arrays["history_times"]  # (B, L)
        columns = np.arange(times.shape[1])  # (L,)
        is_event = columns < windows.counts[:, None]  # (B, L)
        last = plan.stops[:, None] - 1  # (B, 1)
        positions = np.minimum(plan.starts[:, None] + columns, last)  # (B, L)

        rng = np.random.default_rng(plan.seed)
        context = self.context.take(positions, rng)
        user = self.user.take(plan.users, rng)
        has_time = rng.random(positions.shape) >= self.dropout.time  # (B, L)
        sees_history = rng.random(positions.shape) >= self.dropout.history  # (B, L)

        gaps = np.diff(times, axis=1, prepend=times[:, :1])  # (B, L)
        recency = gaps * (is_event & has_time)  # (B, L)
        target_weights = self.target_weight[positions] * is_event  # (B, L)
        # The first event of a later window is only the past of the second.
        is_later = plan.starts != events.offsets[plan.users]  # (B,)
        target_weights[is_later, 0] = 0

        arrays["user_codes"] = user.codes  # (B, C)
        arrays["user_values"] = self._age(user.values, times - gaps + recency)
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

    def _age(self, values: Floats, moments: Ints) -> Floats:
        """Turn dates of the users (B, V) into ages at each target (B, L, V), if there are dates."""
        features = self.schema.user_features
        if not any(feature.is_date for feature in features):
            return values
        days = (moments - self.schema.data_until) / DAY  # (B, L)
        repeated = np.repeat(values[:, None], moments.shape[1], axis=1)  # (B, L, V)
        return age_values(features, repeated, days)


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
