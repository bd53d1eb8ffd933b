"""Put changes on the catalogue of a bundle: rows of its table, and vectors and facts of the items that it never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.catalogue import IN_STOCK, REPEAT_RATE, UNKNOWN_ROW, Catalogue, ItemFacts
from serve.encode import category_rows, encode_features
from serve.errors import SchemaError
from serve.index import Floats, Ints, ItemIndex
from serve.live.columns import ItemColumns, Values
from serve.live.rows import RoomyMatrix, put_rows, put_table_rows
from serve.live.store import Change
from serve.recommendations import ids_to_arrow, to_arrow
from serve.recommender import Recommender
from serve.requests import Id, show

_ITEM_ID = "item_id"


class Placing:
    """Changes the catalogue of one bundle. For one writer at a time."""

    def __init__(self, recommender: Recommender) -> None:
        """Start from a recommender as it was loaded: its catalogue is that of its bundle."""
        self._recommender = recommender
        self._schema = recommender.bundle.schema
        self._original = recommender.catalogue
        reserved = {_ITEM_ID} if self._original.facts is None else {_ITEM_ID, REPEAT_RATE}
        self.columns = ItemColumns(self._original.table, self._schema, reserved)
        self._matrix = RoomyMatrix(self._original.vectors)
        self._rates = None if self._original.facts is None else _rate_categories(self._original.facts)

    def knows(self, item_id: Id) -> bool:
        """Tell whether the bundle has an item."""
        return bool(self._original.item_ids.find([item_id])[0] != UNKNOWN_ROW)

    def can_place(self, item: Change) -> bool:
        """Tell whether the item has a vector from training, or was added with content to get one by."""
        has_content = any(item.columns.get(name) is not None for name in self._content())
        return self.knows(item.item_id) or (item.is_added and has_content)

    def change(self, item_id: Id, raw: Mapping[str, Any], before: Change | None) -> Change:
        """Return what is said of an item now.

        Args:
            item_id: checked.
            raw: column -> value, not checked.
            before: what was said of it, if anything.

        Raises:
            SchemaError: an unknown column or a value of another type; or the item is new and nothing says what it is.
        """
        kept = Change(item_id, {}, is_added=False) if before is None or before.is_removed else before
        is_added = kept.is_added or not self.knows(item_id)
        item = Change(item_id, {**kept.columns, **self.columns.parse(raw)}, is_added)
        if not self.can_place(item):
            names = ", ".join(self._content())
            what = f"give it at least one of {names}" if names else "the bundle reads no feature of items: train again"
            raise SchemaError(f"item_id {show(item_id)} is new and nothing says what it is: {what}")
        return item

    def apply(self, catalogue: Catalogue, changes: Sequence[Change]) -> Catalogue:
        """Return a catalogue with changes of distinct items.

        Args:
            catalogue: of this bundle, the one that was returned last.
            changes: checked; an item that cannot be placed is left out.
        """
        changes = [one for one in changes if self.can_place(one)]
        if not changes:
            return catalogue
        item_ids, rows = catalogue.item_ids, catalogue.item_ids.find([one.item_id for one in changes])
        is_new = rows == UNKNOWN_ROW
        rows[is_new] = len(catalogue) + np.arange(is_new.sum())
        if is_new.any():
            item_ids = item_ids.extended([one.item_id for one, new in zip(changes, is_new, strict=True) if new])
        live = np.flatnonzero(rows >= len(self._original))
        vectors, facts = self._place([changes[i].columns for i in live], rows[live], catalogue)
        rates = None if facts is None else facts.repeat_rate[rows]
        return Catalogue(
            item_ids,
            self._index(catalogue, rows, changes, (rows[live], vectors)),
            put_table_rows(catalogue.table, rows, self._write(changes, rows, rates)),
            facts,
        )

    def _content(self) -> list[str]:
        return list(dict.fromkeys(feature.column for feature in self._schema.item_features))

    def _place(self, items: Sequence[Values], rows: Ints, catalogue: Catalogue) -> tuple[Floats, ItemFacts | None]:
        """Return vectors of n items by content, and the facts of the catalogue with theirs in `rows`."""
        n, features = len(items), self._schema.item_features
        columns: dict[str, Any] = {name: [item.get(name) for item in items] for name in self._content()}
        vectors = self._recommender.encode_item_columns(columns, n)
        if catalogue.facts is None or self._rates is None or not n:
            return vectors, catalogue.facts
        codes = encode_features(features, columns, n, self._schema.timezone).codes
        categories = category_rows(features, codes)
        rates = self._rates[categories].mean(axis=1) if categories.size else np.full(n, self._rates.mean())
        before = catalogue.facts
        facts = ItemFacts(
            put_rows(before.repeat_rate, rows, rates),
            put_rows(before.categories, rows, categories),
            before.n_categories,
        )
        return vectors, facts

    def _index(
        self, catalogue: Catalogue, rows: Ints, changes: Sequence[Change], placed: tuple[Ints, Floats]
    ) -> ItemIndex:
        is_removed = catalogue.is_removed
        if is_removed is None:
            is_removed = np.zeros(len(catalogue), dtype=np.bool_)
        is_removed = put_rows(is_removed, rows, np.array([one.is_removed for one in changes]))
        live, vectors = placed
        differs = _differ(catalogue.vectors, live, vectors)
        matrix = (
            self._matrix.put(catalogue.vectors, live[differs], vectors[differs]) if differs.any() else catalogue.vectors
        )
        return catalogue.index.changed(matrix, live[differs], is_removed)

    def _write(self, changes: Sequence[Change], rows: Ints, rates: Floats | None) -> pa.Table:
        """Return the rows of changed items: the bundle's columns, or none, under what was said of them."""
        is_known = rows < len(self._original)
        before = self._original.table.take(to_arrow(np.where(is_known, rows, 0), is_known))
        items = [dict(one.columns) for one in changes]
        for place in np.flatnonzero(~is_known).tolist():
            self._complete(items[place], None if rates is None else float(rates[place]))
        table = self.columns.overlay(before, items)
        ids = ids_to_arrow([one.item_id for one in changes], self._schema.item_id_type)
        place, kind = table.column_names.index(_ITEM_ID), table.field(_ITEM_ID)
        return table.set_column(place, kind, ids.cast(kind.type))

    def _complete(self, item: dict[str, Any], rate: float | None) -> None:
        """Add what every live item has."""
        if self.columns.holds_flags(IN_STOCK):
            item.setdefault(IN_STOCK, True)
        if rate is not None:
            item[REPEAT_RATE] = rate


def _rate_categories(facts: ItemFacts) -> NDArray[np.float64]:
    """Return the mean rate of repeats of each category's items, that of all items for one without, (Q,)."""
    n_features = facts.categories.shape[1]
    flat = facts.categories.ravel()
    sums = np.bincount(flat, facts.repeat_rate.repeat(n_features), max(1, facts.n_categories))
    counts = np.bincount(flat, minlength=max(1, facts.n_categories))
    return np.where(counts > 0, sums / np.maximum(counts, 1), facts.repeat_rate.mean())


def _differ(matrix: Floats, rows: Ints, vectors: Floats) -> NDArray[np.bool_]:
    """Tell which of n vectors are not those in their rows, (n,)."""
    differs = np.ones(len(rows), dtype=np.bool_)
    is_there = rows < len(matrix)
    differs[is_there] = (matrix[rows[is_there]] != vectors[is_there]).any(axis=1)
    return differs
