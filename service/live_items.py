"""Items added, changed and removed while a recommender serves: on disk when a call returns, in the next answer.

An item of the bundle keeps the vector that it got in training; changes to it are changes to its columns. Any other is
placed by its content. A removed item is never listed until it is put again; in histories it counts as before. Several
processes may write into one file: each first applies what the others wrote. Letters: N items of the catalogue, n
changed ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from numpy.typing import NDArray

from serve.arrays import Ints, ids_to_arrow, to_arrow
from serve.catalogue import IN_STOCK, REPEAT_RATE, Catalogue, ItemFacts
from serve.encode import category_rows, encode_features, write_cell
from serve.errors import SchemaError, name_nearest
from serve.index import UNKNOWN_ROW, ItemIndex
from serve.kinds import Vector
from serve.recommender import Recommender
from serve.requests import (
    Id,
    is_writable,
    parse_id,
    parse_label,
    parse_number,
    parse_value,
    show,
    to_plain,
)
from serve.schema import Feature, IdType
from service.database import name_fault, open_database

Values = Mapping[
    str, Any
]  # column -> value of one item, as JSON has it; None is missing
_MARK = 0x42490002  # "BI" and the format
_ITEM_ID = "item_id"
# what other processes follow: the number of an item's last change, and versions that were loaded
_TABLES = """
CREATE TABLE items (place INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE, columns TEXT NOT NULL,
    is_added INTEGER NOT NULL, is_removed INTEGER NOT NULL, number INTEGER NOT NULL UNIQUE) STRICT;
