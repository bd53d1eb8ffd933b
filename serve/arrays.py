"""Arrays: the names of their types, unit vectors, and Arrow columns of numpy arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.schema import IdType

Floats = NDArray[np.float32]  # vectors and scores
Doubles = NDArray[np.float64]  # statistics
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Objects = NDArray[np.object_]  # ids and texts

MIN_LENGTH = 1e-12  # a vector that is shorter has no direction


def to_unit(vectors: Floats) -> Floats:
    """Return vectors (..., W) of length 1 in the same directions; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, MIN_LENGTH), np.float32)


def is_missing_row(matrix: Floats) -> NDArray[np.bool_]:
    """Return which rows (n,) of a matrix (n, W) hold no vector."""
    return np.asarray(np.isnan(matrix).all(axis=1))


def to_arrow(
    values: NDArray[Any], is_valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return an Arrow array of numbers or flags, or of the texts (None = null) of an object array."""
    if values.dtype == np.object_:
        return _arrow_texts(values)
    kind = pa.from_numpy_dtype(values.dtype)
    valid = None if is_valid is None else _arrow_bits(is_valid)
    content = (
        _arrow_bits(values)
        if values.dtype == np.bool_
        else pa.py_buffer(np.ascontiguousarray(values))
    )
    return pa.Array.from_buffers(kind, len(values), [valid, content])


def ids_to_arrow(
    ids: Sequence[str | int | None] | NDArray[np.object_], id_type: IdType
) -> pa.Array:
    """Return ids as an Arrow array of their type, null where there is none."""
    given = np.empty(len(ids), dtype=np.object_)
    given[:] = ids
    if id_type == "string":
        return to_arrow(given)
    is_valid = np.array([value is not None for value in ids], dtype=np.bool_)
    return to_arrow(np.where(is_valid, given, 0).astype(np.int64), is_valid)


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return the numbers of a column without nulls, or its texts (None = null), equal ones as one object."""
    values = column.combine_chunks()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return _numbers(values)
    encoded = values.dictionary_encode(null_encoding="encode")
    texts = np.empty(len(encoded.dictionary), dtype=np.object_)
    texts[:] = encoded.dictionary.to_pylist()
    return np.asarray(texts[_numbers(encoded.indices)])


def _numbers(values: pa.Array) -> NDArray[Any]:
    stop = values.offset + len(values)
    return np.frombuffer(
        values.buffers()[1], dtype=values.type.to_pandas_dtype(), count=stop
    )[values.offset :]


def _arrow_texts(texts: NDArray[np.object_]) -> pa.Array:
    encoded = [b"" if text is None else text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    is_valid = np.array([text is not None for text in texts], dtype=np.bool_)
    buffers = [
        _arrow_bits(is_valid),
        pa.py_buffer(ends),
        pa.py_buffer(b"".join(encoded)),
    ]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers).cast(
        pa.string()
    )


def _arrow_bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def vectors_to_arrow(matrix: Floats) -> pa.Array:
    """Return a FixedSizeList<float32> column of the rows of a matrix (n, W), null where there is no vector."""
    entries = np.ascontiguousarray(matrix, dtype=np.float32)
    child = pa.Array.from_buffers(
        pa.float32(), entries.size, [None, pa.py_buffer(entries)]
    )
    valid = _arrow_bits(~is_missing_row(entries))
    return pa.Array.from_buffers(
        pa.list_(pa.float32(), entries.shape[1]),
        len(entries),
        [valid],
        children=[child],
    )


def vectors_from_arrow(column: pa.ChunkedArray) -> Floats:
    """Return the matrix (n, W) that `vectors_to_arrow` wrote."""
    array = column.combine_chunks()
    matrix = np.full((len(array), array.type.list_size), np.nan, dtype=np.float32)
    entries = array.drop_null().flatten()
    if len(entries):
        numbers = np.frombuffer(entries.buffers()[1], np.float32)[
            entries.offset : entries.offset + len(entries)
        ]
        matrix[np.array(array.is_valid().to_pylist())] = numbers.reshape(
            -1, matrix.shape[1]
        )
    return matrix
