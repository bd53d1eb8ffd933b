"""Placement: live changes of items, applied to the catalogue of one bundle.

Letters: N items of the catalogue, n changed ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from numpy.typing import NDArray

from serve.arrays import Doubles, Id, Ints, to_arrow
from serve.catalogue import IN_STOCK, REPEAT_RATE, Catalogue, ItemFacts, is_text
from serve.cells import (
    is_writable,
    parse_label,
    parse_number,
    to_plain,
    to_text,
)
from serve.encode import category_rows, encode_features
from serve.errors import SchemaError, name_nearest, show
from serve.index import UNKNOWN_ROW, ItemIndex
from serve.kinds import Feature
from serve.recommender import Recommender

Values = Mapping[str, Any]  # column -> value of an item in JSON, None if missing
ITEM_ID = "item_id"
_LARGEST = {
    pa.int64(): 2.0**63 - 1024,
    pa.float32(): float(np.finfo(np.float32).max),
    pa.float64(): float("inf"),
}  # numbers of the types that live values can have
_UNREAD = "a value of column {} does not fit the bundle: it is not read"
_UNLISTED = "nothing that the bundle reads says what an item is: it is not listed"


@dataclass(frozen=True)
class Change:
    """All changes of an item since the bundle was made, as one."""

    item_id: Id
    columns: Values  # of a removed item those before: its vector stays in histories
    is_added: bool = False  # new to the bundle of then: another bundle may list it, too
    is_removed: bool = False


class Placement:
    """Applies changes to the catalogue of one bundle."""

    def __init__(self, recommender: Recommender) -> None:
        """Start from a recommender as it was loaded: its catalogue is that of its bundle."""
        self._recommender = recommender
        self._schema = recommender.bundle.schema
        self._original = recommender.catalogue
        self._table: pa.Schema = self._original.table.schema
        self._open = set(self._table.names) - {ITEM_ID}
        if self._original.facts is not None:
            self._open.discard(REPEAT_RATE)

        self._content = {
            feature.column: feature for feature in self._schema.item_features
        }

    def change(self, item_id: Id, raw: Values, before: Change | None) -> Change:
        """Return the change of an item that adds values to the one before.

        Args:
            item_id: the item.
            raw: column -> value as a caller sends it.
            before: the change so far, None if there is none.

        Raises:
            SchemaError: a value does not fit, or nothing says what a new item is.
        """
        if before is None or before.is_removed:
            before = Change(item_id, {})

        is_added = before.is_added or item_id not in self._original.item_ids
        columns = {**before.columns}
        for name, value in raw.items():
            columns[name] = self._parse(name, to_plain(value))

        item = Change(item_id, columns, is_added)
        if not self._can_place(item):
            names = ", ".join(self._content) or "the features that the bundle lacks"
            raise SchemaError(
                f"item_id {show(item_id)} is new and nothing says what it is: give it "
                f"at least one of {names}"
            )

        return item

    def _fit(self, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
        """Drop what the bundle cannot read or place; return a note for each kind of fault, too."""
        faults: Counter[str] = Counter()
        fitted = []
        for change in changes:
            columns: dict[str, Any] = {}
            for name, value in change.columns.items():
                try:
                    columns[name] = self._parse(name, value)
                except SchemaError:
                    faults[_UNREAD.format(show(name))] += 1

            item = replace(change, columns=columns)
            if self._can_place(item):
                fitted.append(item)
            elif item.is_added and not item.is_removed:
                faults[_UNLISTED] += 1

        notes = [
            f"live items: {fault} ({count} times)"
            for fault, count in sorted(faults.items())
        ]
        return fitted, notes

    def apply(
        self, catalogue: Catalogue, changes: Iterable[Change]
    ) -> tuple[Catalogue, list[str]]:
        """Return a catalogue with changes.

        Args:
            catalogue: that of this bundle, or what this method made of it.
            changes: of distinct items, made for this bundle or for another one; those that cannot
                be placed are left out.

        Returns:
            The catalogue, and a note for each kind of value that the bundle cannot read.
        """
        changes, notes = self._fit(changes)
        if not changes:
            return catalogue, notes

        item_ids = catalogue.item_ids
        rows = item_ids.find([change.item_id for change in changes])

        new = np.flatnonzero(rows == UNKNOWN_ROW)
        if len(new):
            rows[new] = len(catalogue) + np.arange(len(new))
            item_ids = item_ids.extended([changes[index].item_id for index in new])

        # Items that the bundle lacks get a vector of their content, which may have changed.
        vectors = catalogue.index.vectors
        facts = catalogue.facts
        added = np.flatnonzero(rows >= len(self._original))
        if len(added):
            items = []
            for index in added:
                columns = changes[index].columns
                items.append({name: columns.get(name) for name in self._content})
            encoded = self._recommender.encode_items(items)
            vectors = _put_rows(vectors, rows[added], encoded)
            if facts is not None:
                facts = self._place_facts(facts, rows[added], items)

        is_removed = catalogue.is_removed
        if is_removed is None:
            is_removed = np.zeros(len(catalogue), np.bool_)

        removals = np.array([change.is_removed for change in changes])
        is_removed = _put_rows(is_removed, rows, removals)

        written = self._write_rows(changes, rows, facts)
        table = pa.concat_tables([catalogue.table, written])
        sources = len(catalogue) + np.arange(len(rows))
        sources = _put_rows(np.arange(len(catalogue)), rows, sources)
        table = table.take(to_arrow(sources)).combine_chunks()
        search = ItemIndex(vectors, is_removed, catalogue.index.coarse)
        placed = Catalogue(item_ids, search, table, facts)
        return placed, notes

    def _can_place(self, item: Change) -> bool:
        """Tell whether the item has a vector from training, or content to get one by."""
        has_content = any(item.columns.get(name) is not None for name in self._content)
        is_known = item.item_id in self._original.item_ids
        return is_known or (item.is_added and has_content)

    def _place_facts(
        self, facts: ItemFacts, rows: Ints, items: Sequence[Values]
    ) -> ItemFacts:
        """Add to the facts those of n items: the mean rate of repeats of their categories.

        Args:
            facts: of the catalogue.
            rows: (n,) where the items are, or will be.
            items: (n,) their content.
        """
        features = self._schema.item_features
        columns = {name: [item[name] for item in items] for name in self._content}
        encoded = encode_features(features, columns, len(rows), self._schema.timezone)
        categories = category_rows(features, encoded.codes)

        rates_by_category = _rate_categories(cast(ItemFacts, self._original.facts))
        rates = np.full(len(rows), rates_by_category.mean())
        if categories.size:
            rates = rates_by_category[categories].mean(axis=1)

        return replace(
            facts,
            repeat_rate=_put_rows(facts.repeat_rate, rows, rates),
            categories=_put_rows(facts.categories, rows, categories),
        )

    def _write_rows(
        self, changes: Sequence[Change], rows: Ints, facts: ItemFacts | None
    ) -> pa.Table:
        """Return the rows of changed items, as the bundle or nothing has them, with new values."""
        n = len(rows)
        is_known = rows < len(self._original)
        sources = to_arrow(np.where(is_known, rows, 0), is_known)
        table = self._original.table.take(sources)

        items = [{ITEM_ID: change.item_id, **change.columns} for change in changes]
        for index in np.flatnonzero(~is_known).tolist():
            if self._is_flag(IN_STOCK):
                is_boolean = pa.types.is_boolean(self._table.field(IN_STOCK).type)
                items[index].setdefault(IN_STOCK, True if is_boolean else "true")
            if facts is not None:
                items[index][REPEAT_RATE] = float(facts.repeat_rate[rows[index]])

        changed = self._to_table(items)
        for name in changed.column_names:
            is_changed = np.array([name in item for item in items])
            sources = to_arrow(np.arange(n) + n * is_changed)
            chunks = [*table.column(name).chunks, *changed.column(name).chunks]
            column = pa.chunked_array(chunks).take(sources)
            index = self._table.get_field_index(name)
            table = table.set_column(index, self._table.field(index), column)

        return table

    def _to_table(self, items: Sequence[Values]) -> pa.Table:
        """Read values of n items as columns of the catalogue's types.

        JSON is the way since `pa.array` of Python values would import pandas.
        """
        names = list(dict.fromkeys(chain.from_iterable(items)))
        schema = pa.schema([self._table.field(name) for name in names])
        read = []
        for field in schema:
            if pa.types.is_fixed_size_list(field.type):
                field = field.with_type(pa.list_(field.type.value_type))
            read.append(field)

        lines = "".join(json.dumps(item) + "\n" for item in items)
        options = pa_json.ParseOptions(explicit_schema=pa.schema(read))
        buffer = pa.BufferReader(lines.encode())
        table = pa_json.read_json(buffer, parse_options=options)
        return table.select(names).cast(schema)

    def _is_flag(self, name: str) -> bool:
        """Tell a column of true and false, as such or as texts."""
        return self._recommender.admission.columns.read(name).holds == "true or false"

    def _parse(self, name: str, value: Any) -> Any:
        """Check a value of a column and return it as JSON has it.

        Raises:
            SchemaError: names the column, and says what it may hold.
        """
        if name not in self._open:
            nearest = name_nearest(str(name)[:40], self._open)
            raise SchemaError(f"items: unknown column {show(name)}; {nearest}")

        kind = self._table.field(name).type
        feature = self._content.get(name)
        where = f"column '{name}'"
        if is_text(kind):
            return self._parse_text(name, feature, value)
        if pa.types.is_fixed_size_list(kind) and feature is not None:
            vector = feature.parse(value, where)
            return None if vector is None else vector.entries().tolist()

        if pa.types.is_boolean(kind):
            if not isinstance(value, bool | None):
                raise _refuse(name, value, "true or false")
            return value

        if kind not in _LARGEST:
            raise SchemaError(f"{where} is {kind}; only a new bundle can change it")
        if value is None:
            return None

        number = parse_number(value, where)
        is_whole = kind == pa.int64()
        if abs(number) > _LARGEST[kind] or (is_whole and not number.is_integer()):
            raise _refuse(name, value, f"a number of the type {kind}")
        return int(value) if is_whole else number

    def _parse_text(self, name: str, feature: Feature | None, value: Any) -> str | None:
        where = f"column '{name}'"
        if feature is None:
            cell = to_text(parse_label(value, where))
        else:
            cell = feature.write(feature.parse(value, where))

        if cell is None:
            return None
        if not is_writable(cell):
            raise _refuse(name, value, "a text without halves of surrogate pairs")
        # Another text in a column of flags would break the filters of all callers.
        if self._is_flag(name) and cell.lower() not in ("true", "false"):
            raise _refuse(name, value, "true or false")
        return cell


def _refuse(name: str, value: Any, expected: str) -> SchemaError:
    return SchemaError(
        f"column '{name}' is {show(value)}; expected {expected}, or null if missing"
    )


def _rate_categories(facts: ItemFacts) -> Doubles:
    """Return the mean rate of repeats of the items of each category, else that of all, (Q,)."""
    categories = facts.categories.ravel()
    size = max(1, facts.n_categories)
    rates = facts.repeat_rate.repeat(facts.categories.shape[1])
    sums = np.bincount(categories, rates, size)
    counts = np.bincount(categories, minlength=size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), facts.repeat_rate.mean())


def _put_rows(array: NDArray[Any], rows: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy with n values in their rows; those from N on follow each other."""
    size = max(len(array), int(rows.max(initial=-1)) + 1)
    copy = np.empty((size, *array.shape[1:]), dtype=array.dtype)
    copy[: len(array)] = array
    copy[rows] = values
    return copy
