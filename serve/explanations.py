"""Why an item is in a list, where that can be said: what it is, and the item of the history it is most like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from serve.item_facts import REPEAT_RATE
from serve.recommendations import to_arrow
from serve.recommender import Recommender
from serve.request_values import Id
from serve.requests import Request
from serve.top_k import Floats, Ints

_MOST_EVENTS = 500  # of a history that are compared


def show_items(recommender: Recommender, rows: Ints) -> list[dict[str, Any]]:
    """Return column -> value of items, without ids and vectors."""
    table = recommender.catalogue.table
    names = [field.name for field in table.schema if field.name not in ("item_id", REPEAT_RATE) and _is_shown(field)]
    shown = table.select(names).take(to_arrow(np.asarray(rows, dtype=np.int64))).to_pylist()
    return [{name: _plain(value) for name, value in one.items()} for one in shown]


def find_reasons(recommender: Recommender, request: Request, rows: Ints) -> list[dict[str, Any] | None]:
    """Name for each item the item of the history that is nearest to it, itself included, None without history."""
    catalogue = recommender.catalogue
    history = catalogue.item_ids.find(_history(recommender, request)[-_MOST_EVENTS:])
    known = np.unique(history[history >= 0])
    if not len(known) or not len(rows):
        return [None] * len(rows)
    listed, owned = (_directions(recommender, of) for of in (rows, known))
    cosines = listed @ owned.T  # (K, H)
    nearest = cosines.argmax(axis=1)
    ids = catalogue.item_ids.ids[known[nearest]].tolist()
    best = cosines[np.arange(len(rows)), nearest].tolist()
    return [{"item_id": item_id, "cosine": round(cosine, 3)} for item_id, cosine in zip(ids, best, strict=True)]


def _history(recommender: Recommender, request: Request) -> Sequence[Id]:
    if request.history is not None:
        return list(request.history.item_id)
    profile = None if request.user_id is None else recommender.profiles.get(request.user_id)
    return [] if profile is None else profile.history.item_id.tolist()


def _directions(recommender: Recommender, rows: Ints) -> Floats:
    taste = recommender.catalogue.vectors[rows, : recommender.taste_dim]
    directions: Floats = taste / np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-12)
    return directions


def _is_shown(field: pa.Field) -> bool:
    is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
    is_vector = pa.types.is_fixed_size_list(field.type) or (is_list and pa.types.is_floating(field.type.value_type))
    return not is_vector


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool, list)) else str(value)
