"""Rows put in place of others or behind the last; whoever holds what was there before sees no change.

Letters: N rows before, n rows put, M rows after.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.index import Floats, Ints
from serve.recommendations import to_arrow

_ROOM = 8  # a full matrix gets room for an eighth of its rows
_MOST_CHUNKS = 256  # of a column: more make reading it slow


def put_rows(array: NDArray[Any], rows: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """Return a copy (M, ...) with n values in their rows; those from N on follow each other."""
    size = max(len(array), int(rows.max(initial=-1)) + 1)
    copy = np.empty((size, *array.shape[1:]), dtype=array.dtype)
    copy[: len(array)] = array
    copy[rows] = values
    return copy


def put_table_rows(table: pa.Table, rows: Ints, values: pa.Table) -> pa.Table:
    """Do as `put_rows` with a table; a single row costs no copy of the others."""
    if len(rows) == 1:
        row = int(rows[0])
        joined = pa.concat_tables([table.slice(0, row), values, table.slice(row + 1)])
        return joined if joined.column(0).num_chunks <= _MOST_CHUNKS else joined.combine_chunks()
    sources = put_rows(np.arange(len(table)), rows, len(table) + np.arange(len(rows)))
    return pa.concat_tables([table, values]).take(to_arrow(sources)).combine_chunks()


class RoomyMatrix:
    """A matrix with room behind its last row, so that a row more does not copy all others.

    For one writer. The views that it gives are never written to again.
    """

    def __init__(self, matrix: Floats) -> None:
        self._buffer = matrix
        self._used = len(matrix)

    def put(self, before: Floats, rows: Ints, values: Floats) -> Floats:
        """Do as `put_rows` with a matrix (N, D) that was the first one or returned here, and return a view."""
        size = max(len(before), int(rows.max()) + 1)
        if int(rows.min()) < self._used or size > len(self._buffer):
            self._buffer = np.empty((size + size // _ROOM, before.shape[1]), dtype=np.float32)
            self._buffer[: len(before)] = before
            self._used = 0
        self._buffer[rows] = values
        self._used = max(self._used, size)
        view = self._buffer[:size]
        view.flags.writeable = False
        return view
