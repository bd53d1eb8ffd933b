"""The forms in which users and items may be given, and the form of answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never, TypeAlias
from uuid import UUID
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Floats, Id, IdType, Ints
from serve.cells import LISTS, to_text
from serve.errors import SchemaError, show
from serve.index import UNKNOWN_ROW, Query
from serve.recommendations import DueList, Explanation, Recommendations
from serve.recommender import Recommender as Served
from serve.requests import Request
from serve.schema import Schema
from service.answers import find_unknown
from service.command_line import align, format_cell
from service.request_files import nest_cells

if TYPE_CHECKING:
    import pandas as pd

    from datamodules.sources import ArrowStream

User: TypeAlias = Id | Mapping[str, Any] | Request  # a user id, or a request
Several: TypeAlias = "NDArray[Any] | pd.DataFrame | pd.Series[Any] | ArrowStream"
Users: TypeAlias = "User | Sequence[User | Sequence[Id]] | Several"
"""One or several. In a list, a list of item ids is a history; a table of pandas, polars, pyarrow or
DuckDB has user_id, datetime and features."""
Item: TypeAlias = Id | Mapping[str, Any]  # an id, or features
Items: TypeAlias = "Item | Sequence[Item] | NDArray[Any]"

_ONE = (str, bytes, Mapping, Request)
_IDS = {"integer": pa.int64(), "string": pa.string()}
_TIME = pa.timestamp("s", "UTC")
_TYPES = {  # of the columns of answers that are made row by row
    "request": pa.int64(),
    "rank": pa.int64(),
    "name": pa.string(),
    "text": pa.string(),
    "kind": pa.string(),
    "effect": pa.float64(),
    "segment": pa.int64(),
    "size": pa.int64(),
    "due": _TIME,
    "is_overdue": pa.bool_(),
    "last": _TIME,
    "n_days": pa.int64(),
    "every_days": pa.float64(),
    "regularity": pa.float64(),
    "score": pa.float64(),
}
_SHOWN = 10  # rows of a repr

# Columns of answers that are made row by row.
REASONS = "request name item_id kind effect text"
SEGMENTS = "request segment size text"
DUE = (
    "request user_id rank name item_id"
    " due is_overdue last n_days every_days regularity score text"
)


def to_list(users_or_items: Any) -> list[Any]:
    """Return one or several as a list; rows of a table become mappings."""
    given = users_or_items
    if given is None:
        raise SchemaError("users or items are None; allowed: one, or a list of several")
    if is_table(given):
        if hasattr(given, "iloc"):
            return list(given.to_dict("records"))
        given = pa.table(given)
    if hasattr(given, "to_pylist"):
        return list(given.to_pylist())
    if isinstance(given, _ONE) or not isinstance(given, Iterable):
        return [given]
    return list(given)


def is_table(given: Any) -> bool:
    """Return whether pandas, polars, pyarrow or DuckDB calls it a table."""
    return hasattr(given, "columns")


def to_count(k: int) -> int:
    """Return a number of items as Python's own, and refuse what is none."""
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise SchemaError(f"k is {show(k)}; allowed: a whole number, 1 or more")
    return int(k)


def to_requests(
    users: Users, schema: Schema, defaults: Mapping[str, Any]
) -> list[Request | Mapping[str, Any]]:
    """Return requests to check; `defaults` are fields of those that are no `Request`."""
    requests: list[Request | Mapping[str, Any]] = []
    has_cells = is_table(users)
    for user in to_list(users):
        if isinstance(user, Request):
            requests.append(user)
            continue
        fields = _to_fields(user, schema)
        if has_cells:
            cells = {name: to_text(cell) for name, cell in user.items()}
            fields = nest_cells(cells, schema)
        requests.append({**defaults, **fields})

    return requests


def _to_fields(user: Any, schema: Schema) -> Mapping[str, Any]:
    """Return the fields of a request: a list is its history, any other value its user id."""
    if isinstance(user, Mapping):
        return user
    if isinstance(user, LISTS):
        return {"history": to_ids(user, schema.item_id_type)}
    return {"user_id": to_ids(user, schema.user_id_type)[0]}


def to_ids(given: Any, id_type: IdType) -> list[Any]:
    """Return one or several as a list of ids: whole floats as integers, UUIDs as texts."""
    return [_to_id(value, id_type) for value in to_list(given)]


