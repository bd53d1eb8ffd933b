"""A recommender as people use it: ask in any form that is at hand, and get tables with names.

>>> recommender = bascule.load("runs/shop")
>>> recommender.recommend(["u0", "u1"], k=3).to_pandas().columns.tolist()
['request', 'user_id', 'rank', 'name', 'item_id', 'score']
>>> basket = ["i107", "i114"]
>>> request = {"user_id": "u1", "context": {"device": "phone"}}
>>> [row["rank"] for row in recommender.recommend([basket, request], k=3, diversity=0.5)[0]]
[1, 2, 3]
>>> filters = {"at_most": {"brand": 1}}
>>> len(recommender.similar_items({"department": "dairy"}, k=4, filters=filters)[0])
2
>>> recommender.similar_users("u1", k=2).to_pandas().columns.tolist()
['request', 'rank', 'user_id', 'cosine']
>>> recommender.explain("u1", "i107").to_pandas().columns.tolist()
['request', 'name', 'item_id', 'kind', 'effect', 'text']
>>> recommender.due("u1").to_pandas().columns.tolist()[4:]
['item_id', 'due', 'is_overdue', 'last', 'n_days', 'every_days', 'regularity', 'score', 'text']
>>> recommender.score("u1", basket).shape, recommender.encode_users(["u0", "u1"]).shape
((2,), (2, 10))
>>> recommender.encode_items(["i107", {"department": "dairy"}]).shape
(2, 10)
>>> bascule.load(recommender.save("saved"))
<Recommender of 23 items and 5 users, repeats allowed>
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Never

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bascule.forms import (
    DUE,
    REASONS,
    SEGMENTS,
    Answers,
    Items,
    User,
    Users,
    list_due,
    list_nearest,
    list_ranked,
    list_reasons,
    list_unknown,
    make_query,
    to_arrow_table,
    to_count,
    to_ids,
    to_list,
    to_requests,
    write_notes,
)
from bascule.options import make_folder, refuse_unknown
from serve.arrays import Doubles, Floats, Id, Ints, to_unit
from serve.bundle import METRICS
from serve.due import find_due
from serve.errors import BundleError, SchemaError, show
from serve.filters import rank_filtered
from serve.index import UNKNOWN_ROW, ItemIndex
from serve.reasons import assign_segments, explain
from serve.recommender import Recommender as Served
from serve.requests import Again, Request, Variants, parse_filters
from serve.rerank import Dials
from serve.rerank import recommend as recommend_by_dials
from service.known_users import hide, load_known
from service.publish import copy_run

if TYPE_CHECKING:
    from datamodules.sources import TableLike


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A trained recommender; nothing in it changes.

    `users_or_requests` is a user id, a request as a dictionary or a `Request`, or several of them:
    a list (a list of item ids in it is a history), an array, or a table of pandas, polars, pyarrow
    or DuckDB with user_id, datetime and features.

    A pickle holds the folder and the version: unpickling loads the folder again.

    Attributes:
        served: the recommender of `serve`, which answers.
        path: folder of the bundle.
        is_temporary: the folder is deleted with the recommender.
    """

    served: Served
    path: Path
    is_temporary: bool = False

    @classmethod
    def load(
        cls, path: str | Path, trusted: Path | None, version: str | None = None
    ) -> Recommender:
        """Load a bundle, with the profiles beside it, unless it is of another version."""
        served = load_known(Path(path), None, trusted)
        if version not in (None, served.version):
            raise BundleError(
                f"{path} holds version {served.version}; expected {version}"
            )
        return cls(served, Path(path))

    @property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json` of the run: `["test"]["bascule"]` are the figures. Empty without a run."""
        path = self.path.parent / METRICS
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    @property
    def item_ids(self) -> NDArray[np.generic]:
        """Ids of the items that it knows, (N,)."""
        return self.served.catalogue.item_ids.ids.copy()

    @property
    def user_ids(self) -> NDArray[np.generic]:
        """Ids of the users that it has a profile of, (U,)."""
        return self.served.profiles.user_ids.copy()

    def __repr__(self) -> str:
        n_items = len(self.served.catalogue)
        n_users = len(self.served.profiles)
        is_allowed = self.served.bundle.schema.repeats == "allow"
        repeats = "allowed" if is_allowed else "excluded"
        return f"<Recommender of {n_items:,} items and {n_users:,} users, repeats {repeats}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_temporary:
            raise SchemaError(
                "this recommender lies in a temporary folder: save it first, and send "
                "bascule.load(recommender.save('runs/shop'))"
            )
        return Recommender.load, (str(self.path), None, self.served.version)

    def __copy__(self) -> Recommender:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Recommender:
        return self

    def recommend(
        self,
        users_or_requests: Users,
        k: int = 10,
        diversity: float = 0.0,
        novelty: float = 0.0,
        new_share: float = 0.0,
        *,
        repeats: Literal["allow", "exclude"] | None = None,
        filters: Mapping[str, Any] | None = None,
        again: Again = "due",
        variants: Variants = "few",
        **unknown: Never,
    ) -> Answers:
        """Rank the catalogue for each request.

        Args:
            users_or_requests: B users or requests.
            k: items per list.
            diversity: 0 to 1, how unlike each other the items are.
            novelty: 0 to 1, how unlike the user's own past they are.
            new_share: 0 to 1, the share of new items.
            repeats: whether to list items of the history; as in training by default.
            filters: such as `{"where": "price <= 20", "only": [ids], "at_most": {"brand": 2}}`.
            again: "due" holds back what was just taken until it may be due again, "any" lists it.
            variants: "few" of a thing in the first rows, where the run limits them, or "any".
            **unknown: options of another name are refused, with ours.

        Returns:
            A row per listed item: request, user_id, rank from 1, name, item_id, score.

        Raises:
            SchemaError: a request has an unknown field or a wrong value.

        Example:
            >>> recommender.recommend(["u0", ["i107"]], k=2).to_pandas()["request"].tolist()
            [0, 0, 1, 1]
        """
        refuse_unknown("recommend", unknown, Recommender.recommend.__annotations__)
        k = to_count(k)
        defaults = {"filters": filters, "again": again, "variants": variants}
        requests = self._check(users_or_requests, defaults)
        dials = Dials(diversity, novelty, new_share)
        if repeats not in ("allow", "exclude", None):
            raise SchemaError(f"repeats is {show(repeats)}; allowed: allow, exclude")
        lists = recommend_by_dials(self.served, requests, k, repeats, dials)

        notes = write_notes(
            list_unknown(self.served, requests),
            lists.reason.tolist(),
            int(lists.held_back.sum()),
        )
        names = self.served.name(lists.item_id.tolist())
        return Answers(list_ranked(lists, names), len(lists), notes)

    def similar_items(
        self,
        items: Items,
        k: int = 10,
        *,
        filters: Mapping[str, Any] | None = None,
        **unknown: Never,
    ) -> Answers:
        """Return the items nearest to each item by the cosine of their vectors.

        Args:
            items: item ids, or new items as dictionaries of features.
            k: items per list; an item is not in its own list.
            filters: as in `recommend`.
            **unknown: as in `recommend`.

        Returns:
            A row per listed item: request, rank from 1, name, item_id, cosine.
        """
        options = Recommender.similar_items.__annotations__
        refuse_unknown("similar_items", unknown, options)
        k = to_count(k)
        catalogue = self.served.catalogue
        admission = self.served.admission
        parsed = parse_filters(filters or {}, catalogue.item_ids.id_type)
        admission.check(parsed)

        listed = to_list(items)
        index = ItemIndex(self._to_taste(catalogue.index.vectors))
        vectors = self._to_taste(self.encode_items(listed))
        query = make_query(vectors, self._find_rows(listed))
        filters_of_items = [parsed] * len(listed)
        cosines, rows = rank_filtered(
            index, admission, filters_of_items, query, min(k, len(index))
        )

        columns, item_rows, cosine = list_nearest(cosines, rows)
        item_ids = catalogue.item_ids.ids[item_rows]
        names = self.served.name(item_ids.tolist())
        columns |= {"name": names, "item_id": item_ids, "cosine": cosine}
        return Answers(pa.table(columns), len(listed))

    def similar_users(self, users_or_requests: Users, k: int = 10) -> Answers:
        """Return the known users whose vectors are nearest to that of each user or request."""
        k = to_count(k)
        profiles = self.served.profiles
        requests = self._check(users_or_requests)
        if not len(profiles):
            raise SchemaError(
                "there are no profiles beside the bundle, so there is no user to compare with"
            )

        positions: Mapping[Any, int] = profiles.positions
        own_rows = [positions.get(request.user_id, UNKNOWN_ROW) for request in requests]
        index = ItemIndex(self._taste_of_users)
        vectors = self._to_taste(self.served.encode_users(requests))
        query = make_query(vectors, np.array(own_rows, np.int64))
        cosines, rows = index.search(query, min(k, len(index)))

        columns, user_rows, cosine = list_nearest(cosines, rows)
        columns |= {"user_id": profiles.user_ids[user_rows], "cosine": cosine}
        return Answers(pa.table(columns), len(requests), self._note(requests))

    def explain(
        self,
        users_or_requests: Users,
        items: Id | Sequence[Id] | None = None,
        k: int = 3,
    ) -> Answers:
        """Say why items are listed.

        Args:
            users_or_requests: B users or requests.
            items: ids of the items to explain; by default the k best of each request.
            k: items per list, without `items`.

        Returns:
            A row per reason, the strongest of each item first: request, name, item_id, kind,
            effect, text. The effect is how far the score falls when that part alone is left out of
            the request.
        """
        k = to_count(k)
        requests = self._check(users_or_requests)
        ids = self.served.catalogue.item_ids
        if items is None:
            lists = recommend_by_dials(self.served, requests, k, None, Dials())
            explained = [answer.item_id.tolist() for answer in lists]
        else:
            item_rows = ids.require(to_ids(items, ids.id_type))
            item_ids = ids.ids[item_rows].tolist()
            explained = [item_ids] * len(requests)

        explanations = explain(self.served, requests, explained)
        rows = list_reasons(explanations, explained, self.served.name)
        return self._answer(rows, REASONS, len(requests), self._note(requests))

    def due(self, users_or_requests: Users, k: int = 10) -> Answers:
        """List what each user takes again, the likeliest next first, and when each is expected.

        Args:
            users_or_requests: B users or requests, each as of its `datetime`, by default the
                user's last event.
            k: items per list, which may have none.

        Returns:
            A row per item: request, user_id, rank, name, item_id, due and last (UTC), is_overdue,
            n_days, every_days, regularity, score, text.
        """
        k = to_count(k)
        lists = find_due(self.served, self._check(users_or_requests), k)
        rows = list_due(lists)
        notes = self._note([], [answer.reason for answer in lists])
        return self._answer(rows, DUE, len(lists), notes)

    def segments(self, users_or_requests: Users | None = None) -> Answers:
        """Return the segments of the users, the largest first, or that of each user or request.

        A bundle of few users has none.
        """
        if users_or_requests is None:
            segments = self.served.bundle.segments
            lists = [() if segments is None else segments.segments]
        else:
            requests = self._check(users_or_requests)
            assigned = assign_segments(self.served, requests)
            lists = [() if segment is None else (segment,) for segment in assigned]

        rows = [
            {"request": request, "segment": segment.id} | vars(segment)
            for request, listed in enumerate(lists)
            for segment in listed
        ]
        return self._answer(rows, SEGMENTS, len(lists))

    def score(self, user: User, items: Id | Sequence[Id]) -> Doubles:
        """Return the score of each item, (n,), for one user or request, listed or not."""
        item_ids = to_ids(items, self.served.catalogue.item_ids.id_type)
        scores: Doubles = self.served.score(self._check(user), item_ids)[0]
        return scores

    def encode_users(self, users_or_requests: Users) -> Floats:
        """Return the vector of each user or request, (B, W)."""
        return self.served.encode_users(self._check(users_or_requests))

    def encode_items(self, items: Items) -> Floats:
        """Return the vector of each item, by id or by features, (n, W)."""
        listed = to_list(items)
        rows = self._find_rows(listed)
        vectors = self.served.catalogue.index.vectors[rows]
        described = [item for item in listed if isinstance(item, Mapping)]
        vectors[rows == UNKNOWN_ROW] = self.served.encode_items(described)
        return vectors

    def evaluate(
        self,
        test: TableLike | str | Path,
        past: TableLike | str | Path,
        users: TableLike | str | Path | None = None,
        *,
        at: str | None = None,
        baselines: Sequence[str] | None = (),
        metrics: Sequence[Callable[..., Any]] = (),
    ) -> dict[str, Any]:
        """Measure the lists of users on a test, which the weights must not have learned from.

        Args:
            test: interactions to predict.
            past: interactions before them, which make the profiles.
            users: features of users.
            at: time of each user's request.
            baselines: names of models to compare with; None: all.
            metrics: your own functions of hits (B, 20) and targets (B,) that give values (B,).

        Returns:
            As in `metrics.json`: `["test"]["bascule"]` are the figures.

        Raises:
            SchemaError: weights or profiles have seen the test; names the bundle that has not.
        """
        from evaluation.given import evaluate_tables

        return evaluate_tables(
            self.served.bundle, test, past, users, at, baselines, metrics
        )

    def save(self, directory: str | Path) -> Path:
        """Write what `bascule.load` reads into a new folder.

        Profiles are personal data: to hand on the model alone, hand on the folder `bundle` in it.

        Args:
            directory: a folder that is new or empty.

        Returns:
            The folder.

        Raises:
            SchemaError: the folder has files, or cannot be made.
        """
        target = make_folder("save", directory)
        if any(target.iterdir()):
            raise SchemaError(f"{target} is not empty: choose another folder")

        copy_run(self.path, target)
        return target

    def _check(
        self, users: Users, defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> list[Request]:
        schema = self.served.bundle.schema
        requests = self.served.check(to_requests(users, schema, defaults))
        return [*hide(requests, self.path)]

    def _answer(
        self,
        rows: Sequence[Mapping[str, Any]],
        names: str,
        n_requests: int,
        notes: Sequence[str] = (),
    ) -> Answers:
        """Return the named columns of rows."""
        table = to_arrow_table(rows, names, self.served.bundle.schema)
        return Answers(table, n_requests, notes)

    def _find_rows(self, items: Sequence[Any]) -> Ints:
        """Return the rows of items (n,) in the catalogue, -1 of those given by features."""
        ids = self.served.catalogue.item_ids
        rows = [
            UNKNOWN_ROW if isinstance(item, Mapping) else ids.require([item])[0]
            for item in to_ids(items, ids.id_type)
        ]
        return np.array(rows, np.int64)

    def _note(
        self, requests: Sequence[Request], reasons: Sequence[str | None] = ()
    ) -> list[str]:
        """Say what nobody knows, and how many lists are short."""
        return write_notes(list_unknown(self.served, requests), reasons)

    def _to_taste(self, vectors: Floats) -> Floats:
        """Return the unit vectors whose dot products are the cosines of taste."""
        return to_unit(vectors[:, : self.served.taste_dim])

    @cached_property
    def _taste_of_users(self) -> Floats:
        return self._to_taste(self.encode_users(self.served.profiles.user_ids))
