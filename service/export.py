"""Answers and vectors in files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa

from serve.arrays import ids_to_arrow, to_arrow
from serve.errors import SchemaError, name_nearest
from serve.files import sync_folder, take_lock, write_file
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.requests import (
    Filters,
    Request,
    join_filters,
    parse_filters,
    parse_ids,
    parse_request,
    show,
)
from serve.schema import DERIVED, IdType, Schema
from serve.tables import (
    AS_OURS,
    ITEM_ID,
    TEXTS,
    Row,
    kind_of,
    open_table,
    read_rows,
    write_table,
)

PLAN = "_plan.json"


SUCCESS = "_SUCCESS"


ROWS_PER_SHARD = 65_536


_LOCK = ".lock"


_SHARDS = "part-*.parquet"


_OURS = re.compile(
    rf"({PLAN}|{SUCCESS}|part-\d{{5,}}\.parquet)(\.part)?|{re.escape(_LOCK)}"
)


_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|[+-]?inf", re.IGNORECASE
)


Side = Literal["user", "item"]


Encoded = tuple[
    Sequence[Any] | np.ndarray, np.ndarray
]  # ids of rows, None for an anonymous request, and vectors


def read_requests(
    path: Path,
    schema: Schema,
    columns: Mapping[str, str] = AS_OURS,
    check: Callable[[Request], None] | None = None,
) -> Iterator[Request]:
    """Read and check the requests of a file one by one; `check` may refuse one that cannot be answered."""
    rows = read_rows(path, columns)  # a file that cannot be read is refused at once
    is_flat = kind_of(path) in TEXTS

    def parse() -> Iterator[Request]:
        for place, raw in rows:
            try:
                request = parse_request(
                    nest_cells(raw, schema) if is_flat else raw, schema
                )
                if check is not None:
                    check(request)
            except SchemaError as error:
                raise SchemaError(f"{path.name}, {place}: {error}") from error
            yield request

    return parse()


def nest_cells(cells: Mapping[str, str], schema: Schema) -> dict[str, Any]:
    """Put the cells of a CSV row into the fields of a request."""
    raw: dict[str, Any] = {}
    sides = (("features", schema.user_features), ("context", schema.context_features))
    for name, cell in cells.items():
        found = [
            (side, one)
            for side, some in sides
            for one in some
            if one.name == name and one.kind not in DERIVED
        ]
        if len(found) != 1 and name not in ("user_id", "datetime"):
            allowed = "user_id, datetime, single features of users and context; else give JSON Lines"
            raise SchemaError(
                f"column {show(name)} cannot be read; allowed in a table: {allowed}"
            )
        if cell.strip():
            fields = raw.setdefault(found[0][0], {}) if found else raw
            is_number = (
                bool(found)
                and found[0][1].is_numeric
                and _NUMBER.fullmatch(cell.strip())
            )
            fields[name] = (
                float(cell) if is_number else cell
            )  # any other text is refused later
    return raw


def read_items(
    path: Path, schema: Schema, columns: Mapping[str, str] = AS_OURS
) -> Iterator[Row]:
    """Read the items of a file, each with `item_id` and the columns that features read."""
    wanted = {feature.column for feature in schema.item_features} | {ITEM_ID}
    for name in columns:
        if name not in wanted:
            raise SchemaError(
                f"columns: no feature of items reads '{name}'; {name_nearest(name, wanted)}"
            )
    is_first = True
    for place, raw in read_rows(path, columns):
        if not isinstance(raw, dict) or ITEM_ID not in raw:
            raise SchemaError(
                f"{path.name}, {place}: no '{ITEM_ID}'; name it with --columns {ITEM_ID}=COLUMN"
            )
        if is_first and len(wanted) > 1 and len(wanted & raw.keys()) < 2:
            raise SchemaError(
                f"{path.name}, {place}: no column is a feature of items; allowed: {sorted(wanted - {ITEM_ID})}"
            )
        is_first = False
        yield f"{path.name}, {place}", {name: raw[name] for name in wanted & raw.keys()}


def read_filters(
    where: str | None, only: Path | None, at_most: Sequence[str], id_type: IdType
) -> Filters | None:
    """Read the filters of a command: an expression, a file with `item_id`, and `COLUMN=N` each."""
    limits: dict[str, int] = {}
    for option in at_most:
        column, _, number = option.rpartition("=")
        if not (column and number.strip().isdecimal()) or column in limits:
            raise SchemaError(
                f"--at-most is '{option[:40]}'; expected COLUMN=N, each column once, as in category=2"
            )
        limits[column] = int(number.strip()[:18])
    ids = None if only is None else [raw.get(ITEM_ID) for _, raw in read_rows(only)]
    return parse_filters({"where": where, "only": ids, "at_most": limits}, id_type)


def add_filters(requests: Iterable[Request], filters: Filters) -> Iterator[Request]:
    """Give each request filters beside its own, as it is needed."""
    return (
        replace(one, filters=join_filters(filters, one.filters or Filters()))
        for one in requests
    )


def export_items(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    columns: Mapping[str, str] = AS_OURS,
) -> list[str]:
    """Export the vectors of a file of items, None: of the catalogue, as shards in a folder; return lines to say."""
    schema = recommender.bundle.schema
    vectors = recommender.bundle.vectors
    ids = recommender.bundle.items.column(ITEM_ID)

    def encode(some: list[Row]) -> Encoded:
        places = [place for place, _ in some]
        parsed = parse_ids(
            [raw[ITEM_ID] for _, raw in some],
            schema.item_id_type,
            lambda i: f"{places[i]}: {ITEM_ID}",
        )
        features = [
            {name: value for name, value in raw.items() if name != ITEM_ID}
            for _, raw in some
        ]
        try:
            return parsed, recommender.encode_items(features)
        except SchemaError as error:
            if len(some) == 1:
                raise SchemaError(f"{places[0]}: {error}") from error
            for one in some:  # find the row that fails
                encode([one])
            raise

    if rows is not None:
        source = _identify(rows, columns)
        return _export(
            recommender,
            "item",
            source,
            read_items(rows, schema, columns),
            encode,
            folder,
            overwrite,
        )

    def take(some: list[int]) -> Encoded:
        return ids.slice(some[0], len(some)).to_pylist(), vectors[some]

    return _export(
        recommender,
        "item",
        {"kind": "catalogue"},
        range(len(ids)),
        take,
        folder,
        overwrite,
    )


def export_users(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    columns: Mapping[str, str] = AS_OURS,
) -> list[str]:
    """Export user vectors, as `export_items` does; `rows` is a file of requests, None: all users with a profile."""
    profiles = recommender.profiles
    source: dict[str, Any] = {"kind": "profiles", "profiles": _fingerprint(profiles)}
    requests: Iterator[Request] = (
        Request(user_id=one) for one in profiles.user_ids.tolist()
    )
    if rows is not None:
        source = source | _identify(rows, columns)
        requests = read_requests(rows, recommender.bundle.schema, columns)
    elif not len(profiles):
        raise SchemaError(
            "there are no profiles: give their folder with --profiles, or requests with --rows"
        )

    def encode(some: list[Request]) -> Encoded:
        return [request.user_id for request in some], recommender.encode_users(some)

    return _export(recommender, "user", source, requests, encode, folder, overwrite)


def _identify(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    suffix = "".join(path.suffixes[-2:]).lower()
    return {
        "kind": "file",
        "suffix": suffix,
        "sha256": digest,
        "columns": dict(columns),
    }


def _fingerprint(profiles: Profiles) -> str:
    """Hash profiles, since the profile of a user decides their vector."""
    digest = hashlib.sha256()
    columns = {
        "user_id": profiles.user_ids,
        **profiles.features,
        "offsets": profiles.offsets,
    }
    for name, values in [*columns.items(), *profiles.history.columns().items()]:
        digest.update(f"{name} {values.dtype} {len(values)}\n".encode())
        for buffer in filter(None, to_arrow(values.ravel()).buffers()):
            digest.update(buffer)
    return digest.hexdigest()


def _export(
    recommender: Recommender,
    side: Side,
    source: Mapping[str, Any],
    rows: Iterable[Any],
    encode: Callable[[list[Any]], Encoded],
    folder: Path,
    overwrite: bool,
) -> list[str]:
    """Write rows shard by shard; those of a shard that is there already are read, but not encoded."""
    manifest = recommender.bundle.manifest
    schema = recommender.bundle.schema
    id_type = schema.user_id_type if side == "user" else schema.item_id_type
    plan = {
        "version": manifest.version,
        "side": side,
        "source": source,
        "rows_per_shard": ROWS_PER_SHARD,
    }
    with _open_folder(folder, plan, overwrite):
        n_rows = 0
        n_shards = 0
        remaining = iter(rows)
        while (some := list(islice(remaining, ROWS_PER_SHARD))) or not n_shards:
            path = folder / f"part-{n_shards:05d}.parquet"
            if not path.exists():
                ids, vectors = encode(some)
                lists = pa.FixedSizeListArray.from_arrays(
                    to_arrow(vectors.ravel()), manifest.dim
                )
                names = [f"{side}_id", "vector"]
                write_table(
                    path,
                    pa.Table.from_arrays(
                        [ids_to_arrow(ids, id_type), lists], names=names
                    ),
                )
            n_rows = n_rows + _count_rows(path)
            n_shards = n_shards + 1
        _finish(folder, n_shards, n_rows)
    return [f"{n_rows} {side} vectors: {folder}"]


def _finish(folder: Path, n_shards: int, n_rows: int) -> None:
    sync_folder(folder)  # the shards must be there before it is said
    write_file(folder / SUCCESS, _to_json({"shards": n_shards, "rows": n_rows}))
    sync_folder(folder)


def _count_rows(path: Path) -> int:
    with open_table(path) as file:
        return int(file.metadata.num_rows)


def _lock(folder: Path) -> BinaryIO:
    try:
        return take_lock(folder / _LOCK, wait=False)
    except BlockingIOError as error:
        raise SchemaError(
            f"another export writes into {folder}: wait for it, or choose another --out"
        ) from error


@contextmanager
def _open_folder(
    folder: Path, plan: Mapping[str, Any], overwrite: bool
) -> Iterator[None]:
    """Take a folder that is new or left by a killed export of the same plan; `overwrite` removes an export there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(folder)):
        if not _OURS.fullmatch(name):
            raise SchemaError(
                f"{folder} holds '{name}', which is of no export: choose another --out"
            )
    with _lock(folder):
        if overwrite:
            for path in (folder / SUCCESS, *folder.glob(_SHARDS), folder / PLAN):
                path.unlink(missing_ok=True)
            sync_folder(folder)
        if (folder / SUCCESS).exists():
            raise SchemaError(
                f"{folder} holds a finished export: choose another --out, or add --overwrite"
            )
        if any(folder.glob(_SHARDS)) and read_plan(folder) != json.loads(
            _to_json(plan)
        ):
            raise SchemaError(
                f"{folder} holds part of another export: choose another --out, or add --overwrite"
            )
        write_file(folder / PLAN, _to_json(plan))
        yield


