"""Answer what users would want, here and now: requests in, ranked items out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Floats, Ints
from serve.bundle import ITEM_TOWER, PROFILES, Bundle, identify_folder
from serve.catalogue import Catalogue, Columns, ItemFacts, ItemIds
from serve.encode import TIME, context_keys, encode_features, encode_rows, keyed_by_name
from serve.errors import BundleError, SchemaError, name_nearest
from serve.events import (
    Events,
    TowerInputs,
    history_arrays,
    last_moments,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.filters import Admission, explain_short, rank_filtered
from serve.golden import GoldenAnswer, replay
from serve.index import UNKNOWN_ROW, Pairs, Query, Terms, join_terms
from serve.profiles import MANIFEST, Profile, Profiles
from serve.recommendations import Recommendations
from serve.requests import History, Request, fit_request, parse_request
from serve.schema import FIRST_CODE, UNKNOWN, Schema
from serve.tower import TowerPair

RawRequest = Mapping[str, Any] | Request
View = Literal[
    "all", "novel", "owned"
]  # items that are ranked: all, those not in the history, or only these

NO_TIME = int(
    np.iinfo(np.int64).max
)  # later than every moment: such an event counts as happening at the moment
_TILE = 256  # requests or items that are worked on at once: memory does not grow with a batch


class Recommender:
    """A bundle and the profiles of its users, ready to answer. Nothing in it changes."""

    def __init__(self, bundle: Bundle, profiles: Profiles | None = None) -> None:
        """Put a bundle and the profiles of its users together; without these, requests bring their own histories."""
        schema = bundle.schema
        self.bundle = bundle
        self.version = bundle.manifest.version
        self.loaded_at = time.time()  # UTC seconds
        self.profiles = _no_profiles(schema) if profiles is None else profiles
        known = self.profiles
        types = (schema.user_id_type, schema.item_id_type)
        for ids, kind in zip(
            (known.user_ids, known.history.item_id), types, strict=True
        ):
            if (ids.dtype == np.object_) != (kind == "string"):
                raise BundleError(
                    f"profiles: ids are {ids.dtype}; the bundle has {kind}: give those of its data"
                )
        self.towers = TowerPair(bundle.user_tower, bundle.item_tower, schema)
        self.taste_dim = (
            self.towers.taste_dim
        )  # entries of an item vector that `similar_items` compares
        self._set_catalogue(
            Catalogue.of_items(bundle.items, bundle.index, schema), None
        )
        last = {
            one.column: one.vocabulary[-1]
            for one in schema.item_features
            if one.vocabulary
        }
        try:
            self.encode_items([{}, last])
        except (ValueError, KeyError) as error:
            raise BundleError(
                f"{ITEM_TOWER} gives an item no vector of the index: {error}"
            ) from error

    @classmethod
    def load(
        cls,
        directory: Path,
        profiles: Path | Profiles | None = None,
        trusted: Path | None = None,
    ) -> Recommender:
        """Load a published bundle and profiles, by default those in `profiles` beside it; replay golden requests."""
        path = Path(directory)
        known = profiles
        if known is None and (path.absolute().parent / PROFILES / MANIFEST).exists():
            known = path.absolute().parent / PROFILES
        while True:
            found = identify_folder(path)
            bundle = Bundle.load(path, trusted=trusted)
            read = (
                Profiles.load(Path(known), bundle.manifest.version)
                if isinstance(known, (str, Path))
                else known
            )
            if (
                identify_folder(path) == found
            ):  # else another bundle took its place meanwhile
                break
        recommender = cls(bundle, read)
        replay(bundle.golden, golden_answer(recommender))
        return recommender

    def with_catalogue(self, catalogue: Catalogue) -> Recommender:
        """Return a recommender of a catalogue in which the items here keep their rows and others come after them."""
        other = copy(self)
        other._set_catalogue(catalogue, self.admission.columns)
        return other

    def _set_catalogue(self, catalogue: Catalogue, columns: Columns | None) -> None:
        schema = self.bundle.schema
        self.catalogue = catalogue
        self._encoder = RequestEncoder(
            schema, catalogue.item_ids, catalogue.facts, self.profiles
        )
        features = schema.item_features
        columns = (
            Columns(catalogue.table, features)
            if columns is None
            else columns.changed(catalogue.table)
        )
        self.admission = Admission(columns, catalogue.item_ids, catalogue.is_removed)

    def recommend(
        self,
        requests: Iterable[RawRequest],
        k: int = 10,
        filter_viewed: bool | None = None,
    ) -> Recommendations:
        """Rank the catalogue for each request; what one gives replaces that part of the user's profile.

        Lists have k items, fewer only where fewer are admissible, and then the reason. `filter_viewed` leaves out the
        items of the history; by default what the data says of repeats.
        """
        if filter_viewed not in (None, True, False):  # "no" is true to Python
            raise ValueError(
                f"filter_viewed is {filter_viewed!r}; allowed: True, False, or None: as the data says"
            )
        if filter_viewed is None:
            filter_viewed = self.bundle.schema.repeats == "exclude"
        return self._answer(requests, k, "novel" if filter_viewed else "all")

    def rank_owned(
        self, requests: Iterable[RawRequest], k: int = 10
    ) -> Recommendations:
        """Rank the items of each request's history, with the scores of `recommend`."""
        return self._answer(requests, k, "owned")

    def similar_items(
        self, item_id: str | int, k: int = 10
    ) -> tuple[NDArray[np.generic], Floats]:
        """Return ids and falling cosines of the items nearest to an item; removed ones may be asked for, not listed."""
        (row,) = self.catalogue.item_ids.require([item_id])
        scores, rows = self.catalogue.index.similar(int(row), k, self.taste_dim)
        return self.catalogue.item_ids.ids[rows], scores

    def score(
        self, requests: Iterable[RawRequest], item_ids: Sequence[str | int]
    ) -> NDArray[np.float64]:
        """Return the scores of items, (B, K), whether they would be listed or not; memory counts as among repeats."""
        rows, place = np.unique(
            self.catalogue.item_ids.require(item_ids), return_inverse=True
        )
        checked = self.check(requests)
        score = self.catalogue.index.score
        encoded = (self._encoder.encode(checked[tile]) for tile in _tiles(len(checked)))
        scores = [score(self._make_query(one, "all"), rows) for one in encoded]
        return np.concatenate([np.empty((0, len(rows))), *scores])[:, place]

    def encode_users(self, requests: Iterable[RawRequest]) -> Floats:
        """Return the user vector of each request, (B, W)."""
        vectors = self.catalogue.index.vectors
        checked = self.check(requests)
        encoded = (self._encoder.encode(checked[tile]) for tile in _tiles(len(checked)))
        return np.concatenate(
            [
                vectors[:0],
                *(self.towers.users(one.tower, vectors)[0] for one in encoded),
            ]
        )

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Return vectors (n, W) of items that the bundle lacks, as visible as an average one, by column -> value."""
        schema = self.bundle.schema
        columns = {name: [row.get(name) for row in rows] for name in set().union(*rows)}
        known = {feature.column for feature in schema.item_features}
        for name in columns:
            if name not in known:
                raise SchemaError(
                    f"items: unknown column '{name}'; {name_nearest(str(name), known)}"
                )
        encoded = encode_features(
            schema.item_features, columns, len(rows), schema.timezone
        )
        tiles = (encoded.take(np.arange(len(rows))[tile]) for tile in _tiles(len(rows)))
        return np.concatenate([self.bundle.vectors[:0], *map(self.towers.items, tiles)])

    def _answer(
        self, requests: Iterable[RawRequest], k: int, view: View
    ) -> Recommendations:
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")
        checked = self.check(requests)
        length = min(k, len(self.catalogue.index))
        shape = len(checked), length
        scores = np.empty(shape, np.float32)
        rows = np.empty(shape, np.int64)
        unknown = np.empty(shape[0], np.int64)
        reasons: dict[int, str] = {}
        for tile in _tiles(len(checked)):
            encoded = self._encoder.encode(checked[tile])
            filters = [request.filters for request in checked[tile]]
            query = self._make_query(encoded, view)
            if any(filters):
                found = rank_filtered(
                    self.catalogue.index, self.admission, filters, query, length
                )
            else:
                found = self.catalogue.index.search(query, length)
            (scores[tile], rows[tile]) = found
            unknown[tile] = encoded.unknown_items
            if view != "owned" and (length < k or (rows[tile, -1] < 0).any()):
                short = explain_short(
                    self.admission, filters, encoded.left_out(view), rows[tile], k
                )
                reasons |= {
                    tile.start + place: reason for place, reason in short.items()
                }
        return Recommendations.from_lists(
            [request.user_id for request in checked],
            rows,
            scores,
            item_ids=self.catalogue.item_ids.ids,
            unknown_items=unknown,
            user_id_type=self.bundle.schema.user_id_type,
            reasons=reasons,
        )

    def _make_query(self, encoded: EncodedRequests, view: View) -> Query:
        """Run the user tower and put together what is added to its products."""
        users, memory = self.towers.users(encoded.tower, self.catalogue.index.vectors)
        arrays = encoded.tower.arrays
        neighbours = self.bundle.neighbours
        remembered = encoded.owned if len(memory) else None
        lengths = arrays["history_lengths"]
        matches = arrays["history_matches"]
        of_history = neighbours.of_histories(
            encoded.tower.history_rows, lengths, remembered, matches
        )
        of_memory: Terms | None = None
        if view != "novel" and len(memory):
            of_memory = (arrays["owned_users"], encoded.tower.owned_rows, memory)
        added = join_terms([of_history, neighbours.of_all(len(users)), of_memory])
        requests, rows = map(
            np.concatenate, zip(*encoded.left_out(view).values(), strict=True)
        )
        return Query(
            users, (requests, rows), added, encoded.owned if view == "owned" else None
        )

    def check(self, requests: Iterable[RawRequest]) -> list[Request]:
        """Read requests as the schema has them."""
        schema = self.bundle.schema
        return [
            (fit_request if isinstance(raw, Request) else parse_request)(raw, schema)
            for raw in requests
        ]  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class EncodedRequests:
    """The arrays of T requests, at least one."""

    tower: TowerInputs
    owned: Pairs
    excluded: Pairs
    unknown_items: Ints  # (T,) distinct items of each history that are not known

    def left_out(self, view: View) -> dict[str, Pairs]:
        """Return which items are left out of lists, by the reason."""
        return {"excluded": self.excluded} | (
            {"owned": self.owned} if view == "novel" else {}
        )


class RequestEncoder:
    """Put profiles and requests of one catalogue together, encoded as in training."""

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
        self._event_codes = {
            name: FIRST_CODE + index for index, name in enumerate(schema.event_types)
        }
        self._nobody = Profile("", {}, History(item_ids.ids[:0]))

    def encode(self, requests: Sequence[Request]) -> EncodedRequests:
        """Encode requests, at least one; events later than its moment count as happening at it."""
        schema = self._schema
        ids = [request.user_id for request in requests]
        profiles = [
            (None if one is None else self._profiles.get(one)) or self._nobody
            for one in ids
        ]
        pairs = list(zip(requests, profiles, strict=True))
        histories = [
            profile.history if one.history is None else one.history
            for one, profile in pairs
        ]
        features = [
            profile.features if one.features is None else one.features
            for one, profile in pairs
        ]
        given = self._read_histories(histories)
        moment = self._moments(requests, given)
        events, unknown_items = self._keep_known(given, moment, histories)
        users = encode_rows(self._user_features, features, schema.timezone)
        contexts = [{**(one.context or {}), TIME: one.datetime} for one in requests]
        context = encode_rows(self._context_features, contexts, schema.timezone)
        keys = context_keys(self._context_features, context.codes)
        arrays, history_rows = history_arrays(events, schema, keys)
        arrays |= request_arrays(moment, users, context, schema)
        owned_rows = history_rows[:0, 0]
        if self._facts is not None:
            recent = events.last(schema.memory_length)
            n_types = len(schema.event_types)
            owned = summarise_owned(
                recent, moment, schema.decay_days, n_types, self._facts.repeat_rate
            )
            arrays |= owned_arrays(
                owned, self._facts.categories, self._facts.n_categories
            )
            owned_rows = owned.item_row
        tower = TowerInputs(arrays, history_rows, owned_rows)
        return EncodedRequests(
            tower,
            (events.segments, events.item_row),
            self._excluded(requests),
            unknown_items,
        )

    def _read_histories(self, histories: Sequence[History]) -> Events:
        """Put histories together; an item that is not known has `UNKNOWN_ROW`, an event without time `NO_TIME`."""
        ids = [
            item_id for one in histories for item_id in np.asarray(one.item_id).tolist()
        ]
        schema = self._schema
        mean = (
            np.expm1(schema.weight_mean) if schema.has_weight else 1.0
        )  # standardises to 0
        weight = _join(histories, "weight", np.nan, np.float64)
        weight = np.minimum(
            np.where(np.isnan(weight), mean, weight), np.finfo(np.float32).max
        )
        event = _join(histories, "event", None, np.object_).tolist()
        return Events(
            self._item_ids.find(ids),
            _join(histories, "datetime", NO_TIME, np.int64) * schema.has_datetime,
            np.array(
                [self._event_codes.get(name, UNKNOWN) for name in event], dtype=np.int64
            ),
            weight.astype(np.float32),
            np.cumsum([0, *map(len, histories)], dtype=np.int64),
            _join(histories, "context", 0, np.int64),
        )

    def _moments(self, requests: Sequence[Request], given: Events) -> Ints:
        """Return the moment of each request, (T,): its datetime, else its last event's, else the end of training."""
        if not self._schema.has_datetime:
            return np.zeros(len(requests), dtype=np.int64)
        last = last_moments(given, NO_TIME)
        last = np.where(last == NO_TIME, self._schema.data_until, last)
        times = zip(requests, last.tolist(), strict=True)
        return np.array(
            [time if one.datetime is None else one.datetime for one, time in times],
            dtype=np.int64,
        )

    def _keep_known(
        self, given: Events, moment: Ints, histories: Sequence[History]
    ) -> tuple[Events, Ints]:
        """Return the events of known items, none later than its moment, and how many items are not known, (T,)."""
        time = np.minimum(given.time, moment.repeat(given.counts))
        is_known = given.item_row != UNKNOWN_ROW
        segment = given.segments
        n_unknown = np.zeros(len(given), dtype=np.int64)
        timely = replace(given, time=time)
        if is_known.all():
            return timely, n_unknown
        ids = np.concatenate(
            [np.asarray(one.item_id, dtype=np.object_) for one in histories]
        )
        for owner, _ in set(
            zip(segment[~is_known].tolist(), ids[~is_known].tolist(), strict=True)
        ):
            n_unknown[owner] += 1
        counts = np.bincount(segment[is_known], minlength=len(given))
        return timely.pick(
            np.flatnonzero(is_known), np.concatenate([[0], np.cumsum(counts)])
        ), n_unknown

    def _excluded(self, requests: Sequence[Request]) -> Pairs:
        owner = np.repeat(
            np.arange(len(requests)), [len(request.exclude) for request in requests]
        )
        rows = self._item_ids.find(
            [item_id for request in requests for item_id in request.exclude]
        )
        return owner[rows != UNKNOWN_ROW], rows[rows != UNKNOWN_ROW]


def _join(
    histories: Sequence[History], name: str, missing: Any, dtype: Any
) -> np.ndarray:
    """Put one column of all histories in an array, `missing` where a history lacks it."""
    columns = ((getattr(one, name), len(one)) for one in histories)
    whole = (np.full(n, missing) if column is None else column for column, n in columns)
    return np.concatenate([np.asarray(column, dtype) for column in whole])


def golden_answer(recommender: Recommender) -> GoldenAnswer:
    """Return a function that answers golden requests as `serve.bundle` compares them."""
    return lambda asked, k: [
        (one.item_id.tolist(), one.score.tolist())
        for one in recommender.recommend(asked, k)
    ]


def _no_profiles(schema: Schema) -> Profiles:
    nothing = {
        "string": np.empty(0, dtype=np.object_),
        "integer": np.empty(0, dtype=np.int64),
    }
    return Profiles(
        nothing[schema.user_id_type],
        {},
        History(nothing[schema.item_id_type]),
        np.zeros(1, np.int64),
    )


def _tiles(n: int) -> Iterator[slice]:
    return (slice(start, start + _TILE) for start in range(0, n, _TILE))
