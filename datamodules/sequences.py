"""Tables as arrays: the catalogue by item row, and every user's events, oldest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.config import Unlisted
from datamodules.values import TARGET_WEIGHT, is_set
from serve.arrays import Flags, Floats, Ints, spans, vectors_to_arrow
from serve.cells import join_text
from serve.encode import (
    EncodedFeatures,
    category_rows,
    context_keys,
    count_categories,
    encode_features,
)
from serve.events import Events
from serve.kinds import FIRST_CODE, UNKNOWN, Feature, to_vectors
from serve.schema import Schema

TILE = 2**21  # events that are worked on at once
FOLDS = 5  # of a set: each fold of a user's items is predicted from the others


@dataclass(frozen=True)
class Catalogue:
    """N items that can be recommended."""

    item_ids: NDArray[Any]  # (N,) ascending; the position of an id is its item_row
    features: EncodedFeatures
    categories: Ints  # (N, F) rows of the single-valued features among all categories
    n_categories: int
    table: pd.DataFrame  # item_id and the declared columns as read, in row order
    item_features: tuple[Feature, ...]
    is_unlisted: Flags  # (N,) read in histories, and never recommended

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_arrow(self) -> pa.Table:
        """Return the table as it is served.

        Numbers stay numbers; lists, and values of several types, become texts.
        """
        readers = {feature.column: feature for feature in self.item_features}
        columns = {}
        vectors = {}

        for name, cells in self.table.items():
            feature = readers.get(str(name))
            if feature is not None and feature.is_vector:
                vectors[name] = vectors_to_arrow(to_vectors(feature, cells))
                continue
            if cells.dtype == "object":
                cells = _write_cells(cells, feature)
            columns[name] = pa.Array.from_pandas(cells)

        return pa.table({**columns, **vectors})


def _write_cells(cells: pd.Series[Any], feature: Feature | None) -> pd.Series[Any]:
    """Return a column of Python objects as numbers of one type, or as texts."""
    kind = pd.api.types.infer_dtype(cells, skipna=True)
    is_integer = kind == "integer"
    if is_integer and cells.dropna().between(-(2**63), 2**63 - 1).all():
        return cells.astype("Int64")
    is_number = kind in ("floating", "mixed-integer-float")
    if is_number and cells.dropna().abs().lt(2**1023).all():
        return cells.astype("float64")

    # A column without a value would have no type.
    return cells.map(feature.write if feature else join_text).astype("str")


def build_catalogue(
    items: pd.DataFrame,
    train: pd.DataFrame,
    schema: Schema,
    unlisted: Unlisted = "list",
) -> Catalogue:
    """Build the catalogue of every item of the items table and of the training rows.

    Args:
        items: the items table, of which only `item_id` is needed.
        train: the interactions whose items are listed too.
        schema: says how the columns are encoded.
        unlisted: whether items without a row in the items table, if there is one, are recommended.
    """
    ids = np.unique(np.append(items["item_id"].to_numpy(), train["item_id"].to_numpy()))
    table = find_rows(items, "item_id", ids).rename_axis("item_id").reset_index()
    features = _encode(table, schema.item_features, schema)
    is_unlisted = np.zeros(len(ids), np.bool_)
    if unlisted == "exclude" and len(items):
        is_unlisted = ~pd.Index(ids).isin(items["item_id"])

    return Catalogue(
        ids,
        features,
        category_rows(schema.item_features, features.codes),
        count_categories(schema.item_features),
        table,
        schema.item_features,
        is_unlisted,
    )


@dataclass(frozen=True)
class Sequences:
    """U users' events, oldest first, and the features of users and events."""

    events: Events
    context: EncodedFeatures  # one row per event
    target_weight: Floats  # (E,) weight of each event as a target; 0: evidence alone
    user: EncodedFeatures  # one row per user
    user_ids: NDArray[Any]  # (U,) ascending


def sort_interactions(interactions: pd.DataFrame) -> pd.DataFrame:
    """Sort by user, time and position, ties as in the table; a set by user and item."""
    keys = ["user_id", "item_id"]
    if not is_set(interactions):
        order = ("user_id", "datetime", "position")
        keys = [name for name in order if name in interactions]

    return interactions.sort_values(keys, kind="stable", ignore_index=True)


