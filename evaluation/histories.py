"""Profiles made of tables of interactions and users, for a bundle whose own profiles are not at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serve.profiles import History, Profiles, feature_values
from serve.schema import Schema


def profiles_from_frame(interactions: pd.DataFrame, users: pd.DataFrame, schema: Schema) -> Profiles:
    """Make the profiles of all users of both tables.

    Args:
        interactions: rows with ids in the types of the schema; ordered here by time and position, where they have
            these, then by place.
        users: `user_id`, at most once, and columns of user features; a column that is absent is missing.
        schema: says what features there are.
    """
    keys = [name for name in ("user_id", "datetime", "position") if name in interactions]
    events = interactions.sort_values(keys, kind="stable")
    user_ids = np.unique(pd.concat([interactions["user_id"], users["user_id"]]).to_numpy())
    counts = np.bincount(np.searchsorted(user_ids, events["user_id"].to_numpy()), minlength=len(user_ids))
    known = users.set_index("user_id").reindex(user_ids)
    features = [feature for feature in schema.user_features if feature.column in known]
    return Profiles(
        user_ids=user_ids,
        features=feature_values(features, {feature.column: known[feature.column] for feature in features}),
        history=_make_history(events),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _make_history(events: pd.DataFrame) -> History:
    kinds: dict[str, Any] = {"datetime": np.int64, "event": object, "weight": np.float64}
    given = {name: events[name].to_numpy(kind) for name, kind in kinds.items() if name in events}
    return History(item_id=_as_ids(events["item_id"]), **given)


def _as_ids(column: pd.Series[Any]) -> NDArray[np.generic]:
    kind = np.int64 if pd.api.types.is_integer_dtype(column) else object
    return column.to_numpy(kind)
