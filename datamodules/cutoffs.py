"""Training by cutoffs: where items repeat or come in baskets, what follows a moment is predicted.

Elsewhere each event is predicted from those before it (`datamodules/sliding_windows.py`), or an
unordered history from itself (`datamodules/sets.py`). A *trend* is the popularity of items as of a
moment: a batch shares one, so that popularity never knows the future.

Letters: U users, E events, G moments of `ItemTrends`, D drawn cutoffs, B requests of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.batch import FeatureDropout, RequestBatch
from datamodules.requests import (
    Examples,
    ItemTrends,
    Plan,
    RequestMaker,
    distinct_targets,
    scale_by_user,
)
from datamodules.sequences import Sequences, count_within, draw_one_each
from serve.arrays import Flags, Ints, spans
from serve.events import Events, last_moments, number_groups
from serve.schema import Schema

# Where items come again, cutoffs lie before the last groups of a user, a share of them and some at
# least: factors and counts of what was before must not have seen the targets.
LAST_SHARE = 0.25
MIN_LAST = 4


@dataclass(frozen=True)
class Cutoffs(Plan):
    """One cutoff of each of D users; positions are into the arrays of all users' events.

    Those of a batch are all of one trend.
    """

    users: Ints  # (D,)
    stops: Ints  # (D,) one past the last known event
    ends: Ints  # (D,) one past the last target
    times: Ints  # (D,) UTC seconds
    trend: Ints  # (D,) index of the moment whose popularity holds


class HorizonTimeline:
    """Cutoffs at given moments; targets are the events of the seconds that follow.

    Args:
        sequences: the events of U users.
        moments: UTC seconds of the cutoffs, (G,).
        horizon: seconds that targets lie within.
    """

    def __init__(self, sequences: Sequences, moments: Ints, horizon: int) -> None:
        events = sequences.events
        self.moments = moments
        self.stops = positions_at(events, moments)  # (U, G)
        self.ends = positions_at(events, moments + horizon)  # (U, G)
        self.has_target = has_target(sequences, self.stops, self.ends)  # (U, G)

    def mark_early(self, events: Events) -> Flags:
        """Mark the events before the first cutoff, (E,)."""
        return np.asarray(events.time < self.moments[0])

    def draw(self, rng: np.random.Generator) -> Cutoffs:
        """Draw one cutoff of each user who has any."""
        lot = rng.random(self.stops.shape)  # (U, G)
        chances = np.where(self.has_target, lot, -1.0)  # (U, G)
        users = np.flatnonzero(self.has_target.any(axis=1))  # (D,)
        trend = chances.argmax(axis=1)[users]  # (D,)

        return Cutoffs(
            users,
            self.stops[users, trend],
            self.ends[users, trend],
            self.moments[trend],
            trend,
        )


class NextGroupTimeline:
    """Cutoffs just before one of the user's own time groups, which is the target.

    Where items come again it is one of the last groups.

    Args:
        sequences: the events of U users.
        trends: their moments are the ones that popularity is taken as of.
        schema: says whether the events of one time are one group.
    """

    def __init__(
        self, sequences: Sequences, trends: ItemTrends, schema: Schema
    ) -> None:
        events = sequences.events
        groups = number_groups(events, schema)  # (E,)
        keys = events.segments * (len(groups) + 1) + groups  # (E,) ascending
        _, starts = np.unique(keys, return_index=True)  # (groups,)
        ends = np.append(starts[1:], len(groups))  # (groups,)
        is_cutoff = has_target(sequences, starts, ends)  # (groups,)
        is_repeated = schema.repeats == "allow"
        if is_repeated:
            is_cutoff &= _mark_last(events.segments[starts])
        stops = starts[is_cutoff]
        times = events.time[stops]
        users = events.segments[stops]
        self.cutoffs = Cutoffs(users, stops, ends[is_cutoff], times, trends.at(times))

        self.n_early = events.counts.copy()  # (U,)
        if is_repeated:
            np.minimum.at(self.n_early, users, stops - events.offsets[users])

    def mark_early(self, events: Events) -> Flags:
        """Mark the events before the first cutoff of their user, (E,); all if nothing repeats."""
        return count_within(events.counts) < self.n_early[events.segments]

    def draw(self, rng: np.random.Generator) -> Cutoffs:
        """Draw one cutoff of each user who has any."""
        return self.cutoffs.take(draw_one_each(self.cutoffs.users, rng))


Timeline = HorizonTimeline | NextGroupTimeline


def _mark_last(users: Ints) -> Flags:
    """Mark the last groups of each user, but not the first of several, given their users (G,)."""
    sizes = np.bincount(users)  # (U,)
    number = count_within(sizes)  # (G,)
    n_last = np.maximum(np.ceil(LAST_SHARE * sizes), MIN_LAST)  # (U,)
    n_last = np.minimum(n_last, np.maximum(sizes - 1, 1))  # (U,)
    return np.asarray(number >= (sizes - n_last)[users])


def has_target(sequences: Sequences, starts: Ints, ends: Ints) -> Flags:
    """Mark the spans of events that hold a target, in the shape of `starts`."""
    n_before = np.append(0, np.cumsum(sequences.target_weight > 0))  # (E + 1,)
    return np.asarray(n_before[ends] > n_before[starts])


def positions_at(events: Events, moments: Ints) -> Ints:
    """Return the position of each user's first event at or after each moment, (U, G)."""
    counts = [
        np.bincount(events.segments, events.time < moment, len(events))
        for moment in moments
    ]
    return events.offsets[:-1, None] + np.array(counts, np.int64).T


