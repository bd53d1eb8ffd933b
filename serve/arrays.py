"""Arrays, ids and events: names of their types, segments, unit vectors, Arrow columns and back.

Arrow's own conversions of Python lists import pandas, which serving does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float32]  # vectors and scores
Doubles = NDArray[np.float64]  # statistics
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Content = NDArray[np.uint8]  # of a file
Objects = NDArray[np.object_]  # ids and texts

Id = str | int  # of a user or an item
IdType = Literal["string", "integer"]
Ties = Literal["ordered", "simultaneous"]  # whether events of one time have an order
Repeats = Literal["exclude", "allow"]  # whether items that a user has are listed again

MIN_LENGTH = 1e-12  # a vector that is shorter has no direction


def to_unit(vectors: Floats) -> Floats:
    """Return vectors (..., W) of length 1 in the same directions; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, MIN_LENGTH), np.float32)


def is_missing_row(matrix: Floats) -> Flags:
    """Return which rows (n,) of a matrix (n, W) hold no vector."""
    return np.asarray(np.isnan(matrix).all(axis=1))


def holds_numbers(values: Any) -> bool:
    """Tell an array of numbers or flags from other columns."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "biuf"


def spans(start: Ints, stop: Ints) -> Ints:
    """Return the indices `start[b]:stop[b]` of all segments b, one segment after the other.

    Args:
        start: (B,) first index of each segment.
        stop: (B,) index after the last of each segment.
    """
    counts = stop - start
    first_outputs = np.cumsum(counts) - counts
    shifts = np.repeat(start - first_outputs, counts)
    return shifts + np.arange(counts.sum())


# ---- to Arrow


def to_arrow(values: NDArray[Any], is_valid: Flags | None = None) -> pa.Array:
    """Return an Arrow array of numbers, flags or texts.

    Args:
        values: (n,) numbers or flags, or an object array of texts, None where there is none.
        is_valid: (n,) which numbers or flags there are; None: all.
    """
    if values.dtype == np.object_:
        encoded = [b"" if text is None else text.encode() for text in values]
        ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        content = pa.py_buffer(b"".join(encoded))
        buffers = [_pack_bits(_is_there(values)), pa.py_buffer(ends), content]
        large = pa.Array.from_buffers(pa.large_string(), len(values), buffers)
        return large.cast(pa.string())

    validity = None if is_valid is None else _pack_bits(is_valid)
    if values.dtype == np.bool_:
        content = _pack_bits(values)
    else:
        content = pa.py_buffer(np.ascontiguousarray(values))

    arrow_type = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(arrow_type, len(values), [validity, content])


def ids_to_arrow(ids: Sequence[Id | None] | Objects, id_type: IdType) -> pa.Array:
    """Return ids as an Arrow array of their type, null where there is none."""
    objects = np.array(ids, dtype=np.object_)
    if id_type == "string":
        return to_arrow(objects)
    is_valid = _is_there(objects)
    return to_arrow(np.where(is_valid, objects, 0).astype(np.int64), is_valid)


def vectors_to_arrow(matrix: Floats) -> pa.Array:
    """Return a FixedSizeList<float32> column of a matrix (n, W), null where there is no vector."""
    entries = np.ascontiguousarray(matrix, dtype=np.float32)
    is_missing = to_arrow(is_missing_row(entries))
    flat = to_arrow(entries.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, entries.shape[1], mask=is_missing)


def _is_there(objects: Objects) -> Flags:
    return np.array([value is not None for value in objects], dtype=np.bool_)


def _pack_bits(flags: Flags) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


# ---- from Arrow


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers, anything where null, or of texts, None where null.

    Returns:
        (n,) numbers of the type of the column, or an object array; equal texts are one object.
    """
    values = column.combine_chunks()
    if values.type not in (pa.string(), pa.large_string()):
        return _read_numbers(values)

    encoded = values.dictionary_encode(null_encoding="encode")
    texts = np.array(encoded.dictionary.to_pylist(), dtype=np.object_)
    return np.asarray(texts[_read_numbers(encoded.indices)])


def vectors_from_arrow(column: pa.ChunkedArray) -> Floats:
    """Return the matrix (n, W) that `vectors_to_arrow` wrote."""
    array = column.combine_chunks()
    width = array.type.list_size
    matrix = np.full((len(array), width), np.nan, dtype=np.float32)

    entries = array.drop_null().flatten()
    if len(entries):
        is_valid = np.array(array.is_valid().to_pylist())
        matrix[is_valid] = _read_numbers(entries).reshape(-1, width)

    return matrix


def _read_numbers(values: pa.Array) -> NDArray[Any]:
    stop = values.offset + len(values)
    dtype = values.type.to_pandas_dtype()
    numbers = np.frombuffer(values.buffers()[1], dtype, stop)
    return numbers[values.offset :]
