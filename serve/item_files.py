"""Items in files: an `item_id` and raw feature columns, read in blocks column by column.

Columns that no feature reads are left out, as they are in training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve.errors import SchemaError, name_nearest
from serve.packed_files import kind_suffix
from serve.recommendations import to_numpy
from serve.requests import show
from serve.row_files import check_file, read_csv_cells, read_json_lines, read_record_batches
from serve.row_layout import AS_OURS, RowLayout
from serve.schema import Schema

ITEM_ID = "item_id"

_IDS_AT_ONCE = 65_536


@dataclass(frozen=True)
class ItemRows:
    """Some items that follow each other in a file."""

    columns: dict[str, Any]
    """Column -> one raw value an item, as a list or numpy array."""
    places: Sequence[int]
    """Line or row of each item, from 1."""

    def __len__(self) -> int:
        return len(self.places)


class ItemFile:
    """A file of items."""

    def __init__(self, path: Path, schema: Schema, layout: RowLayout = AS_OURS) -> None:
        """Check the names; the file is opened when it is read.

        Args:
            path: of the file.
            schema: of the bundle.
            layout: of the file; its columns are `item_id` and those that features are read from.

        Raises:
            SchemaError: a missing file or an unknown suffix, or a layout that is not of such a file.
        """
        check_file(path)
        layout.check_suffix(path)
        self.path = path
        self.layout = layout
        self.is_numbered_by_line = kind_suffix(path) != ".parquet"
        self._read = _READERS[kind_suffix(path)]
        self._features = {feature.column for feature in schema.item_features}
        self._seen: set[str] = set()
        _check_names(layout.columns, self._features | {ITEM_ID})

    def blocks(self, n_rows: int) -> Iterator[ItemRows]:
        """Read the items in constant memory, `n_rows` at once and at last what remains.

        Raises:
            SchemaError: what cannot be read, or has no `item_id`, or no feature at all; names file and place.
        """
        for rows in self._read(self.path, n_rows, self.layout):
            self._seen |= rows.columns.keys()
            self._check_columns(rows)
            wanted = self._features | {ITEM_ID}
            yield ItemRows({name: rows.columns[name] for name in wanted & rows.columns.keys()}, rows.places)

    def remarks(self) -> list[str]:
        """Say which columns of the blocks so far no feature reads, and which the features would have read."""
        found = {
            "columns that no feature reads": self._seen - self._features - {ITEM_ID},
            "columns that are not there, taken as missing": self._features - self._seen,
        }
        return [f"{text}: {', '.join(sorted(names))}" for text, names in found.items() if names]

    def name_place(self, place: int) -> str:
        """Say where an item stands, for messages."""
        return f"{self.path.name}, {'line' if self.is_numbered_by_line else 'row'} {place}"

    def _check_columns(self, rows: ItemRows) -> None:
        place = self.name_place(rows.places[0])
        if ITEM_ID not in rows.columns:
            nearest = name_nearest(self.layout.columns.get(ITEM_ID, ITEM_ID), rows.columns)
            raise SchemaError(f"{place}: no column '{ITEM_ID}'; name it with --columns {ITEM_ID}=COLUMN; {nearest}")
        if self._features and not self._features & self._seen:  # in JSON Lines a later block may be of missing values
            allowed = ", ".join(sorted(self._features))
            raise SchemaError(f"{place}: no column is a feature of items; allowed: {allowed}")


def read_item_ids(path: Path) -> list[Any]:
    """Read the ids of a file of items, whatever else it holds.

    Raises:
        SchemaError: a missing file, an unknown suffix, or one without `item_id`.
    """
    check_file(path)
    ids: list[Any] = []
    for rows in _READERS[kind_suffix(path)](path, _IDS_AT_ONCE, AS_OURS):
        if ITEM_ID not in rows.columns:
            raise SchemaError(f"{path.name}: no column '{ITEM_ID}'; {name_nearest(ITEM_ID, rows.columns)}")
        ids += list(rows.columns[ITEM_ID])
    return ids


def _check_names(ours: Iterable[str], allowed: Collection[str]) -> None:
    for name in ours:
        if name not in allowed:
            raise SchemaError(f"columns: no feature of items reads '{name}'; {name_nearest(name, allowed)}")


def _read_json_blocks(path: Path, n_rows: int, layout: RowLayout) -> Iterator[ItemRows]:
    lines = read_json_lines(path, layout)
    while some := list(islice(lines, n_rows)):
        for number, raw in some:
            if not isinstance(raw, dict):
                raise SchemaError(f"{path.name}, line {number}: item is {show(raw)}; expected an object of columns")
        names = {name: None for _, raw in some for name in raw}
        columns = {name: [raw.get(name) for _, raw in some] for name in names}
        yield ItemRows(columns, [number for number, _ in some])


def _read_csv_blocks(path: Path, n_rows: int, layout: RowLayout) -> Iterator[ItemRows]:
    lines = read_csv_cells(path, layout)
    _, names = next(lines)
    while some := list(islice(lines, n_rows)):
        cells = map(list, zip(*(cells for _, cells in some), strict=True))
        yield ItemRows(dict(zip(names, cells, strict=True)), [line for line, _ in some])


def _read_parquet_blocks(path: Path, n_rows: int, layout: RowLayout) -> Iterator[ItemRows]:
    start = 1
    for table in _join_batches(read_record_batches(path, n_rows, layout), n_rows):
        columns = {name: _values(table.column(name)) for name in table.column_names}
        yield ItemRows(columns, range(start, start + table.num_rows))
        start += table.num_rows


def _join_batches(batches: Iterator[pa.RecordBatch], n_rows: int) -> Iterator[pa.Table]:
    """Give tables of exactly `n_rows` rows and at last what remains: a batch may end with its row group."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= n_rows:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, n_rows)
            waiting = table.slice(n_rows).to_batches()
    if sum(map(len, waiting)):
        yield pa.Table.from_batches(waiting)


def _values(column: pa.ChunkedArray) -> Any:
    """Return the values as an array where they are plain, else as a list."""
    kind = column.type
    is_number = pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or (is_number and not column.null_count):
        return to_numpy(column)
    return column.to_pylist()


_READERS: Mapping[str, Callable[[Path, int, RowLayout], Iterator[ItemRows]]] = {
    ".jsonl": _read_json_blocks,
    ".parquet": _read_parquet_blocks,
    ".csv": _read_csv_blocks,
    ".tsv": _read_csv_blocks,
}
