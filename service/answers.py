"""Answers as JSON values: lists of items, their columns and reasons, and what was unknown."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Id, Ints, to_arrow
from serve.catalogue import REPEAT_RATE
from serve.reasons import assign_segments
from serve.reasons import explain as explain_items
from serve.recommendations import Answer, DueList
from serve.recommender import Recommender
from serve.requests import Request
from serve.schema import Schema

Content = dict[str, Any]  # of an answer, as JSON values
_LISTED = ("item_id", "name", "score", "rank")  # of an item, in this order
DECIMALS = 6  # of scores and cosines


def show_answer(
    recommender: Recommender, request: Request, answer: Answer, explain: bool
) -> Content:
    """Return an answer as JSON values.

    Args:
        recommender: the version that answered.
        request: the request, with what is known of its user.
        answer: its list.
        explain: add columns and reasons of each item, and the segment of the user if their list is
            not everybody's.
    """
    ids = answer.item_id.tolist()
    names = recommender.name(ids)
    scores = [round(score, DECIMALS) for score in answer.score.tolist()]
    rows = zip(ids, names, scores, answer.rank.tolist(), strict=True)
    items = [dict(zip(_LISTED, row, strict=True)) for row in rows]
    weights = None
    shown_segment = None
    if explain:
        _add_columns(recommender, answer.item_id, items)
        (explanation,) = explain_items(recommender, [request], [ids])
        weights = explanation.weights
        for item, reasons in zip(items, explanation.reasons, strict=True):
            item["reasons"] = [reason.to_json() for reason in reasons]

        (segment,) = assign_segments(recommender, [request])
        if segment is not None and explanation.is_personal:
            shown_segment = {
                "id": segment.id,
                "size": segment.size,
                "text": segment.text,
            }

    return _leave_out_none(
        items=items,
        unknown_items=answer.unknown_items,
        moment=request.datetime,
        user_known=request.user_known,
        profile=None if request.profile else False,
        weights=weights,
        segment=shown_segment,
        unknown_values=find_unknown(recommender.bundle.schema, request) or None,
        held_back=answer.held_back or None,
        reason=answer.reason,
    )


def _leave_out_none(**content: Any) -> Content:
    return {name: value for name, value in content.items() if value is not None}


def _add_columns(
    recommender: Recommender, ids: NDArray[Any], items: list[Content]
) -> None:
    catalogue = recommender.catalogue
    columns = show_items(catalogue.table, catalogue.item_ids.find(ids))
    for item, columns_of_item in zip(items, columns, strict=True):
        item["columns"] = columns_of_item


def show_similar(
    recommender: Recommender, item_id: Id, k: int, explain: bool
) -> Content:
    """Return the items nearest to a known item as JSON values.

    Args:
        recommender: the version that answers.
        item_id: the known item.
        k: how many there are to be.
        explain: add the columns of each item.

    Raises:
        SchemaError: the bundle does not know the item.
    """
    ids, cosines = recommender.similar_items(item_id, k)
    names = recommender.name(ids.tolist())
    items: list[Content] = []
    for near, name, cosine in zip(ids.tolist(), names, cosines.tolist(), strict=True):
        item = {"item_id": near, "name": name, "cosine": round(cosine, DECIMALS)}
        items.append(item)

    if explain:
        _add_columns(recommender, ids, items)

    reason = None
    if len(ids) < k:
        reason = f"the catalogue has {len(ids)} other items"
    return _leave_out_none(items=items, reason=reason)


def show_due(request: Request, due: DueList) -> Content:
    """Return what a user takes again as JSON values.

    Args:
        request: the request, with what is known of its user.
        due: its list.
    """
    items = [vars(item) | {"score": round(item.score, DECIMALS)} for item in due.items]
    return _leave_out_none(
        items=items,
        moment=request.datetime,
        user_known=request.user_known,
        reason=due.reason,
    )


def show_items(table: pa.Table, rows: Ints) -> list[Content]:
    """Return the columns of items as JSON values, without ids and vectors.

    Args:
        table: the items of a catalogue.
        rows: (n,) rows in the table.

    Returns:
        (n,) column -> value.
    """
    names = []
    for field in table.schema:
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        is_vector = pa.types.is_fixed_size_list(field.type) or (
            is_list and pa.types.is_floating(field.type.value_type)
        )
        if field.name not in ("item_id", REPEAT_RATE) and not is_vector:
            names.append(field.name)

    chosen = table.select(names).take(to_arrow(np.asarray(rows, dtype=np.int64)))
    return [
        {name: _to_json(value) for name, value in item.items()}
        for item in chosen.to_pylist()
    ]


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | list | None) else str(value)


def find_unknown(schema: Schema, request: Request) -> list[str]:
    """Name the values that training has not seen.

    Args:
        schema: of the bundle.
        request: with features of the user and context.

    Returns:
        Names as `features.country` and `context.device`.
    """
    sides = {"context": schema.context_features, "features": schema.user_features}
    names = []
    for side, features in sides.items():
        values = getattr(request, side) or {}
        for feature in features:
            texts = []
            if feature.has_vocabulary:
                texts = feature.texts(values.get(feature.name))
            if not feature.codes.keys() >= set(texts):
                names.append(f"{side}.{feature.name}")

    return names
