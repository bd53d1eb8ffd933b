"""A recommender as people use it: ask in any form that is at hand, and get tables with names.

    >>> recommender = bascule.load("runs/shop")
    >>> answers = recommender.recommend(["u0", "u1"], k=3)
    >>> answers.to_pandas().columns.tolist()
    ['request', 'user_id', 'rank', 'name', 'item_id', 'score']

It wraps `serve.recommender.Recommender`, which is its `served`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.bundle import BUNDLE, MANIFEST, METRICS, PROFILES, REPORT
from serve.catalogue import name_items
from serve.columns import to_arrow
from serve.command_line import align
from serve.discovery.dials import Dials
from serve.discovery.dials import recommend as recommend_by_dials
from serve.discovery.reasons import explain
from serve.durable import FORGOTTEN
from serve.errors import BundleError, SchemaError, name_nearest
from serve.filters import rank_filtered
from serve.index import Floats, Ints, ItemIndex, Pairs, Query
from serve.recommender import Recommender as Served
from serve.requests import Id, Request, parse_filters, show

if TYPE_CHECKING:
    import pandas as pd

One: TypeAlias = Id | Mapping[str, Any] | Request
Asked: TypeAlias = "One | Sequence[One | Sequence[Id]] | NDArray[Any] | pd.DataFrame | pd.Series[Any]"
"""A user id, a mapping such as `{"user_id": 7, "context": {"device": "phone"}}` or a `Request`; several in a list,
where a list of item ids is a history; or a DataFrame of a request per row."""
Items: TypeAlias = "Id | Mapping[str, Any] | Sequence[Id | Mapping[str, Any]] | NDArray[Any]"
"""Items by id, or by features such as `{"category": "tea"}`."""
_FIELDS = ("user_id", "history", "datetime", "exclude", "filters")
_SHOWN, _MAX_CELL = 10, 40  # rows of a repr, characters of a cell


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """The answers to B requests: rows of a table, and for each request a list of rows.

    >>> [row["rank"] for row in recommender.recommend("u1", k=3)[0]]
    [1, 2, 3]
    """

    table: Any  # pyarrow.Table; `request` counts from 0
    n_requests: int
    notes: tuple[str, ...] = ()  # of unknown users and short lists

    def __len__(self) -> int:
        return self.n_requests

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        """Return the rows of one request; -1 is the last one."""
        place = range(len(self))[index]
        start, stop = np.searchsorted(self.table.column("request").to_numpy(), [place, place + 1])
        return list(self.table.slice(start, stop - start).to_pylist())

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return (self[place] for place in range(len(self)))

    def to_pandas(self) -> pd.DataFrame:
        """Return all rows as a DataFrame."""
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __repr__(self) -> str:
        rows = self.table.slice(0, _SHOWN).to_pylist()
        lines = align([self.table.column_names, *([_show(cell) for cell in row.values()] for row in rows)])
        more = [f"... {len(self.table)} rows"] if len(self.table) > _SHOWN else []
        return "\n".join([*lines, *more, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A trained recommender; nothing in it changes."""

    served: Served
    path: Path  # folder of the bundle

    @classmethod
    def load(cls, folder: Path, trusted: Path | None = None) -> Recommender:
        """Load as `bascule.load` does."""
        bundle = next((path for path in (folder / BUNDLE, folder) if (path / MANIFEST).exists()), None)
        if bundle is None:
            raise BundleError(f"{folder} holds no bundle; give the folder of a run or of a bundle")
        return cls(Served.load(bundle, trusted=trusted), bundle)

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json` of the run: `metrics["test"]["bascule"]` are the figures; empty for a bundle alone."""
        path = self.path.absolute().parent / METRICS
        found = dict(json.loads(path.read_bytes())) if path.exists() else {}
        return found if found.get("version") == self.served.version else {}

    def __repr__(self) -> str:
        repeats = {"allow": "allowed", "exclude": "excluded"}[self.served.bundle.schema.repeats]
        n_items, n_users = len(self.served.catalogue), len(self.served.profiles)
        return f"<Recommender of {n_items:,} items and {n_users:,} users, repeats {repeats}>"

    def recommend(
        self,
        users_or_requests: Asked,
        k: int = 10,
        diversity: float = 0.0,
        novelty: float = 0.0,
        new_share: float = 0.0,
        *,
        repeats: Literal["allow", "exclude"] | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> Answers:
        """Rank the catalogue for each request.

        >>> baskets = [["i107", "i114"], ["i121"]]
        >>> len(recommender.recommend(baskets, k=3, filters={"where": "department = 'dairy'"}).to_pandas())
        6
        >>> recommender.recommend({"user_id": "u1", "context": {"device": "phone"}}, k=1, diversity=0.5)[0][0]["rank"]
        1

        Args:
            users_or_requests: a user id, a request, or several: see `Asked`.
            k: items of a list; fewer come where fewer may be listed.
            diversity: 0 to 1, how unlike each other the items are.
            novelty: 0 to 1, how unlike the user's own past they are.
            new_share: 0 to 1, the share of a list that is of new items.
            repeats: list items that the user already has? By default as in the data.
            filters: `{"where": "price <= 20", "only": [ids], "at_most": {"brand": 2}}`, of requests that have none.
        """
        requests = self._read(users_or_requests, filters)
        dials = Dials(diversity, novelty, new_share)
        lists = recommend_by_dials(self.served, requests, k, repeats, dials)
        asked = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
        users = lists.to_table().column("user_id")
        columns = {
            "request": asked,
            "user_id": users,
            "rank": lists.rank,
            "item_id": lists.item_id,
            "score": lists.score,
        }
        known = self.served.profiles.positions
        unknown = [one.user_id for one in requests if one.user_id is not None and one.user_id not in known]
        notes = [f"unknown users: {len(unknown)}, the first {show(unknown[0])}"] if unknown else []
        short = [reason for reason in lists.reason.tolist() if reason is not None]
        notes += [f"{len(short)} lists are shorter than {k}, since {short[0]}"] if short else []
        return self._tabulate(columns, len(lists), notes)

    def similar_items(self, items: Items, k: int = 10, *, filters: Mapping[str, Any] | None = None) -> Answers:
        """Return the items nearest to each item by the cosine of their vectors.

        >>> [row["rank"] for row in recommender.similar_items(["i107", "i114"], k=2)[1]]
        [1, 2]
        >>> len(recommender.similar_items({"department": "dairy"}, k=4, filters={"at_most": {"brand": 1}})[0])
        2
        """
        catalogue, asked = self.served.catalogue, _listed(items)
        parsed = None if filters is None else parse_filters(filters, catalogue.item_ids.id_type)
        self.served.admission.check(parsed)
        query = Query(self._unit(self.encode_items(asked)), self._find_items(asked))
        index = ItemIndex(self._unit(catalogue.index.vectors), catalogue.is_removed)
        cosines, rows = rank_filtered(index, self.served.admission, [parsed] * len(asked), query, min(k, len(index)))
        return self._tabulate(_columns(cosines, rows, "item_id", catalogue.item_ids.ids), len(asked))

    def similar_users(self, users_or_requests: Asked, k: int = 10) -> Answers:
        """Return the known users whose vectors are nearest to that of each user or request.

        >>> recommender.similar_users("u1", k=2).to_pandas().columns.tolist()
        ['request', 'rank', 'user_id', 'cosine']
        """
        known, requests = self.served.profiles, self._read(users_or_requests)
        if not len(known):
            raise SchemaError("there are no profiles beside the bundle: there is no user to compare with")
        rows = np.array([-1 if one.user_id is None else known.positions.get(one.user_id, -1) for one in requests])
        query = Query(self._unit(self.served.encode_users(requests)), (np.flatnonzero(rows >= 0), rows[rows >= 0]))
        cosines, rows = ItemIndex(self._user_directions).search(query, min(k, len(known)))
        return self._tabulate(_columns(cosines, rows, "user_id", known.user_ids), len(requests))

    def explain(self, users_or_requests: Asked, items: Id | Sequence[Id] | None = None, k: int = 3) -> Answers:
        """Say why items are listed, the strongest reason of each first; by default the k best of each request.

        >>> recommender.explain("u1", "i107").to_pandas().columns.tolist()
        ['request', 'name', 'item_id', 'kind', 'effect', 'text']

        An `effect` is how far the score falls when that part alone is left out of the request.
        """
        requests, known = self._read(users_or_requests), self.served.catalogue.item_ids.ids
        if items is None:
            asked = [one.item_id.tolist() for one in self.served.recommend(requests, k)]
        else:
            asked = [known[self.served.catalogue.item_ids.require(_listed(items))].tolist()] * len(requests)
        explained = zip(asked, explain(self.served, requests, asked), strict=True)
        rows: list[tuple[Any, ...]] = [
            (place, item_id, one.kind, one.effect, one.text)
            for place, (ids, reasons) in enumerate(explained)
            for item_id, some in zip(ids, reasons, strict=True)
            for one in some
        ]
        kinds: dict[str, Any] = {
            "request": np.int64,
            "item_id": known.dtype,
            "kind": np.object_,
            "effect": np.float64,
            "text": np.object_,
        }
        columns = {name: np.array([row[i] for row in rows], dtype=kind) for i, (name, kind) in enumerate(kinds.items())}
        return self._tabulate(columns, len(requests))

    def score(self, user: One, items: Id | Sequence[Id]) -> NDArray[np.float64]:
        """Return the score of each item for one user or request, whether it would be listed or not.

        >>> recommender.score("u1", ["i107", "i114"]).shape
        (2,)
        """
        scores: NDArray[np.float64] = self.served.score(self._read(user), _listed(items))[0]
        return scores

    def encode_users(self, users_or_requests: Asked) -> Floats:
        """Return the vector of each user or request, (B, W).

        >>> recommender.encode_users(["u0", "u1"]).shape
        (2, 10)
        """
        return self.served.encode_users(self._read(users_or_requests))

    def encode_items(self, items: Items) -> Floats:
        """Return the vector of each item, by id or by features, (n, W).

        >>> recommender.encode_items(["i107", {"department": "dairy"}]).shape
        (2, 10)
        """
        asked, index = _listed(items), self.served.catalogue.index
        places, rows = self._find_items(asked)
        vectors = np.empty((len(asked), index.vectors.shape[1]), np.float32)
        vectors[places] = index.vectors[rows]
        new = np.setdiff1d(np.arange(len(asked)), places)
        vectors[new] = self.served.encode_items([asked[place] for place in new])
        return vectors

    def save(self, directory: str | Path) -> Path:
        """Write bundle, profiles, metrics and report into a new folder, which `bascule.load` reads.

        The profiles are personal data: to hand on the model alone, hand on the folder `bundle`.

        >>> bascule.load(recommender.save("saved")).recommend("u1", k=1)[0] == recommender.recommend("u1", k=1)[0]
        True
        """
        target, home = Path(directory), self.path.absolute().parent
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staged:
            shutil.copytree(self.path, Path(staged) / BUNDLE)
            for name in (METRICS, REPORT, FORGOTTEN, PROFILES) if len(self.served.profiles) or self.metrics else ():
                copy = shutil.copytree if (home / name).is_dir() else shutil.copy2
                if (home / name).exists():
                    copy(home / name, Path(staged) / name)
            if target.exists() and (not target.is_dir() or any(target.iterdir())):
                raise SchemaError(f"{target} exists and is not empty: choose another folder")
            shutil.copytree(staged, target, dirs_exist_ok=True)
        return target

    # ---- what is asked, and what is answered

    def _read(self, asked: Asked, filters: Mapping[str, Any] | None = None) -> list[Request]:
        """Return checked requests."""
        listed = _listed(asked)
        raw = map(self._nest, listed) if hasattr(asked, "columns") else map(_read_one, listed)
        given = {} if filters is None else {"filters": filters}
        return self.served.check([one if isinstance(one, Request) else {**given, **one} for one in raw])

    def _nest(self, row: Mapping[str, Any]) -> Mapping[str, Any] | Request:
        """Put the cells of a DataFrame's row into the fields of a request; a missing one is not given."""
        schema, nested = self.served.bundle.schema, dict[str, Any]()
        sides = {one.name: "features" for one in schema.user_features}
        sides |= {one.name: "context" for one in schema.context_features}
        for name, value in row.items():
            if name not in (*_FIELDS, *sides):
                raise SchemaError(f"requests: unknown column '{name}'; {name_nearest(name, [*_FIELDS, *sides])}")
            if isinstance(value, (list, tuple, np.ndarray)) or value == value:  # else NaN
                (nested if name in _FIELDS else nested.setdefault(sides[name], {}))[name] = value
        return _read_one(nested)

    def _find_items(self, asked: Sequence[Any]) -> Pairs:
        """Return places and rows of the items that are given by id."""
        places = [place for place, one in enumerate(asked) if not isinstance(one, Mapping)]
        return np.array(places, np.int64), self.served.catalogue.item_ids.require([asked[place] for place in places])

    def _unit(self, vectors: Floats) -> Floats:
        """Return the directions of the part of vectors that `similar_items` compares."""
        taste = vectors[:, : self.served.taste_dim]
        lengths = np.linalg.norm(taste, axis=1, keepdims=True)
        return np.ascontiguousarray(taste / np.where(lengths == 0, 1, lengths), dtype=np.float32)

    @cached_property
    def _user_directions(self) -> Floats:
        return self._unit(self.encode_users(self.served.profiles.user_ids))

    def _tabulate(self, columns: dict[str, Any], n_requests: int, notes: Sequence[str] = ()) -> Answers:
        """Make a table of arrays, with the names of items before their ids."""
        if "item_id" in columns:
            distinct, place = np.unique(self.served.catalogue.item_ids.find(columns["item_id"]), return_inverse=True)
            items = self.served.catalogue.table.take(to_arrow(distinct))
            names = np.array(name_items(items, self.served.bundle.schema.item_features), dtype=np.object_)[place]
            first: dict[str, Any] = {key: columns.pop(key) for key in ("request", "user_id", "rank") if key in columns}
            columns = {**first, "name": names, **columns}
        arrays = {name: to_arrow(one) if isinstance(one, np.ndarray) else one for name, one in columns.items()}
        return Answers(pa.table(arrays), n_requests, tuple(notes))


def _listed(asked: Any) -> list[Any]:
    """Return what is asked for as a list; rows of a DataFrame are mappings."""
    if isinstance(asked, (str, int, np.generic, Mapping, Request)):
        return [asked]
    return list(asked.to_dict("records") if hasattr(asked, "columns") else asked)


def _read_one(one: Any) -> Mapping[str, Any] | Request:
    """Return a request; a list is a history, and what is no mapping a user id. Item ids alone are a history, too."""
    if isinstance(one, Request):
        return one
    is_list = isinstance(one, (list, tuple, np.ndarray))
    given: Mapping[str, Any] = one if isinstance(one, Mapping) else {"history" if is_list else "user_id": one}
    if not isinstance(history := given.get("history"), (list, tuple, np.ndarray)):
        return given
    return {**given, "history": [event if isinstance(event, Mapping) else {"item_id": event} for event in history]}


def _columns(scores: Floats, rows: Ints, name: str, ids: NDArray[np.generic]) -> dict[str, Any]:
    """Return the columns of padded lists (B, K) of cosines."""
    requests, places = (rows >= 0).nonzero()
    found = ids[rows[requests, places]]
    return {"request": requests, "rank": places + 1, name: found, "cosine": scores[requests, places]}


def _show(cell: Any) -> str:
    text = "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
