"""The items that can be recommended: their ids, encoded features and categories, by item_row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from datamodules.joins import find_rows
from datamodules.sequences import columns_of
from serve.categories import category_rows, count_categories
from serve.encoding import EncodedFeatures, encode_features, to_vectors
from serve.events import Ints
from serve.feature_values import write_cell
from serve.schema import Feature, Schema
from serve.vectors import vectors_to_arrow


@dataclass(frozen=True)
class Catalogue:
    """N items."""

    item_ids: np.ndarray
    """(N,) ascending; the place of an id is its item_row."""
    features: EncodedFeatures
    categories: Ints
    """(N, F) rows of the single-valued features' codes among all categories."""
    n_categories: int
    table: pd.DataFrame
    """item_id and the declared columns as read, in row order."""
    item_features: tuple[Feature, ...]
    """What the columns are read as."""

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_arrow(self) -> pa.Table:
        """Return the table as it is served.

        Vectors become lists of fixed length, lists of values or texts one text, and mixed Python values texts, but
        numbers stay numbers, integers with gaps and such among fractions included.
        """
        readers = {feature.column: feature for feature in self.item_features}
        vectors = {name: feature for name, feature in readers.items() if feature.kind == "vector"}
        plain = self.table.drop(columns=list(vectors))
        mixed = [str(name) for name in plain if plain[name].dtype == object]
        written = {name: _write_cells(plain[name], readers.get(name)) for name in mixed}
        items = pa.Table.from_pandas(plain.assign(**written), preserve_index=False).replace_schema_metadata(None)
        for name, feature in vectors.items():
            items = items.append_column(name, vectors_to_arrow(to_vectors(feature, self.table[name])))
        return items


def _write_cells(cells: pd.Series[Any], feature: Feature | None) -> pd.Series[Any]:
    kind = pd.api.types.infer_dtype(cells, skipna=True)
    if kind == "integer" and cells.dropna().between(-(2**63), 2**63 - 1).all():
        return cells.astype("Int64")
    if kind in ("floating", "mixed-integer-float") and cells.dropna().abs().lt(2**1023).all():
        return cells.astype("float64")
    return cells.map(partial(write_cell, feature)).astype("str")  # without a value it would be of no type


def build_catalogue(items: pd.DataFrame, train: pd.DataFrame, schema: Schema) -> Catalogue:
    """Build the catalogue: every item of the items table and of the training rows."""
    ids = np.unique(np.concatenate([items["item_id"].to_numpy(), train["item_id"].to_numpy()]))
    table = find_rows(items, "item_id", ids).rename_axis("item_id").reset_index()
    columns = columns_of(table, schema.item_features)
    features = encode_features(schema.item_features, columns, len(ids), schema.timezone)
    return Catalogue(
        ids,
        features,
        category_rows(schema.item_features, features.codes),
        count_categories(schema.item_features),
        table,
        schema.item_features,
    )
