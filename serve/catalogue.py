"""The items that a recommender ranks: ids by row, columns to show and filter by, memory facts."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import Flags, Floats, Id, IdType, Ints, to_arrow, to_numpy
from serve.cells import parse_id, to_text
from serve.encode import (
    category_features,
    category_rows,
    count_categories,
    encode_features,
)
from serve.errors import MAX_SHOWN, BundleError, SchemaError, name_nearest, show
from serve.index import UNKNOWN_ROW, ItemIndex
from serve.kinds import Feature
from serve.schema import Schema

# Every catalogue has this column: true unless a bundle or a live item says otherwise.
IN_STOCK = "in_stock"

# Reserved column of `items.parquet` where repeats are allowed.
REPEAT_RATE = "repeat_rate"

_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
Value = str | bool | int | float

_MAX_NAME = 100  # characters of a name for people
_TITLES = ("title", "name", "product_name", "description")


class ItemIds:
    """The ids of N items by item row, and the way back."""

    def __init__(self, ids: NDArray[np.generic]) -> None:
        """Prepare the look-up of distinct ids (N,): int64, or object with texts."""
        self.ids = ids.view()
        self.ids.flags.writeable = False  # answers hold it
        self.id_type: IdType = "string" if ids.dtype == np.object_ else "integer"
        rows = range(len(ids))
        self._rows: dict[Id, int] = dict(zip(ids.tolist(), rows, strict=True))

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, item_id: object) -> bool:
        return self._rows.get(item_id, len(self)) < len(self)  # type: ignore[call-overload, no-any-return]

    def extended(self, more: Sequence[Id]) -> ItemIds:
        """Return these ids followed by others that are not among them.

        The look-up is shared, so that a new item costs nothing for each of the others. Rows behind
        the end of these ids are of those that follow; only one catalogue may.
        """
        ids = np.append(self.ids, np.array(more, dtype=self.ids.dtype))
        if len(self._rows) != len(self):
            return ItemIds(ids)

        self._rows.update(zip(more, range(len(self), len(ids)), strict=True))
        other = copy(self)
        other.ids = ids
        ids.flags.writeable = False
        return other

    def find(self, ids: Sequence[Id] | NDArray[np.generic]) -> Ints:
        """Return the row of each id, `UNKNOWN_ROW` where there is no such item."""
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        rows = [self._rows.get(item_id, UNKNOWN_ROW) for item_id in listed]
        found = np.array(rows, dtype=np.int64)
        found[found >= len(self)] = UNKNOWN_ROW
        return found

    def require(self, ids: Sequence[Any]) -> Ints:
        """Return the row of each id as a caller wrote it.

        Raises:
            SchemaError: if an id is unknown or has another type.
        """
        checked = [parse_id(item_id, self.id_type, "item_id") for item_id in ids]
        rows = self.find(checked)
        for item_id, row in zip(checked, rows, strict=True):
            if row == UNKNOWN_ROW:
                raise SchemaError(
                    f"item_id {show(item_id)} is unknown; "
                    f"allowed: the {len(self)} ids of the catalogue"
                )

        return rows


@dataclass(frozen=True)
class ItemFacts:
    """Facts of N items that the memory reads."""

    repeat_rate: Floats  # (N,), how often a buyer of the item buys it again
    categories: Ints  # (N, F), each within [0, `n_categories`)
    n_categories: int


def read_item_facts(items: pa.Table, schema: Schema) -> ItemFacts:
    """Read the facts of the catalogue; a `BundleError` names a column that is missing."""
    features = tuple(feature for feature, _ in category_features(schema.item_features))
    try:
        rates = to_numpy(items.column(REPEAT_RATE))
        columns = items.select([feature.column for feature in features]).to_pydict()
    except KeyError as error:
        raise BundleError(f"the catalogue: {error}; export again") from error

    if rates.dtype.kind != "f" or not np.isfinite(rates).all():
        raise BundleError(
            f"the catalogue's column '{REPEAT_RATE}' has a value that is no number: "
            "export again"
        )

    codes = encode_features(features, columns, len(items)).codes
    return ItemFacts(
        repeat_rate=rates.astype(np.float32),
        categories=category_rows(features, codes),
        n_categories=count_categories(features),
    )


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N items by row: those of the bundle in its order, then live ones.

    An item keeps its row when it is removed.

    Attributes:
        item_ids: the ids of the items.
        index: their vectors (N, W), and the search among those that are not removed.
        table: N rows with `item_id` and the columns to show and filter by.
        facts: what the memory reads; None if there is no memory.
    """

    item_ids: ItemIds
    index: ItemIndex
    table: pa.Table
    facts: ItemFacts | None

    @classmethod
    def of_items(cls, items: pa.Table, index: ItemIndex, schema: Schema) -> Catalogue:
        """Take the items of a bundle as they are."""
        facts = read_item_facts(items, schema) if schema.repeats == "allow" else None
        item_ids = ItemIds(to_numpy(items.column("item_id")))
        return cls(item_ids, index, _open_columns(items, schema), facts)

    @property
    def is_removed(self) -> Flags | None:
        """(N,) the items that are never listed; None if there are none."""
        return self.index.is_hidden

    def lists(self, item_id: Id) -> bool:
        """Tell whether an item is here and not removed."""
        row = int(self.item_ids.find([item_id])[0])
        is_removed = self.is_removed is not None and self.is_removed[row]
        return row != UNKNOWN_ROW and not is_removed

    @property
    def n_listed(self) -> int:
        """Count the items that are not removed."""
        if self.is_removed is None:
            return len(self)
        return len(self) - int(np.count_nonzero(self.is_removed))

    @cached_property
    def texts(self) -> list[str]:
        """The text to search in for each item, (N,): its id and texts, in small letters."""
        columns = [self.item_ids.ids]
        for field in self.table.schema:
            if is_text(field.type) and field.name != "item_id":
                columns.append(self.table.column(field.name).to_pylist())

        rows = zip(*columns, strict=True)
        return [" ".join(str(cell) for cell in row if cell).casefold() for row in rows]

    def __len__(self) -> int:
        return len(self.item_ids)