CREATE TABLE loads (number INTEGER PRIMARY KEY, version TEXT NOT NULL) STRICT;
"""
_READ = "SELECT item_id, columns, is_added, is_removed FROM items WHERE number > ? ORDER BY place"
_LAST_CHANGE = "SELECT ifnull(max(number), 0) FROM items"
_WRITE = f"""INSERT INTO items (item_id, columns, is_added, is_removed, number)
VALUES (?, ?, ?, ?, ({_LAST_CHANGE}) + 1) ON CONFLICT (item_id) DO UPDATE SET columns = excluded.columns,
    is_added = excluded.is_added, is_removed = excluded.is_removed, number = excluded.number"""  # noqa: S608
_LAST_LOAD = "SELECT number, version FROM loads ORDER BY number DESC LIMIT 1"


@dataclass(frozen=True)
class Change:
    """All changes of an item since the bundle was made, as one."""

    item_id: Id
    columns: (
        Values  # of a removed item as they were before: its vector stays in histories
    )
    is_added: bool  # new to the bundle of that time: only such an item is listed by a bundle that does not have it
    is_removed: bool = False


class LiveItems:
    """The changes of a catalogue, whichever bundle is served.

    Calls may come from many threads. Whoever answers reads `recommender` once and is never held up.
    """

    def __init__(self, path: Path, recommender: Recommender) -> None:
        """Open the file of changes, `items.db`, made if need be, and apply them to a recommender as loaded."""
        self.recommender: Recommender  # with all changes so far. It never changes itself: one answer, one catalogue
        self.notes: list[
            str
        ]  # what the bundle cannot read of the changes, a line for each kind
        self._path = path
        self._writing = Lock()
        self._database = open_database(path, _MARK, _TABLES)
        try:
            self.rebase(recommender)
        except (ValueError, OSError):
            self._database.close()
            raise

    def rebase(self, recommender: Recommender) -> None:
        """Apply the same changes to another bundle; items whose ids are of another type are kept, and noted."""
        with self._writing, name_fault(self._path):
            seen = self._last_change()
            changes, others = self._read(recommender.bundle.schema.item_id_type)
            placement = _Placement(recommender)
            fitted, notes = placement.fit(changes)
            completed = recommender.with_catalogue(
                placement.apply(recommender.catalogue, fitted)
            )
            if others:
                notes.append(
                    f"live items: {show(others[0])} is no id of the bundle: not listed ({len(others)} times)"
                )
            self._changes = {one.item_id: one for one in changes}
            self._seen = seen
            self._placement = placement
            self.recommender = completed
            self.notes = notes

    def follow(self) -> tuple[int, str]:
        """Apply what other processes changed; return number and version of the last load of any, 0 and "" if none."""
        with self._writing, name_fault(self._path):
            self._catch_up()
            return self._database.execute(_LAST_LOAD).fetchone() or (0, "")

    def put(self, item_id: Any, columns: Values) -> None:
        """Add or change an item: a column that is not given stays, None makes it missing; a removed one starts anew."""
        self.put_many({self._parse_id(item_id): columns})

    def put_many(self, items: Mapping[Any, Values]) -> None:
        """Do as `put` with several items: all or none, and far quicker than one by one."""
        with self._changing() as changes:
            for raw_id, raw in items.items():
                item_id = self._parse_id(raw_id)
                before = changes.get(item_id) or self._changes.get(item_id)
                changes[item_id] = self._placement.change(item_id, raw, before)

    def remove(self, item_id: Any) -> bool:
        """Remove an item, also from the catalogues of bundles to come; return whether it was there."""
        with self._changing() as changes:
            item_id = self._parse_id(item_id)
            is_there = self.recommender.catalogue.lists(item_id)
            before = self._changes.get(item_id, Change(item_id, {}, is_added=False))
            if not before.is_removed:
                changes[item_id] = replace(before, is_removed=True)
        return is_there

    def note_load(self, version: str) -> int:
        """Tell other processes that a version was loaded; return the number of this note."""
        with self._writing, name_fault(self._path):
            return (
                self._database.execute(
                    "INSERT INTO loads (version) VALUES (?)", (version,)
                ).lastrowid
                or 0
            )

    @property
    def n_changed(self) -> int:
        """The number of items that were added, changed or removed."""
        return len(self._changes)

    def close(self) -> None:
        """Close the file; the recommender goes on answering."""
        with self._writing:
            self._database.close()

    def _parse_id(self, raw: Any) -> Id:
        return parse_id(raw, self.recommender.bundle.schema.item_id_type, _ITEM_ID)

    @contextmanager
    def _changing(self) -> Iterator[dict[Id, Change]]:
        """Take changes, after those of other processes were applied; write them, then let them be seen."""
        changes: dict[Id, Change] = {}
        with self._writing:
            with name_fault(self._path), self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._catch_up()
                yield changes
                catalogue = self._apply(changes)
                written = [
                    (one, json.dumps(one.columns, allow_nan=False))
                    for one in changes.values()
                ]
                rows = [
                    (str(one.item_id), columns, one.is_added, one.is_removed)
                    for one, columns in written
                ]
                self._database.executemany(_WRITE, rows)
                seen = self._last_change()
            self._show(changes, catalogue, seen)

    def _catch_up(self) -> None:
        seen = self._last_change()
        if seen > self._seen:
            read, _ = self._read(
                self.recommender.bundle.schema.item_id_type, self._seen
            )
            changes = {one.item_id: one for one in read}
            self._show(changes, self._apply(changes), seen)

    def _apply(self, changes: Mapping[Id, Change]) -> Catalogue:
        fitted, _ = self._placement.fit(changes.values())
        return self._placement.apply(self.recommender.catalogue, fitted)

    def _show(
        self, changes: Mapping[Id, Change], catalogue: Catalogue, seen: int
    ) -> None:
        self._changes.update(changes)
        self._seen = seen
        if changes:
            self.recommender = self.recommender.with_catalogue(catalogue)

    def _last_change(self) -> int:
        return int(self._database.execute(_LAST_CHANGE).fetchone()[0])

    def _read(self, id_type: IdType, seen: int = 0) -> tuple[list[Change], list[str]]:
        """Return later changes of items with ids of this type, and the other ids of items that are not removed."""
        changes = []
        others = []
        for text, columns, is_added, is_removed in self._database.execute(
            _READ, (seen,)
        ).fetchall():
            try:
                item_id = parse_id(text, id_type, _ITEM_ID)
            except SchemaError:
                others += [] if is_removed else [text]
            else:
                changes.append(
                    Change(
                        item_id, json.loads(columns), bool(is_added), bool(is_removed)
                    )
                )
        return changes, others


class _Placement:
    """Applies changes to the catalogue of one bundle."""

    def __init__(self, recommender: Recommender) -> None:
        """Start from a recommender as it was loaded: its catalogue is that of its bundle."""
        self._recommender = recommender
        self._schema = recommender.bundle.schema
        self._original = recommender.catalogue
        self._table: pa.Schema = self._original.table.schema
        reserved = {_ITEM_ID} | (
            set() if self._original.facts is None else {REPEAT_RATE}
        )
        self._open = set(self._table.names) - reserved
        self._readers = {
            feature.column: feature for feature in self._schema.item_features
        }
        self._content = list(
            dict.fromkeys(feature.column for feature in self._schema.item_features)
        )
        facts = self._original.facts
        self._rates = np.empty(0) if facts is None else _rate_categories(facts)

    def change(self, item_id: Id, raw: Values, before: Change | None) -> Change:
        """Return the change of an item that adds values to the one before."""
        kept = (
            Change(item_id, {}, is_added=False)
            if before is None or before.is_removed
            else before
        )
        is_added = kept.is_added or not self._knows(item_id)
        item = Change(item_id, {**kept.columns, **self._parse(raw)}, is_added)
        if not self._can_place(item):
            names = ", ".join(self._content)
            what = (
                f"give it at least one of {names}"
                if names
                else "the bundle reads no feature of items: train again"
            )
            raise SchemaError(
                f"item_id {show(item_id)} is new and nothing says what it is: {what}"
            )
        return item

    def fit(self, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
        """Drop values that the bundle cannot read; return the changes, and a note for each kind of fault."""
        faults: Counter[str] = Counter()
        fitted = []
        for one in changes:
            values: dict[str, Any] = {}
            for name, value in one.columns.items():
                try:
                    values |= self._parse({name: value})
                except SchemaError:
                    faults[
                        f"a value of column {show(name)} does not fit the bundle: it is not read"
                    ] += 1
            fitted.append(replace(one, columns=values))
        n_lost = sum(
            one.is_added and not one.is_removed and not self._can_place(one)
            for one in fitted
        )
        faults += Counter(
            {
                "nothing that the bundle reads says what an item is: it is not listed": n_lost
            }
        )
        return fitted, [
            f"live items: {fault} ({count} times)"
            for fault, count in sorted(faults.items())
        ]

    def apply(self, catalogue: Catalogue, changes: Sequence[Change]) -> Catalogue:
        """Return a catalogue of this bundle with fitted changes of distinct items, but those that cannot be placed."""
        changes = [one for one in changes if self._can_place(one)]
        if not changes:
            return catalogue
        rows = catalogue.item_ids.find([one.item_id for one in changes])
        is_new = rows == UNKNOWN_ROW
        rows[is_new] = len(catalogue) + np.arange(is_new.sum())
        added = [one.item_id for one, new in zip(changes, is_new, strict=True) if new]
        live = np.flatnonzero(rows >= len(self._original))
        items = [
            {name: changes[place].columns.get(name) for name in self._content}
            for place in live
        ]
        vectors = catalogue.index.vectors
        facts = catalogue.facts
        if len(live):  # those that are not new may have other content
            vectors = _put_rows(
                vectors, rows[live], self._recommender.encode_items(items)
            )
            facts = (
                None if facts is None else self._place_facts(facts, rows[live], items)
            )
        is_removed = (
            np.zeros(len(catalogue), np.bool_)
            if catalogue.is_removed is None
            else catalogue.is_removed
        )
        is_removed = _put_rows(
            is_removed, rows, np.array([one.is_removed for one in changes])
        )
        written = pa.concat_tables([catalogue.table, self._write(changes, rows, facts)])
        sources = _put_rows(
            np.arange(len(catalogue)), rows, len(catalogue) + np.arange(len(rows))
        )
        return Catalogue(
            catalogue.item_ids.extended(added) if added else catalogue.item_ids,
            ItemIndex(vectors, is_removed),
            written.take(to_arrow(sources)).combine_chunks(),
            facts,
        )

    def _knows(self, item_id: Id) -> bool:
        return bool(self._original.item_ids.find([item_id])[0] != UNKNOWN_ROW)

    def _can_place(self, item: Change) -> bool:
        """Tell whether the item has a vector from training, or was added with content to get one by."""
        has_content = any(item.columns.get(name) is not None for name in self._content)
        return self._knows(item.item_id) or (item.is_added and has_content)

    def _place_facts(
        self, facts: ItemFacts, rows: Ints, items: Sequence[Values]
    ) -> ItemFacts:
        """Return the facts of the catalogue with those of n items: the mean rate of repeats of their categories."""
        features = self._schema.item_features
        known = self._rates
        columns = {name: [item[name] for item in items] for name in self._content}
        categories = category_rows(
            features,
            encode_features(features, columns, len(rows), self._schema.timezone).codes,
        )
        rates = (
            known[categories].mean(axis=1)
            if categories.size
            else np.full(len(rows), known.mean())
        )
        repeat_rate = _put_rows(facts.repeat_rate, rows, rates)
        return ItemFacts(
            repeat_rate,
            _put_rows(facts.categories, rows, categories),
            facts.n_categories,
        )

    def _write(
        self, changes: Sequence[Change], rows: Ints, facts: ItemFacts | None
    ) -> pa.Table:
        """Return the rows of changed items: the bundle's columns, or none, under the changed values."""
        n = len(rows)
        is_known = rows < len(self._original)
        table = self._original.table.take(
            to_arrow(np.where(is_known, rows, 0), is_known)
        )
        items = [dict(one.columns) for one in changes]
        for place in np.flatnonzero(~is_known).tolist():
            if self._is_flag(IN_STOCK):
                is_text = not pa.types.is_boolean(self._table.field(IN_STOCK).type)
                items[place].setdefault(IN_STOCK, "true" if is_text else True)
            if facts is not None:
                items[place][REPEAT_RATE] = float(facts.repeat_rate[rows[place]])
        given = self._to_table(items)
        for name in given.column_names:
            sources = np.array(
                [
                    n + place if name in item else place
                    for place, item in enumerate(items)
                ]
            )
            joined = pa.chunked_array(
                [*table.column(name).chunks, *given.column(name).chunks]
            ).take(to_arrow(sources))
            table = table.set_column(
                table.column_names.index(name), self._table.field(name), joined
            )
        ids = ids_to_arrow([one.item_id for one in changes], self._schema.item_id_type)
        place = self._table.get_field_index(_ITEM_ID)
        return table.set_column(
            place, _ITEM_ID, ids.cast(self._table.field(place).type)
        )

    def _to_table(self, items: Sequence[Values]) -> pa.Table:
        """Read values of n items as columns of the catalogue's types, through JSON: `pa.array` would import pandas."""
        names = list(dict.fromkeys(name for item in items for name in item))
        kinds = [self._table.field(name).type for name in names]
        read = [
            pa.list_(kind.value_type) if pa.types.is_fixed_size_list(kind) else kind
            for kind in kinds
        ]
        lines = "".join(json.dumps(item) + "\n" for item in items)
        options = pa_json.ParseOptions(
            explicit_schema=pa.schema(list(zip(names, read, strict=True)))
        )
        table = (
            pa_json.read_json(pa.BufferReader(lines.encode()), parse_options=options)
            if names
            else pa.table({})
        )
        return pa.table(
            [
                column.cast(kind)
                for column, kind in zip(table.columns, kinds, strict=True)
            ],
            names=names,
        )

    def _is_flag(self, name: str) -> bool:
        """Tell a column of true and false, as such or as texts."""
        return self._recommender.admission.columns.read(name).kind == "true or false"

    def _parse(self, raw: Values) -> dict[str, Any]:
        """Check values of an item and return them as JSON has them."""
        for name in raw:
            if name not in self._open:
                raise SchemaError(
                    f"items: unknown column {show(name)}; {name_nearest(str(name)[:40], self._open)}"
                )
        return {name: self._parse_value(name, value) for name, value in raw.items()}

    def _parse_value(self, name: str, value: Any) -> Any:
        kind = self._table.field(name).type
        feature = self._readers.get(name)
        where = f"column '{name}'"
        value = to_plain(value)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self._parse_text(name, feature, value)
        if pa.types.is_boolean(kind):
            if not isinstance(value, bool | None):
                raise _refuse(name, value, "true or false")
            return value
        if pa.types.is_fixed_size_list(kind) and feature is not None:
            vector = parse_value(value, feature, where)
            return vector.entries().tolist() if isinstance(vector, Vector) else None
        if not (pa.types.is_int64(kind) or pa.types.is_floating(kind)):
            raise SchemaError(f"{where} is {kind}; only a new bundle can change it")
        if value is None:
            return None
        number = parse_number(value, where)
        if pa.types.is_int64(kind):
            if value != int(value) or not -(2**63) <= value < 2**63:
                raise _refuse(name, value, "a whole number of 64 bits")
            return int(value)
        if pa.types.is_float32(kind) and abs(number) > float(np.finfo(np.float32).max):
            raise _refuse(name, value, "a number of 32 bits")
        return number

    def _parse_text(self, name: str, feature: Feature | None, value: Any) -> str | None:
        where = f"column '{name}'"
        cell = write_cell(
            feature,
            parse_label(value, where)
            if feature is None
            else parse_value(value, feature, where),
        )
        if cell is None:
            return None
        if not is_writable(cell):
            raise _refuse(name, value, "a text without halves of surrogate pairs")
        if cell.lower() not in ("true", "false") and self._is_flag(name):
            raise _refuse(
                name, value, "true or false"
            )  # another text would break the filters of all callers
        return cell


def _refuse(name: str, value: Any, expected: str) -> SchemaError:
    return SchemaError(
        f"column '{name}' is {show(value)}; expected {expected}, or null if missing"
    )


def _rate_categories(facts: ItemFacts) -> NDArray[np.float64]:
    """Return the mean rate of repeats of each category's items, that of all items for one without, (Q,)."""
    flat = facts.categories.ravel()
    size = max(1, facts.n_categories)
    sums = np.bincount(flat, facts.repeat_rate.repeat(facts.categories.shape[1]), size)
    counts = np.bincount(flat, minlength=size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), facts.repeat_rate.mean())


def _put_rows(array: NDArray[Any], rows: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy with n values in their rows; those from N on follow each other."""
    size = max(len(array), int(rows.max(initial=-1)) + 1)
    copy = np.empty((size, *array.shape[1:]), dtype=array.dtype)
    copy[: len(array)] = array
    copy[rows] = values
    return copy
