"""Vectors of many users or items as Parquet shards: constant memory, and a killed export goes on where it stopped.

    _plan.json             what the shards are made from; another plan is refused
    part-00000.parquet     a shard, there as a whole or not at all
    _SUCCESS               written last: without it the export is not complete

The product of a user vector and an item vector is the item's score, but for what no vector holds: the memory of an
owned item, where repeats are allowed, and what items add to the scores of others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.durable import sync_folder, take_lock, write_file
from serve.encode import ids_to_arrow, to_arrow, to_numpy
from serve.errors import BundleError, SchemaError
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.requests import Id, Request, parse_ids
from serve.tables import AS_OURS, ITEM_ID, ItemFile, ItemRows, RowLayout, read_requests

PLAN = "_plan.json"
SUCCESS = "_SUCCESS"
ROWS_PER_SHARD = 65_536
_ROWS_AT_ONCE = 4096  # a divisor of a shard
_LOCK = ".lock"
_SHARDS = "part-*.parquet"
_OURS = re.compile(rf"({PLAN}|{SUCCESS}|part-\d{{5,}}\.parquet)(\.part)?|{re.escape(_LOCK)}")

Side = Literal["user", "item"]
Floats = NDArray[np.float32]
Encoded = tuple[Sequence[Id | None] | np.ndarray, Floats]
"""Ids of some rows, None for an anonymous request, and their vectors."""


@dataclass(frozen=True)
class Source:
    """Rows to export, in blocks that are encoded only if their shard is not there yet."""

    identity: Mapping[str, Any]
    """The same for the same rows, by their content."""
    blocks: Iterator[Any]
    """Each with a length."""
    encode: Callable[[Any], Encoded]
    remarks: Callable[[], list[str]] = list
    """Lines to say when the blocks were read."""


def export_items(
    recommender: Recommender, rows: Path | None, folder: Path, overwrite: bool, layout: RowLayout = AS_OURS
) -> list[str]:
    """Export item vectors.

    Args:
        recommender: of the bundle.
        rows: file of items with `item_id` and raw features; None: the catalogue.
        folder: of the shards.
        overwrite: replace an export that is there.
        layout: of the file of rows.

    Returns:
        Lines to say: how many vectors there are, and what was not read.

    Raises:
        SchemaError: a row that cannot be encoded, by file and place, or a folder that holds something else. Shards
            that are finished stay.
    """
    source = _catalogue(recommender) if rows is None else _file_of_items(recommender, rows, layout)
    return _export(recommender, "item", source, folder, overwrite)


def export_users(
    recommender: Recommender, rows: Path | None, folder: Path, overwrite: bool, layout: RowLayout = AS_OURS
) -> list[str]:
    """Export user vectors, as `export_items` does; `rows` is a file of requests, None: all users with a profile."""
    profiles = recommender.profiles
    identity: dict[str, Any] = {"profiles": _fingerprint(profiles)}
    if rows is not None:
        requests = _unchanged(rows, read_requests(rows, recommender.bundle.schema, layout))
        identity |= _identify(rows, layout)
    elif len(profiles):
        requests = (Request(user_id=user_id) for user_id in profiles.user_ids.tolist())
        identity["kind"] = "profiles"
    else:
        raise SchemaError("there are no profiles: give their folder with --profiles, or requests with --rows")

    def encode(some: list[Request]) -> Encoded:
        return [request.user_id for request in some], recommender.encode_users(some)

    return _export(recommender, "user", Source(identity, _in_blocks(requests), encode), folder, overwrite)


def _catalogue(recommender: Recommender) -> Source:
    """Take the items of the bundle with their vectors in it."""
    vectors, ids = recommender.bundle.vectors, to_numpy(recommender.bundle.items.column(ITEM_ID))

    def encode(rows: range) -> Encoded:
        part = slice(rows.start, rows.stop)
        return ids[part], vectors[part]

    starts = range(0, len(ids), _ROWS_AT_ONCE)
    blocks = (range(start, min(start + _ROWS_AT_ONCE, len(ids))) for start in starts)
    return Source({"kind": "catalogue"}, blocks, encode)


def _file_of_items(recommender: Recommender, path: Path, layout: RowLayout) -> Source:
    """Take the items of a file, to be placed by their features."""
    items = ItemFile(path, recommender.bundle.schema, layout)
    id_type = recommender.bundle.schema.item_id_type

    def encode(rows: ItemRows) -> Encoded:
        features = {name: values for name, values in rows.columns.items() if name != ITEM_ID}
        ids = parse_ids(rows.columns[ITEM_ID], id_type, lambda index: f"{rows.places[index]}: {ITEM_ID}")
        try:
            return ids, recommender.encode_item_columns(features, len(rows))
        except SchemaError:
            for index, place in enumerate(rows.places):  # find the row that fails
                try:
                    recommender.encode_item_columns({name: [column[index]] for name, column in features.items()}, 1)
                except SchemaError as error:
                    raise SchemaError(f"{place}: {error}") from error
            raise

    return Source(_identify(path, layout), _unchanged(path, items.blocks(_ROWS_AT_ONCE)), encode, items.remarks)


def _in_blocks(requests: Iterator[Request]) -> Iterator[list[Request]]:
    while some := list(islice(requests, _ROWS_AT_ONCE)):
        yield some


def _identify(path: Path, layout: RowLayout) -> dict[str, Any]:
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"delimiter": layout.delimiter, "columns": dict(layout.columns)}
    suffix = "".join(path.suffixes[-2:]).lower()
    return {"kind": "file", "suffix": suffix, "sha256": digest, **{name: one for name, one in about.items() if one}}


def _unchanged(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    """Pass on what is read of a file, and refuse to end if it is no longer as it was before it was hashed."""
    before = path.stat() if path.exists() else None

    def read() -> Iterator[Any]:
        yield from rows
        after = path.stat()
        if before is None or (after.st_ino, after.st_mtime_ns) != (before.st_ino, before.st_mtime_ns):
            raise SchemaError(f"{path.name} changed while it was read: export it again with --overwrite")

    return read()


def _fingerprint(profiles: Profiles) -> str:
    """Hash profiles, since the profile of a user decides their vector."""
    digest = hashlib.sha256()
    columns = {"user_id": profiles.user_ids, **profiles.features, "offsets": profiles.offsets}
    for name, values in [*columns.items(), *profiles.history.columns().items()]:
        digest.update(f"{name} {values.dtype} {len(values)}\n".encode())
        for buffer in filter(None, to_arrow(values.ravel()).buffers()):
            digest.update(buffer)
    return digest.hexdigest()


def _export(recommender: Recommender, side: Side, source: Source, folder: Path, overwrite: bool) -> list[str]:
    manifest, schema = recommender.bundle.manifest, recommender.bundle.schema
    id_type = schema.user_id_type if side == "user" else schema.item_id_type
    plan = {
        "space_id": manifest.space_id,
        "version": manifest.version,
        "side": side,
        "source": dict(source.identity),
        "rows_per_shard": ROWS_PER_SHARD,
    }
    with _open_folder(folder, plan, overwrite):
        n_rows = n_shards = 0
        first = next(source.blocks, None)
        while first is not None or not n_shards:
            path = _shard(folder, n_shards)
            blocks = () if first is None else (first, *islice(source.blocks, ROWS_PER_SHARD // _ROWS_AT_ONCE - 1))
            if not path.exists():
                encoded = list(map(source.encode, blocks))
                ids = [one for ids, _ in encoded for one in ids]
                vectors = [np.empty((0, manifest.dim), np.float32), *(some for _, some in encoded)]
                lists = pa.FixedSizeListArray.from_arrays(to_arrow(np.concatenate(vectors).ravel()), manifest.dim)
                names = [f"{side}_id", "vector"]
                _write_shard(path, pa.Table.from_arrays([ids_to_arrow(ids, id_type), lists], names=names))
            n_rows, n_shards = n_rows + count_rows(path), n_shards + 1
            first = next(source.blocks, None)
        _finish(folder, n_shards, n_rows)
    return [f"{n_rows} {side} vectors: {folder}", *source.remarks()]


def _shard(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _write_shard(path: Path, table: pa.Table) -> None:
    """Write a shard: ids, then vectors, which do not compress."""
    ids, vectors = table.column_names
    sink = pa.BufferOutputStream()
    options = {"use_dictionary": [ids], "write_statistics": [ids], "compression": {ids: "zstd", vectors: "none"}}
    pq.write_table(table, sink, **options)
    write_file(path, memoryview(sink.getvalue()))


def _finish(folder: Path, n_shards: int, n_rows: int) -> None:
    sync_folder(folder)  # the shards must be there before it is said
    write_file(folder / SUCCESS, _to_json({"shards": n_shards, "rows": n_rows}))
    sync_folder(folder)


@contextmanager
def open_shard(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a finished shard.

    Raises:
        BundleError: it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; remove it, and export anew") from error


def count_rows(path: Path) -> int:
    """Return how many rows a finished shard has."""
    with open_shard(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        lock = take_lock(folder / _LOCK, wait=False)
    except BlockingIOError as error:
        raise SchemaError(f"another export writes into {folder}: wait for it, or choose another --out") from error
    with lock:
        yield


@contextmanager
def _open_folder(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> Iterator[None]:
    """Take a folder that is new or left by a killed export of the same plan; `overwrite` removes an export there.

    Raises:
        SchemaError: the folder holds a finished export, one of another plan or other files, or another export
            writes into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in sorted(os.listdir(folder)):
        if not _OURS.fullmatch(name):
            raise SchemaError(f"{folder} holds '{name}', which is of no export: choose another --out")
    with _locked(folder):
        if overwrite:
            for path in (folder / SUCCESS, *folder.glob(_SHARDS), folder / PLAN):
                path.unlink(missing_ok=True)
            sync_folder(folder)
        if (folder / SUCCESS).exists():
            raise SchemaError(f"{folder} holds a finished export: choose another --out, or add --overwrite")
        if any(folder.glob(_SHARDS)):
            there = read_plan(folder)
            for name, value in plan.items():
                if there.get(name) != value:
                    got = f"{name} {json.dumps(there.get(name))}, this one {json.dumps(value)}"
                    advice = "choose another --out, or --overwrite"
                    raise SchemaError(f"{folder} holds part of another export, of {got}: {advice}")
        write_file(folder / PLAN, _to_json(plan))
        yield


