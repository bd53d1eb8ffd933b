"""Write answers and vectors to files, and erase users from exports.

An export of vectors is a folder of Parquet shards, and goes on where it was killed:

    _plan.json             what the shards are made from; another plan is refused
    part-00000.parquet     a shard, there as a whole or not at all
    _SUCCESS               written last: without it the export is not complete

The product of a user vector and an item vector is the item's score, but for what no vector holds:
the memory of an owned item, where repeats are allowed, and what items add to the scores of
others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from datamodules.read import SAME_NAMES, Row
from serve.arrays import Floats, ids_to_arrow, to_arrow
from serve.cells import parse_ids
from serve.errors import BundleError, SchemaError
from serve.files import replacing, sync_folder, take_lock, to_canonical_json, write_file
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.requests import Request
from service.request_files import ITEM_ID, read_items, read_requests

PLAN = "_plan.json"
SUCCESS = "_SUCCESS"
ROWS_PER_SHARD = 65_536
_LOCK = ".lock"
# What a spreadsheet may run: texts that begin like a formula, but for plain numbers.
_FORMULA = r"^[=@\t\r+-]"
_NUMBER = r"^[+-][0-9 .,()/-]*$"
_SHARDS = "part-*.parquet"

Side = Literal["user", "item"]
Encoded = tuple[
    Sequence[Any], Floats
]  # ids, None for an anonymous request, and vectors


# ---- tables to files


def write_tables(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write tables of one schema below each other as CSV or Parquet, by suffix, in one step."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise SchemaError(
            f"{path.name}: cannot write '{path.suffix}'; allowed: .csv, .parquet"
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as sink, _open_writer(suffix, sink, schema) as writer:
        for table in tables:
            writer.write_table(_defuse(table) if suffix == ".csv" else table)


def _defuse(table: pa.Table) -> pa.Table:
    """Put a quote before texts that a spreadsheet would run as a formula."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            texts = table[place]
            is_formula = pc.match_substring_regex(texts, _FORMULA)
            is_number = pc.match_substring_regex(texts, _NUMBER)
            quoted = pc.binary_join_element_wise("'", texts, "")
            is_quoted = pc.and_(is_formula, pc.invert(is_number))
            texts = pc.if_else(is_quoted, quoted, texts)
            table = table.set_column(place, field, texts.cast(field.type))

    return table


def _open_writer(suffix: str, sink: BinaryIO, schema: pa.Schema) -> Any:
    if suffix == ".parquet":
        return pq.ParquetWriter(sink, schema, compression="zstd")
    options = pa_csv.WriteOptions(quoting_header="none")
    return pa_csv.CSVWriter(sink, schema, write_options=options)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file in one step."""
    with replacing(path) as sink:
        pq.write_table(table, sink, compression="zstd")


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file of ours, and name it where it is none."""
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BundleError(
            f"{path} is damaged: {error}; remove it, then do this again"
        ) from error


# ---- vectors to shards


def export_items(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    columns: Mapping[str, str] = SAME_NAMES,
) -> str:
    """Export item vectors as shards in a folder.

    Args:
        recommender: encodes items by their features.
        rows: a file of items; None: the catalogue.
        folder: new, or left by a killed export of the same plan.
        overwrite: remove an export that is there.
        columns: our name -> name in the file of rows, where they differ.

    Returns:
        A line to print.

    Raises:
        SchemaError: a row cannot be read, or the folder holds another export.
        BlockingIOError: another process exports into the folder.
    """
    bundle = recommender.bundle
    if rows is not None:
        items = read_items(rows, bundle.schema, columns)
        id_type = bundle.schema.item_id_type
        source = identify(rows, columns)

        def encode(some: list[Row]) -> Encoded:
            ids = [raw.pop(ITEM_ID) for _, raw in some]
            parsed = parse_ids(ids, id_type, lambda row: f"{some[row][0]}: {ITEM_ID}")
            return parsed, _encode_items(recommender, some)

        return _export(recommender, "item", source, items, encode, folder, overwrite)

    catalogue = bundle.items.column(ITEM_ID)

    def take(rows: list[int]) -> Encoded:
        return catalogue.slice(rows[0], len(rows)).to_pylist(), bundle.vectors[rows]

    source = {"kind": "catalogue"}
    every_row = range(len(catalogue))
    return _export(recommender, "item", source, every_row, take, folder, overwrite)


def _encode_items(recommender: Recommender, rows: Sequence[Row]) -> Floats:
    """Encode the features of items, and name the row that fails."""
    try:
        return recommender.encode_items([features for _, features in rows])
    except SchemaError as error:
        if len(rows) == 1:
            raise SchemaError(f"{rows[0][0]}: {error}") from error
        for row in rows:
            _encode_items(recommender, [row])
        raise


