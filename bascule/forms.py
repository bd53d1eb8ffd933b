"""The forms in which users and items may be given, and the form of answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Id
from serve.cells import to_text
from serve.requests import Request
from serve.schema import Schema
from service.command_line import align, format_cell
from service.request_files import nest_cells

if TYPE_CHECKING:
    import pandas as pd

User: TypeAlias = Id | Mapping[str, Any] | Request  # a user id, or a request
Several: TypeAlias = "NDArray[Any] | pd.DataFrame | pd.Series[Any]"
Users: TypeAlias = "User | Sequence[User | Sequence[Id]] | Several"
"""One or several. In a list, a list of item ids is a history; a DataFrame has user_id, datetime and
features."""
Item: TypeAlias = Id | Mapping[str, Any]  # an id, or features
Items: TypeAlias = "Item | Sequence[Item] | NDArray[Any]"

_LISTS = (list, tuple, np.ndarray)
_SHOWN = 10  # rows of a repr


def to_list(users_or_items: Any) -> list[Any]:
    """Return one or several as a list; rows of a DataFrame become mappings."""
    if isinstance(users_or_items, (str, int, np.generic, Mapping, Request)):
        return [users_or_items]
    if hasattr(users_or_items, "columns"):
        return list(users_or_items.to_dict("records"))
    return list(users_or_items)


def to_requests(
    users: Users, schema: Schema, filters: Mapping[str, Any] | None = None
) -> list[Request | Mapping[str, Any]]:
    """Return requests to check; `filters` are for those that are no `Request`."""
    requests: list[Request | Mapping[str, Any]] = []
    for user in to_list(users):
        if isinstance(user, Request):
            requests.append(user)
            continue
        fields = _to_fields(user)
        if hasattr(users, "columns"):
            cells = {name: to_text(cell) for name, cell in user.items()}
            fields = nest_cells(cells, schema)
        if filters is not None:
            fields = {"filters": filters, **fields}
        requests.append(fields)

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

    def __repr__(self) -> str:
        rows = [self.table.column_names]
        for row in self.table.slice(0, _SHOWN).to_pylist():
            rows.append([format_cell(cell) for cell in row.values()])
        lines = align(rows)
        if len(self.table) > _SHOWN:
            lines.append(f"... {len(self.table)} rows")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)
