"""Tables as arrays: the catalogue by item row, and every user's events, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from datamodules.tables import TARGET_WEIGHT, is_set
from serve.arrays import Floats, Ints, vectors_to_arrow
from serve.encode import (
    EncodedFeatures,
    category_rows,
    context_keys,
    count_categories,
    encode_features,
    to_vectors,
    write_cell,
)
from serve.events import Events
from serve.schema import FIRST_CODE, UNKNOWN, Feature, Schema


@dataclass(frozen=True)
class Catalogue:
    """N items that can be recommended."""

    item_ids: np.ndarray  # (N,) ascending; the place of an id is its item_row
    features: EncodedFeatures
    categories: (
        Ints  # (N, F) rows of the single-valued features' codes among all categories
    )
    n_categories: int
    table: pd.DataFrame  # item_id and the declared columns as read, in row order
    item_features: tuple[Feature, ...]  # how the columns are read

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_arrow(self) -> pa.Table:
        """Return the table as it is served: numbers stay numbers; lists, and values of several types, become texts."""
        readers = {feature.column: feature for feature in self.item_features}
        vectors = {
            name: feature
            for name, feature in readers.items()
            if feature.kind == "vector"
        }
        plain = self.table.drop(columns=list(vectors))
        mixed = [str(name) for name in plain if plain[name].dtype == object]
        written = {name: _write_cells(plain[name], readers.get(name)) for name in mixed}
        items = pa.Table.from_pandas(
            plain.assign(**written), preserve_index=False
        ).replace_schema_metadata(None)
        for name, feature in vectors.items():
            items = items.append_column(
                name, vectors_to_arrow(to_vectors(feature, self.table[name]))
            )
        return items


def _write_cells(cells: pd.Series[Any], feature: Feature | None) -> pd.Series[Any]:
    kind = pd.api.types.infer_dtype(cells, skipna=True)
    if kind == "integer" and cells.dropna().between(-(2**63), 2**63 - 1).all():
        return cells.astype("Int64")
    if (
        kind in ("floating", "mixed-integer-float")
        and cells.dropna().abs().lt(2**1023).all()
    ):
        return cells.astype("float64")
    return cells.map(partial(write_cell, feature)).astype(
        "str"
    )  # without a value it would be of no type


def build_catalogue(
    items: pd.DataFrame, train: pd.DataFrame, schema: Schema
) -> Catalogue:
    """Build the catalogue: every item of the items table and of the training rows."""
    ids = np.unique(
        np.concatenate([items["item_id"].to_numpy(), train["item_id"].to_numpy()])
    )
    table = find_rows(items, "item_id", ids).rename_axis("item_id").reset_index()
    columns = columns_of(table, schema.item_features)
    features = encode_features(schema.item_features, columns, len(ids), schema.timezone)
    categories = category_rows(schema.item_features, features.codes)
    return Catalogue(
        ids,
        features,
        categories,
        count_categories(schema.item_features),
        table,
        schema.item_features,
    )


@dataclass(frozen=True)
class Sequences:
    """U users' events, oldest first, with everything else that is known of users and events."""

    events: Events
    context: EncodedFeatures  # one row per event
    target_weight: (
        Floats  # (E,) how much each event counts as a target; 0: evidence alone
    )
    user: EncodedFeatures  # one row per user
    user_ids: np.ndarray  # (U,) in ascending order


def sort_interactions(interactions: pd.DataFrame) -> pd.DataFrame:
    """Order by user, time, position and, stable, place in the table; a set by user and item."""
    keys = ["user_id", "item_id"]
    if not is_set(interactions):
        keys = [
            name for name in ("user_id", "datetime", "position") if name in interactions
        ]
    return interactions.sort_values(keys, kind="stable", ignore_index=True)


def build_sequences(
    interactions: pd.DataFrame,
    users: pd.DataFrame,
    item_ids: np.ndarray,
    schema: Schema,
) -> Sequences:
    """Build the sequences of all users of both tables, without events on items outside `item_ids`, (N,)."""
    interactions = sort_interactions(
        interactions[interactions["item_id"].isin(item_ids)]
    )
    user_ids = np.unique(
        np.concatenate(
            [users["user_id"].to_numpy(), interactions["user_id"].to_numpy()]
        )
    )
    segment = np.searchsorted(user_ids, interactions["user_id"].to_numpy())
    context = encode_contexts(interactions, schema)
    events = Events(
        item_row=pd.Index(item_ids)
        .get_indexer(pd.Index(interactions["item_id"]))
        .astype(np.int64),
        time=_column(interactions, "datetime", 0).astype(np.int64),
        event=encode_event_types(_column(interactions, "event", None), schema),
        weight=_column(interactions, "weight", 1.0).astype(np.float32),
        offsets=np.concatenate(
            [[0], np.cumsum(np.bincount(segment, minlength=len(user_ids)))]
        ).astype(np.int64),
        context=context_keys(schema.context_features, context.codes),
    )
    known = find_rows(users, "user_id", user_ids)
    return Sequences(
        events,
        context,
        _column(interactions, TARGET_WEIGHT, 1.0).astype(np.float32),
        encode_features(
            schema.user_features,
            columns_of(known, schema.user_features),
            len(user_ids),
            schema.timezone,
        ),
        user_ids,
    )


def encode_event_types(values: np.ndarray, schema: Schema) -> Ints:
    """Code event types; unknown, missing and undeclared ones are 1."""
    codes = {name: FIRST_CODE + i for i, name in enumerate(schema.event_types)}
    if not codes:
        return np.full(len(values), UNKNOWN, dtype=np.int64)
    return np.asarray(pd.Series(values).map(codes).fillna(UNKNOWN), dtype=np.int64)


def columns_of(
    frame: pd.DataFrame, features: tuple[Feature, ...]
) -> dict[str, np.ndarray]:
    """Return the columns that the features are read from, where the frame has them."""
    names = {feature.column for feature in features}
    return {name: frame[name].to_numpy() for name in names if name in frame}


def _column(frame: pd.DataFrame, name: str, default: float | None) -> np.ndarray:
    """Return a column, full of the default where the table does not have it."""
    return frame[name].to_numpy() if name in frame else np.full(len(frame), default)


def encode_contexts(interactions: pd.DataFrame, schema: Schema) -> EncodedFeatures:
    """Encode the context of each event, (E, C) codes and (E, V) values."""
    columns = columns_of(interactions, schema.context_features)
    return encode_features(
        schema.context_features, columns, len(interactions), schema.timezone
    )


def find_rows(table: pd.DataFrame, id_name: str, ids: np.ndarray) -> pd.DataFrame:
    """Return the row of each id, of missing values where the table has none; integers above 2**53 stay exact."""
    rows = table.set_index(id_name)
    if not pd.Index(ids).isin(rows.index).all():
        rows = rows.astype(dict.fromkeys(rows.select_dtypes("integer"), object))
    return rows.reindex(ids)
