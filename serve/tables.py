"""Rows in files: requests and items from CSV, JSON Lines and Parquet in constant memory, answers to CSV and Parquet.

JSON Lines and Parquet hold requests nested, CSV and TSV as flat columns without history: `user_id`, `datetime`, or the
name of a user or context feature; an empty cell is not given. All but Parquet may be compressed by gzip (`.gz`).
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from serve.durable import name_file
from serve.errors import SchemaError, name_nearest
from serve.filters import join_filters
from serve.requests import Filters, Request, parse_filters, parse_request, show
from serve.schema import DERIVED, IdType, Schema

ITEM_ID = "item_id"
Row = tuple[str, Any]
"""Where a row stands in its file, and what it holds, by our names."""
_GZIP = ".gz"
_TEXTS = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class RowLayout:
    """The layout of a file whose columns or delimiter are not as ours."""

    delimiter: str | None = None
    """Between the cells of a text file; None: the one that splits the first line most often."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Our name -> the column it is in. Columns of the file that are called as one of our names here are hidden."""

    def rename(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Put fields of the file under our names."""
        hidden = {*self.columns, *self.columns.values()}
        taken = {ours: fields[theirs] for ours, theirs in self.columns.items() if theirs in fields}
        return taken | {name: value for name, value in fields.items() if name not in hidden}

    def check_columns(self, names: Sequence[str], place: str) -> None:
        """Refuse names that are not distinct, or lack a column that one of ours is said to be in."""
        if not names or len(set(names)) < len(names):
            raise SchemaError(f"{place}: the columns are {show(names)}; expected distinct names")
        for ours, theirs in self.columns.items():
            if theirs not in names:
                nearest = name_nearest(theirs, names)
                raise SchemaError(f"{place}: no column '{theirs}', where {ours} should be; {nearest}")


AS_OURS = RowLayout()


def read_layout(delimiter: str | None, columns: str | None) -> RowLayout:
    r"""Read the two options of a command line: a tab may be written as \t, columns as "item_id=sku,price=cost".

    Raises:
        SchemaError: the delimiter is not one character; a part that is no pair, or a name twice.
    """
    delimiter = "\t" if delimiter == r"\t" else delimiter
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise SchemaError(f"delimiter is {delimiter!r}; allowed: one character that is no quote and no line end")
    pairs: dict[str, str] = {}
    for part in columns.split(",") if columns else ():
        ours, _, theirs = map(str.strip, part.partition("="))
        if not ours or not theirs or ours in pairs:
            raise SchemaError(f"columns: got '{part}'; expected NAME=COLUMN, each name once, with commas between")
        pairs[ours] = theirs
    return RowLayout(delimiter, pairs)


def read_requests(
    path: Path, schema: Schema, layout: RowLayout = AS_OURS, check: Callable[[Request], None] | None = None
) -> Iterator[Request]:
    """Read and check the requests of a file one by one.

    Args:
        path: of the file.
        schema: of the bundle.
        layout: of the file; its columns are the fields of a request, in CSV also features.
        check: raises a SchemaError for a request that cannot be answered; by default each can.

    Raises:
        SchemaError: a missing file, an unknown suffix, or a request that cannot be read; names file and place.
    """
    rows = read_rows(path, layout)
    is_flat = _kind_of(path) in _TEXTS
    return _parse_all(path.name, _nest(rows, schema) if is_flat else rows, schema, check)


def _parse_all(
    file: str, rows: Iterator[Row], schema: Schema, check: Callable[[Request], None] | None
) -> Iterator[Request]:
    for place, raw in rows:
        try:
            request = parse_request(raw, schema)
            if check is not None:
                check(request)
        except SchemaError as error:
            raise SchemaError(f"{file}, {place}: {error}") from error
        yield request


def _nest(rows: Iterator[Row], schema: Schema) -> Iterator[Row]:
    """Put the cells of CSV rows into the fields of a request; an empty cell is not given."""
    sections = {"user_id": "", "datetime": ""}
    features = {"features": schema.user_features, "context": schema.context_features}
    for section, some in features.items():
        sections |= {feature.name: section for feature in some if feature.kind not in DERIVED}
    twins = {feature.name for feature in schema.user_features} & {one.name for one in schema.context_features}
    numeric = {feature.name for some in features.values() for feature in some if feature.is_numeric}
    for place, cells in rows:
        raw: dict[str, Any] = {}
        for name, cell in cells.items():
            if name not in sections or name in twins:
                advice = "give JSON Lines or Parquet" if name in twins else name_nearest(name[:40], sections)
                raise SchemaError(f"{place}: column {show(name)} cannot be read from CSV; {advice}")
            if cell.strip():
                fields = raw.setdefault(sections[name], {}) if sections[name] else raw
                fields[name] = _to_number(cell) if name in numeric else cell
        yield place, raw


def _to_number(cell: str) -> float | str:
    """Return the number, or the text for `parse_request` to refuse."""
    try:
        return float(cell)
    except ValueError:
        return cell


@dataclass(frozen=True)
class ItemRows:
    """Some items that follow each other in a file: column -> one raw value an item, and where each stands."""

    columns: dict[str, list[Any]]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.places)


class ItemFile:
    """A file of items: `item_id` and raw feature columns; columns that no feature reads are left out."""

    def __init__(self, path: Path, schema: Schema, layout: RowLayout = AS_OURS) -> None:
        """Check the names; the file is opened when it is read.

        Raises:
            SchemaError: a missing file or an unknown suffix, or columns of the layout that no feature reads.
        """
        _check_file(path)
        self._path, self._layout = path, layout
        self._wanted = {feature.column for feature in schema.item_features} | {ITEM_ID}
        self._seen: set[str] = set()
        for name in layout.columns:
            if name not in self._wanted:
                raise SchemaError(f"columns: no feature of items reads '{name}'; {name_nearest(name, self._wanted)}")

    def blocks(self, n_rows: int) -> Iterator[ItemRows]:
        """Read the items, `n_rows` at once and at last what remains.

        Raises:
            SchemaError: what cannot be read, or has no `item_id`, or no feature at all; names file and place.
        """
        rows = read_rows(self._path, self._layout)
        while some := list(islice(rows, n_rows)):
            places = [f"{self._path.name}, {place}" for place, _ in some]
            for place, (_, raw) in zip(places, some, strict=True):
                if not isinstance(raw, dict) or ITEM_ID not in raw:
                    name = f"name it with --columns {ITEM_ID}=COLUMN"
                    raise SchemaError(f"{place}: no '{ITEM_ID}' in {show(raw)}; {name}")
                self._seen |= raw.keys()
            if len(self._wanted) > 1 and len(self._wanted & self._seen) < 2:
                allowed = ", ".join(sorted(self._wanted - {ITEM_ID}))
                raise SchemaError(f"{places[0]}: no column is a feature of items; allowed: {allowed}")
            names = self._wanted & self._seen
            yield ItemRows({name: [raw.get(name) for _, raw in some] for name in names}, places)

    def remarks(self) -> list[str]:
        """Say which columns of the blocks so far no feature reads, and which the features would have read."""
        found = {
            "columns that no feature reads": self._seen - self._wanted,
            "columns that are not there, taken as missing": self._wanted - self._seen,
        }
        return [f"{text}: {', '.join(sorted(names))}" for text, names in found.items() if names]


def read_item_ids(path: Path) -> list[Any]:
    """Read the ids of a file of items, whatever else it holds.

    Raises:
        SchemaError: a missing file, an unknown suffix, or a row without `item_id`.
    """
    ids = []
    for place, raw in read_rows(path):
        if not isinstance(raw, dict) or ITEM_ID not in raw:
            raise SchemaError(f"{path.name}, {place}: no '{ITEM_ID}' in {show(raw)}")
        ids.append(raw[ITEM_ID])
    return ids


def read_filters(where: str | None, only: Path | None, at_most: Sequence[str], id_type: IdType) -> Filters | None:
    """Read the filters of a command: an expression, a file with `item_id`, and `COLUMN=N` each.

    Raises:
        SchemaError: an option that cannot be read.
    """
    limits: dict[str, int] = {}
    for option in at_most:
        column, _, number = option.rpartition("=")
        if not (column and number.strip().isdecimal()) or column in limits:
            raise SchemaError(f"--at-most is '{option[:40]}'; expected COLUMN=N, each column once, as in category=2")
        limits[column] = int(number.strip()[:18])
    ids = None if only is None else read_item_ids(only)
    return parse_filters({"where": where, "only": ids, "at_most": limits}, id_type)


def add_filters(requests: Iterable[Request], filters: Filters) -> Iterator[Request]:
    """Give each request filters beside its own, as it is needed."""
    return (replace(request, filters=join_filters(filters, request.filters)) for request in requests)


def read_rows(path: Path, layout: RowLayout = AS_OURS) -> Iterator[Row]:
    """Read the rows of a file, each with its place; empty lines of text files are passed over.

    Raises:
        SchemaError: a missing file or an unknown suffix; later, what cannot be read.
    """
    _check_file(path)
    if layout.delimiter is not None and _kind_of(path) not in _TEXTS:
        raise SchemaError(f"{path.name}: a delimiter is given; allowed for {' and '.join(_TEXTS)} alone: leave it out")
    return _READERS[_kind_of(path)](path, layout)


def _check_file(path: Path) -> None:
    is_packed = path.suffix.lower() == _GZIP
    kind = _kind_of(path)
    if kind not in _READERS or (is_packed and kind == ".parquet"):
        allowed = f"{', '.join(_READERS)} ({_GZIP} may follow all but .parquet)"
        hint = "; write a JSON array as one object per line" if kind == ".json" else ""
        raise SchemaError(f"{path.name}: cannot read '{''.join(path.suffixes[-2:])}'; allowed: {allowed}{hint}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")


def _kind_of(path: Path) -> str:
    """Return the suffix of a file, or of the one that is compressed in it."""
    return (Path(path.stem) if path.suffix.lower() == _GZIP else path).suffix.lower()


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if path.suffix.lower() == _GZIP else path.open("rb")


def _read_json_lines(path: Path, layout: RowLayout) -> Iterator[Row]:
    with _naming(path), _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                raw = _parse_json(line, f"{path.name}, line {number}")
                yield f"line {number}", layout.rename(raw) if isinstance(raw, dict) else raw


def _parse_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{place}: not one JSON object in UTF-8: {error}") from error


def _read_text(path: Path, layout: RowLayout) -> Iterator[Row]:
    with _naming(path), _open(path) as lines:
        header = lines.readline().decode("utf-8-sig").rstrip("\r\n")
    bare, is_tsv = _QUOTED.sub("", header), _kind_of(path) == ".tsv"
    delimiter = layout.delimiter or ("\t" if is_tsv else max(_DELIMITERS, key=bare.count))
    names = next(csv.reader([header], delimiter=delimiter), [])
    layout.check_columns(names, f"{path.name}, line 1")
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    with _naming(path), pa_csv.open_csv(str(path), parse_options=parse, convert_options=convert) as batches:
        yield from _number_rows(batches, layout)


def _read_parquet(path: Path, layout: RowLayout) -> Iterator[Row]:
    with _naming(path), pq.ParquetFile(path) as file:
        layout.check_columns(file.schema_arrow.names, path.name)
        yield from _number_rows(map(_with_times_as_text, file.iter_batches(_ROWS_AT_ONCE)), layout)


def _number_rows(batches: Iterable[pa.RecordBatch], layout: RowLayout) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for raw in batch.to_pylist():
            number += 1
            yield f"row {number}", layout.rename(raw)


class _naming:
    """Name the file in errors of reading it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error)):
            raise SchemaError(f"{self._path.name}: cannot be read: {error}") from error


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Write timestamps as text of whole seconds: as Python values, Arrow would import pandas for them."""
    for change in (lambda kind: pa.timestamp("s", "UTC" if kind.tz else None), lambda _: pa.string()):
        types = [_map_timestamps(one.type, change) for one in batch.schema]
        columns = [column.cast(kind, safe=False) for column, kind in zip(batch.columns, types, strict=True)]
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    return batch


def _map_timestamps(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return change(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return make(_map_timestamps(kind.value_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([(one.name, _map_timestamps(one.type, change)) for one in kind])
    return kind


_READERS: Mapping[str, Callable[[Path, RowLayout], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_text,
    ".tsv": _read_text,
}


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
    sink.write(f"{','.join(schema.names)}\n".encode())  # Arrow would quote every name
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
