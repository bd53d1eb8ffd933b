"""Requests in files: JSON Lines and Parquet hold them nested, CSV and TSV as flat columns without history.

A CSV column is `user_id`, `datetime`, or the name of a user or context feature; an empty cell is not given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from serve.errors import SchemaError, name_nearest
from serve.packed_files import kind_suffix
from serve.requests import DERIVED, Request, parse_request, show
from serve.row_files import check_file, read_csv_cells, read_json_lines, read_record_batches
from serve.row_layout import AS_OURS, RowLayout
from serve.schema import Schema

Placed = tuple[str, Any]
"""Where a request stands in its file, and the request as it stands there."""

_ROWS_AT_ONCE = 4096


def read_requests(
    path: Path, schema: Schema, layout: RowLayout = AS_OURS, check: Callable[[Request], None] | None = None
) -> Iterator[Request]:
    """Read and check the requests of a file one by one, in constant memory.

    Args:
        path: of the file.
        schema: of the bundle.
        layout: of the file; its columns are the fields of a request, in CSV also features.
        check: raises a SchemaError for a request that cannot be answered; by default each can.

    Raises:
        SchemaError: a missing file, an unknown suffix, or a request that cannot be read; names file and line.
    """
    check_file(path)
    layout.check_suffix(path)
    return _parse_all(path.name, _READERS[kind_suffix(path)](path, schema, layout), schema, check)


def _parse_all(
    file: str, requests: Iterator[Placed], schema: Schema, check: Callable[[Request], None] | None
) -> Iterator[Request]:
    for place, raw in requests:
        try:
            request = parse_request(raw, schema)
            if check is not None:
                check(request)
        except SchemaError as error:
            raise SchemaError(f"{file}, {place}: {error}") from error
        yield request


def _read_json_lines(path: Path, _: Schema, layout: RowLayout) -> Iterator[Placed]:
    return ((f"line {number}", raw) for number, raw in read_json_lines(path, layout))


def _read_parquet(path: Path, _: Schema, layout: RowLayout) -> Iterator[Placed]:
    number = 0
    for batch in read_record_batches(path, _ROWS_AT_ONCE, layout):
        for raw in batch.to_pylist():
            number += 1
            yield f"row {number}", raw


def _read_csv(path: Path, schema: Schema, layout: RowLayout) -> Iterator[Placed]:
    rows = read_csv_cells(path, layout)
    line, names = next(rows)
    sections = _place_columns(names, schema, f"{path.name}, line {line}")
    is_number = {feature.name: feature.is_numeric for feature in schema.user_features + schema.context_features}
    for line, cells in rows:
        raw: dict[str, Any] = {}
        for name, section, cell in zip(names, sections, cells, strict=True):
            if cell.strip():
                fields = raw.setdefault(section, {}) if section else raw
                fields[name] = _read_number(cell) if is_number.get(name) else cell
        yield f"line {line}", raw


def _place_columns(names: list[str], schema: Schema, place: str) -> list[str]:
    """Return the field of a request that each column belongs in; empty for a field of its own."""
    sections = {"user_id": "", "datetime": ""}
    for section, features in (("features", schema.user_features), ("context", schema.context_features)):
        sections |= {feature.name: section for feature in features if feature.kind not in DERIVED}
    twins = {feature.name for feature in schema.user_features} & {f.name for f in schema.context_features}
    for name in names:
        if name in twins:
            raise SchemaError(f"{place}: '{name}' is a feature of user and of context; give JSON Lines")
        if name in ("history", "exclude", "filters"):
            raise SchemaError(f"{place}: '{name}' does not fit in CSV; give JSON Lines or Parquet")
        if name not in sections:
            raise SchemaError(f"{place}: unknown column {show(name)}; {name_nearest(name[:40], sections)}")
    return [sections[name] for name in names]


def _read_number(cell: str) -> float | str:
    """Return the number, or the text for `parse_request` to refuse."""
    try:
        return float(cell)
    except ValueError:
        return cell


_READERS: Mapping[str, Callable[[Path, Schema, RowLayout], Iterator[Placed]]] = {
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": _read_csv,
}
