"""Training on whole windows: where events are ordered and no item repeats, every position is a target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.batch import FeatureDropout, WindowBatch, encode_missing, hide_rows
from datamodules.sequences import Sequences
from serve.arrays import Ints
from serve.clock import DAY
from serve.encode import age_values
from serve.events import Arrays, Events, standardise_weight
from serve.schema import Schema


@dataclass(frozen=True)
class WindowPlan:
    """One batch to make: event ranges in the flat arrays, and the seed of what is dropped in it."""

    users: Ints
    starts: Ints
    stops: Ints
    seed: tuple[int, ...]


class WindowExamples:
    """Split long sequences at a random offset into windows of `history_length` events, anew each epoch."""

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
        is_first = mark_first_times(sequences.events)
        self.target_weight = np.where(is_first, sequences.target_weight, 0).astype(
            np.float32
        )  # (E,)
        self.missing_user = encode_missing(schema.user_features)
        self.missing_context = encode_missing(schema.context_features)

    def plan(self, seed: int, epoch: int) -> list[WindowPlan]:
        """Plan an epoch: a function of (seed, epoch) alone. Windows of similar length share a batch."""
        rng = np.random.default_rng([seed, epoch])
        offsets = self.sequences.events.offsets
        length = self.schema.history_length
        users, starts, stops = cut_windows(offsets, length, rng)
        lengths = stops - starts
        order = np.argsort(lengths + rng.uniform(0, 2, len(lengths)), kind="stable")
        batches = np.array_split(
            order, count_batches(np.diff(offsets), length, self.batch_size)
        )
        return [
            WindowPlan(
                users[rows], starts[rows], stops[rows], (seed, epoch, int(number))
            )
            for number in rng.permutation(len(batches))
            for rows in [batches[number]]
        ]

    def __getitem__(self, plan: WindowPlan) -> WindowBatch:
        rng = np.random.default_rng(plan.seed)
        columns = np.arange((plan.stops - plan.starts).max(initial=1))  # (L,)
        places = np.minimum(
            plan.starts[:, None] + columns, plan.stops[:, None] - 1
        )  # (B, L), padded by the last event
        is_event = plan.starts[:, None] + columns < plan.stops[:, None]
        shape = places.shape
        arrays = self.history(places, is_event) | {
            "history_lengths": plan.stops - plan.starts
        }
        history_rows = self.sequences.events.item_row[places] * is_event  # (B, L)
        target_weights = self.target_weight[places] * is_event  # (B, L)
        is_first_window = plan.starts == self.sequences.events.offsets[:-1][plan.users]
        target_weights[~is_first_window, 0] = (
            0  # elsewhere the first event only gives the second one its past
        )
        is_placeless = rng.random(places.size) < self.dropout.context
        is_nameless = rng.random(len(plan.users)) < self.dropout.user
        context = hide_rows(
            self.sequences.context.take(places.ravel()),
            is_placeless,
            self.missing_context,
        )
        user = hide_rows(
            self.sequences.user.take(plan.users), is_nameless, self.missing_user
        )
        has_time = rng.random(shape) >= self.dropout.time
        times = arrays["history_times"]
        recency = np.zeros(shape, dtype=np.int64)
        np.multiply(
            times[:, 1:] - times[:, :-1],
            (is_event & has_time)[:, 1:],
            out=recency[:, 1:],
        )
        arrays |= {"user_codes": user.codes, "user_values": user.values}
        if any(
            feature.kind == "date" for feature in self.schema.user_features
        ):  # of another age at each target
            moments = np.column_stack(
                [times[:, :1], times[:, :-1] + recency[:, 1:]]
            )  # (B, L)
            each = np.repeat(
                user.values[:, None], moments.shape[1], axis=1
            )  # (B, L, V)
            days = (moments - self.schema.data_until) / DAY
            arrays["user_values"] = age_values(self.schema.user_features, each, days)
        return WindowBatch(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            torch.from_numpy(history_rows),
            torch.from_numpy(context.codes).view(*shape, context.codes.shape[1]),
            torch.from_numpy(context.values).view(*shape, context.values.shape[1]),
            torch.from_numpy(target_weights),
            torch.from_numpy(rng.random(shape) >= self.dropout.history),
            torch.from_numpy(recency),
        )

    def history(self, places: Ints, is_event: np.ndarray) -> Arrays:
        """Return what `serve.events.history_arrays` does, (B, L) each, with each event a group."""
        events = self.sequences.events  # (L,)
        groups = np.arange(1, places.shape[1] + 1)
        return {
            "history_events": events.event[places] * is_event,
            "history_weights": np.where(
                is_event, self.weight[places], np.float32(0)
            ),  # a product may be -0
            "history_times": events.time[places] * is_event,
            "history_groups": groups * is_event,
        }


def count_batches(counts: Ints, length: int, batch_size: int) -> int:
    """Return the batches of every epoch, from the mean number of windows: Lightning counts the first epoch's only."""
    stride = max(length - 1, 1)
    has_events = counts > 0
    fewest = int(np.maximum(-(-(counts - 1) // stride), has_events).sum())
    mean = (
        has_events.sum() + np.maximum(counts[counts > length] - 2, 0).sum() / stride
    )  # over the offsets
    return max(1, min(int(np.ceil(mean / batch_size)), fewest))


def mark_first_times(events: Events) -> np.ndarray:
    """Mark the events on an item that the user did not have before: the others can never be recommended, (E,)."""
    pairs = (
        events.segments * (int(events.item_row.max(initial=0)) + 1) + events.item_row
    )
    is_first = np.zeros(len(pairs), dtype=bool)
    is_first[np.unique(pairs, return_index=True)[1]] = True
    return is_first


def cut_windows(
    offsets: Ints, length: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints]:
    """Split each sequence into windows of at most `length` events that overlap by one; return user, start and stop.

    The first window of a longer sequence ends at a random event: over epochs each target is seen at every depth.
    """
    stride = max(length - 1, 1)
    counts = np.diff(offsets)
    first = rng.integers(2, stride + 2, len(counts))  # events of the first window
    first = np.where(counts <= length, length, first)
    n_windows = np.where(counts > 0, 1 + -(-np.maximum(counts - first, 0) // stride), 0)
    users = np.repeat(np.arange(len(counts)), n_windows)
    number = np.arange(len(users)) - np.repeat(
        np.cumsum(n_windows) - n_windows, n_windows
    )
    stops = np.minimum(first[users] + number * stride, counts[users])
    starts = np.where(number > 0, first[users] + (number - 1) * stride - 1, 0)
    return users, offsets[users] + starts, offsets[users] + stops
