"""Tables that commands read and write, and filters as their options."""

from __future__ import annotations

import csv
import io
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from serve.durable import name_file
from serve.errors import SchemaError
from serve.filters import join_filters
from serve.item_files import read_item_ids
from serve.recommendations import Recommendations
from serve.requests import Filters, Request, parse_filters
from serve.schema import IdType


def read_filters(where: str | None, only: Path | None, at_most: Sequence[str], id_type: IdType) -> Filters | None:
    """Read what the options say; None if none is given.

    Args:
        where: an expression.
        only: a file of items, of which `item_id` is read.
        at_most: `COLUMN=N` each.
        id_type: of the items of the bundle.

    Raises:
        SchemaError: an option that cannot be read.
    """
    ids = None if only is None else read_item_ids(only)
    return parse_filters({"where": where, "only": ids, "at_most": _read_limits(at_most)}, id_type)


def add_filters(requests: Iterable[Request], filters: Filters) -> Iterator[Request]:
    """Give each request filters beside its own, as it is needed."""
    return (replace(request, filters=join_filters(filters, request.filters)) for request in requests)


class ShortLists:
    """The answers that are shorter than was asked for."""

    def __init__(self) -> None:
        self._n_requests = self._n_short = 0
        self._first = ""

    def count(self, answers: Recommendations) -> None:
        """Add some answers."""
        reasons = [reason for reason in answers.reason.tolist() if reason is not None]
        self._n_requests += len(answers)
        self._n_short += len(reasons)
        self._first = self._first or next(iter(reasons), "")

    def notes(self, k: int) -> list[str]:
        """Return a line if there are any, with the reason of the first."""
        if not self._n_short:
            return []
        counts = f"{self._n_short} of {self._n_requests} requests got fewer than {k} items"
        return [f"note: {counts}; the first since {self._first}"]


def _read_limits(options: Sequence[str]) -> dict[str, int]:
    limits: dict[str, int] = {}
    for option in options:
        column, sign, number = option.rpartition("=")
        if not (sign and column and number.strip().isdecimal()):
            raise SchemaError(f"--at-most is '{option[:40]}'; expected COLUMN=N, as in category=2")
        if column in limits:
            raise SchemaError(f"--at-most names '{column[:40]}' twice")
        limits[column] = int(number.strip()[:18])
    return limits


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as CSV or Parquet, by suffix; until it is complete, `path` is as it was.

    Raises:
        SchemaError: another suffix.
    """
    write_tables([table], table.schema, path)


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write tables of one schema below each other, as `write_table` does; one at a time is in memory.

    Raises:
        SchemaError: another suffix; no table is asked for then.
    """
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise SchemaError(f"{path.name}: cannot write '{path.suffix}'; allowed: {', '.join(_WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with name_file(path), staged.open("wb") as sink:
            write(tables, schema, sink)
            sink.flush()
            os.fsync(sink.fileno())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def _write_csv(tables: Iterable[pa.Table], schema: pa.Schema, sink: BinaryIO) -> None:
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(schema.names)  # Arrow would quote every name
    sink.write(header.getvalue().encode())
    for table in tables:
        pa_csv.write_csv(table, sink, pa_csv.WriteOptions(include_header=False))


def _write_parquet(tables: Iterable[pa.Table], schema: pa.Schema, sink: BinaryIO) -> None:
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


_WRITERS: dict[str, Callable[[Iterable[pa.Table], pa.Schema, BinaryIO], None]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
