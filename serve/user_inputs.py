"""Encode requests as the user tower reads them: profile and request put together, encoded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serve.catalogue import UNKNOWN_ROW, ItemFacts, ItemIds
from serve.encode import TIME, EncodedFeatures, RowEncoder
from serve.events import (
    Events,
    Ints,
    TowerInputs,
    history_arrays,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.index import Pairs
from serve.profiles import Profile, Profiles
from serve.requests import History, Id, Request
from serve.schema import FIRST_CODE, UNKNOWN, Schema

NO_TIME = int(np.iinfo(np.int64).max)
"""Time of an event that has none: later than every moment, so that it counts as happening at the moment."""


@dataclass(frozen=True, eq=False)
class EncodedRequests:
    """The arrays of T requests, at least one."""

    tower: TowerInputs
    owned: Pairs
    """All events of each history whose item is known."""
    excluded: Pairs
    """Items of the exclude lists that are known."""
    unknown_items: Ints
    """(T,) distinct items of each history that are not known."""

    @property
    def remembered(self) -> Pairs:
        """The items that the memory scores; none where repeats are not allowed."""
        rows = self.tower.owned_rows
        return self.tower.arrays.get("owned_users", rows), rows


class RequestEncoder:
    """Encode requests for one catalogue with one set of profiles."""

    def __init__(self, schema: Schema, item_ids: ItemIds, facts: ItemFacts | None, profiles: Profiles) -> None:
        """Keep what requests are encoded by; `facts` is None if there is no memory."""
        self._schema, self._item_ids, self._facts, self._profiles = schema, item_ids, facts, profiles
        self._users = RowEncoder(schema.user_features, schema.timezone)
        self._contexts = RowEncoder(schema.context_features, schema.timezone)
        self._event_codes = {name: FIRST_CODE + index for index, name in enumerate(schema.event_types)}
        self._nobody = Profile("", {}, History(item_ids.ids[:0]))

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Encode requests, at least one.

        The moment of a request is its datetime, else its last event's time, else the end of the training
        data. Events later than that count as happening at it.
        """
        profiles = [self._profile(request.user_id) for request in requests]
        pairs = list(zip(requests, profiles, strict=True))
        histories = [profile.history if one.history is None else one.history for one, profile in pairs]
        features = [profile.features if one.features is None else one.features for one, profile in pairs]
        given = self._read_histories(histories)
        moment = self._moments(requests, given)
        events, unknown_items = self._keep_known(given, moment, histories)
        arrays, history_rows = history_arrays(events, self._schema)
        arrays |= request_arrays(moment, self._users.encode(features), self._encode_contexts(requests))
        owned_rows = np.empty(0, dtype=np.int64)
        if self._facts is not None:
            recent = events.last(self._schema.memory_length)
            n_types = len(self._schema.event_types)
            owned = summarise_owned(recent, moment, self._schema.decay_days, n_types, self._facts.repeat_rate)
            arrays |= owned_arrays(owned, self._facts.categories, self._facts.n_categories)
            owned_rows = owned.item_row
        tower = TowerInputs(arrays, history_rows, owned_rows)
        return EncodedRequests(tower, (events.segments(), events.item_row), self._excluded(requests), unknown_items)

    def _profile(self, user_id: Id | None) -> Profile:
        return (None if user_id is None else self._profiles.get(user_id)) or self._nobody

    def _read_histories(self, histories: Sequence[History]) -> Events:
        """Put histories together; an item that is not known has `UNKNOWN_ROW`, an event without time `NO_TIME`."""
        ids = [item_id for one in histories for item_id in np.asarray(one.item_id).tolist()]
        schema = self._schema
        time, event, weight = (
            _join(histories, *column)
            for column in (("datetime", NO_TIME, np.int64), ("event", None, np.object_), ("weight", np.nan, np.float64))
        )
        mean = np.expm1(schema.weight_mean) if schema.has_weight else 1.0  # standardises to 0
        weight = np.minimum(
            np.where(np.isnan(weight), mean, weight), np.finfo(np.float32).max
        )  # float64 reaches further
        return Events(
            self._item_ids.find(ids),
            time if schema.has_datetime else np.zeros(len(ids), dtype=np.int64),
            np.array([self._event_codes.get(name, UNKNOWN) for name in event.tolist()], dtype=np.int64),
            weight.astype(np.float32),
            np.concatenate([[0], np.cumsum([len(one) for one in histories])]).astype(np.int64),
        )

    def _moments(self, requests: Sequence[Request], given: Events) -> Ints:
        """Return the moment of each request, (T,); 0, the time of all events, where the data has no time."""
        if not self._schema.has_datetime:
            return np.zeros(len(requests), dtype=np.int64)
        stops = np.where(given.counts > 0, given.offsets[1:], 0)
        last = np.append(given.time, NO_TIME)[stops - 1]
        last = np.where(last == NO_TIME, self._schema.data_until, last)
        times = zip(requests, last.tolist(), strict=True)
        return np.array([time if one.datetime is None else one.datetime for one, time in times], dtype=np.int64)

    def _keep_known(self, given: Events, moment: Ints, histories: Sequence[History]) -> tuple[Events, Ints]:
        """Return the events of known items, none later than its moment, and how many items are not known, (T,)."""
        time, is_known = np.minimum(given.time, moment.repeat(given.counts)), given.item_row != UNKNOWN_ROW
        if is_known.all():
            events = Events(given.item_row, time, given.event, given.weight, given.offsets)
            return events, np.zeros(len(given), dtype=np.int64)
        segment = given.segments()
        counts = np.bincount(segment[is_known], minlength=len(given))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        ids = np.concatenate([np.asarray(one.item_id, dtype=np.object_) for one in histories])
        unknown = set(zip(segment[~is_known].tolist(), ids[~is_known].tolist(), strict=True))
        n_unknown = np.bincount([owner for owner, _ in unknown], minlength=len(given)).astype(np.int64)
        row, event, weight = given.item_row[is_known], given.event[is_known], given.weight[is_known]
        return Events(row, time[is_known], event, weight, offsets), n_unknown

    def _encode_contexts(self, requests: Sequence[Request]) -> EncodedFeatures:
        rows = [dict(request.context or {}) for request in requests]
        for row, request in zip(rows, requests, strict=True):
            if request.datetime is not None:
                row[TIME] = request.datetime
        return self._contexts.encode(rows)

    def _excluded(self, requests: Sequence[Request]) -> Pairs:
        owner = np.repeat(np.arange(len(requests)), [len(request.exclude) for request in requests])
        rows = self._item_ids.find([item_id for request in requests for item_id in request.exclude])
        is_known = rows != UNKNOWN_ROW
        return owner[is_known], rows[is_known]


def _join(histories: Sequence[History], name: str, missing: Any, dtype: Any) -> np.ndarray:
    """Put one column of all histories in an array, `missing` where a history lacks it."""
    columns = ((getattr(one, name), len(one)) for one in histories)
    return np.concatenate(
        [np.full(n, missing, dtype) if column is None else np.asarray(column, dtype) for column, n in columns]
    )
