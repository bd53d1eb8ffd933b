"""The columns of a catalogue's table, typed, each read when a filter first names it."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.errors import SchemaError, name_nearest
from serve.filters.expressions import And, Comparison, Expression, Flag, Membership, Not, Or, Where
from serve.filters.labels import Labels, read_labels
from serve.filters.numbers import Flags, Numbers, as_flags, holds_flags, read_flags, read_numbers
from serve.item_facts import REPEAT_RATE
from serve.request_values import MOST_SHOWN
from serve.schema import Feature

Column = Labels | Numbers | Flags
Mask = NDArray[np.bool_]

_MOST_MASKS = 32


class Columns:
    """N items; nothing of it changes."""

    def __init__(self, items: pa.Table, features: tuple[Feature, ...], of_bundle: Columns | None = None) -> None:
        """Take the table of a catalogue.

        Args:
            items: (N,) rows.
            features: of items; a column that one of kind `multi_categorical` reads has many values a cell.
            of_bundle: as they were before items changed; see `changed`.
        """
        self._items = items
        self._features = features
        self._of_bundle = of_bundle
        self._separators = {one.column: one.separator for one in features if one.kind == "multi_categorical"}
        self._lock = Lock()
        self._columns: dict[str, Column] = {}  # no cache around a method: it would hold this until the next collection
        self._masks: OrderedDict[Where, Mask] = OrderedDict()
        """By the expression, the one that was asked for last at the end."""

    def changed(self, items: pa.Table) -> Columns:
        """Return the columns of the same catalogue after some items changed.

        Texts stay texts, or true and false, as they are in the bundle: else one live item would make the filters of
        all callers an error.
        """
        return Columns(items, self._features, self if self._of_bundle is None else self._of_bundle)

    def __len__(self) -> int:
        return int(self._items.num_rows)

    @property
    def names(self) -> list[str]:
        """What may be named: all columns but that of the memory, which is no fact that a caller knows."""
        return [name for name in self._items.column_names if name != REPEAT_RATE]

    def read(self, name: str) -> Column:
        """Return a column, read once.

        Raises:
            SchemaError: there is none of this name, or it holds what cannot be compared.
        """
        column = self._columns.get(name)
        if column is None:
            column = self._columns.setdefault(name, self._read(name))
        return column

    def admit(self, where: Where) -> Mask:
        """Return which items an expression lets in, (N,), computed once for a text.

        Raises:
            SchemaError: a column that is not there, or a value that is not of its column's type.
        """
        with self._lock:
            if where in self._masks:
                self._masks.move_to_end(where)
                return self._masks[where]
        mask = _evaluate(where.expression, self)
        mask.setflags(write=False)
        return self._keep(where, mask)

    def _keep(self, where: Where, mask: Mask) -> Mask:
        """Keep a mask in place of the one that was not asked for the longest; return what others may have kept."""
        with self._lock:
            kept = self._masks.setdefault(where, mask)
            if len(self._masks) > _MOST_MASKS:
                self._masks.popitem(last=False)
        return kept

    def _read(self, name: str) -> Column:
        if name not in self.names:
            got = name[:MOST_SHOWN]
            raise SchemaError(f"filters: unknown column {got!r}; {name_nearest(got, self.names)}")
        column = _read_column(name, self._items.column(name), self._separators.get(name))
        if not isinstance(column, Labels) or name in self._separators:
            return column
        # text files hold true and false as texts
        is_flags = holds_flags(column) if self._of_bundle is None else isinstance(self._of_bundle.read(name), Flags)
        return as_flags(column) if is_flags else column


def _evaluate(expression: Expression, columns: Columns) -> Mask:
    match expression:
        case Comparison(column, operator, value):
            return columns.read(column).compare(operator, value)
        case Membership(column, operator, values):
            return columns.read(column).contain(operator, values)
        case Flag(column):
            return columns.read(column).is_true()
        case Not(operand):
            return ~_evaluate(operand, columns)
        case And(operands):
            return _reduce(np.logical_and, operands, columns)
        case Or(operands):
            return _reduce(np.logical_or, operands, columns)


def _reduce(join: np.ufunc, operands: tuple[Expression, ...], columns: Columns) -> Mask:
    mask: Mask = join.reduce([_evaluate(operand, columns) for operand in operands])
    return mask


def _read_column(name: str, column: pa.ChunkedArray, separator: str | None) -> Column:
    kind = column.type
    if pa.types.is_boolean(kind):
        return read_flags(name, column)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return read_numbers(name, column)
    return read_labels(name, column, separator)
