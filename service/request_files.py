"""Read requests, items and filters from the files and options of a command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from datamodules.read import SAME_NAMES, TEXTS, Row, kind_of, read_rows
from serve.arrays import IdType
from serve.errors import SchemaError, name_nearest, show
from serve.kinds import Feature
from serve.requests import Filters, Request, parse_filters, parse_request
from serve.schema import Schema

ITEM_ID = "item_id"


def read_requests(
    path: Path,
    schema: Schema,
    columns: Mapping[str, str] = SAME_NAMES,
    check: Callable[[Request], None] | None = None,
) -> Iterator[Request]:
    """Read and check the requests of a file one by one.

    JSON Lines and Parquet hold them nested, CSV and TSV as flat columns without history:
    `user_id`, `datetime`, or the name of a user or context feature; an empty cell is not given.

    Args:
        path: the file.
        schema: of the bundle that answers.
        columns: our name -> name in the file, where they differ.
        check: may refuse a request that cannot be answered.

    Raises:
        SchemaError: the file cannot be read, or a request is bad: the message names its place.
    """
    for place, raw in read_rows(path, columns):
        try:
            fields = nest_cells(raw, schema) if kind_of(path) in TEXTS else raw
            request = parse_request(fields, schema)
            if check is not None:
                check(request)
        except SchemaError as error:
            raise SchemaError(f"{path.name}, {place}: {error}") from error
        yield request


def nest_cells(cells: Mapping[str, str | None], schema: Schema) -> dict[str, Any]:
    """Put the cells of a CSV row into the fields of a request."""
    request: dict[str, Any] = {}
    for name, cell in cells.items():
        side, feature = _find_feature(name, schema)
        if not cell or cell.isspace():
            continue
        fields = request.setdefault(side, {}) if side else request
        fields[name] = cell
        if feature is not None and feature.is_numeric:
            with suppress(ValueError):  # a text is refused later
                fields[name] = float(cell)

    return request


def _find_feature(name: str, schema: Schema) -> tuple[str, Feature | None]:
    """Return the field of a request that holds a column, or an empty text, and the feature."""
    if name in ("user_id", "datetime"):
        return "", None

    sides = {"features": schema.user_features, "context": schema.context_features}
    matches = []
    for side, features in sides.items():
        for feature in features:
            if feature.name == name and not feature.is_derived:
                matches.append((side, feature))

    if len(matches) != 1:
        raise SchemaError(
            f"column {show(name)} cannot be read; allowed in a table: user_id, datetime, single "
            "features of users and context; else give JSON Lines"
        )

    return matches[0]


def read_items(
    path: Path, schema: Schema, columns: Mapping[str, str] = SAME_NAMES
) -> Iterator[Row]:
    """Read the items of a file: place, `item_id` and the columns that features read."""
    wanted = {feature.column for feature in schema.item_features} | {ITEM_ID}
    for name in columns:
        if name not in wanted:
            raise SchemaError(
                f"columns: no feature of items reads '{name}'; {name_nearest(name, wanted)}"
            )

    for number, (place, raw) in enumerate(read_rows(path, columns)):
        if ITEM_ID not in raw:
            raise SchemaError(
                f"{path.name}, {place}: no '{ITEM_ID}'; name it with --columns {ITEM_ID}=COLUMN"
            )
        if number == 0 and len(wanted & raw.keys()) < min(len(wanted), 2):
            raise SchemaError(
                f"{path.name}, {place}: no column is a feature of items; allowed: {sorted(wanted)}"
            )
        yield f"{path.name}, {place}", {name: raw[name] for name in wanted & raw.keys()}


def read_filters(
    where: str | None, only: Path | None, at_most: Sequence[str], id_type: IdType
) -> Filters | None:
    """Read the filters of a command: an expression, a file with `item_id`, and `COLUMN=N` each."""
    limits: dict[str, int] = {}
    for option in at_most:
        column, _, number = option.rpartition("=")
        if not column or not number.isdecimal() or column in limits:
            raise SchemaError(
                f"--at-most is '{option}'; expected COLUMN=N, each column once, as in category=2"
            )
        limits[column] = int(number)

    ids = None if only is None else [raw.get(ITEM_ID) for _, raw in read_rows(only)]
    return parse_filters({"where": where, "only": ids, "at_most": limits}, id_type)
