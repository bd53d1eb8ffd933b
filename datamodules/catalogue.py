"""The items that can be recommended: their ids, encoded features and categories, by item_row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from datamodules.sequences import columns_of
from serve.categories import category_rows, count_categories
from serve.encoding import EncodedFeatures, encode_features, to_text
from serve.events import Ints
from serve.schema import Schema


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

    def __len__(self) -> int:
        return len(self.item_ids)

    def to_arrow(self) -> pa.Table:
        """Return the table as it is served; a column of mixed Python values becomes text."""
        mixed = [str(name) for name in self.table if self.table[name].dtype == object]
        texts = {name: self.table[name].map(to_text) for name in mixed}
        items = self.table.assign(**texts)
        return pa.Table.from_pandas(items, preserve_index=False).replace_schema_metadata(None)


def build_catalogue(items: pd.DataFrame, train: pd.DataFrame, schema: Schema) -> Catalogue:
    """Build the catalogue: every item of the items table and of the training rows."""
    ids = np.unique(np.concatenate([items["item_id"].to_numpy(), train["item_id"].to_numpy()]))
    table = items.set_index("item_id").reindex(ids).rename_axis("item_id").reset_index()
    columns = columns_of(table, schema.item_features)
    features = encode_features(schema.item_features, columns, len(ids), schema.timezone)
    return Catalogue(
        ids,
        features,
        category_rows(schema.item_features, features.codes),
        count_categories(schema.item_features),
        table,
    )
