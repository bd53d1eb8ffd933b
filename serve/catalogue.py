"""Items that a recommender ranks: their ids, their columns, and the facts that the memory reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.encode import category_features, category_rows, count_categories, encode_features
from serve.errors import BundleError, SchemaError
from serve.index import Floats, Ints, ItemIndex, Mask
from serve.recommendations import to_arrow, to_numpy
from serve.requests import Id, parse_id, show
from serve.schema import Feature, IdType, Schema

UNKNOWN_ROW = -1
"""Never an array index: numpy and ONNX would read it as the last row."""
IN_STOCK = "in_stock"
"""Column that every catalogue has: true unless a bundle or a live item says otherwise."""
REPEAT_RATE = "repeat_rate"
"""Reserved column of `items.parquet` where repeats are allowed."""


class ItemIds:
    """The ids of N items by item row, and the way back."""

    def __init__(self, ids: NDArray[np.generic]) -> None:
        """Prepare the look-up of distinct ids (N,): int64, or object with texts."""
        self.ids = ids.view()
        self.ids.flags.writeable = False  # answers hold it
        self.id_type: IdType = "string" if ids.dtype == np.object_ else "integer"
        self._rows: dict[Id, int] = {item_id: row for row, item_id in enumerate(ids.tolist())}

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, more: Sequence[Id]) -> ItemIds:
        """Return these ids and, behind them, others that are not among them."""
        extended = copy(self)
        extended.ids = np.concatenate([self.ids, np.array(more, dtype=self.ids.dtype)])
        extended.ids.flags.writeable = False
        extended._rows = self._rows | dict(zip(more, range(len(self), len(extended.ids)), strict=True))
        return extended

    def find(self, ids: Sequence[Id] | NDArray[np.generic]) -> Ints:
        """Return the row of each id, `UNKNOWN_ROW` where there is no such item."""
        row_of = self._rows.get
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return np.array([row_of(item_id, UNKNOWN_ROW) for item_id in listed], dtype=np.int64)

    def require(self, ids: Sequence[Any]) -> Ints:
        """Return the row of each id as a caller wrote it.

        Raises:
            SchemaError: no id, or an item that the catalogue does not have.
        """
        checked = [parse_id(item_id, self.id_type, "item_id") for item_id in ids]
        rows = self.find(checked)
        if (rows == UNKNOWN_ROW).any():
            unknown = show(checked[int((rows == UNKNOWN_ROW).argmax())])
            raise SchemaError(f"item_id {unknown} is unknown; allowed: the {len(self)} ids of the catalogue")
        return rows


@dataclass(frozen=True)
class ItemFacts:
    """Facts of N items that the memory reads."""

    repeat_rate: Floats
    """(N,), how often a buyer of the item buys it again."""
    categories: Ints
    """(N, F), each within [0, `n_categories`)."""
    n_categories: int


def read_item_facts(items: pa.Table, schema: Schema) -> ItemFacts:
    """Read the facts of the catalogue.

    Raises:
        BundleError: a column is missing.
    """
    features = tuple(feature for feature, _ in category_features(schema.item_features))
    for name in (REPEAT_RATE, *(feature.column for feature in features)):
        if name not in items.column_names:
            raise BundleError(f"the catalogue has no column '{name}', which the memory reads: export the bundle again")
    codes = [_codes(feature, items.column(feature.column)) for feature in features]
    return ItemFacts(
        to_numpy(items.column(REPEAT_RATE)).astype(np.float32),
        category_rows(features, np.concatenate([np.empty((len(items), 0), np.int64), *codes], axis=1)),
        count_categories(features),
    )


def _codes(feature: Feature, column: pa.ChunkedArray) -> Ints:
    """Encode a column through its distinct values, (N, 1)."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    index = to_numpy(pa.chunked_array([encoded.indices]))
    codes: Ints = encode_features((feature,), {feature.column: values}, len(values)).codes[index]
    return codes


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items by item row: the bundle's in its order, then live ones. An item keeps its row when it is removed."""

    item_ids: ItemIds
    index: ItemIndex
    """Their vectors, (N, W), and the search among those that are not removed."""
    table: pa.Table
    """N rows: `item_id` and the columns to show and filter by."""
    facts: ItemFacts | None
    """None if there is no memory."""

    @classmethod
    def of_items(cls, items: pa.Table, index: ItemIndex, schema: Schema) -> Catalogue:
        """Take the items of a bundle as they are.

        Raises:
            BundleError: a column that the memory reads is missing.
        """
        return cls(
            ItemIds(to_numpy(items.column("item_id"))),
            index,
            _open_columns(items, schema),
            read_item_facts(items, schema) if schema.repeats == "allow" else None,
        )

    @property
    def vectors(self) -> Floats:
        return self.index.vectors

    @property
    def is_removed(self) -> Mask | None:
        """(N,) the items that are never listed; None if there are none."""
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
    """Return columns of types that hold values of live items, and that of the stock."""
    if IN_STOCK not in items.column_names:
        items = items.append_column(IN_STOCK, to_arrow(np.ones(len(items), dtype=np.bool_)))
    numeric = {feature.column for feature in schema.item_features if feature.is_numeric}
    return items.cast(pa.schema([pa.field(field.name, _widen(field, field.name in numeric)) for field in items.schema]))


def _widen(field: pa.Field, is_numeric: bool) -> pa.DataType:
    """Return the type of a column: the next price may have a fraction, and a column without values may get some."""
    if pa.types.is_null(field.type):
        return pa.float64() if is_numeric else pa.string()
    if pa.types.is_integer(field.type) and not pa.types.is_uint64(field.type):
        return pa.float64() if is_numeric else pa.int64()
    return field.type
