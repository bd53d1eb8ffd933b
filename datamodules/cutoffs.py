"""Training by cutoffs: where baskets come at once or items repeat, an example is (user, moment) -> what follows.

Letters: U users, G moments as of which popularity was measured (`ItemTrends`), B requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.batch import FeatureDropout, RequestBatch, encode_missing, hide_rows
from datamodules.requests import (
    ItemTrends,
    RequestMaker,
    distinct_targets,
    scale_by_user,
)
from datamodules.sequences import Sequences
from serve.arrays import Floats, Ints
from serve.encode import EncodedFeatures
from serve.events import Events, last_moments, number_groups, spans
from serve.schema import Schema


@dataclass(frozen=True)
class CutoffPlan:
    """One batch to make, of B requests; positions are into the arrays of all users' events."""

    users: Ints
    starts: Ints  # first known event of each request
    stops: Ints  # one past the last known event
    ends: Ints  # one past the last target
    times: Ints  # moment of each request, UTC seconds
    trend: int  # index of the moment whose popularity holds for the batch
    seed: tuple[int, ...]  # of what is dropped in it


class HorizonTimeline:
    """Cutoffs at the moments of the trends; targets are the events of the `horizon` seconds that follow."""

    def __init__(
        self, events: Events, target_weight: Floats, moments: Ints, horizon: int
    ) -> None:
        self.moments = moments
        self.stops = positions_at(events, moments)  # (U, G)
        self.ends = positions_at(events, moments + horizon)  # (U, G)
        self.has_target = has_target(target_weight, self.stops, self.ends)  # (U, G)

    def draw(self, rng: np.random.Generator) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Draw user, stop, end of the targets, time and index of the trend moment, of the users that have a cutoff."""
        chances = np.where(self.has_target, rng.random(self.stops.shape), -1.0)
        moment = chances.argmax(axis=1)
        users = np.flatnonzero(chances.max(axis=1, initial=-1.0) >= 0)
        trend = moment[users]
        return (
            users,
            self.stops[users, trend],
            self.ends[users, trend],
            self.moments[trend],
            trend,
        )


class NextGroupTimeline:
    """Cutoffs just before one of the user's own time groups, which is the target."""

    def __init__(
        self, events: Events, target_weight: Floats, trends: ItemTrends, schema: Schema
    ) -> None:
        time_groups = number_groups(events, schema)
        is_start = np.ones(len(time_groups), dtype=bool)
        is_start[1:] = time_groups[1:] != time_groups[:-1]
        is_start[events.offsets[:-1][events.counts > 0]] = True
        starts = np.flatnonzero(is_start)
        ends = np.append(starts[1:], len(time_groups))
        is_cutoff = has_target(target_weight, starts, ends)
        self.starts = starts[is_cutoff]
        self.ends = ends[is_cutoff]
        self.users = events.segments[self.starts]
        self.times = events.time[self.starts]
        self.trend = trends.at(self.times)

    def draw(self, rng: np.random.Generator) -> tuple[Ints, Ints, Ints, Ints, Ints]:
        """Draw as `HorizonTimeline.draw` does."""
        order = np.lexsort((rng.random(len(self.users)), self.users))
        users, first = np.unique(self.users[order], return_index=True)
        chosen = order[first]
        return (
            users,
            self.starts[chosen],
            self.ends[chosen],
            self.times[chosen],
            self.trend[chosen],
        )


def has_target(weight: Floats, starts: Ints, ends: Ints) -> np.ndarray:
    """Say which spans of events hold a target: bool of the shape of `starts`."""
    before = np.concatenate([[0], np.cumsum(weight > 0)])
    return np.asarray(before[ends] > before[starts])


def positions_at(events: Events, moments: Ints) -> Ints:
    """Return where each user's events at or after each moment begin, (U, G)."""
    times = np.concatenate([events.time, moments])
    first = times.min(initial=0)  # below 0 before 1970
    span = times.max(initial=0) - first + 1
    keys = events.segments * span + (events.time - first)
    wanted = np.arange(len(events))[:, None] * span + (moments - first)[None, :]
    return np.asarray(np.searchsorted(keys, wanted), np.int64)


Timeline = HorizonTimeline | NextGroupTimeline


class CutoffExamples:
    """Draw one cutoff of each user anew each epoch; a batch shares the moment of its popularity."""

    def __init__(
        self,
        sequences: Sequences,
        maker: RequestMaker,
        timeline: Timeline,
        batch_size: int,
        dropout: FeatureDropout,
    ) -> None:
        self.sequences = sequences
        self.maker = maker
        self.timeline = timeline
        self.batch_size = batch_size
        self.dropout = dropout
        self.missing_user = encode_missing(maker.schema.user_features)
        self.missing_context = encode_missing(maker.schema.context_features)

    def plan(self, seed: int, epoch: int) -> list[CutoffPlan]:
        """Plan an epoch: a function of (seed, epoch) alone, always of as many batches."""
        rng = np.random.default_rng([seed, epoch])
        users, stops, ends, times, trend = self.timeline.draw(rng)
        starts = self.sequences.events.offsets[:-1][users]
        n_batches = max(
            -(-len(users) // self.batch_size), len(self.maker.trends.moments)
        )
        moments, counts = np.unique(trend, return_counts=True)
        batches: list[Ints] = []
        for moment, n_parts in zip(
            moments, share_batches(counts, n_batches), strict=True
        ):
            batches += np.array_split(
                rng.permutation(np.flatnonzero(trend == moment)), n_parts
            )
        plans = []
        for number in rng.permutation(len(batches)):
            rows = batches[number]
            of_rows = users[rows], starts[rows], stops[rows], ends[rows], times[rows]
            plans.append(
                CutoffPlan(*of_rows, int(trend[rows[0]]), (seed, epoch, int(number)))
            )
        return plans

    def __getitem__(self, plan: CutoffPlan) -> RequestBatch:
        rng = np.random.default_rng(plan.seed)
        events = self.sequences.events
        n = len(plan.users)
        weight = self.sequences.target_weight[spans(plan.stops, plan.ends)]
        targets = scale_by_user(
            distinct_targets(events.between(plan.stops, plan.ends), weight), n
        )
        starts = np.where(rng.random(n) < self.dropout.history, plan.stops, plan.starts)
        last = last_moments(events.between(plan.starts, plan.stops))
        is_timeless = (rng.random(n) < self.dropout.time) & (plan.stops > starts)
        times = np.where(is_timeless, last, plan.times)
        is_without_features = rng.random(n) < self.dropout.user
        user = hide_rows(
            self.sequences.user.take(plan.users), is_without_features, self.missing_user
        )
        past = events.between(starts, plan.stops)
        return self.maker.make(
            past, times, plan.trend, targets, user, self.context(plan.stops, rng)
        )

    def context(self, stops: Ints, rng: np.random.Generator) -> EncodedFeatures:
        """Return the request context of each cutoff: that of the first event that follows."""
        rows = np.minimum(stops, len(self.sequences.events.time) - 1)
        is_hidden = rng.random(len(rows)) < self.dropout.context
        return hide_rows(
            self.sequences.context.take(rows), is_hidden, self.missing_context
        )


def share_batches(counts: Ints, n_batches: int) -> Ints:
    """Share an epoch's batches among its moments by their numbers of cutoffs, (moments,), at least one each."""
    parts = np.ones(len(counts), dtype=np.int64)
    for _ in range(min(n_batches, int(counts.sum())) - len(counts)):
        parts[np.argmax(counts / parts)] += 1
    return parts
