"""Answer what users would want, here and now: requests in, ranked items out.

    score(u, i) = u . v_i  +  sum over the history of item-item weights  +  memory of item i

A user *owns* the items of their history. The memory is a learned term for each owned item: how soon
it is taken again. Item-item weights of nobody in particular (the trend: what has been popular
lately) count for everybody. What was taken just now is not listed until it may be due again.

The path of a request:

1. `parse_request` checks it against the schema of the bundle.
2. `Profiles.complete` adds the history and features of its user where it brings none.
3. `RequestEncoder` turns it into arrays, as training does.
4. The user tower makes the user vector u and scores the owned items (the memory).
5. `ItemIndex.search` adds item-item weights and memory to u . v_i and keeps the best items;
   `rank_filtered` does so under filters.
6. `Recommendations` holds the lists of all requests.

Letters: T requests of a tile, B requests in all, N items, K items of a list, W columns of a vector,
E events.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Floats, Id, to_arrow
from serve.bundle import GOLDEN, PROFILES, Bundle, identify_folder
from serve.catalogue import Catalogue, Columns, name_items
from serve.encode import encode_features
from serve.errors import BundleError, SchemaError, name_nearest
from serve.filters import Admission, explain_short, rank_filtered
from serve.index import Pairs, Query, find_greatest, join_terms
from serve.just_taken import JustTaken
from serve.profiles import MANIFEST, Profiles
from serve.recommendations import Answer, Recommendations
from serve.requests import Request, fit_request, parse_request
from serve.tower import EncodedRequests, RequestEncoder, TowerPair

RawRequest = Mapping[str, Any] | Request
# (raw requests, k) -> the answer to each request
Recommend = Callable[[list[dict[str, Any]], int], Iterable[Answer]]

# The items that are ranked: all, those that are not in the history, or only those that are.
View = Literal["all", "novel", "owned"]

_HELD = "not due again"  # the items of a list that are held back

GOLDEN_ASKS = {"again": "any"}  # what golden requests ask for beside what is written
_MAX_GOLDEN = 1000
# of a score on another machine, per unit of the k-th where that is above 1
_TOLERANCE = 2e-4
_TILE = 256  # requests or items at once, so that memory does not grow with a batch


class Recommender:
    """A bundle and the profiles of its users, ready to answer. Nothing in it changes.

    Example:
        >>> recommender = Recommender.load(Path("runs/demo/bundle"))
        >>> answer = recommender.recommend([{"user_id": 1}], k=5).of(0)
        >>> answer.item_id, answer.score
    """

    def __init__(self, bundle: Bundle, profiles: Profiles | None = None) -> None:
        """Put a bundle and profiles together.

        Args:
            bundle: a loaded bundle.
            profiles: histories and features of its users; without them, requests bring their own.

        Raises:
            BundleError: if the profiles or the towers are not those of the bundle's data.
        """
        schema = bundle.schema
        self.bundle = bundle
        self.version = bundle.manifest.version
        self.loaded_at = time.time()  # UTC seconds
        self.profiles = Profiles.none(schema) if profiles is None else profiles
        _check_ids(self.profiles.user_ids, schema.user_id_type)
        _check_ids(self.profiles.history.item_id, schema.item_id_type)
        self.towers = TowerPair(bundle.user_tower, bundle.item_tower, schema)
        # The first columns of an item vector, which `similar_items` compares.
        self.taste_dim = self.towers.taste_dim
        catalogue = Catalogue.of_items(bundle.items, bundle.index, schema)
        self._set_catalogue(catalogue, Columns(catalogue.table, schema.item_features))
        data = bundle.manifest.facts.config.get("data", {})
        targets = data.get("targets", {}).get("events")
        self.just_taken = JustTaken(targets or schema.event_types, self.profiles)

    @classmethod
    def load(
        cls,
        directory: Path,
        profiles: Path | Profiles | None = None,
        trusted: Path | None = None,
    ) -> Recommender:
        """Load a published bundle and replay its golden requests.

        Args:
            directory: folder of the bundle.
            profiles: folder of profiles, or profiles; by default the folder `profiles` beside the
                bundle, if there is one.
            trusted: public keys, one of which must have signed the bundle.

        Raises:
            BundleError: if a part is missing, altered, or does not fit the others.
        """
        path = Path(directory)
        beside = path.absolute().parent / PROFILES
        if profiles is None and (beside / MANIFEST).exists():
            profiles = beside

        while True:
            identity = identify_folder(path)
            bundle = Bundle.load(path, trusted=trusted)
            known = profiles
            if isinstance(known, (str, Path)):
                known = Profiles.load(Path(known), bundle.manifest.version)
            # Another bundle may have taken its place meanwhile.
            if identify_folder(path) == identity:
                break

        recommender = cls(bundle, known)
        replay(bundle.golden, recommender.recommend)
        return recommender

    def with_catalogue(self, catalogue: Catalogue) -> Recommender:
        """Return a recommender of a catalogue that continues this one: items keep their rows."""
        other = copy(self)
        other._set_catalogue(catalogue, self.admission.columns.changed(catalogue.table))
        return other

    def _set_catalogue(self, catalogue: Catalogue, columns: Columns) -> None:
        self.catalogue = catalogue
        self._names: dict[Id, str] = {}  # of the items that somebody asked for
        self.admission = Admission(columns, catalogue.item_ids, catalogue.is_removed)
        self._encoder = RequestEncoder(
            self.bundle.schema, catalogue.item_ids, catalogue.facts
        )

    def recommend(
        self,
        requests: Iterable[RawRequest],
        k: int = 10,
        filter_viewed: bool | None = None,
    ) -> Recommendations:
        """Rank the catalogue for each request.

        Args:
            requests: B mappings as in `serve.requests`, or checked requests. What one brings
                replaces that part of its user's profile.
            k: length of the lists. They are shorter only where fewer items are admissible, and
                then they have a reason.
            filter_viewed: leave out the items of the history; by default where the data excludes
                repeats.

        Returns:
            B lists of items with falling scores.

        Raises:
            SchemaError: if a request does not fit the schema of the bundle.
        """
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
        """Return the items nearest to an item.

        Args:
            item_id: an item of the catalogue, which may be removed.
            k: number of items; removed ones are not listed.

        Returns:
            Ids and falling cosines, (K,) each.
        """
        row = self.catalogue.item_ids.require([item_id])
        index = self.catalogue.index.directions(self.taste_dim)
        query = Query(index.vectors[row], left_out=(np.zeros(1, np.int64), row))
        scores, rows = index.search(query, k)
        is_listed = rows >= 0
        return self.catalogue.item_ids.ids[rows[is_listed]], scores[is_listed]

    def score(
        self, requests: Iterable[RawRequest], item_ids: Sequence[str | int]
    ) -> Doubles:
        """Return the scores of items, whether they would be listed or not.

        Args:
            requests: B requests, as for `recommend`; the memory counts.
            item_ids: K items of the catalogue.

        Returns:
            (B, K) scores, exact enough to be subtracted.
        """
        ids = self.catalogue.item_ids.require(item_ids)
        rows, columns = np.unique(ids, return_inverse=True)
        scores = [np.empty((0, len(rows)))]
        for query in self.queries(requests, "all"):
            scores.append(self.catalogue.index.score(query, rows))

        return np.concatenate(scores)[:, columns]

    def queries(self, requests: Iterable[RawRequest], view: View) -> Iterator[Query]:
        """Yield the searches of requests for a view, tile by tile."""
        for _, encoded in self._encode(self.check(requests)):
            left_out = self._leave_out(encoded, view)
            yield self._make_query(encoded, view, left_out)

    def encode_users(self, requests: Iterable[RawRequest]) -> Floats:
        """Return the user vector of each request, (B, W)."""
        item_vectors = self.catalogue.index.vectors
        vectors = [item_vectors[:0]]
        for _, encoded in self._encode(self.check(requests)):
            vectors.append(self.towers.users(encoded.tower, item_vectors)[0])
        return np.concatenate(vectors)

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Return the vectors of items that the bundle lacks.

        Args:
            rows: n items, column of the items table -> value.

        Returns:
            (n, W) vectors, as visible as that of an average item.

        Raises:
            SchemaError: if a column is no feature, or a value does not fit it.
        """
        schema = self.bundle.schema
        known = {feature.column for feature in schema.item_features}
        columns = {}
        for name in set().union(*rows):
            if name not in known:
                nearest = name_nearest(str(name), known)
                raise SchemaError(f"items: unknown column '{name}'; {nearest}")
            columns[name] = [row.get(name) for row in rows]

        encoded = encode_features(
            schema.item_features, columns, len(rows), schema.timezone
        )
        vectors = [self.bundle.vectors[:0]]
        for start in range(0, len(rows), _TILE):
            tile = np.arange(start, min(start + _TILE, len(rows)))
            vectors.append(self.towers.items(encoded.take(tile)))

        return np.concatenate(vectors)

    def name(self, item_ids: Sequence[Id]) -> list[str]:
        """Return the names of items of the catalogue for people."""
        names = self._names
        unnamed = [item_id for item_id in item_ids if item_id not in names]
        if unnamed:
            rows = self.catalogue.item_ids.find(unnamed)
            items = self.catalogue.table.take(to_arrow(rows))
            named = name_items(items, self.bundle.schema.item_features)
            names.update(zip(unnamed, named, strict=True))

        return [names[item_id] for item_id in item_ids]

    def check(self, requests: Iterable[RawRequest]) -> list[Request]:
        """Read requests as the schema has them."""
        schema = self.bundle.schema
        return [
            fit_request(request, schema)
            if isinstance(request, Request)
            else parse_request(request, schema)
            for request in requests
        ]

    def _encode(
        self, requests: list[Request]
    ) -> Iterator[tuple[slice, EncodedRequests]]:
        """Encode checked requests in tiles of T."""
        for start in range(0, len(requests), _TILE):
            tile = slice(start, start + _TILE)
            completed = [*map(self.profiles.complete, requests[tile])]
            yield tile, self._encoder.encode(completed)

    def _answer(
        self, requests: Iterable[RawRequest], k: int, view: View
    ) -> Recommendations:
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")

        checked = self.check(requests)
        index = self.catalogue.index
        length = min(k, len(index))
        scores = np.empty((len(checked), length), np.float32)
        rows = np.empty((len(checked), length), np.int64)
        unknown = np.empty(len(checked), np.int64)
        held_back = np.zeros(len(checked), np.int64)
        reason = np.full(len(checked), None)

        for tile, encoded in self._encode(checked):
            filters = [request.filters for request in checked[tile]]
            left_out = self._leave_out(encoded, view)
            query = self._make_query(encoded, view, left_out)
            if any(filters):
                lists = rank_filtered(index, self.admission, filters, query, length)
            else:
                lists = index.search(query, length)

            scores[tile], rows[tile] = lists
            unknown[tile] = encoded.unknown_items
            owners, _ = left_out[_HELD]
            held_back[tile] = np.bincount(owners, minlength=len(filters))
            if view != "owned":
                reason[tile] = explain_short(
                    self.admission, filters, left_out, rows[tile], k
                )

        user_ids = [request.user_id for request in checked]
        return Recommendations.from_lists(
            user_ids,
            rows,
            scores,
            item_ids=self.catalogue.item_ids.ids,
            unknown_items=unknown,
            user_id_type=self.bundle.schema.user_id_type,
            reason=reason,
            held_back=held_back,
        )

    def _leave_out(self, encoded: EncodedRequests, view: View) -> dict[str, Pairs]:
        """Return which items are left out of lists, by the reason."""
        requests = encoded.requests
        if view != "all" or self.bundle.schema.repeats == "exclude":
            requests = []
        held_back = self.just_taken.hold_back(requests, encoded.moments, self.admission)
        left_out = {"excluded": encoded.excluded, _HELD: held_back}
        if view == "novel":
            left_out["owned"] = encoded.owned
        return left_out

    def _make_query(
        self, encoded: EncodedRequests, view: View, left_out: Mapping[str, Pairs]
    ) -> Query:
        """Run the user tower and put together what is added to its products.

        Items that the memory scores get no item-item terms of their own, but the greatest of the
        others. An event whose context is that of the request (a match) counts more.
        """
        tower = encoded.tower
        users, memory = self.towers.users(tower, self.catalogue.index.vectors)
        neighbours = self.bundle.neighbours
        of_histories = neighbours.of_histories(
            tower.history_rows,
            tower.arrays["history_lengths"],
            encoded.owned if len(memory) else None,
            tower.arrays["history_matches"],
        )
        terms = [of_histories, neighbours.of_all(len(users))]
        if view != "novel" and len(memory):
            owners = tower.arrays["owned_users"]
            if self.bundle.schema.lifts_owned:
                memory = memory + find_greatest(of_histories, len(users))[owners]
            terms.append((owners, tower.owned_rows, memory))

        return Query(
            users,
            left_out=join_terms(left_out.values()),
            added=join_terms(terms),
            only=encoded.owned if view == "owned" else None,
        )


