"""Requests in files: JSON Lines and Parquet hold them nested, CSV as flat columns without history.

A CSV column is `user_id`, `datetime`, or the name of a user or context feature; an empty cell is not given.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import SchemaError, name_nearest
from serve.requests import DERIVED, Request, parse_request, show
from serve.schema import Schema

Placed = tuple[str, Any]
"""Where a request stands in its file, and the request as it stands there."""

_ROWS_AT_ONCE = 4096


def read_requests(path: Path, schema: Schema) -> Iterator[Request]:
    """Read and check the requests of a file one by one, in constant memory.

    Raises:
        SchemaError: a missing file, an unknown suffix, or a request that cannot be read; names file and line.
    """
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise SchemaError(f"{path.name}: cannot read '{path.suffix}'; allowed: {', '.join(_READERS)}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    return _parse_all(path.name, read(path, schema), schema)


def _parse_all(file: str, requests: Iterator[Placed], schema: Schema) -> Iterator[Request]:
    for place, raw in requests:
        try:
            request = parse_request(raw, schema)
        except SchemaError as error:
            raise SchemaError(f"{file}, {place}: {error}") from error
        yield request


def _read_json_lines(path: Path, schema: Schema) -> Iterator[Placed]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"line {number}", _read_json(line, f"{path.name}, line {number}")


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


def _read_parquet(path: Path, schema: Schema) -> Iterator[Placed]:
    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                for raw in _with_times_as_text(batch).to_pylist():
                    number += 1
                    yield f"row {number}", raw
    except (pa.ArrowException, OSError) as error:
        raise SchemaError(f"{path.name}: no Parquet that can be read: {error}") from error


def _with_times_as_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Write timestamps as ISO text, whole seconds: as Python values, Arrow would import pandas for them."""
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


def _read_csv(path: Path, schema: Schema) -> Iterator[Placed]:
    rows = _read_rows(path)
    line, names = next(rows, (1, []))
    sections = _place_columns(names, schema, f"{path.name}, line {line}")
    is_number = {feature.name: feature.is_numeric for feature in schema.user_features + schema.context_features}
    for line, cells in rows:
        if len(cells) != len(names):
            raise SchemaError(f"{path.name}, line {line}: {len(cells)} cells; the header has {len(names)}")
        raw: dict[str, Any] = {}
        for name, section, cell in zip(names, sections, cells, strict=True):
            if cell.strip():
                fields = raw.setdefault(section, {}) if section else raw
                fields[name] = _read_number(cell) if is_number.get(name) else cell
        yield f"line {line}", raw


def _read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Give the rows that are not blank, each with the line it ends on."""
    with path.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        try:
            yield from ((rows.line_num, cells) for cells in rows if cells)
        except (csv.Error, UnicodeDecodeError) as error:
            raise SchemaError(f"{path.name}, after line {rows.line_num}: no CSV in UTF-8: {error}") from error


def _place_columns(names: list[str], schema: Schema, place: str) -> list[str]:
    """Return the field of a request that each column belongs in; empty for a field of its own."""
    sections = {"user_id": "", "datetime": ""}
    for section, features in (("features", schema.user_features), ("context", schema.context_features)):
        sections |= {feature.name: section for feature in features if feature.kind not in DERIVED}
    twins = {feature.name for feature in schema.user_features} & {f.name for f in schema.context_features}
    for name in names:
        if name in twins:
            raise SchemaError(f"{place}: '{name}' is a feature of user and of context; give JSON Lines")
        if name in ("history", "exclude"):
            raise SchemaError(f"{place}: '{name}' does not fit in CSV; give JSON Lines or Parquet")
        if name not in sections:
            raise SchemaError(f"{place}: unknown column {show(name)}; {name_nearest(name[:40], sections)}")
    if not names or len(set(names)) < len(names):
        raise SchemaError(f"{place}: the header is {show(names)}; expected distinct column names")
    return [sections[name] for name in names]


def _read_number(cell: str) -> float | str:
    """Return the number, or the text for `parse_request` to refuse."""
    try:
        return float(cell)
    except ValueError:
        return cell


_READERS: Mapping[str, Callable[[Path, Schema], Iterator[Placed]]] = {
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
