"""Files of rows and vectors: requests and items in, answers and vectors out, in constant memory.

JSON Lines and Parquet hold requests nested, CSV and TSV as flat columns without history: `user_id`, `datetime`, or the
name of a user or context feature; an empty cell is not given. All but Parquet may be compressed by gzip (`.gz`).

An export of vectors is a folder of Parquet shards, and goes on where it was killed:

    _plan.json             what the shards are made from; another plan is refused
    part-00000.parquet     a shard, there as a whole or not at all
    _SUCCESS               written last: without it the export is not complete

The product of a user vector and an item vector is the item's score, but for what no vector holds: the memory of an
owned item, where repeats are allowed, and what items add to the scores of others.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from serve.errors import BundleError, SchemaError, name_nearest
from serve.files import replacing
from serve.requests import show

ITEM_ID = "item_id"
ROWS_AT_ONCE = 4096  # of a Parquet file
_GZIP = ".gz"
TEXTS = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')

AS_OURS: Mapping[str, str] = MappingProxyType(
    {}
)  # names of columns that are called otherwise

Row = tuple[str, Any]  # where a row stands in its file, and what it holds, by our names


def read_columns(option: str | None) -> Mapping[str, str]:
    """Read an option such as "item_id=sku,price=cost": our name -> that of the file."""
    pairs: dict[str, str] = {}
    for part in option.split(",") if option else ():
        ours, _, theirs = map(str.strip, part.partition("="))
        if not ours or not theirs or ours in pairs:
            raise SchemaError(
                f"columns: got '{part}'; expected NAME=COLUMN, each name once, with commas between"
            )
        pairs[ours] = theirs
    return pairs


def read_rows(path: Path, columns: Mapping[str, str] = AS_OURS) -> Iterator[Row]:
    """Read the rows of a file, each with its place and our names in place of some; empty lines are passed over."""
    kind = kind_of(path)
    if kind not in _READERS or (kind == ".parquet" and path.suffix.lower() == _GZIP):
        allowed = f"{', '.join(_READERS)} ({_GZIP} may follow all but .parquet)"
        raise SchemaError(f"{path.name}: cannot read '{kind}'; allowed: {allowed}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    rows = _READERS[kind](path, columns)
    return (
        ((place, _rename(fields, columns)) for place, fields in rows)
        if columns
        else rows
    )


def _rename(fields: Any, columns: Mapping[str, str]) -> Any:
    """Put fields of a file under our names; a column of one's own that is called as ours is hidden."""
    if not isinstance(fields, dict):
        return fields
    hidden = {*columns, *columns.values()}
    taken = {
        ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields
    }
    return taken | {name: value for name, value in fields.items() if name not in hidden}


def kind_of(path: Path) -> str:
    """Return the suffix of a file, or of the one that is compressed in it."""
    return (Path(path.stem) if path.suffix.lower() == _GZIP else path).suffix.lower()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file, or the one compressed in it, and name it in errors of reading it."""
    try:
        with (
            gzip.open(path) if path.suffix.lower() == _GZIP else path.open("rb") as file
        ):
            yield file
    except (
        pa.ArrowException,
        OSError,
        EOFError,
        zlib.error,
        UnicodeDecodeError,
    ) as error:
        raise SchemaError(f"{path.name}: cannot be read: {error}") from error


def _read_json_lines(path: Path, _: Mapping[str, str]) -> Iterator[Row]:
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    raw = json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    raise SchemaError(
                        f"{path.name}, line {number}: not one JSON object in UTF-8: {error}"
                    ) from error
                yield f"line {number}", raw


def _read_text(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with _opened(path) as lines:
        header = lines.readline().decode("utf-8-sig").rstrip("\r\n")
    bare = _QUOTED.sub("", header)
    is_tsv = kind_of(path) == ".tsv"
    delimiter = "\t" if is_tsv else max(_DELIMITERS, key=bare.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    _check_columns(path, names, columns)
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    with (
        _opened(path) as file,
        pa_csv.open_csv(file, parse_options=parse, convert_options=convert) as batches,
    ):
        yield from _number_rows(batches)


def _read_parquet(path: Path, columns: Mapping[str, str]) -> Iterator[Row]:
    with _opened(path) as file, pq.ParquetFile(file) as table:
        _check_columns(path, table.schema_arrow.names, columns)
        yield from _number_rows(table.iter_batches(ROWS_AT_ONCE))


def _check_columns(
    path: Path, names: Sequence[str], columns: Mapping[str, str]
) -> None:
    if not names or len(set(names)) < len(names):
        raise SchemaError(
            f"{path.name}: the columns are {show(names)}; expected distinct names"
        )
    for theirs in columns.values():
        if theirs not in names:
            raise SchemaError(
                f"{path.name}: no column '{theirs}'; {name_nearest(theirs, names)}"
            )


def _number_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    rows = chain.from_iterable(_in_microseconds(batch).to_pylist() for batch in batches)
    return ((f"row {number}", raw) for number, raw in enumerate(rows, start=1))


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Cast timestamps to what Python holds: of nanoseconds Arrow would make objects of pandas."""
    kinds = (
        pa.timestamp("us", one.type.tz) if pa.types.is_timestamp(one.type) else one.type
        for one in batch.schema
    )
    return batch.cast(
        pa.schema(list(zip(batch.schema.names, kinds, strict=True))), safe=False
    )


_READERS: Mapping[str, Callable[[Path, Mapping[str, str]], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_text,
    ".tsv": _read_text,
}


_WRITERS: Mapping[str, Callable[[BinaryIO, pa.Schema], Any]] = {
    ".csv": partial(
        pa_csv.CSVWriter, write_options=pa_csv.WriteOptions(quoting_header="none")
    ),
    ".parquet": partial(pq.ParquetWriter, compression="zstd"),
}


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write tables of one schema below each other as CSV or Parquet, by suffix; until the end, `path` is as it was."""
    if (open_writer := _WRITERS.get(path.suffix.lower())) is None:
        raise SchemaError(
            f"{path.name}: cannot write '{path.suffix}'; allowed: {', '.join(_WRITERS)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as sink, open_writer(sink, schema) as writer:
        for table in tables:
            writer.write_table(table)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file; vectors do not compress."""
    others = [name for name in table.column_names if name != "vector"]
    compression = {
        name: "zstd" if name in others else "none" for name in table.column_names
    }
    with replacing(path) as sink:
        pq.write_table(
            table,
            sink,
            use_dictionary=others,
            write_statistics=others,
            compression=compression,
        )


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of ours, and name it where it is none."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError, KeyError, UnicodeDecodeError) as error:
        raise BundleError(
            f"{path} is damaged: {error}; remove it, then do this again"
        ) from error
