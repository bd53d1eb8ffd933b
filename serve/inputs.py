"""Requests as the inputs of the user tower, encoded as training encodes its examples.

Letters: T requests, L history positions, E events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Ints
from serve.catalogue import ItemFacts, ItemIds
from serve.encode import TIME, context_keys, encode_rows, keyed_by_name
from serve.events import (
    Events,
    TowerInputs,
    history_arrays,
    last_moments,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.index import UNKNOWN_ROW, Pairs
from serve.kinds import FIRST_CODE, UNKNOWN
from serve.profiles import Profiles
from serve.requests import History, Request
from serve.schema import Schema

# A time later than every moment: an event without a time counts as happening at the moment.
NO_TIME = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, eq=False)
class EncodedRequests:
    """The arrays of T requests, at least one.

    Attributes:
        tower: the inputs of the user tower.
        owned: the items of the histories.
        excluded: the items that the requests exclude.
        unknown_items: (T,) number of distinct items of each history that are not known.
    """

    tower: TowerInputs
    owned: Pairs
    excluded: Pairs
    unknown_items: Ints


class RequestEncoder:
    """Complete the requests of one catalogue by profiles, and encode them as in training."""

    def __init__(
        self,
        schema: Schema,
        item_ids: ItemIds,
        facts: ItemFacts | None,
        profiles: Profiles,
    ) -> None:
        self._schema = schema
        self._item_ids = item_ids
        self._facts = facts
        self._profiles = profiles
        self._user_features = keyed_by_name(schema.user_features)
        self._context_features = keyed_by_name(schema.context_features)
        self._event_codes: dict[str | None, int] = {}
        for code, name in enumerate(schema.event_types, start=FIRST_CODE):
            self._event_codes[name] = code

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Encode requests, at least one; events later than its moment count as happening at it."""
        schema = self._schema
        completed = [self._profiles.complete(request) for request in requests]
        nothing = History(self._item_ids.ids[:0])
        histories = [request.history or nothing for request in completed]
        events = self._read_histories(histories)
        moment = self._find_moments(requests, events)
        unknown_items = _count_unknown(events, histories)
        events = _keep_known(events, moment)

        features = [request.features or {} for request in completed]
        users = encode_rows(self._user_features, features, schema.timezone)
        contexts = []
        for request in requests:
            contexts.append({**(request.context or {}), TIME: request.datetime})
        context = encode_rows(self._context_features, contexts, schema.timezone)
        keys = context_keys(self._context_features, context.codes)
        arrays, history_rows = history_arrays(events, schema, keys)
        arrays |= request_arrays(moment, users, context, schema)
        owned_rows = history_rows[:0, 0]
        if self._facts is not None:
            facts = self._facts
            owned = summarise_owned(
                events.last(schema.memory_length),
                moment,
                schema.decay_days,
                len(schema.event_types),
                facts.repeat_rate,
            )
            arrays |= owned_arrays(owned, facts.categories, facts.n_categories)
            owned_rows = owned.item_row
        return EncodedRequests(
            tower=TowerInputs(arrays, history_rows, owned_rows),
            owned=(events.segments, events.item_row),
            excluded=self._find_excluded(requests),
            unknown_items=unknown_items,
        )

    def _read_histories(self, histories: Sequence[History]) -> Events:
        """Put histories together; missing are `UNKNOWN_ROW` of an item and `NO_TIME` of a time."""
        schema = self._schema
        ids = _join(histories, "item_id", None, np.object_)
        # A missing weight is the mean, which standardises to 0.
        mean = np.expm1(schema.weight_mean) if schema.has_weight else 1.0
        weight = _join(histories, "weight", np.nan, np.float64)
        weight = np.where(np.isnan(weight), mean, weight)
        weight = np.minimum(weight, np.finfo(np.float32).max)
        code_of = self._event_codes.get
        names = _join(histories, "event", None, np.object_).tolist()
        times = _join(histories, "datetime", NO_TIME, np.int64)
        return Events(
            item_row=self._item_ids.find(ids),
            time=times * schema.has_datetime,
            event=np.array([code_of(name, UNKNOWN) for name in names], np.int64),
            weight=weight.astype(np.float32),
            offsets=np.cumsum([0, *map(len, histories)], dtype=np.int64),
            context=_join(histories, "context", 0, np.int64),
        )

    def _find_moments(self, requests: Sequence[Request], events: Events) -> Ints:
        """Return the moment of each request, (T,).

        It is its datetime, else the time of its last event, else the end of the training data.
        """
        if not self._schema.has_datetime:
            return np.zeros(len(requests), dtype=np.int64)
        moments = last_moments(events, NO_TIME)
        moments[moments == NO_TIME] = self._schema.data_until
        for place, request in enumerate(requests):
            if request.datetime is not None:
                moments[place] = request.datetime
        return moments

    def _find_excluded(self, requests: Sequence[Request]) -> Pairs:
        lengths = [len(request.exclude) for request in requests]
        owner = np.repeat(np.arange(len(requests)), lengths)
        ids = [item_id for request in requests for item_id in request.exclude]
        rows = self._item_ids.find(ids)
        is_known = rows != UNKNOWN_ROW
        return owner[is_known], rows[is_known]


def _join(
    histories: Sequence[History], name: str, missing: Any, dtype: Any
) -> NDArray[Any]:
    """Put one column of all histories in an array, `missing` where a history lacks it."""
    columns = []
    for history in histories:
        column = getattr(history, name)
        if column is None:
            column = np.full(len(history), missing)
        columns.append(np.asarray(column, dtype))
    return np.concatenate(columns)


def _count_unknown(events: Events, histories: Sequence[History]) -> Ints:
    """Count the distinct items of each history that are not known, (T,)."""
    n_unknown = np.zeros(len(events), np.int64)
    is_unknown = events.item_row == UNKNOWN_ROW
    for owner in np.unique(events.segments[is_unknown]).tolist():
        is_own = is_unknown[events.offsets[owner] : events.offsets[owner + 1]]
        n_unknown[owner] = len(set(histories[owner].item_id[is_own].tolist()))
    return n_unknown


def _keep_known(events: Events, moment: Ints) -> Events:
    """Return the events of known items, none later than the moment of its request."""
    time = np.minimum(events.time, moment.repeat(events.counts))
    timely = replace(events, time=time)
    is_known = events.item_row != UNKNOWN_ROW
    if is_known.all():
        return timely
    counts = np.bincount(events.segments[is_known], minlength=len(events))
    return timely.pick(
        np.flatnonzero(is_known), np.concatenate([[0], np.cumsum(counts)])
    )
