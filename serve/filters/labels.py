"""Columns of texts, one or many values a cell; and any column as the groups of items that share a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.encoding import split_cell, to_text
from serve.errors import SchemaError
from serve.filters.expressions import Containment, Operator, Value
from serve.recommendations import to_numpy
from serve.request_values import show
from serve.top_k import Ints

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Labels:
    """N items in distinct cells, each of some values, or of none where the value is missing.

    Texts are as the vocabularies know them: without the space around them, and missing if nothing remains.
    """

    name: str
    cell: Ints
    """(N,)."""
    codes: Ints
    """The values of all cells, one cell after another, as numbers."""
    offsets: Ints
    """Cell c has the codes `offsets[c]:offsets[c + 1]`."""
    code_of: dict[str, int]
    """Empty where values are no texts."""

    @property
    def labels(self) -> Labels:
        return self

    def compare(self, operator: Operator, value: Value) -> Mask:
        if operator not in ("=", "!="):
            message = f"where: column '{self.name}' holds texts, which have no order"
            raise SchemaError(f"{message}; got {operator}: allowed are = != in, not in")
        return self.contain("in" if operator == "=" else "not in", (value,))

    def contain(self, operator: Containment, values: Sequence[Value]) -> Mask:
        """Tell which items have one of the values, or which have values and none of these, (N,)."""
        texts = [to_text(self._check(value)) for value in values]
        found = self.have([self.code_of[text] for text in texts if text in self.code_of])
        return found if operator == "in" else self.is_known & ~found

    def is_true(self) -> NoReturn:
        raise SchemaError(f"where: column '{self.name}' holds texts: compare it, as in `{self.name}` = 'x'")

    def have(self, codes: Sequence[int]) -> Mask:
        """Tell which items have one of these codes, (N,)."""
        is_among = np.isin(self.codes, np.array(codes, dtype=np.int64))
        n_cells = len(self.offsets) - 1
        owner = np.repeat(np.arange(n_cells), np.diff(self.offsets))
        found: Mask = np.bincount(owner[is_among], minlength=n_cells)[self.cell] > 0
        return found

    def codes_of(self, rows: Ints) -> list[list[int]]:
        """Return the values of each of n items."""
        cells = self.cell[rows]
        starts, sizes = self.offsets[cells], self.offsets[cells + 1] - self.offsets[cells]
        stops = sizes.cumsum()
        places = np.arange(stops[-1] if len(stops) else 0) + (starts - stops + sizes).repeat(sizes)
        codes = self.codes[places].tolist()
        return [codes[stop - size : stop] for stop, size in zip(stops.tolist(), sizes.tolist(), strict=True)]

    @cached_property
    def is_known(self) -> Mask:
        """Which items have a value, (N,)."""
        known: Mask = np.diff(self.offsets)[self.cell] > 0
        return known

    def _check(self, value: Value) -> str:
        if not isinstance(value, str):
            written = f"give a text in quotes, '{to_text(value)}'"
            raise SchemaError(f"where: column '{self.name}' holds texts; got {show(value)}: {written}")
        return value


def read_labels(name: str, column: pa.ChunkedArray, separator: str | None) -> Labels:
    """Read a column of texts or of lists of texts.

    Args:
        name: of the column.
        column: N cells.
        separator: between the values of a cell; None if it is one value.

    Raises:
        SchemaError: a column of another type.
    """
    cells, index = _read_cells(name, column)
    values = [_texts_of(cell) if separator is None else split_cell(cell, separator) for cell in cells]
    code_of = {text: code for code, text in enumerate(dict.fromkeys(chain.from_iterable(values)))}
    codes = np.array([code_of[text] for text in chain.from_iterable(values)], dtype=np.int64)
    return Labels(name, index, codes, np.cumsum([0, *map(len, values)]), code_of)


def label_distinct(name: str, values: NDArray[Any], is_known: Mask) -> Labels:
    """Group items by their one value, which may be missing."""
    distinct, index = np.unique(values[is_known], return_inverse=True)
    cell = np.full(len(values), len(distinct), dtype=np.int64)
    cell[is_known] = index
    offsets = np.append(np.arange(len(distinct) + 1), len(distinct))  # the last cell is that of missing values
    return Labels(name, cell, np.arange(len(distinct)), offsets, {})


def _texts_of(cell: Any) -> list[str]:
    """Return the distinct values of a cell that nothing separates."""
    texts = map(to_text, cell if isinstance(cell, list) else [cell])
    return list(dict.fromkeys(text for text in texts if text is not None))


def _read_cells(name: str, column: pa.ChunkedArray) -> tuple[list[Any], Ints]:
    """Return distinct cells, and which of them each item has."""
    if _is_text(column.type):
        encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
        return encoded.dictionary.to_pylist(), to_numpy(pa.chunked_array([encoded.indices])).astype(np.int64)
    if _is_list(column.type):
        return column.to_pylist(), np.arange(len(column))
    what = f"filters: column '{name}' holds {column.type}"
    raise SchemaError(f"{what}; allowed are columns of numbers, texts, and true or false")


def _is_list(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return _is_text(kind.value_type)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
