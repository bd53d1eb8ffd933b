"""Rows in files: JSON Lines, Parquet, CSV and TSV, read in constant memory, each with its place for messages."""

from __future__ import annotations

import codecs
import csv
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.command_line import name_interpreter
from serve.errors import SchemaError
from serve.packed_files import GZIP, check_packing, is_packed, kind_suffix, name_damage, open_bytes, open_text
from serve.requests import show
from serve.row_layout import TEXT_SUFFIXES, RowLayout

_PARQUET = ".parquet"
_SUFFIXES = (".jsonl", _PARQUET, *TEXT_SUFFIXES)
_ALLOWED = f"{', '.join(_SUFFIXES)} ({GZIP} may follow all but {_PARQUET})"

_TO_LINES = "import json, sys; [print(json.dumps(row)) for row in json.load(sys.stdin.buffer)]"
_CHUNK = 2**20  # bytes


def check_file(path: Path) -> None:
    """Refuse a file that no reader here reads.

    Raises:
        SchemaError: a missing file, a folder, an unknown suffix, or a file that is compressed in another way than its
            name says.
    """
    if path.is_dir():
        raise SchemaError(f"{path} is a folder; allowed: a file, {_ALLOWED}")
    kind, packing = kind_suffix(path), GZIP if is_packed(path) else ""
    if kind not in _SUFFIXES or (kind == _PARQUET and packing):
        meant = f"; {_explain_lines(path)}" if kind == ".json" else ""
        raise SchemaError(f"{path.name}: cannot read '{kind}{packing}'; allowed: {_ALLOWED}{meant}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    check_packing(path, _ALLOWED)


def count_rows(path: Path) -> int:
    """Count the rows: of Parquet exactly, of text the lines.

    Raises:
        SchemaError: no Parquet that can be read, or a damaged compressed file.
    """
    if kind_suffix(path) == _PARQUET:
        with _open_parquet(path) as file:
            return int(file.metadata.num_rows)
    with name_damage(path), open_bytes(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK), b""))


def read_json_lines(path: Path, layout: RowLayout) -> Iterator[tuple[int, Any]]:
    """Give the JSON of each line that is not blank, with the number of the line; keys under our names."""
    is_first = True
    with name_damage(path), open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                if is_first and line.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
                    raise SchemaError(f"{path.name}: expected an object on each line; {_explain_lines(path)}")
                is_first = False
                raw = _read_json(line, f"{path.name}, line {number}")
                yield number, layout.rename(raw) if isinstance(raw, dict) else raw


def _explain_lines(path: Path) -> str:
    """Say how a JSON array becomes JSON Lines."""
    plain = path.with_suffix("") if is_packed(path) else path
    first = f"gunzip {shlex.quote(str(path))} && " if is_packed(path) else ""
    source, target = shlex.quote(str(plain)), shlex.quote(f"{plain.stem}-lines.jsonl")
    return f'to make lines of one array: {first}{name_interpreter()} -c "{_TO_LINES}" < {source} > {target}'


def _read_json(line: bytes, place: str) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"), object_pairs_hook=_refuse_twins)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{place}: not one JSON object in UTF-8: {error}") from error


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object; JSON allows a key twice, and which of the two counts would be a guess."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"key {show(twin)} is given twice")
    return fields


def read_record_batches(path: Path, n_rows: int, layout: RowLayout) -> Iterator[pa.RecordBatch]:
    """Give the rows of a Parquet file, at most `n_rows` at once; timestamps as ISO text of whole seconds."""
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        if len(set(names)) < len(names):
            twin = next(name for name in names if names.count(name) > 1)
            raise SchemaError(f"{path.name}: column {show(twin)} is there twice; expected distinct column names")
        layout.check_columns(names, path.name)
        places = layout.rename({name: place for place, name in enumerate(names)})
        for batch in file.iter_batches(n_rows):
            columns = [batch.column(place) for place in places.values()]
            yield _with_times_as_text(pa.RecordBatch.from_arrays(columns, names=list(places)))


@contextmanager
def _open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path.name}: no Parquet that can be read: {error}") from error


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Write timestamps as text: as Python values, Arrow would import pandas for them."""
    for unit_of in (_in_seconds, _as_text):
        types = [_map_timestamps(field.type, unit_of) for field in batch.schema]
        columns = [column.cast(kind, safe=False) for column, kind in zip(batch.columns, types, strict=True)]
        batch = pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
    return batch


def _map_timestamps(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return change(kind)
    if pa.types.is_list(kind):
        return pa.list_(_map_timestamps(kind.value_type, change))
    if pa.types.is_large_list(kind):
        return pa.large_list(_map_timestamps(kind.value_type, change))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _map_timestamps(field.type, change)) for field in kind])
    return kind


def _in_seconds(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp("s", "UTC" if kind.tz else None)


def _as_text(_: pa.DataType) -> pa.DataType:
    return pa.string()


def read_csv_cells(path: Path, layout: RowLayout) -> Iterator[tuple[int, list[str]]]:
    """Give our names, then the cells of the rows that are not blank, each with the line it ends on."""
    rows = _read_csv_rows(path, layout)
    line, names = next(rows, (1, []))
    if not names or len(set(names)) < len(names):
        raise SchemaError(f"{path.name}, line {line}: the header is {show(names)}; expected distinct column names")
    layout.check_columns(names, f"{path.name}, line {line}")
    places = layout.rename({name: place for place, name in enumerate(names)})
    yield line, list(places)
    for line, cells in rows:
        if len(cells) != len(names):
            raise SchemaError(f"{path.name}, line {line}: {len(cells)} cells; the header has {len(names)}")
        yield line, [cells[place] for place in places.values()]


def _read_csv_rows(path: Path, layout: RowLayout) -> Iterator[tuple[int, list[str]]]:
    with name_damage(path), open_text(path, "utf-8-sig") as text:
        header = text.readline()
    with name_damage(path), open_text(path, "utf-8-sig", errors="strict") as text:
        rows = csv.reader(text, strict=True, delimiter=layout.delimiter_of(path, header))
        try:
            yield from ((rows.line_num, cells) for cells in rows if cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise SchemaError(f"{path.name}, after line {rows.line_num}: no CSV in UTF-8: {error}") from error
