"""What would this user want, here and now: requests in, ranked items out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve import golden
from serve.bundle import Bundle
from serve.encoding import encode_features
from serve.errors import SchemaError, name_nearest
from serve.filters.admission import Admission
from serve.filters.filters import Filters
from serve.filters.ranking import rank_filtered
from serve.filters.reasons import explain_short
from serve.folder import identify_folder
from serve.known_users import encode_profiles, no_profiles, with_items
from serve.layout import PROFILES
from serve.live.catalogue import Catalogue
from serve.merging import ALL, NOVEL, OWNED, Lists, Rank, Scored, View
from serve.profile_store import MANIFEST
from serve.profiles import Profiles
from serve.recommendations import Recommendations
from serve.requests import Request, fit_request, parse_request
from serve.top_k import Floats, Ints
from serve.tower_runs import TowerRuns
from serve.user_inputs import EncodedRequests, RequestEncoder

RawRequest = Mapping[str, Any] | Request

_TILE = 256  # requests or items that are worked on at once: memory does not grow with a batch


class Recommender:
    """A bundle and the profiles of its users, ready to answer. Nothing in it changes."""

    def __init__(self, bundle: Bundle, profiles: Profiles | None = None) -> None:
        """Put a bundle and profiles together.

        Args:
            bundle: as loaded.
            profiles: what is known of users; without them, requests bring their own histories.

        Raises:
            BundleError: the towers read what cannot be given, or the profiles are of other data.
        """
        schema = bundle.schema
        self.bundle = bundle
        self.profiles = no_profiles(schema) if profiles is None else profiles
        self.catalogue = Catalogue.of_bundle(bundle)
        known = encode_profiles(self.profiles, self.catalogue.item_ids, schema)
        self._encoder = RequestEncoder(schema, self.catalogue.item_ids, known, self.catalogue.facts)
        self._towers = TowerRuns(bundle)
        self.admission = Admission.of_catalogue(self.catalogue, schema)

    @property
    def taste_dim(self) -> int:
        """How many entries of an item vector are taste or blended in, which `similar_items` compares."""
        return self._towers.taste_dim

    @classmethod
    def load(cls, directory: Path, profiles: Path | Profiles | None = None) -> Recommender:
        """Load a published bundle.

        Args:
            directory: of the bundle.
            profiles: or their folder; by default the folder `profiles` beside the bundle, if there is one.

        Raises:
            BundleError: bundle or profiles are missing, altered, or do not belong together; or the golden requests are
                answered differently here than where the bundle was made.
        """
        path = Path(directory)
        beside = path.absolute().parent / PROFILES
        if profiles is None and (beside / MANIFEST).exists():
            profiles = beside
        if isinstance(profiles, (str, Path)):
            recommender = cls(*_load_both(path, Path(profiles)))
        else:
            recommender = cls(Bundle.load(path), profiles)
        golden.replay(recommender.bundle.golden, golden_answer(recommender))
        return recommender

    def with_catalogue(self, catalogue: Catalogue) -> Recommender:
        """Return what ranks another catalogue with the same towers and profiles.

        Args:
            catalogue: of this bundle: items of the one here keep their rows, others come after them.
        """
        other, schema, item_ids = copy(self), self.bundle.schema, catalogue.item_ids
        added = item_ids.ids[len(self.catalogue) :].tolist()
        known = with_items(self._encoder.known, self.profiles, item_ids, added, schema)
        other.catalogue = catalogue
        other._encoder = RequestEncoder(schema, item_ids, known, catalogue.facts)
        other.admission = self.admission.changed(catalogue)
        return other

    def recommend(
        self, requests: Iterable[RawRequest], k: int = 10, filter_viewed: bool | None = None
    ) -> Recommendations:
        """Rank the catalogue for each request.

        Args:
            requests: as `serve.requests` describes them. What a request gives replaces that part of the
                user's profile; a user without a profile has an empty one.
            k: length of a list; shorter only where fewer items are admissible, and then with the reason.
            filter_viewed: leave out the items of the history; by default what the data says of repeats. Items
                that a request excludes or that its filters keep out are always left out.

        Raises:
            SchemaError: a request that cannot be read, or filters that do not fit the columns of the items.
            ValueError: k below 1, or a `filter_viewed` that is neither True, False nor None.
        """
        if filter_viewed not in (None, True, False):  # "no" is true to Python
            raise ValueError(f"filter_viewed is {filter_viewed!r}; allowed: True, False, or None: as the data says")
        if filter_viewed is None:
            filter_viewed = self.bundle.schema.repeats == "exclude"
        return self._answer(requests, k, NOVEL if filter_viewed else ALL)

    def rank_owned(self, requests: Iterable[RawRequest], k: int = 10) -> Recommendations:
        """Rank the items of each request's history: what `recommend` of all items says of these."""
        return self._answer(requests, k, OWNED)

    def similar_items(self, item_id: str | int, k: int = 10) -> tuple[NDArray[np.generic], Floats]:
        """Find the items nearest to an item by cosine, itself excluded.

        Returns:
            ids and falling cosines, min(k, N - 1) of each. Removed items are left out, but one may be asked for.

        Raises:
            SchemaError: an item that the catalogue does not have.
        """
        (row,) = self.item_rows([item_id])
        scores, rows = self.catalogue.index.similar(int(row), k, self._towers.taste_dim)
        return self.catalogue.item_ids.ids[rows], scores

    def encode_users(self, requests: Iterable[RawRequest]) -> Floats:
        """Return the user vector of each request, (B, W)."""
        tiles = [scored.vectors for _, scored in self._score(self._check(requests))]
        return np.concatenate([np.empty((0, self.bundle.vectors.shape[1]), np.float32), *tiles])

    def encode_items(self, rows: Sequence[Mapping[str, Any]]) -> Floats:
        """Place items that the bundle does not have by their features.

        Args:
            rows: feature column -> raw value of each item; a column that is not given is missing.

        Returns:
            (n, W) vectors; where popularity is a part of them, so popular that they are as visible as an average item.

        Raises:
            SchemaError: a column that no feature reads, or a number that does not parse.
        """
        names = {name: None for row in rows for name in row}
        return self.encode_item_columns({name: [row.get(name) for row in rows] for name in names}, len(rows))

    def encode_item_columns(self, columns: Mapping[str, Any], n_items: int) -> Floats:
        """Do as `encode_items` with a table: feature column -> a list or numpy array of `n_items` raw values."""
        schema = self.bundle.schema
        known = {feature.column for feature in schema.item_features}
        for name in columns:
            if name not in known:
                raise SchemaError(f"items: unknown column '{name}'; {name_nearest(str(name), known)}")
        encoded = encode_features(schema.item_features, columns, n_items, schema.timezone)
        empty, places = np.empty((0, self.bundle.vectors.shape[1]), np.float32), np.arange(n_items)
        tiles = (encoded.take(places[tile]) for tile in _tiles(n_items))
        return np.concatenate([empty, *map(self._towers.items, tiles)])

    def item_rows(self, ids: Sequence[Any]) -> Ints:
        """Return the position of each item in the catalogue.

        Raises:
            SchemaError: an item that the catalogue does not have.
        """
        return self.catalogue.item_ids.require(ids)

    def _answer(self, requests: Iterable[RawRequest], k: int, view: View) -> Recommendations:
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")
        checked, length = self._check(requests), min(k, len(self.catalogue))
        shape = (len(checked), length)
        scores, rows = np.empty(shape, np.float32), np.empty(shape, np.int64)
        unknown = np.empty(len(checked), np.int64)
        reasons: dict[int, str] = {}
        for tile, (encoded, scored) in zip(_tiles(len(checked)), self._score(checked), strict=True):
            filters = [request.filters for request in checked[tile]]
            scores[tile], rows[tile] = self._rank(view.rank, filters, scored, length)
            unknown[tile] = encoded.unknown_items
            if view.left_out is not None:
                short = explain_short(self.admission, filters, scored.items, view.left_out, rows[tile], k)
                reasons |= {tile.start + place: reason for place, reason in short.items()}
        return Recommendations.from_lists(
            [request.user_id for request in checked],
            rows,
            scores,
            item_ids=self.catalogue.item_ids.ids,
            unknown_items=unknown,
            user_id_type=self.bundle.schema.user_id_type,
            reasons=reasons,
        )

    def _rank(self, rank: Rank, filters: Sequence[Filters | None], scored: Scored, k: int) -> Lists:
        if any(filters):
            return rank_filtered(rank, self.admission, filters, self.catalogue.index, scored, k)
        return rank(self.catalogue.index, scored, k, None)

    def _check(self, requests: Iterable[RawRequest]) -> list[Request]:
        schema = self.bundle.schema
        return [
            fit_request(raw, schema) if isinstance(raw, Request) else parse_request(raw, schema) for raw in requests
        ]

    def _score(self, requests: Sequence[Request]) -> Iterator[tuple[EncodedRequests, Scored]]:
        for tile in _tiles(len(requests)):
            encoded = self._encoder.encode(requests[tile])
            tower = encoded.tower
            added = self.bundle.neighbours.of_histories(tower.history_rows, tower.arrays["history_lengths"])
            yield encoded, Scored(encoded.items, *self._towers.users(tower, self.catalogue.vectors), added)


def _load_both(path: Path, folder: Path) -> tuple[Bundle, Profiles]:
    """Load a bundle and the profiles in a folder; both again where another bundle took its place meanwhile."""
    while True:
        found = identify_folder(path)
        bundle = Bundle.load(path)
        profiles = Profiles.load(folder, bundle.manifest.version)
        if identify_folder(path) == found:
            return bundle, profiles


def golden_answer(recommender: Recommender) -> golden.Answer:
    """Return what answers golden requests: `recommend`, in the form that `serve.golden` compares."""

    def answer(requests: list[golden.Request], k: int) -> list[tuple[Sequence[str | int], Sequence[float]]]:
        answers = recommender.recommend(requests, k)
        return [(one.item_id.tolist(), one.score.tolist()) for one in answers]

    return answer


def _tiles(n: int) -> Iterator[slice]:
    return (slice(start, start + _TILE) for start in range(0, n, _TILE))
