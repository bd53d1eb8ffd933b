"""The items that a recommender ranks, as one object that never changes: those of a bundle, and what came after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.bundle import Bundle
from serve.index import ItemIndex
from serve.item_facts import ItemFacts, read_item_facts
from serve.item_ids import UNKNOWN_ROW, ItemIds
from serve.recommendations import to_arrow, to_numpy
from serve.request_values import Id
from serve.schema import Schema
from serve.top_k import Floats

IN_STOCK = "in_stock"
"""Column that every catalogue has: true unless a bundle or a live item says otherwise."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items by item row: the bundle's in its order, then live ones. An item keeps its row when it is removed."""

    item_ids: ItemIds
    index: ItemIndex
    """Their vectors, (N, D), and the search among those that are not removed."""
    table: pa.Table
    """N rows: `item_id` and the columns to show and filter by."""
    facts: ItemFacts | None
    """What the memory reads of them; None if there is no memory."""

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Catalogue:
        """Take the items of a bundle as they are.

        Raises:
            BundleError: a column that the memory reads is missing.
        """
        schema = bundle.schema
        return cls(
            ItemIds(to_numpy(bundle.items.column("item_id"))),
            bundle.index,
            _open_columns(bundle.items, schema),
            read_item_facts(bundle.items, schema) if schema.repeats == "allow" else None,
        )

    @property
    def vectors(self) -> Floats:
        return self.index.vectors

    @property
    def is_removed(self) -> NDArray[np.bool_] | None:
        """(N,) which items are never listed; None if there is no such item."""
        return self.index.is_hidden

    def lists(self, item_id: Id) -> bool:
        """Tell whether an item is here and not removed."""
        row = self.item_ids.find([item_id])[0]
        return bool(row != UNKNOWN_ROW and (self.is_removed is None or not self.is_removed[row]))

    @property
    def n_listed(self) -> int:
        """How many items are not removed."""
        return len(self) - (0 if self.is_removed is None else int(np.count_nonzero(self.is_removed)))

    def __len__(self) -> int:
        return len(self.item_ids)


def _open_columns(items: pa.Table, schema: Schema) -> pa.Table:
    """Return columns of types that hold what a live item may say, and that of the stock."""
    if IN_STOCK not in items.column_names:
        items = items.append_column(IN_STOCK, to_arrow(np.ones(len(items), dtype=np.uint8)).cast(pa.bool_()))
    numeric = {feature.column for feature in schema.item_features if feature.is_numeric}
    types = [_widen(field, field.name in numeric) for field in items.schema]
    return items.cast(pa.schema([pa.field(name, kind) for name, kind in zip(items.column_names, types, strict=True)]))


def _widen(field: pa.Field, is_numeric: bool) -> pa.DataType:
    """Return the type of a column: the next price may have a fraction, and a column without values may get some."""
    if pa.types.is_null(field.type):
        return pa.float64() if is_numeric else pa.string()
    if pa.types.is_integer(field.type) and not pa.types.is_uint64(field.type):
        return pa.float64() if is_numeric else pa.int64()
    return field.type
