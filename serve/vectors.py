"""Ready-made vectors: read from lists, arrays and text, kept in cells of tables, stored in Arrow columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SEPARATOR = re.compile(r"\s*,\s*|\s+")
_BRACKETS = {"[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class Vector:
    """A vector as a cell of a table: small, and as good as a text to compare and to find twice."""

    packed: bytes
    """float32."""

    @classmethod
    def pack(cls, entries: Floats) -> Vector:
        return cls(entries.tobytes())

    def entries(self) -> Floats:
        return np.frombuffer(self.packed, dtype=np.float32)

    def __len__(self) -> int:
        return len(self.packed) // np.dtype(np.float32).itemsize


def read_vector(cell: Any) -> Floats | None:
    """Read a vector from an array, a list or a text such as "0.1 0.2" and "[0.1, 0.2]".

    Returns:
        (W,); None for an empty list and a blank text, which are missing.

    Raises:
        ValueError: it is no list of numbers, or an entry is not finite as float32; says which.
    """
    if isinstance(cell, Vector):
        return cell.entries()
    entries = _to_array(_split(cell) if isinstance(cell, str) else cell)
    if not np.isfinite(entries).all():
        raise ValueError("an entry is not finite")
    return entries if len(entries) else None


def stack_vectors(vectors: Sequence[Floats | None], width: int) -> Floats:
    """Stack vectors of one width, (n, width); NaN where there is none."""
    matrix = np.full((len(vectors), width), np.nan, dtype=np.float32)
    for row, vector in enumerate(vectors):
        if vector is not None:
            matrix[row] = vector
    return matrix


def is_missing_row(matrix: Floats) -> NDArray[np.bool_]:
    """Return which rows (n,) of a matrix (n, W) hold no vector."""
    return np.asarray(np.isnan(matrix).all(axis=1))


def vectors_to_arrow(matrix: Floats) -> pa.Array:
    """Return a FixedSizeList<float32> column of the rows of a matrix (n, W), null where there is no vector.

    Made from buffers, since `pa.array` imports pandas where it is installed.
    """
    entries = np.ascontiguousarray(matrix, dtype=np.float32)
    child = pa.Array.from_buffers(pa.float32(), entries.size, [None, pa.py_buffer(entries)])
    valid = pa.py_buffer(np.packbits(~is_missing_row(entries), bitorder="little"))
    return pa.Array.from_buffers(pa.list_(pa.float32(), entries.shape[1]), len(entries), [valid], children=[child])


def vectors_from_arrow(column: pa.ChunkedArray) -> Floats:
    """Return what `vectors_to_arrow` wrote, (n, W)."""
    array = column.combine_chunks()
    width = array.type.list_size
    if not len(array):
        return np.empty((0, width), dtype=np.float32)
    child = array.values
    first = child.offset + array.offset * width
    entries = np.frombuffer(child.buffers()[1], dtype=np.float32)[first : first + len(array) * width]
    matrix: Floats = entries.reshape(len(array), width).copy()
    if array.null_count:
        bits = np.unpackbits(np.frombuffer(array.buffers()[0], dtype=np.uint8), bitorder="little")
        matrix[bits[array.offset : array.offset + len(array)] == 0] = np.nan
    return matrix


def _to_array(cell: Any) -> Floats:
    try:
        if not isinstance(cell, (list, tuple, np.ndarray)):
            raise TypeError
        entries = np.asarray(cell)
        is_list = entries.ndim == 1 and (entries.dtype.kind in "iufUO" or not len(entries))
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            array: Floats = entries.astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("no list of numbers") from error
    if not is_list:
        raise ValueError("no list of numbers")
    return array


def _split(text: str) -> list[str]:
    text = text.strip()
    if text[:1] in _BRACKETS and text[-1:] == _BRACKETS[text[0]]:
        text = text[1:-1].strip()
    return _SEPARATOR.split(text) if text else []