def read_plan(folder: Path) -> dict[str, Any]:
    """Read what the shards of a folder are made from.

    Raises:
        SchemaError: the file is missing or no plan.
    """
    path = folder / PLAN
    try:
        plan: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path} is no plan of an export: {error}; choose another --out, or --overwrite") from error
    if not isinstance(plan, dict):
        raise SchemaError(f"{path} is no plan of an export: choose another --out, or --overwrite")
    return plan


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def check_user_export(folder: Path) -> None:
    """Refuse a folder that holds no export of users.

    Raises:
        SchemaError: it holds something else, or an export of items.
    """
    if not (folder / PLAN).exists():
        raise SchemaError(f"{folder} holds no export: give the --out of `serve export --side user`")
    side = read_plan(folder).get("side")
    if side != "user":
        raise SchemaError(f"{folder} is an export of side {side!r}, which names no user; allowed: user")


def erase_from_export(folder: Path, user_ids: Collection[str]) -> int:
    """Rewrite the shards that hold any of the users, given as texts; return how many rows went.

    A shard is replaced in one step. Whoever is killed in between calls it again.

    Raises:
        SchemaError: an export is writing into the folder.
        BundleError: a shard is damaged.
        OSError: the disk is full or fails.
    """
    n_gone = 0
    with _locked(folder):
        for partial in folder.glob(f"{_SHARDS}.part"):
            partial.unlink()  # of a kill
        paths = sorted(folder.glob(_SHARDS))
        for path in paths:
            with open_shard(path) as file:
                ids = file.read(["user_id"]).column("user_id").to_pylist()
                kept = [place for place, user_id in enumerate(ids) if str(user_id) not in user_ids]
                table = file.read().take(to_arrow(np.array(kept, dtype=np.int64))) if len(kept) < len(ids) else None
            if table is not None:
                _write_shard(path, table)
            n_gone += len(ids) - len(kept)
        if (folder / SUCCESS).exists():  # also where nothing went: a kill may have come before this
            _finish(folder, len(paths), sum(map(count_rows, paths)))
        sync_folder(folder)
    return n_gone
