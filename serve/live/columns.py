"""What a live item may say of itself: the columns of a bundle's catalogue, checked and written by their types."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from serve.encode import Vector, stack_vectors, to_text, vectors_to_arrow, write_cell
from serve.errors import SchemaError, name_nearest
from serve.filters import holds_flags, read_cells, texts_of
from serve.recommendations import to_arrow
from serve.requests import (
    is_writable,
    parse_label,
    parse_number,
    parse_value,
    show,
    to_plain,
)
from serve.schema import Feature, Schema

Values = Mapping[str, Any]
"""Column -> value of one item, as JSON has them; None is missing."""
_FIRST = 64  # texts that tell most columns from one of true and false


@dataclass(frozen=True)
class Column:
    """A column of the catalogue."""

    name: str
    type: pa.DataType
    feature: Feature | None
    """What reads it, if anything does."""
    is_flags: bool
    """Its texts are true and false, and filters read them so: another text would break them for all callers."""

    def parse(self, value: Any) -> Any:
        """Check a value and return it as JSON has it; None is missing."""
        parse = next((parse for is_kind, parse, _ in _KINDS if is_kind(self.type)), None)
        if parse is None:
            raise SchemaError(f"column '{self.name}' is {self.type}; only a new bundle can change it")
        return None if value is None else parse(self, to_plain(value))

    def write(self, values: Sequence[Any]) -> pa.Array:
        """Return checked values, None where one is missing, as an array of the column's type."""
        write = next(write for is_kind, _, write in _KINDS if is_kind(self.type))
        return write(self, values).cast(self.type)

    def refuse(self, value: Any, expected: str) -> SchemaError:
        return SchemaError(f"column '{self.name}' is {show(value)}; expected {expected}, or null if missing")


class ItemColumns:
    """The columns that live items may have."""

    def __init__(self, table: pa.Table, schema: Schema, reserved: Iterable[str]) -> None:
        """Take the columns of a catalogue.

        Args:
            table: of the catalogue.
            schema: whose item features read some of the columns.
            reserved: columns that no caller sets.
        """
        readers = {feature.column: feature for feature in schema.item_features}
        self._table = table.schema
        self._columns = {name: _describe(table, name, readers.get(name)) for name in table.column_names}
        self._open = self._columns.keys() - set(reserved)

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a caller says of an item and return it as JSON has it.

        Raises:
            SchemaError: a column that the catalogue does not have, or a value that is not of its type; names it.
        """
        for name in raw:
            if name not in self._open:
                raise SchemaError(f"items: unknown column {show(name)}; {name_nearest(str(name)[:40], self._open)}")
        return {name: self._columns[name].parse(value) for name, value in raw.items()}

    def holds_flags(self, name: str) -> bool:
        """Tell a column of true and false, as such or as texts."""
        column = self._columns[name]
        return column.is_flags or bool(pa.types.is_boolean(column.type))

    def overlay(self, table: pa.Table, rows: Sequence[Values]) -> pa.Table:
        """Return a table of n items with checked values in place of its own, where an item has some."""
        n = len(rows)
        for name in dict.fromkeys(name for row in rows for name in row):
            given = self._columns[name].write([row.get(name) for row in rows])
            sources = np.array([n + place if name in row else place for place, row in enumerate(rows)])
            joined = pa.chunked_array([*table.column(name).chunks, given]).take(to_arrow(sources))
            table = table.set_column(table.column_names.index(name), self._table.field(name), joined)
        return table


def _describe(table: pa.Table, name: str, feature: Feature | None) -> Column:
    kind, is_flags = table.field(name).type, False
    if _is_text(kind) and (feature is None or feature.kind != "multi_categorical"):
        texts = table.column(name).drop_null()
        is_flags = all(
            holds_flags([text for cell in read_cells(name, some)[0] for text in texts_of(cell)])
            for some in (texts.slice(0, _FIRST), texts)
        )
    return Column(name, kind, feature, is_flags)


def _parse_bool(column: Column, value: Any) -> bool:
    if not isinstance(value, bool):
        raise column.refuse(value, "true or false")
    return value


def _parse_integer(column: Column, value: Any) -> int:
    parse_number(value, f"column '{column.name}'")
    if value != int(value) or not -(2**63) <= value < 2**63:  # itself: as a float, the last ones of 64 bits are 2**63
        raise column.refuse(value, "a whole number of 64 bits")
    return int(value)


def _parse_float(column: Column, value: Any) -> float:
    number = parse_number(value, f"column '{column.name}'")
    if pa.types.is_float32(column.type) and abs(number) > float(np.finfo(np.float32).max):
        raise column.refuse(value, "a number of 32 bits")
    return number


def _parse_text(column: Column, value: Any) -> Any:
    where = f"column '{column.name}'"
    parsed = parse_label(value, where) if column.feature is None else parse_value(value, column.feature, where)
    cell = write_cell(column.feature, parsed)
    if not is_writable(cell or ""):
        raise column.refuse(value, "a text without halves of surrogate pairs")
    if column.is_flags and cell is not None and cell.lower() not in ("true", "false"):
        raise column.refuse(value, "true or false")
    return None if cell is None else _without_decimals(parsed)  # an empty text says nothing


def _without_decimals(value: Any) -> Any:
    """Write decimals, which JSON does not know, as the texts that they are read as."""
    if isinstance(value, list):
        return [_without_decimals(part) for part in value]
    return to_text(value) if isinstance(value, Decimal) else value


def _parse_vector(column: Column, value: Any) -> list[float] | None:
    if column.feature is None:
        raise SchemaError(f"column '{column.name}' is {column.type}; only a new bundle can change it")
    vector = parse_value(value, column.feature, f"column '{column.name}'")
    return vector.entries().tolist() if isinstance(vector, Vector) else None


def _write_numbers(column: Column, values: Sequence[Any]) -> pa.Array:
    dtype = np.float64 if pa.types.is_floating(column.type) else np.int64
    numbers = np.array([0 if value is None else value for value in values], dtype=dtype)
    return to_arrow(numbers, np.array([value is not None for value in values], dtype=np.bool_))


def _write_texts(column: Column, values: Sequence[Any]) -> pa.Array:
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = [write_cell(column.feature, value) for value in values]
    return to_arrow(texts)


def _write_vectors(column: Column, values: Sequence[Any]) -> pa.Array:
    vectors = [None if value is None else np.array(value, dtype=np.float32) for value in values]
    return vectors_to_arrow(stack_vectors(vectors, column.type.list_size))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


_KINDS: tuple[tuple[Callable[[pa.DataType], bool], Callable[..., Any], Callable[..., pa.Array]], ...] = (
    (pa.types.is_boolean, _parse_bool, _write_numbers),
    (pa.types.is_int64, _parse_integer, _write_numbers),
    (pa.types.is_floating, _parse_float, _write_numbers),
    (_is_text, _parse_text, _write_texts),
    (pa.types.is_fixed_size_list, _parse_vector, _write_vectors),
)
