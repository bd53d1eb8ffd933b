"""The items that a recommender ranks: columns to show and filter by, and facts for the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from serve.arrays import Flags, Floats, Ints, to_arrow, to_numpy
from serve.encode import (
    category_features,
    category_rows,
    count_categories,
    encode_features,
    to_text,
)
from serve.errors import BundleError
from serve.index import UNKNOWN_ROW, ItemIds, ItemIndex
from serve.requests import Id
from serve.schema import Feature, Schema

IN_STOCK = "in_stock"  # column that every catalogue has: true unless a bundle or a live item says otherwise
REPEAT_RATE = (
    "repeat_rate"  # reserved column of `items.parquet` where repeats are allowed
)
_TITLES = ("title", "name", "product_name", "description")


@dataclass(frozen=True)
class ItemFacts:
    """Facts of N items that the memory reads."""

    repeat_rate: Floats  # (N,), how often a buyer of the item buys it again
    categories: Ints  # (N, F), each within [0, `n_categories`)
    n_categories: int


def read_item_facts(items: pa.Table, schema: Schema) -> ItemFacts:
    """Read the facts of the catalogue; a `BundleError` names a column that is missing."""
    features = tuple(feature for feature, _ in category_features(schema.item_features))
    for name in (REPEAT_RATE, *(feature.column for feature in features)):
        if name not in items.column_names:
            raise BundleError(
                f"the catalogue has no column '{name}', which the memory reads: export the bundle again"
            )
    columns = {
        feature.column: items.column(feature.column).to_pylist() for feature in features
    }
    codes = encode_features(features, columns, len(items)).codes
    rates = to_numpy(items.column(REPEAT_RATE))
    if rates.dtype.kind != "f" or not np.isfinite(rates).all():
        raise BundleError(
            f"the catalogue's column '{REPEAT_RATE}' has a value that is no number: export again"
        )
    return ItemFacts(
        rates.astype(np.float32),
        category_rows(features, codes),
        count_categories(features),
    )


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items by item row: the bundle's in its order, then live ones. An item keeps its row when it is removed."""

    item_ids: ItemIds
    index: ItemIndex  # their vectors, (N, W), and the search among those that are not removed
    table: pa.Table  # n rows: `item_id` and the columns to show and filter by
    facts: ItemFacts | None  # None if there is no memory

    @classmethod
    def of_items(cls, items: pa.Table, index: ItemIndex, schema: Schema) -> Catalogue:
        """Take the items of a bundle as they are."""
        facts = read_item_facts(items, schema) if schema.repeats == "allow" else None
        return cls(
            ItemIds(to_numpy(items.column("item_id"))),
            index,
            _open_columns(items, schema),
            facts,
        )

    @property
    def is_removed(self) -> Flags | None:
        """(N,) the items that are never listed; None if there are none."""
        return self.index.is_hidden

    def lists(self, item_id: Id) -> bool:
        """Tell whether an item is here and not removed."""
        row = self.item_ids.find([item_id])[0]
        return bool(
            row != UNKNOWN_ROW and (self.is_removed is None or not self.is_removed[row])
        )

    @property
    def n_listed(self) -> int:
        """Count the items that are not removed."""
        return len(self) - (
            0 if self.is_removed is None else int(np.count_nonzero(self.is_removed))
        )

    @cached_property
    def texts(self) -> list[str]:
        """What is searched of each item: its id and all that is text, in small letters."""
        names = [
            one.name
            for one in self.table.schema
            if one.type in (pa.string(), pa.large_string())
        ]
        columns = (
            self.table.column(name).to_pylist()
            for name in dict.fromkeys(("item_id", *names))
        )
        return [
            " ".join(map(str, filter(None, cells))).casefold()
            for cells in zip(*columns, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.item_ids)


def _open_columns(items: pa.Table, schema: Schema) -> pa.Table:
    """Return columns of types that hold values of live items, and that of the stock."""
    if IN_STOCK not in items.column_names:
        items = items.append_column(
            IN_STOCK, to_arrow(np.ones(len(items), dtype=np.bool_))
        )
    numeric = {feature.column for feature in schema.item_features if feature.is_numeric}
    return items.cast(
        pa.schema(
            [
                pa.field(field.name, _widen(field, field.name in numeric))
                for field in items.schema
            ]
        )
    )


def _widen(field: pa.Field, is_numeric: bool) -> pa.DataType:
    """Return the type of a column: the next price may have a fraction, and a column without values may get some."""
    if pa.types.is_null(field.type):
        return pa.float64() if is_numeric else pa.string()
    if pa.types.is_integer(field.type) and not pa.types.is_uint64(field.type):
        return pa.float64() if is_numeric else pa.int64()
    return field.type


def name_columns(items: pa.Table, features: Sequence[Feature]) -> list[str]:
    """Choose the columns that name an item to people: a title, else a text, else the last three categories."""
    of_kind = {
        kind: [one.column for one in features if one.kind == kind]
        for kind in ("text", "categorical", "vector")
    }
    by_name = {
        name.lower(): name
        for name in items.column_names
        if name not in of_kind["vector"]
    }
    titles = [by_name[title] for title in _TITLES if title in by_name]
    chosen = [*titles, *of_kind["text"]][:1] or of_kind["categorical"][-3:]
    return [name for name in chosen if name in items.column_names]


def name_items(items: pa.Table, features: Sequence[Feature]) -> list[str]:
    """Return names for people of the items of a table, which need not be distinct; an item without one has its id."""
    columns = [
        map(to_text, items.column(name).to_pylist())
        for name in name_columns(items, features)
    ]
    cells = zip(*columns, strict=True) if columns else [()] * len(items)
    names = [
        " ".join(" · ".join(dict.fromkeys(filter(None, row))).split()) for row in cells
    ]
    ids = items.column("item_id").to_pylist()
    return [name or f"item {item_id}" for name, item_id in zip(names, ids, strict=True)]