def is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string())


def _open_columns(items: pa.Table, schema: Schema) -> pa.Table:
    """Return columns whose types can hold the values of live items, and that of the stock."""
    if IN_STOCK not in items.column_names:
        in_stock = np.ones(len(items), dtype=np.bool_)
        items = items.append_column(IN_STOCK, to_arrow(in_stock))

    numeric = {feature.column for feature in schema.item_features if feature.is_numeric}
    fields = []
    for field in items.schema:
        is_whole = pa.types.is_integer(field.type) and field.type != pa.uint64()
        if is_whole or field.type == pa.null():
            other = pa.int64() if is_whole else pa.string()
            # The next price may have a fraction.
            field = field.with_type(pa.float64() if field.name in numeric else other)
        fields.append(field)

    return items.cast(pa.schema(fields))


# ---- names for people


def name_columns(items: pa.Table, features: Sequence[Feature]) -> list[str]:
    """Choose the columns that name an item to people.

    They are a title, else a text feature, else the last three categories.
    """
    vectors = [feature.column for feature in features if feature.is_vector]
    texts = [feature.column for feature in features if feature.is_text]
    labels = [feature.column for feature in features if feature.is_categorical]
    readable = [name for name in items.column_names if name not in vectors]
    by_lower_name = {name.lower(): name for name in readable}
    titles = [by_lower_name[title] for title in _TITLES if title in by_lower_name]
    chosen = [*titles, *texts][:1] or labels[-3:]
    return [name for name in chosen if name in readable]


def name_items(items: pa.Table, features: Sequence[Feature]) -> list[str]:
    """Return a name for people of each item of a table.

    Args:
        items: n rows with `item_id` and the columns of the features.
        features: the item features of the schema.

    Returns:
        n names, which need not be distinct; an item without one is named by its id.
    """
    columns = ["item_id", *name_columns(items, features)]
    cells_by_column = [items.column(name).to_pylist() for name in columns]
    names = []
    for item_id, *cells in zip(*cells_by_column, strict=True):
        distinct = dict.fromkeys(filter(None, map(to_text, cells)))
        name = " ".join(" · ".join(distinct).split())
        if len(name) > _MAX_NAME:
            name = f"{name[: _MAX_NAME - 1]}…"
        names.append(name or f"item {item_id}")

    return names


# ---- columns to filter by


@dataclass(frozen=True)
class Column:
    """N items by the distinct values of one column.

    Distinct cells stand between items and values: item i has the cell `cell[i]`, and cell c has the
    values at `codes[offsets[c]:offsets[c + 1]]`: none where it is missing, perhaps several.
    """

    name: str
    values: NDArray[Any]  # (V,) int64, float32, float64, bool, or object with texts
    cell: Ints  # (N,)
    codes: Ints  # positions in `values`
    offsets: Ints

    @property
    def holds(self) -> str:
        """Name what the values are: `texts`, `numbers`, or `true or false`."""
        kinds = {"O": "texts", "b": "true or false"}
        return kinds.get(self.values.dtype.kind, "numbers")

    def are_true(self) -> Flags:
        """Tell which items are true, (N,)."""
        if self.values.dtype != np.bool_:
            raise self._make_error("compare it with a value")
        return self.have(self.values)

    def compare(self, sign: str, values: Sequence[Value]) -> Flags:
        """Tell which items meet a comparison, (N,); = and != compare with any of the values."""
        wanted = [self._check(value) for value in values]
        # 1e300 beside a float32 is infinite, and so larger than all.
        with np.errstate(over="ignore"):
            if sign in _ORDER:
                if self.holds != "numbers":
                    raise self._make_error("these have no order; use = or in")
                return self.have(_ORDER[sign](self.values, wanted[0]))
            is_met = self.have(self._are_among(wanted))

        if sign != "!=":
            return is_met
        return ~is_met & self.have(np.ones(len(self.values), np.bool_))

    def have(self, is_wanted: Flags) -> Flags:
        """Tell which items have a value that is wanted, given as (V,), (N,)."""
        cells = self._cell_of_code[is_wanted[self.codes]]
        n_wanted = np.bincount(cells, minlength=len(self.offsets) - 1)
        return np.asarray((n_wanted > 0)[self.cell])

    @cached_property
    def _cell_of_code(self) -> Ints:
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    def codes_of(self, row: int) -> Ints:
        """Return the values of an item as positions in `values`."""
        cell = self.cell[row]
        return self.codes[self.offsets[cell] : self.offsets[cell + 1]]

    def first_codes(self, rows: Ints) -> Ints:
        """Return the first value of each item as a position in `values`, -1 if it has none."""
        start = self.offsets[self.cell[rows]]
        has_value = start < self.offsets[self.cell[rows] + 1]
        return np.where(has_value, np.append(self.codes, -1)[start], -1)

    def _check(self, value: Value) -> Any:
        """Return a value as the column has them; a whole number compares exactly as an integer."""
        kinds: dict[type, str] = {str: "texts", bool: "true or false"}
        if kinds.get(type(value), "numbers") != self.holds:
            raise self._make_error(f"got {show(value)}")
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return to_text(value) if isinstance(value, str) else value

    def _make_error(self, fault: str) -> SchemaError:
        return SchemaError(f"where: column '{self.name}' holds {self.holds}; {fault}")

    def _are_among(self, wanted: Sequence[Any]) -> Flags:
        """Tell which distinct values are among those wanted, (V,), as Python compares numbers."""
        if self.values.dtype == np.float32:
            wanted = np.array(wanted, np.float64).astype(np.float32).tolist()
        among = set(wanted)
        is_among = [value in among for value in self.values.tolist()]
        return np.array(is_among, np.bool_)


