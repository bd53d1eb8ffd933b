"""A recommender as people use it: ask in any form that is at hand, and get tables with names.

>>> recommender = bascule.load("runs/shop")
>>> recommender.recommend(["u0", "u1"], k=3).to_pandas().columns.tolist()
['request', 'user_id', 'rank', 'name', 'item_id', 'score']
>>> basket, asked = ["i107", "i114"], {"user_id": "u1", "context": {"device": "phone"}}
>>> [row["rank"] for row in recommender.recommend([basket, asked], k=3, diversity=0.5)[0]]
[1, 2, 3]
>>> len(recommender.similar_items({"department": "dairy"}, k=4, filters={"at_most": {"brand": 1}})[0])
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
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Floats, Ints
from serve.bundle import BUNDLE, METRICS, PROFILES, REPORT
from serve.catalogue import name_items
from serve.encode import to_text
from serve.errors import SchemaError
from serve.files import FORGOTTEN
from serve.filters import rank_filtered
from serve.index import ItemIndex, Query
from serve.reasons import explain, find_due, find_segment
from serve.recommendations import Segment
from serve.recommender import Recommender as Served
from serve.requests import Id, Request, parse_filters, show
from serve.rerank import Dials
from serve.rerank import recommend as recommend_by_dials
from service.command_line import align
from service.request_files import nest_cells

if TYPE_CHECKING:
    import pandas as pd

One: TypeAlias = Id | Mapping[str, Any] | Request  # a user id, or a request
Asked: TypeAlias = (
    "One | Sequence[One | Sequence[Id]] | NDArray[Any] | pd.DataFrame | pd.Series[Any]"
)
"""One or several; in a list, a list of item ids is a history; a DataFrame has user_id, datetime, features."""
Items: TypeAlias = "Id | Mapping[str, Any] | Sequence[Id | Mapping[str, Any]] | NDArray[Any]"  # by id, or by features
_SEGMENTS = pa.schema(
    {
        "request": pa.int64(),
        "segment": pa.int64(),
        "size": pa.int64(),
        "text": pa.string(),
    }
)
_IDS = {"integer": pa.int64(), "string": pa.string()}
_TIME = pa.timestamp("s", "UTC")
_RHYTHM = {
    "due": _TIME,
    "is_overdue": pa.bool_(),
    "last": _TIME,
    "n_days": pa.int64(),
    "every_days": pa.float64(),
}
_RHYTHM |= {"regularity": pa.float64(), "score": pa.float64(), "text": pa.string()}
_SHOWN = 10  # rows of a repr, characters of a cell
_MAX_CELL = 70


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """Rows of a table, and by request a list of rows."""

    table: Any  # pyarrow.Table, whose `request` counts from 0
    n_requests: int
    notes: tuple[str, ...] = ()  # of unknown users and short lists

    def __len__(self) -> int:
        return self.n_requests

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        place = range(self.n_requests)[index]
        start, stop = np.searchsorted(
            self.table.column("request").to_numpy(), [place, place + 1]
        )
        return list(self.table.slice(start, stop - start).to_pylist())

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return map(self.__getitem__, range(self.n_requests))

    def to_pandas(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __repr__(self) -> str:
        rows = self.table.slice(0, _SHOWN).to_pylist()
        lines = align(
            [self.table.column_names, *(list(map(_show, row.values())) for row in rows)]
        )
        more = [f"... {len(self.table)} rows"] if len(self.table) > _SHOWN else []
        return "\n".join([*lines, *more, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True, eq=False, repr=False)
class Recommender:
    """A trained recommender, which wraps that of `serve`; nothing in it changes."""

    served: Served
    path: Path  # folder of the bundle

    @property
    def metrics(self) -> dict[str, Any]:
        """Read `metrics.json` of the run; `metrics["test"]["bascule"]` are the figures. It is empty without a run."""
        path = self.path.parent / METRICS
        return dict(json.loads(path.read_bytes())) if path.exists() else {}

    def __repr__(self) -> str:
        n_items = len(self.served.catalogue)
        n_users = len(self.served.profiles)
        repeats = (
            "allowed" if self.served.bundle.schema.repeats == "allow" else "excluded"
        )
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

        The dials go from 0 to 1: how unlike each other items are, how unlike the user's own past, and the share of new
        ones. `filters`, `{"where": "price <= 20", "only": [ids], "at_most": {"brand": 2}}`, are for requests without.
        """
        requests = self._read(users_or_requests, filters)
        lists = recommend_by_dials(
            self.served, requests, k, repeats, Dials(diversity, novelty, new_share)
        )
        known = self.served.profiles.positions
        unknown = [
            one.user_id
            for one in requests
            if one.user_id is not None and one.user_id not in known
        ]
        short = [reason for reason in lists.reason.tolist() if reason is not None]
        notes = (
            [f"unknown users: {len(unknown)}, the first {show(unknown[0])}"]
            if unknown
            else []
        )
        notes += (
            [f"lists of fewer than {k} items: {len(short)}; the first since {short[0]}"]
            if short
            else []
        )
        columns: dict[str, Any] = {
            "request": np.repeat(np.arange(len(lists)), np.diff(lists.offsets)),
            "user_id": lists.to_table().column("user_id"),
            "rank": lists.rank,
            "name": self._name(lists.item_row),
            "item_id": lists.item_id,
            "score": lists.score,
        }
        return Answers(pa.table(columns), len(lists), tuple(notes))

    def similar_items(
        self, items: Items, k: int = 10, *, filters: Mapping[str, Any] | None = None
    ) -> Answers:
        """Return the items nearest to each item by the cosine of their vectors."""
        catalogue = self.served.catalogue
        asked = _list(items)
        admission = self.served.admission
        parsed = (
            None
            if filters is None
            else parse_filters(filters, catalogue.item_ids.id_type)
        )
        admission.check(parsed)
        own = [
            -1 if isinstance(one, Mapping) else catalogue.item_ids.require([one])[0]
            for one in asked
        ]
        index = ItemIndex(self._direct(catalogue.index.vectors))
        query = _query(self._direct(self.encode_items(asked)), own)
        found = rank_filtered(
            index, admission, [parsed] * len(asked), query, min(k, len(index))
        )
        columns, rows = _flatten(*found)
        columns |= {
            "name": self._name(rows),
            "item_id": catalogue.item_ids.ids[rows],
            "cosine": columns.pop("cosine"),
        }
        return Answers(pa.table(columns), len(asked))

    def similar_users(self, users_or_requests: Asked, k: int = 10) -> Answers:
        """Return the known users whose vectors are nearest to that of each user or request."""
        profiles = self.served.profiles
        requests = self._read(users_or_requests)
        if not len(profiles):
            raise SchemaError(
                "there are no profiles beside the bundle, so that there is no user to compare with"
            )
        own = [
            -1 if one.user_id is None else profiles.positions.get(one.user_id, -1)
            for one in requests
        ]
        query = _query(self._direct(self.served.encode_users(requests)), own)
        index = ItemIndex(self._user_directions)
        columns, rows = _flatten(*index.search(query, min(k, len(index))))
        columns |= {"user_id": profiles.user_ids[rows], "cosine": columns.pop("cosine")}
        return Answers(pa.table(columns), len(requests))

    def explain(
        self,
        users_or_requests: Asked,
        items: Id | Sequence[Id] | None = None,
        k: int = 3,
    ) -> Answers:
        """Say why items are listed, by default the k best of each request; the strongest reason of each comes first.

        An `effect` is how far the score falls when that part alone is left out of the request.
        """
        requests = self._read(users_or_requests)
        ids = self.served.catalogue.item_ids
        if items is None:
            asked = [one.item_id.tolist() for one in self.served.recommend(requests, k)]
        else:
            asked = [ids.ids[ids.require(_list(items))].tolist()] * len(requests)
        rows = [
            (place, item_id, one.kind, one.effect, one.text)
            for place, reasons in enumerate(explain(self.served, requests, asked))
            for item_id, some in zip(asked[place], reasons, strict=True)
            for one in some
        ]
        places, item_ids, *others = zip(*rows, strict=True) if rows else [()] * 5
        columns: dict[str, Any] = {
            "request": places,
            "name": self._name(ids.find(item_ids)),
            "item_id": item_ids,
        }
        return Answers(
            pa.table(
                columns | dict(zip(("kind", "effect", "text"), others, strict=True))
            ),
            len(requests),
        )

    def due(self, users_or_requests: Asked, k: int = 10) -> Answers:
        """List what each user takes again, the likeliest next first, and when each is expected.

        It is asked as of each request's `datetime`, by default the user's last event. A list may have no items.
        """
        lists = find_due(self.served, self._read(users_or_requests), k)
        schema = self.served.bundle.schema
        types = {
            "request": pa.int64(),
            "user_id": _IDS[schema.user_id_type],
            "rank": pa.int64(),
            "name": pa.string(),
        }
        types |= {"item_id": _IDS[schema.item_id_type], **_RHYTHM}
        rows = [
            {"request": request, "user_id": one.user_id, "rank": place, **vars(item)}
            for request, one in enumerate(lists)
            for place, item in enumerate(one.items, start=1)
        ]
        empty = [str(one.reason) for one in lists if not one.items]
        notes = (
            (f"lists without items: {len(empty)}; the first since {empty[0]}",)
            if empty
            else ()
        )
        return Answers(pa.Table.from_pylist(rows, pa.schema(types)), len(lists), notes)

    def segments(self, users_or_requests: Asked | None = None) -> Answers:
        """Return the segments of the users, the largest first, or that of each user or request. Few users have none."""
        known = self.served.bundle.segments
        asked = None if users_or_requests is None else self._read(users_or_requests)
        chosen: list[tuple[int, Segment | None]] = [
            (0, one) for one in (known.segments if known else ())
        ]
        if asked is not None:
            chosen = [
                (place, find_segment(self.served, one))
                for place, one in enumerate(asked)
            ]
        rows = [
            {"request": at, "segment": one.id, "size": one.size, "text": one.text}
            for at, one in chosen
            if one
        ]
        return Answers(
            pa.Table.from_pylist(rows, _SEGMENTS), 1 if asked is None else len(asked)
        )

    def score(self, user: One, items: Id | Sequence[Id]) -> NDArray[np.float64]:
        """Return the score of each item for one user or request, whether it would be listed or not."""
        scores: NDArray[np.float64] = self.served.score(self._read(user), _list(items))[
            0
        ]
        return scores

    def encode_users(self, users_or_requests: Asked) -> Floats:
        """Return the vector of each user or request, (B, W)."""
        return self.served.encode_users(self._read(users_or_requests))

    def encode_items(self, items: Items) -> Floats:
        """Return the vector of each item, by id or by features, (n, W)."""
        asked = _list(items)
        catalogue = self.served.catalogue
        is_new = [isinstance(one, Mapping) for one in asked]
        rows = catalogue.item_ids.require(
            [one for one, new in zip(asked, is_new, strict=True) if not new]
        )
        new = self.served.encode_items(
            [one for one in asked if isinstance(one, Mapping)]
        )
        vectors = np.empty((len(asked), new.shape[1]), np.float32)
        vectors[np.flatnonzero(is_new)] = new
        vectors[np.flatnonzero(np.invert(is_new))] = catalogue.index.vectors[rows]
        return vectors

    def save(self, directory: str | Path) -> Path:
        """Write what `bascule.load` reads into a new folder.

        Profiles are personal data: to hand on the model alone, hand on the folder `bundle` in it.
        """
        target = Path(directory)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise SchemaError(
                f"{target} exists and is not empty: choose another folder"
            )
        for name in (METRICS, REPORT, FORGOTTEN, PROFILES):
            source = self.path.parent / name
            if source.is_dir():
                shutil.copytree(source, target / name)
            elif source.exists():
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target / name)
        shutil.copytree(
            self.path, target / BUNDLE
        )  # last: without it the folder is nothing that is loaded
        return target

    def _read(
        self, asked: Asked, filters: Mapping[str, Any] | None = None
    ) -> list[Request]:
        """Return checked requests."""
        listed: list[Any] = _list(asked)
        if hasattr(asked, "columns"):
            schema = self.served.bundle.schema
            listed = [
                nest_cells(
                    {name: to_text(cell) or "" for name, cell in row.items()}, schema
                )
                for row in listed
            ]
        given = {} if filters is None else {"filters": filters}
        return self.served.check(
            [
                one if isinstance(one, Request) else {**given, **_read_one(one)}
                for one in listed
            ]
        )

    def _name(self, rows: Ints) -> NDArray[np.object_]:
        """Return names of items by row."""
        distinct, place = np.unique(rows, return_inverse=True)
        items = self.served.catalogue.table.take(distinct)
        return np.array(
            name_items(items, self.served.bundle.schema.item_features), dtype=np.object_
        )[place]

    def _direct(self, vectors: Floats) -> Floats:
        """Return the directions of the part of vectors that cosines compare."""
        taste = vectors[:, : self.served.taste_dim]
        lengths = np.linalg.norm(taste, axis=1, keepdims=True)
        return np.ascontiguousarray(
            taste / np.where(lengths == 0, 1, lengths), dtype=np.float32
        )

    @cached_property
    def _user_directions(self) -> Floats:
        return self._direct(self.encode_users(self.served.profiles.user_ids))