def read_plan(folder: Path) -> dict[str, Any]:
    """Read what the shards of a folder are made from."""
    try:
        return dict(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SchemaError(
            f"{folder} holds no export with a {PLAN}: {error}; give the --out of `export`"
        ) from error


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def erase_from_table(path: Path, user_ids: Collection[str]) -> int:
    """Rewrite a Parquet file without the rows of users, given as texts, if it has any; return how many went."""
    with open_table(path) as file:
        if "user_id" not in file.schema_arrow.names:
            return 0
        table = file.read()
    ids = table.column("user_id").to_pylist()
    kept = [place for place, user_id in enumerate(ids) if str(user_id) not in user_ids]
    if len(kept) < len(ids):
        write_table(path, table.take(to_arrow(np.array(kept, dtype=np.int64))))
        sync_folder(path.parent)
    return len(ids) - len(kept)


def erase_from_export(folder: Path, user_ids: Collection[str]) -> int:
    """Rewrite the shards that hold any of the users, given as texts, one by one; return how many rows went."""
    with _lock(folder):
        for partial in folder.glob(f"{_SHARDS}.part"):
            partial.unlink()  # of a kill
        paths = sorted(folder.glob(_SHARDS))
        n_gone = sum(erase_from_table(path, user_ids) for path in paths)
        if (
            folder / SUCCESS
        ).exists():  # also where nothing went: a kill may have come before this
            _finish(folder, len(paths), sum(map(_count_rows, paths)))
        sync_folder(folder)
    return n_gone
