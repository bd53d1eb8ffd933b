"""Columns of numbers, and columns of true and false."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.errors import SchemaError
from serve.filters.expressions import Containment, Operator, Value
from serve.filters.labels import Labels, label_distinct
from serve.recommendations import to_numpy
from serve.request_values import show

Mask = NDArray[np.bool_]

_COMPARE: Mapping[Operator, Callable[[Any, Any], Mask]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Numbers:
    """A number an item, as an integer or with the precision that the table has."""

    name: str
    values: NDArray[Any]
    """(N,) int64, float32 or float64; anything where it is not known."""
    is_known: Mask
    """(N,)."""

    def compare(self, operator: Operator, value: Value) -> Mask:
        number = self._check(value)
        with np.errstate(over="ignore"):  # 1e300 beside float32 is infinite, and is larger than all
            found: Mask = _COMPARE[operator](self.values, number)
        return found & self.is_known

    def contain(self, operator: Containment, values: Sequence[Value]) -> Mask:
        among = np.isin(self.values, self._to_array([self._check(value) for value in values]))
        return (among if operator == "in" else ~among) & self.is_known

    def is_true(self) -> NoReturn:
        raise SchemaError(f"where: column '{self.name}' holds numbers: compare it, as in `{self.name}` <= 20")

    @cached_property
    def labels(self) -> Labels:
        """The items by their number, for limits."""
        return label_distinct(self.name, self.values, self.is_known)

    def _check(self, value: Value) -> int | float:
        """Return a number; a whole one as an integer, which is compared with integers exactly."""
        if isinstance(value, (bool, str)):
            raise SchemaError(f"where: column '{self.name}' holds numbers; got {show(value)}: give a number")
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def _to_array(self, numbers: list[int | float]) -> NDArray[Any]:
        """Return those that a value of this column may equal, in its type."""
        if self.values.dtype != np.int64:
            with np.errstate(over="ignore"):
                return np.array([float(number) for number in numbers]).astype(self.values.dtype)
        whole = [number for number in numbers if isinstance(number, int) and -(2**63) <= number < 2**63]
        return np.array(whole, dtype=np.int64)


@dataclass(frozen=True)
class Flags:
    """True or false an item."""

    name: str
    values: Mask
    """(N,); anything where it is not known."""
    is_known: Mask
    """(N,)."""

    def compare(self, operator: Operator, value: Value) -> Mask:
        if operator not in ("=", "!="):
            raise SchemaError(f"where: column '{self.name}' holds true or false; got {operator}: allowed are = and !=")
        return _COMPARE[operator](self.values, self._check(value)) & self.is_known

    def contain(self, operator: Containment, values: Sequence[Value]) -> Mask:
        among = np.isin(self.values, np.array([self._check(value) for value in values], dtype=np.bool_))
        return (among if operator == "in" else ~among) & self.is_known

    def is_true(self) -> Mask:
        return self.values & self.is_known

    @cached_property
    def labels(self) -> Labels:
        """The items by true and false, for limits."""
        return label_distinct(self.name, self.values, self.is_known)

    def _check(self, value: Value) -> bool:
        if not isinstance(value, bool):
            message = f"where: column '{self.name}' holds true or false; got {show(value)}"
            raise SchemaError(f"{message}: write {self.name} or not {self.name}")
        return value


def read_numbers(name: str, column: pa.ChunkedArray) -> Numbers:
    """Read a column of integers or floats; null and NaN are missing."""
    values = to_numpy(column)
    if values.dtype.kind in "iu":
        values = values.astype(np.int64 if values.dtype != np.uint64 else np.float64)
    elif values.dtype == np.float16:
        values = values.astype(np.float32)
    return Numbers(name, values, _are_valid(column) & ~np.isnan(values))


def read_flags(name: str, column: pa.ChunkedArray) -> Flags:
    """Read a column of booleans; null is missing."""
    return Flags(name, to_numpy(column.cast(pa.uint8())).astype(np.bool_), _are_valid(column))


def holds_flags(labels: Labels) -> bool:
    """Tell a column of the texts true and false, in any letters; one without values is none."""
    return len(labels.code_of) > 0 and {text.lower() for text in labels.code_of} <= {"true", "false"}


def as_flags(labels: Labels) -> Flags:
    """Read the texts true and false; what has no text is missing."""
    true = labels.have([code for text, code in labels.code_of.items() if text.lower() == "true"])
    return Flags(labels.name, true, labels.is_known)


def _are_valid(column: pa.ChunkedArray) -> Mask:
    valid: Mask = to_numpy(column.is_valid().cast(pa.uint8())).astype(np.bool_)
    return valid
