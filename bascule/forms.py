"""The forms in which users and items may be given, and the form of answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Floats, Id, Ints
from serve.cells import to_text
from serve.errors import SchemaError, show
from serve.index import UNKNOWN_ROW
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

_LISTS = (list, tuple, np.ndarray)
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


def to_list(users_or_items: Any) -> list[Any]:
    """Return one or several as a list; rows of a table become mappings."""
    given = users_or_items
    if given is None:
        raise SchemaError("users or items are None; allowed: one, or a list of several")
    if hasattr(given, "iloc") and is_table(given):
        return list(given.to_dict("records"))
    if is_table(given):
        return list(pa.table(given).to_pylist())
    if isinstance(given, _ONE) or not isinstance(given, Iterable):
        return [given]
    return list(given.to_pylist() if hasattr(given, "to_pylist") else given)


def is_table(given: Any) -> bool:
    """Return whether pandas, polars or another library of Arrow calls it a table."""
    kind = type(given)
    is_column = hasattr(kind, "dtype") or kind is pa.ChunkedArray
    return hasattr(kind, "__arrow_c_stream__") and not is_column


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
        fields = _to_fields(user)
        if has_cells:
            cells = {name: to_text(cell) for name, cell in user.items()}
            fields = nest_cells(cells, schema)
        requests.append({**defaults, **fields})

    return requests


def _to_fields(user: Any) -> Mapping[str, Any]:
    """Return the fields of a request: a list is its history, any other value its user id."""
    if isinstance(user, _LISTS):
        user = {"history": user}
    if not isinstance(user, Mapping):
        return {"user_id": user}
    history = user.get("history")
    if not isinstance(history, _LISTS):
        return user
    events = [
        event if isinstance(event, Mapping) else {"item_id": event} for event in history
    ]
    return {**user, "history": events}


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
    notes: tuple[str, ...] = ()

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
        return to_html(*self._show())

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


def to_html(rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Return the HTML of a table, whose first row is its head, and of notes below it."""
    page = Element("div")
    table = SubElement(page, "table")
    for number, row in enumerate(rows):
        line = SubElement(table, "tr")
        for cell in row:
            SubElement(line, "td" if number else "th").text = cell

    for note in notes:
        SubElement(page, "p").text = note
    return tostring(page, encoding="unicode", method="html")


# ---- rows and notes of answers


def list_nearest(
    cosines: Floats, rows: Ints
) -> tuple[dict[str, NDArray[Any]], Ints, Floats]:
    """Return the columns request and rank of padded lists (B, K), and their rows and cosines."""
    requests, places = (rows >= 0).nonzero()
    columns = {"request": requests, "rank": places + 1}
    return columns, rows[requests, places], cosines[requests, places]


def note_unknown(recommender: Served, requests: Sequence[Request]) -> list[str]:
    """Say how many users, items and values nobody knows, with the first of each.

    Args:
        recommender: the version that answers.
        requests: as they were asked, without what profiles add.
    """
    unknown: dict[str, list[str]] = {"users": [], "items": [], "values": []}
    for request in requests:
        user_id = request.user_id
        if user_id is not None and user_id not in recommender.profiles.positions:
            unknown["users"].append(show(user_id))
        if request.history is not None:
            item_ids = request.history.item_id
            is_unknown = recommender.catalogue.item_ids.find(item_ids) == UNKNOWN_ROW
            unknown["items"] += map(show, item_ids[is_unknown].tolist())
        unknown["values"] += find_unknown(recommender.bundle.schema, request)

    notes = []
    for kind, found in unknown.items():
        if found:
            notes.append(f"unknown {kind}: {len(found)}, the first {found[0]}")
    return notes


def note_short(reasons: Sequence[str | None]) -> list[str]:
    """Say how many lists are short, and why the first is."""
    given = [reason for reason in reasons if reason is not None]
    return [f"short lists: {len(given)}; the first because {given[0]}"] if given else []
