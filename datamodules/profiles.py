"""From tables to what serving knows of each user."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.clean import find_rows
from datamodules.sequences import sort_interactions
from serve.profiles import Profiles, feature_values
from serve.requests import History
from serve.schema import IdType, Schema


def make_profiles(interactions: pd.DataFrame, users: pd.DataFrame, schema: Schema) -> Profiles:
    """Make the profiles of all users of the users table and of the interactions, by ascending id.

    Args:
        interactions: cleaned rows, in any order; also of items that the bundle will not have.
        users: at most one row per user_id.
        schema: which features there are, and the types of ids.
    """
    ordered = sort_interactions(interactions)
    user_ids = np.unique(np.concatenate([users["user_id"].to_numpy(), ordered["user_id"].to_numpy()]))
    counts = ordered["user_id"].value_counts().reindex(user_ids, fill_value=0).to_numpy()
    known = find_rows(users, "user_id", user_ids)
    columns = {feature.column: _column(known, feature.column) for feature in schema.user_features}
    return Profiles(
        user_ids=_to_ids(user_ids, schema.user_id_type),
        features=feature_values(schema.user_features, columns),
        history=_make_history(ordered, schema),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _make_history(interactions: pd.DataFrame, schema: Schema) -> History:
    columns: dict[str, NDArray[Any]] = {"item_id": _to_ids(interactions["item_id"], schema.item_id_type)}
    if schema.has_datetime:
        columns["datetime"] = interactions["datetime"].to_numpy(np.int64)
    if schema.event_types and "event" in interactions:
        columns["event"] = _to_texts(interactions["event"])
    if schema.has_weight:
        columns["weight"] = interactions["weight"].to_numpy(np.float64)
    return History(**columns)


def _column(frame: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return a column, of nothing but missing values where the table does not have it."""
    return frame[name].to_numpy() if name in frame else np.full(len(frame), None, dtype=np.object_)


def _to_ids(ids: Any, id_type: IdType) -> NDArray[np.generic]:
    return np.asarray(ids, dtype=np.object_ if id_type == "string" else np.int64)


def _to_texts(column: pd.Series[Any]) -> NDArray[np.object_]:
    """Return texts, None where missing."""
    texts = column.to_numpy(dtype=np.object_, copy=True)
    texts[column.isna().to_numpy()] = None
    return texts
