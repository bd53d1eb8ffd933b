"""The forms in which users, requests and items may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve.encode import to_text
from serve.requests import Id, Request
from serve.schema import Schema
from service.export import nest_cells

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
            cells = {name: to_text(cell) or "" for name, cell in user.items()}
            fields = nest_cells(cells, schema)
        if filters is not None:
            fields = {"filters": filters, **fields}
        requests.append(fields)
    return requests


def _to_fields(user: Any) -> Mapping[str, Any]:
    """Return the fields of a request: a list is its history, any other value its user id."""
    if isinstance(user, Mapping):
        fields = user
    elif isinstance(user, _LISTS):
        fields = {"history": user}
    else:
        return {"user_id": user}
    history = fields.get("history")
    if not isinstance(history, _LISTS):
        return fields
    events = [
        event if isinstance(event, Mapping) else {"item_id": event} for event in history
    ]
    return {**fields, "history": events}