def build_sequences(
    interactions: pd.DataFrame,
    users: pd.DataFrame,
    item_ids: NDArray[Any],
    schema: Schema,
) -> Sequences:
    """Build the sequences of the users of both tables.

    Args:
        interactions: events in any order; those on items outside `item_ids` are left out.
        users: the users table, of which only `user_id` is needed.
        item_ids: the catalogue's ids, (N,) ascending.
        schema: says how features, event types and contexts are encoded.
    """
    listed = interactions[interactions["item_id"].isin(item_ids)]
    interactions = sort_interactions(listed)
    users_of_events = interactions["user_id"].to_numpy()  # (E,)
    user_ids = np.unique(np.append(users["user_id"].to_numpy(), users_of_events))
    ids_of_events = pd.Index(interactions["item_id"])
    item_rows = pd.Index(item_ids).get_indexer(ids_of_events).astype(np.int64)  # (E,)
    offsets = np.searchsorted(users_of_events, user_ids)  # (U,)

    context = _encode(interactions, schema.context_features, schema)
    times = _column(interactions, "datetime", 0).astype(np.int64)
    types = _column(interactions, "event", None)
    weights = _column(interactions, "weight", 1.0)
    codes = {name: FIRST_CODE + i for i, name in enumerate(schema.event_types)}
    event_types = np.asarray(pd.Series(types).map(codes).fillna(UNKNOWN), np.int64)
    offsets = np.append(offsets, len(interactions))
    events = Events(
        item_rows,
        times,
        event_types,
        weights.astype(np.float32),
        offsets,
        context_keys(schema.context_features, context.codes),
    )
    user = encode_users(users, user_ids, schema)
    target_weights = _column(interactions, TARGET_WEIGHT, 1.0).astype(np.float32)

    return Sequences(events, context, target_weights, user, user_ids)


def encode_users(
    users: pd.DataFrame, user_ids: NDArray[Any], schema: Schema
) -> EncodedFeatures:
    """Encode the features of users by id, (U,); those without a row have missing values."""
    rows = find_rows(users, "user_id", user_ids)
    return _encode(rows, schema.user_features, schema)


def _encode(
    frame: pd.DataFrame, features: tuple[Feature, ...], schema: Schema
) -> EncodedFeatures:
    """Encode the columns that features are read from; those that the frame lacks are missing."""
    names = {feature.column for feature in features}
    columns = {name: frame[name].to_numpy() for name in names if name in frame}
    return encode_features(features, columns, len(frame), schema.timezone)


def _column(frame: pd.DataFrame, name: str, default: float | None) -> NDArray[Any]:
    """Return a column, full of the default where the table lacks it."""
    return frame[name].to_numpy() if name in frame else np.full(len(frame), default)


def find_rows(table: pd.DataFrame, id_name: str, ids: NDArray[Any]) -> pd.DataFrame:
    """Return the row of each id, of missing values where the table has none.

    Integers above 2**53 stay exact.
    """
    rows = table.set_index(id_name)
    if not pd.Index(ids).isin(rows.index).all():
        rows = rows.astype(dict.fromkeys(rows.select_dtypes("integer"), object))
    return rows.reindex(ids)


def number_pairs(events: Events) -> Ints:
    """Return a number of each event's (user, item) pair, ascending by user and item, (E,)."""
    stride = int(events.item_row.max(initial=0)) + 1
    return events.segments * stride + events.item_row


def tile_users(offsets: Ints) -> Iterator[slice]:
    """Cut users, whose events have bounds (U + 1,), into ranges of about `TILE` events."""
    n_users = len(offsets) - 1
    start = 0
    while start < n_users:
        stop = int(np.searchsorted(offsets, offsets[start] + TILE, side="right")) - 1
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop


def mark_repeats(events: Events) -> Flags:
    """Mark the events whose user had the item before, (E,), in the memory of a range of users."""
    is_repeat = np.zeros(len(events.item_row), np.bool_)
    for users in tile_users(events.offsets):
        starts = events.offsets[:-1][users]
        stops = events.offsets[1:][users]
        pairs = number_pairs(events.between(starts, stops))
        is_repeat[starts[0] : stops[-1]] = pd.Index(pairs).duplicated()
    return is_repeat


def draw_one_each(groups: Ints, rng: np.random.Generator) -> Ints:
    """Return the position of a drawn row of each group, ascending by group, (groups,)."""
    order = np.lexsort((rng.random(len(groups)), groups))
    _, first = np.unique(groups[order], return_index=True)
    return np.asarray(order[first])


def count_within(sizes: Ints) -> Ints:
    """Return 0 .. size - 1 of each group one after the other, (sum of sizes,)."""
    return spans(np.zeros_like(sizes), sizes)
