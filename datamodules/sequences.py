"""Interactions as one flat array per column with an offset per user: what batches are indexed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.joins import find_rows
from datamodules.ordering import is_set
from datamodules.targets import TARGET_WEIGHT
from serve.encoding import EncodedFeatures, encode_features
from serve.events import Events, Floats, Ints
from serve.schema import FIRST_CODE, UNKNOWN, Feature, Schema


@dataclass(frozen=True)
class Sequences:
    """U users' events, oldest first, with everything else that is known of users and events."""

    events: Events
    context: EncodedFeatures
    """One row per event."""
    target_weight: Floats
    """(E,) how much each event counts as a target; 0: evidence alone."""
    user: EncodedFeatures
    """One row per user."""
    user_ids: np.ndarray
    """(U,) in ascending order."""


def sort_interactions(interactions: pd.DataFrame) -> pd.DataFrame:
    """Order by user, time, position and, stable, place in the table; a set by user and item."""
    keys = ["user_id", "item_id"]
    if not is_set(interactions):
        keys = [name for name in ("user_id", "datetime", "position") if name in interactions]
    return interactions.sort_values(keys, kind="stable", ignore_index=True)


def build_sequences(interactions: pd.DataFrame, users: pd.DataFrame, item_ids: np.ndarray, schema: Schema) -> Sequences:
    """Build the sequences of all users of the users table and of the interactions.

    Interactions with items outside `item_ids` are left out: the towers have no vector for them.

    Args:
        interactions: cleaned rows; any order.
        users: at most one row per user_id.
        item_ids: (N,) the catalogue by item_row.
        schema: fitted on training rows.
    """
    interactions = sort_interactions(interactions[interactions["item_id"].isin(item_ids)])
    user_ids = np.unique(np.concatenate([users["user_id"].to_numpy(), interactions["user_id"].to_numpy()]))
    segment = np.searchsorted(user_ids, interactions["user_id"].to_numpy())
    n = len(interactions)
    events = Events(
        item_row=pd.Index(item_ids).get_indexer(pd.Index(interactions["item_id"])).astype(np.int64),
        time=_column(interactions, "datetime", 0).astype(np.int64),
        event=encode_event_types(_column(interactions, "event", None), schema),
        weight=_column(interactions, "weight", 1.0).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(np.bincount(segment, minlength=len(user_ids)))]).astype(np.int64),
    )
    known = find_rows(users, "user_id", user_ids)
    return Sequences(
        events,
        encode_features(schema.context_features, columns_of(interactions, schema.context_features), n, schema.timezone),
        _column(interactions, TARGET_WEIGHT, 1.0).astype(np.float32),
        encode_features(schema.user_features, columns_of(known, schema.user_features), len(user_ids), schema.timezone),
        user_ids,
    )


def encode_event_types(values: np.ndarray, schema: Schema) -> Ints:
    """Code event types; unknown, missing and undeclared ones are 1."""
    codes = {name: FIRST_CODE + i for i, name in enumerate(schema.event_types)}
    if not codes:
        return np.full(len(values), UNKNOWN, dtype=np.int64)
    return np.asarray(pd.Series(values).map(codes).fillna(UNKNOWN), dtype=np.int64)


def columns_of(frame: pd.DataFrame, features: tuple[Feature, ...]) -> dict[str, np.ndarray]:
    """Return the columns that the features are read from, where the frame has them."""
    names = {feature.column for feature in features}
    return {name: frame[name].to_numpy() for name in names if name in frame}


def _column(frame: pd.DataFrame, name: str, default: float | None) -> np.ndarray:
    if name in frame:
        return frame[name].to_numpy()
    return np.full(len(frame), default)