def _to_id(value: Any, id_type: IdType) -> Any:
    if id_type == "integer" and isinstance(value, float) and value.is_integer():
        return int(value)
    if id_type == "string" and isinstance(value, UUID):
        return str(value)
    return value


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """Rows of a table; `answers[i]` and iteration give the rows of each request as dictionaries.

    Attributes:
        table: a `pyarrow.Table`; its column `request` counts from 0.
        n_requests: number of requests, also of those without rows.
        notes: sentences about unknown users and short lists.

    Example:
        >>> recommender.recommend(["u0", "u1"], k=3).to_pandas()["rank"].tolist()
        [1, 2, 3, 1, 2, 3]
    """

    table: Any
    n_requests: int
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return self.n_requests

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        request = range(self.n_requests)[index]
        of_rows = self.table.column("request").to_numpy()
        start, stop = np.searchsorted(of_rows, [request, request + 1])
        return list(self.table.slice(start, stop - start).to_pylist())

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return map(self.__getitem__, range(self.n_requests))

    def to_pandas(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Never:
        """Refuse to become an array, of which pandas would make a frame of dictionaries."""
        raise SchemaError(
            "answers are a table with names; get its frame by answers.to_pandas()"
        )

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Hand the rows over to polars, pyarrow, DuckDB and whatever else reads Arrow."""
        return self.table.__arrow_c_stream__(requested_schema)

    def to_arrow(self) -> Any:
        """Return the `pyarrow.Table`."""
        return self.table

    def to_polars(self) -> Any:
        """Return a `polars.DataFrame`; we do not install polars."""
        import polars

        return polars.from_arrow(self.table)

    def __repr__(self) -> str:
        rows, notes = self._show()
        return "\n".join([*align(rows), *notes])

    def _repr_html_(self) -> str:
        rows, notes = self._show()
        page = Element("div")
        table = SubElement(page, "table")
        for number, row in enumerate(rows):
            line = SubElement(table, "tr")
            for cell in row:
                SubElement(line, "td" if number else "th").text = cell

        for note in notes:
            SubElement(page, "p").text = note
        return tostring(page, encoding="unicode", method="html")

    def _show(self) -> tuple[list[list[str]], list[str]]:
        """Return the names of the columns above the first rows, and notes."""
        rows = [self.table.column_names]
        for row in self.table.slice(0, _SHOWN).to_pylist():
            rows.append([format_cell(cell) for cell in row.values()])

        notes = [f"note: {note}" for note in self.notes]
        if len(self.table) > _SHOWN:
            notes.insert(0, f"... {len(self.table)} rows")
        return rows, notes


def to_arrow_table(
    rows: Sequence[Mapping[str, Any]], names: str, schema: Schema
) -> pa.Table:
    """Return the named columns of rows, for the ids of a bundle."""
    types = _TYPES | {
        "user_id": _IDS[schema.user_id_type],
        "item_id": _IDS[schema.item_id_type],
    }
    columns = pa.schema([(name, types[name]) for name in names.split()])
    return pa.Table.from_pylist(rows, columns)


# ---- rows and notes of answers


def make_query(vectors: Floats, own_rows: Ints) -> Query:
    """Ask for the nearest to vectors (B, D), without each one's own row, -1 where there is none."""
    (has_row,) = np.nonzero(own_rows != UNKNOWN_ROW)
    return Query(vectors, (has_row, own_rows[has_row]))


def list_nearest(cosines: Floats, rows: Ints) -> tuple[dict[str, Any], Ints, Floats]:
    """Return the columns request and rank of padded lists (B, K), and their rows and cosines."""
    requests, places = (rows >= 0).nonzero()
    columns = {"request": requests, "rank": places + 1}
    return columns, rows[requests, places], cosines[requests, places]


def list_ranked(lists: Recommendations, names: Sequence[str | None]) -> pa.Table:
    """Return a row per listed item, with its name."""
    columns: dict[str, Any] = {
        "request": np.repeat(np.arange(len(lists)), np.diff(lists.offsets)),
        "user_id": lists.to_table().column("user_id"),
        "rank": lists.rank,
        "name": names,
        "item_id": lists.item_id,
        "score": lists.score,
    }
    return pa.table(columns)


def list_reasons(
    explanations: Sequence[Explanation],
    item_ids: Sequence[Sequence[Id]],
    name: Callable[[Sequence[Id]], Sequence[str | None]],
) -> list[dict[str, Any]]:
    """Return a row per reason of each explained item.

    Args:
        explanations: one per request.
        item_ids: the explained items of each request.
        name: names items.
    """
    rows = []
    for request, explanation in enumerate(explanations):
        explained = item_ids[request]
        items = zip(explained, name(explained), explanation.reasons, strict=True)
        for item_id, item_name, reasons in items:
            place = {"request": request, "item_id": item_id, "name": item_name}
            rows += [vars(reason) | place for reason in reasons]
    return rows


def list_due(lists: Sequence[DueList]) -> list[dict[str, Any]]:
    """Return a row per item of each list of what is due."""
    rows = []
    for request, answer in enumerate(lists):
        for rank, item in enumerate(answer.items, start=1):
            place = {"request": request, "user_id": answer.user_id, "rank": rank}
            rows.append(place | vars(item))
    return rows


def list_unknown(
    recommender: Served, requests: Iterable[Request]
) -> Iterator[tuple[str, str]]:
    """Yield the kind and name of each user, item and value of requests that nobody knows.

    Args:
        recommender: the version that answers.
        requests: as they were asked, without what profiles add.
    """
    for request in requests:
        user_id = request.user_id
        if user_id is not None and user_id not in recommender.profiles.positions:
            yield "users", show(user_id)
        if request.history is not None:
            item_ids = request.history.item_id
            is_unknown = recommender.catalogue.item_ids.find(item_ids) == UNKNOWN_ROW
            for item_id in item_ids[is_unknown].tolist():
                yield "items", show(item_id)
        for name in find_unknown(recommender.bundle.schema, request):
            yield "values", name


def write_notes(
    unknown: Iterable[tuple[str, str]],
    reasons: Sequence[str | None] = (),
    n_held_back: int = 0,
) -> list[str]:
    """Say what nobody knows, each name counted once, how many lists are short, what is held back.

    Args:
        unknown: kinds and names, as of `list_unknown`.
        reasons: why a list is short, None of a full one.
        n_held_back: items of all lists that were just taken.
    """
    names: dict[str, list[str]] = {"users": [], "items": [], "values": []}
    for kind, name in dict.fromkeys(unknown):
        names[kind].append(name)

    notes = [
        f"unknown {kind}: {len(found)}, the first {found[0]}"
        for kind, found in names.items()
        if found
    ]
    short = [reason for reason in reasons if reason is not None]
    if short:
        n_short = f"{len(short)} of {len(reasons)} lists are short"
        notes.append(f"{n_short}; the first because {short[0]}")
    if n_held_back:
        notes.append(f"held back: {n_held_back}, just taken")
    return notes