class Columns:
    """The columns of N items, each read when a filter first names it; they never change."""

    def __init__(
        self,
        items: pa.Table,
        features: tuple[Feature, ...],
        of_bundle: Columns | None = None,
    ) -> None:
        """Take N items.

        Args:
            items: the table of a catalogue.
            features: the item features of the schema.
            of_bundle: the columns before some items changed; flags stay flags, texts texts.
        """
        self._items = items
        self._features = features
        self._of_bundle = of_bundle
        self._several = {
            feature.column: feature for feature in features if feature.has_several
        }
        self._columns: dict[str, Column] = {}
        self.masks: dict[str, Flags] = {}  # condition -> items that meet it

    def __len__(self) -> int:
        return int(self._items.num_rows)

    @property
    def names(self) -> list[str]:
        """The columns that a caller may name."""
        return [name for name in self._items.column_names if name != REPEAT_RATE]

    def changed(self, items: pa.Table) -> Columns:
        """Return the columns of the same catalogue after some items changed."""
        return Columns(items, self._features, self._of_bundle or self)

    def read(self, name: str) -> Column:
        """Return a column; a `SchemaError` says that there is none of this name."""
        if name not in self._columns:
            if name not in self.names:
                shown = name[:MAX_SHOWN]
                raise SchemaError(
                    f"filters: unknown column {shown!r}; "
                    f"{name_nearest(shown, self.names)}"
                )
            self._columns[name] = self._read(name)

        return self._columns[name]

    def _read(self, name: str) -> Column:
        column = self._items.column(name)
        dtype = _find_type(name, column.type)
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        cells = encoded.dictionary.to_pylist()
        if name in self._several and is_text(column.type):
            values_by_cell = [self._several[name].texts(cell) for cell in cells]
        else:
            if is_text(column.type):
                cells = [to_text(cell) for cell in cells]
                if self._holds_flags(name, cells):
                    dtype = np.bool_
                    cells = [cell and cell.lower() == "true" for cell in cells]
            # A missing number is unlike itself.
            values_by_cell = [
                [] if cell is None or cell != cell else [cell] for cell in cells
            ]

        distinct = [*dict.fromkeys(chain(*values_by_cell))]
        code_of = {value: code for code, value in enumerate(distinct)}
        codes = [code_of[value] for value in chain(*values_by_cell)]
        cell_of_row = to_numpy(pa.chunked_array([encoded.indices])).astype(np.int64)
        offsets = np.cumsum([0, *map(len, values_by_cell)])

        return Column(
            name=name,
            values=np.array(distinct, dtype),
            cell=cell_of_row,
            codes=np.array(codes, np.int64),
            offsets=offsets,
        )

    def _holds_flags(self, name: str, texts: Sequence[str | None]) -> bool:
        """Tell whether all texts of a column are true or false, as text files hold flags."""
        if self._of_bundle is not None:
            return self._of_bundle.read(name).holds == "true or false"
        distinct = {text.lower() for text in texts if text is not None}
        return len(distinct) > 0 and distinct <= {"true", "false"}


def _find_type(name: str, kind: pa.DataType) -> Any:
    """Return the numpy type in which the values of a column are compared."""
    if is_text(kind):
        return np.object_
    if pa.types.is_boolean(kind):
        return np.bool_
    if kind == pa.float32():
        return np.float32
    if pa.types.is_floating(kind) or pa.types.is_uint64(kind):
        return np.float64
    if pa.types.is_integer(kind):
        return np.int64

    raise SchemaError(
        f"filters: column '{name}' holds {kind}; "
        "allowed are numbers, texts, and true or false"
    )