def _check_ids(ids: NDArray[np.generic], id_type: str) -> None:
    if (ids.dtype == np.object_) != (id_type == "string"):
        raise BundleError(
            f"profiles: ids are {ids.dtype}; the bundle has {id_type}: "
            "give those of its data"
        )


# ---- golden requests


def replay(content: bytes, recommend: Recommend) -> int:
    """Answer golden requests again: an item must score as it did and be as good as the k-th was.

    Args:
        content: the file that `pipeline.golden` wrote at the export.
        recommend: answers the requests with the bundle as it was loaded.

    Returns:
        The number of requests.

    Raises:
        BundleError: the file cannot be read, or a list differs.
    """
    try:
        entries = json.loads(content or b"[]")
        if not 0 < len(entries) <= _MAX_GOLDEN:
            raise ValueError(f"it holds no request, or more than {_MAX_GOLDEN}")
        requests = [entry["request"] | GOLDEN_ASKS for entry in entries]
        answers = recommend(requests, entries[0]["k"])
        differences = [*map(_find_difference, entries, answers)]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(
            f"{GOLDEN} cannot be answered: {error}; export again"
        ) from error

    for number, difference in enumerate(differences):
        if difference:
            raise BundleError(
                f"{GOLDEN}, request {number}: {difference}; it answers differently here"
            )

    return len(entries)


def _find_difference(entry: Mapping[str, Any], answer: Answer) -> str:
    """Say how an answer differs from its reference, "" if it does not."""
    reference = dict(zip(entry["item_ids"], entry["scores"], strict=True))
    length = min(entry["k"], len(reference))
    item_ids = answer.item_id.tolist()
    n_distinct = len(set(item_ids))
    if len(item_ids) != length or n_distinct != length:
        return f"{n_distinct} different items of {len(item_ids)}; expected {length}"

    kth = entry["scores"][length - 1] if length else 0.0
    tolerance = _TOLERANCE * max(1.0, abs(kth))
    for item_id, score in zip(item_ids, answer.score.tolist(), strict=True):
        expected = reference.get(item_id, -math.inf)
        if not (expected >= kth - tolerance and abs(score - expected) <= tolerance):
            return (
                f"item {item_id!r} scores {score:.6g}; "
                f"expected {expected:.6g}, and {kth:.6g} or more"
            )

    return ""