def _query(vectors: Floats, own: Sequence[int]) -> Query:
    """Ask for the nearest to vectors (B, D), but for the row that is one's own, -1 where there is none."""
    rows = np.array(own, np.int64)
    return Query(vectors, (np.flatnonzero(rows >= 0), rows[rows >= 0]))


def _flatten(cosines: Floats, rows: Ints) -> tuple[dict[str, Any], Ints]:
    """Return the columns of padded lists (B, K), and the rows that are listed."""
    requests, places = (rows >= 0).nonzero()
    columns = {
        "request": requests,
        "rank": places + 1,
        "cosine": cosines[requests, places],
    }
    return columns, rows[requests, places]


def _list(asked: Any) -> list[Any]:
    """Return what is asked for as a list; rows of a DataFrame are mappings."""
    if isinstance(asked, (str, int, np.generic, Mapping, Request)):
        return [asked]
    return list(asked.to_dict("records") if hasattr(asked, "columns") else asked)


def _read_one(one: Any) -> Mapping[str, Any]:
    """Return a request; a list is a history, where item ids stand for events; what is no mapping is a user id."""
    is_list = isinstance(one, (list, tuple, np.ndarray))
    given: Mapping[str, Any] = (
        one if isinstance(one, Mapping) else {"history" if is_list else "user_id": one}
    )
    if not isinstance(history := given.get("history"), (list, tuple, np.ndarray)):
        return given
    return {
        **given,
        "history": [
            event if isinstance(event, Mapping) else {"item_id": event}
            for event in history
        ],
    }


def _show(cell: Any) -> str:
    text = (
        "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    )
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
