"""Readable names of items, made of what the bundle shows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import pyarrow as pa

from serve.encoding import to_text
from serve.schema import Schema

TITLES = ("title", "name", "product_name", "description")
MOST_COLUMNS = 3
JOINED = " · "
LONGEST = 90
_SET, _UNSET = {"1", "1.0", "true"}, {"0", "0.0", "false"}


def name_items(items: pa.Table, schema: Schema) -> list[str]:
    """Name all items of a catalogue.

    The first of these that there is: a `text` feature; a column called title, name or description, unless it holds
    vectors; the flags that are set and the columns of categories, the one that tells most about the item first. An item
    with nothing of it goes by its id, and an item whose name others have too gets its id added.
    """
    ids = [str(value) for value in items.column("item_id").to_pylist()]
    column = _find_title(items, schema)
    names = _texts(items, column) if column else _join_categories(items, schema)
    counts = Counter(names)
    return [_complete(name, item_id, counts[name]) for name, item_id in zip(names, ids, strict=True)]


def _find_title(items: pa.Table, schema: Schema) -> str | None:
    texts = [feature.column for feature in schema.item_features if feature.kind == "text"]
    vectors = {feature.column for feature in schema.item_features if feature.kind == "vector"}
    by_name = {name.lower(): name for name in items.column_names if name not in vectors}
    known = [by_name[name] for name in TITLES if name in by_name]
    return next((column for column in [*texts, *known] if column in items.column_names), None)


def _complete(name: str | None, item_id: str, same: int) -> str:
    if not name:
        return f"item {item_id}"
    return name if same == 1 else f"{name} ({item_id})"


def _texts(items: pa.Table, column: str) -> list[str | None]:
    return [_shorten(to_text(value)) for value in items.column(column).to_pylist()]


def _shorten(value: str | None) -> str | None:
    text = " ".join((value or "").split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _join_categories(items: pa.Table, schema: Schema) -> list[str | None]:
    """Join the flags that are set and the columns that say most."""
    columns = {column: _texts(items, column) for column in category_columns(items, schema)}
    parts = [_name_flags(items, schema), *(columns[column] for column in _by_information(columns)[:MOST_COLUMNS])]
    joined = [JOINED.join(dict.fromkeys(filter(None, row))) for row in zip(*parts, strict=True)]
    return [name or None for name in joined]


def category_columns(items: pa.Table, schema: Schema) -> list[str]:
    """Return the columns of single categories that are no flags, in the order they were declared."""
    return [column for column in _declared(items, schema) if not _is_flag(items.column(column))]


def _name_flags(items: pa.Table, schema: Schema) -> list[str]:
    """Name of each item the columns of 0 and 1 that are 1."""
    flags = [column for column in _declared(items, schema) if _is_flag(items.column(column))]
    values = [[str(value).lower() in _SET for value in items.column(column).to_pylist()] for column in flags]
    words = [column.replace("_", " ") for column in flags]
    return [", ".join(compress(words, row)) for row in zip(*values, strict=True)] if flags else [""] * items.num_rows


def _declared(items: pa.Table, schema: Schema) -> list[str]:
    declared = [feature.column for feature in schema.item_features if feature.kind == "categorical"]
    return [column for column in dict.fromkeys(declared) if column in items.column_names]


def _is_flag(column: pa.ChunkedArray) -> bool:
    return {str(value).lower() for value in column.unique().to_pylist() if value is not None} <= _SET | _UNSET


def _by_information(columns: Mapping[str, Sequence[str | None]]) -> list[str]:
    """Order columns by their entropy: the one first that says most about which item it is."""
    return sorted(columns, key=lambda name: -_entropy(columns[name]))


def _entropy(values: Sequence[str | None]) -> float:
    counts = np.array([*Counter(filter(None, values)).values()], np.float64)
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