def export_users(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    columns: Mapping[str, str] = SAME_NAMES,
) -> str:
    """Export user vectors as `export_items` does.

    `rows` is a file of requests; None: all users with a profile.
    """
    profiles = recommender.profiles
    source: dict[str, Any] = {"kind": "profiles", "profiles": fingerprint(profiles)}
    if rows is not None:
        source |= identify(rows, columns)
        requests = read_requests(rows, recommender.bundle.schema, columns)
    else:
        requests = list_users(profiles, "--rows")

    def encode(some: list[Request]) -> Encoded:
        return [request.user_id for request in some], recommender.encode_users(some)

    return _export(recommender, "user", source, requests, encode, folder, overwrite)


def list_users(profiles: Profiles, option: str) -> Iterator[Request]:
    """Return a request of each user with a profile; `option` would give other requests."""
    if not len(profiles):
        raise SchemaError(
            f"there are no profiles: give their folder with --profiles, or requests with {option}"
        )

    return (Request(user_id=user_id) for user_id in profiles.user_ids.tolist())


def identify(path: Path, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return what tells a file of rows from any other."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"kind": "file", "sha256": digest, "columns": dict(columns)}


def fingerprint(profiles: Profiles) -> str:
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
) -> str:
    """Write rows shard by shard; the rows of a shard that is there are read, but not encoded."""
    schema = recommender.bundle.schema
    id_type = schema.user_id_type if side == "user" else schema.item_id_type
    plan = {
        "version": recommender.bundle.manifest.version,
        "side": side,
        "source": source,
        "rows_per_shard": ROWS_PER_SHARD,
    }
    with exporting(folder, plan, overwrite):
        n_shards = 0
        remaining = iter(rows)

        while (some := list(islice(remaining, ROWS_PER_SHARD))) or not n_shards:
            path = folder / name_part(n_shards)
            if not path.exists():
                ids, vectors = encode(some)
                entries = to_arrow(vectors.ravel())
                lists = pa.FixedSizeListArray.from_arrays(entries, vectors.shape[1])
                columns = [ids_to_arrow(ids, id_type), lists]
                names = [f"{side}_id", "vector"]
                write_table(path, pa.Table.from_arrays(columns, names))
            n_shards += 1

        return f"{finish(folder)} {side} vectors: {folder}"


def name_part(number: int) -> str:
    """Name a shard by its number from 0."""
    return f"part-{number:05d}.parquet"


@contextmanager
def exporting(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> Iterator[None]:
    """Let one process at a time write shards of one plan into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with take_lock(folder / _LOCK, wait=False):
        _begin(folder, plan, overwrite)
        yield


def _begin(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> None:
    """Take a folder that is new, is left by a killed export of the plan, or may be overwritten."""
    if overwrite:
        for path in (folder / SUCCESS, *folder.glob(_SHARDS), folder / PLAN):
            path.unlink(missing_ok=True)
        sync_folder(folder)

    if (folder / SUCCESS).exists():
        raise SchemaError(
            f"{folder} holds a finished export: choose another --out, or add --overwrite"
        )

    has_shards = any(folder.glob(_SHARDS))
    if has_shards and read_plan(folder) != json.loads(to_canonical_json(plan)):
        raise SchemaError(
            f"{folder} holds part of another export: choose another --out, or add --overwrite"
        )

    write_file(folder / PLAN, to_canonical_json(plan))


def finish(folder: Path) -> int:
    """Say that an export is complete; return its number of rows."""
    n_rows = 0
    paths = list(folder.glob(_SHARDS))
    for path in paths:
        with open_table(path) as file:
            n_rows += file.metadata.num_rows

    sync_folder(folder)  # the shards must be there before it is said
    write_file(
        folder / SUCCESS, to_canonical_json({"shards": len(paths), "rows": n_rows})
    )
    sync_folder(folder)
    return n_rows


def read_plan(folder: Path) -> dict[str, Any]:
    """Read what the shards of a folder are made from."""
    try:
        return dict(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SchemaError(
            f"{folder} holds no export with a {PLAN}: {error}; give the --out of `export`"
        ) from error


# ---- erasing


def erase_from_table(path: Path, user_ids: Collection[str]) -> int:
    """Rewrite a Parquet file without the rows of users, if it has any.

    Args:
        path: the file.
        user_ids: the users, as texts.

    Returns:
        The number of rows that went.
    """
    with open_table(path) as file:
        if "user_id" not in file.schema_arrow.names:
            return 0
        table = file.read()

    ids = table.column("user_id").to_pylist()
    is_kept = [str(user_id) not in user_ids for user_id in ids]
    remaining = table.filter(to_arrow(np.array(is_kept, bool)))
    if len(remaining) < len(table):
        write_table(path, remaining)
        sync_folder(path.parent)

    return len(table) - len(remaining)


def erase_from_export(folder: Path, user_ids: Collection[str]) -> int:
    """Rewrite the shards that hold any of the users, given as texts; return how many rows went."""
    with take_lock(folder / _LOCK, wait=False):
        for partial in folder.glob(f"{_SHARDS}.part"):
            partial.unlink()  # of a kill
        paths = sorted(folder.glob(_SHARDS))
        n_erased = sum(erase_from_table(path, user_ids) for path in paths)
        if (folder / SUCCESS).exists():
            finish(folder)  # also where no row went: a kill may have come before this
        sync_folder(folder)

    return n_erased