class CutoffExamples(Examples):
    """Draw one cutoff of each user anew each epoch; a batch shares the moment of its popularity.

    Args:
        maker: makes the requests of a batch.
        timeline: draws the cutoffs.
    """

    def __init__(
        self,
        sequences: Sequences,
        maker: RequestMaker,
        timeline: Timeline,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        super().__init__(sequences, maker.schema, batch_size, dropout)
        self.maker = maker
        self.timeline = timeline

    def draw(self, rng: np.random.Generator) -> tuple[Cutoffs, list[Ints]]:
        drawn = self.timeline.draw(rng)
        n_full = -(-len(drawn.users) // self.batch_size)
        n_batches = max(n_full, len(self.maker.trends.moments))
        trends, counts = np.unique(drawn.trend, return_counts=True)
        batches: list[Ints] = []

        for trend, n_parts in zip(
            trends, share_batches(counts, n_batches), strict=True
        ):
            rows = rng.permutation(np.flatnonzero(drawn.trend == trend))
            batches += np.array_split(rows, n_parts)

        return drawn, batches

    def __getitem__(self, plan: Cutoffs) -> RequestBatch:
        events = self.sequences.events
        stops = plan.stops  # (B,)
        n = len(stops)
        weight = self.sequences.target_weight[spans(stops, plan.ends)]
        targets = distinct_targets(events.between(stops, plan.ends), weight)

        rng = np.random.default_rng(plan.seed)
        hides_history = rng.random(n) < self.dropout.history  # (B,)
        starts = np.where(hides_history, stops, events.offsets[plan.users])  # (B,)
        past = events.between(starts, stops)
        hides_time = (rng.random(n) < self.dropout.time) & (stops > starts)  # (B,)
        times = np.where(hides_time, last_moments(past), plan.times)  # (B,)
        user = self.user.take(plan.users, rng)
        following = np.minimum(stops, len(events.time) - 1)  # (B,)
        context = self.context.take(following, rng)
        weighed = scale_by_user(targets, n)

        return self.maker.make(past, times, plan.trend[0], weighed, user, context)


def share_batches(counts: Ints, n_batches: int) -> Ints:
    """Share an epoch's batches among its moments, at least one each, (moments,).

    Args:
        counts: cutoffs at each moment, (moments,).
        n_batches: batches to share.
    """
    parts = np.ones(len(counts), dtype=np.int64)
    n_more = min(n_batches, int(counts.sum())) - len(counts)
    for _ in range(n_more):
        parts[np.argmax(counts / parts)] += 1
    return parts
