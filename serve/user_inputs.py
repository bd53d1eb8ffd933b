"""From requests to what the user tower reads: profile and request put together, encoded as in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serve.encoding import EncodedFeatures
from serve.events import Events, Ints
from serve.feature_rows import TIME, RowEncoder
from serve.histories import NO_TIME, Place, encode_histories, flatten_histories, join_events
from serve.item_facts import ItemFacts
from serve.item_ids import ItemIds
from serve.known_users import KnownUsers
from serve.owned import summarise_owned
from serve.pairs import NO_PAIRS, Pairs, RequestItems
from serve.requests import Request
from serve.schema import Schema
from serve.tower_inputs import Arrays, TowerInputs, history_arrays, owned_arrays, request_arrays


@dataclass(frozen=True)
class EncodedRequests:
    """T requests, at least one."""

    tower: TowerInputs
    items: RequestItems
    unknown_items: Ints
    """(T,)."""

    def __len__(self) -> int:
        return len(self.unknown_items)


class RequestEncoder:
    """Encode requests for one bundle with one set of profiles."""

    def __init__(self, schema: Schema, item_ids: ItemIds, known: KnownUsers, facts: ItemFacts | None) -> None:
        """Keep what requests are encoded by.

        Args:
            schema: of the bundle.
            item_ids: its catalogue.
            known: the profiles.
            facts: what the memory reads of items; None if there is no memory.
        """
        self.schema = schema
        self.item_ids = item_ids
        self.known = known
        self.facts = facts
        self._user_rows = RowEncoder(schema.user_features, schema.timezone)
        self._context_rows = RowEncoder(schema.context_features, schema.timezone)

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Encode requests, at least one.

        The moment of a request is its datetime, else its last event's time, else the end of the training
        data. Events later than that count as happening at it.
        """
        positions = np.array([self.known.position(request.user_id) for request in requests], dtype=np.int64)
        places = self._histories(requests, positions)
        moment = self._moments(requests, places)
        events = join_events(places, moment)
        arrays, history_rows = history_arrays(events, self.schema)
        arrays |= request_arrays(moment, self._users(requests, positions), self._contexts(requests))
        remembered = NO_PAIRS
        if self.facts is not None:
            more, remembered = self._remember(events, moment, self.facts)
            arrays |= more
        return EncodedRequests(
            tower=TowerInputs(arrays, history_rows, remembered.rows),
            items=RequestItems(
                remembered, Pairs(events.segments(), events.item_row), excluded=self._excluded(requests)
            ),
            unknown_items=np.array([part.unknown_items[i] for part, i in places], dtype=np.int64),
        )

    def _histories(self, requests: Sequence[Request], positions: Ints) -> list[Place]:
        """Take the inline history where there is one, else that of the profile."""
        inline = [request.history for request in requests if request.history is not None]
        places = [(self.known.histories, position) for position in positions.tolist()]
        if inline:
            given = encode_histories(*flatten_histories(inline, self.item_ids), self.item_ids, self.schema)
            replaced = [index for index, request in enumerate(requests) if request.history is not None]
            for number, index in enumerate(replaced):
                places[index] = (given, number)
        return places

    def _moments(self, requests: Sequence[Request], places: Sequence[Place]) -> Ints:
        """Return the moment of each request; 0, the time of all events, where the data has no time."""
        if not self.schema.has_datetime:
            return np.zeros(len(requests), dtype=np.int64)
        last = [part.last_time[i] for part, i in places]
        given = [request.datetime for request in requests]
        moments = [time if at is None else at for time, at in zip(last, given, strict=True)]
        return np.array([self.schema.data_until if time == NO_TIME else time for time in moments], dtype=np.int64)

    def _users(self, requests: Sequence[Request], positions: Ints) -> EncodedFeatures:
        users = self.known.features.take(positions)
        inline = {i: request.features for i, request in enumerate(requests) if request.features is not None}
        if inline:
            given = self._user_rows.encode(list(inline.values()))
            users.codes[list(inline)], users.values[list(inline)] = given.codes, given.values
        return users

    def _contexts(self, requests: Sequence[Request]) -> EncodedFeatures:
        rows = [dict(request.context or {}) for request in requests]
        for row, request in zip(rows, requests, strict=True):
            if request.datetime is not None:
                row[TIME] = request.datetime
        return self._context_rows.encode(rows)

    def _remember(self, events: Events, moment: Ints, facts: ItemFacts) -> tuple[Arrays, Pairs]:
        n_types = len(self.schema.event_types)
        recent = events.last(self.schema.memory_length)
        owned = summarise_owned(recent, moment, self.schema.decay_days, n_types, facts.repeat_rate)
        return owned_arrays(owned, facts.categories, facts.n_categories), Pairs(owned.user, owned.item_row)

    def _excluded(self, requests: Sequence[Request]) -> Pairs:
        if not any(request.exclude for request in requests):
            return NO_PAIRS
        owner = np.repeat(np.arange(len(requests)), [len(request.exclude) for request in requests])
        rows = self.item_ids.find([item_id for request in requests for item_id in request.exclude])
        return Pairs(owner, rows).take(rows >= 0)
