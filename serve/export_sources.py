"""What can be exported: the catalogue, items of a file, users with a profile, requests of a file; in blocks of rows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from serve.errors import SchemaError
from serve.index import Floats
from serve.item_files import ITEM_ID, ItemFile, ItemRows
from serve.packed_files import kind_suffix
from serve.profiles import Profiles
from serve.recommendations import to_arrow, to_numpy
from serve.recommender import Recommender
from serve.request_files import read_requests
from serve.requests import Id, Request, parse_ids
from serve.row_files import check_file, count_rows
from serve.row_layout import RowLayout
from serve.unseen import Unseen

Ids = Sequence[Id | None] | np.ndarray
"""Of some rows; None for an anonymous request."""


@dataclass(frozen=True)
class Block:
    """Rows that are encoded only if their shard is not there yet."""

    n_rows: int
    encode: Callable[[], tuple[Ids, Floats]]
    """Returns ids and vectors (n_rows, W)."""


@dataclass(frozen=True)
class Source:
    """Rows to export."""

    identity: Mapping[str, Any]
    """The same for the same rows, by their content."""
    n_rows: int
    """For the progress bar; about, if the rows stand in a text file."""
    blocks: Iterable[Block]
    remarks: Callable[[], list[str]] = list
    """What to say when the blocks were read."""


def catalogue_items(recommender: Recommender, rows_at_once: int) -> Source:
    """Take the items of the bundle with the vectors it has of them."""
    vectors = recommender.bundle.vectors
    ids = to_numpy(recommender.bundle.items.column(ITEM_ID))

    def block(part: slice) -> Block:
        return Block(len(ids[part]), lambda: (ids[part], vectors[part]))

    return Source({"kind": "catalogue"}, len(ids), map(block, _parts(len(ids), rows_at_once)))


def file_items(recommender: Recommender, path: Path, rows_at_once: int, layout: RowLayout) -> Source:
    """Take the items of a file, to be placed by their features.

    Raises:
        SchemaError: a missing file or an unknown suffix; later, while the blocks are read and encoded, a row
            that is no item, by file and place.
    """
    items = ItemFile(path, recommender.bundle.schema, layout)

    def block(rows: ItemRows) -> Block:
        return Block(len(rows), lambda: _encode_items(recommender, items, rows))

    before, identity = path.stat(), _identify(path, layout)
    blocks = map(block, items.blocks(rows_at_once))
    return Source(identity, count_rows(path), _unchanged(path, before, blocks), items.remarks)


def profile_users(recommender: Recommender, rows_at_once: int) -> Source:
    """Take all users that have a profile.

    Raises:
        SchemaError: there are none.
    """
    profiles = recommender.profiles
    if not len(profiles):
        raise SchemaError("there are no profiles: give their folder with --profiles, or requests with --rows")
    requests = (Request(user_id=user_id) for user_id in profiles.user_ids.tolist())
    identity = {"kind": "profiles", "profiles": _fingerprint(profiles)}
    return Source(identity, len(profiles), _request_blocks(recommender, requests, rows_at_once))


def file_users(recommender: Recommender, path: Path, rows_at_once: int, layout: RowLayout) -> Source:
    """Take the requests of a file.

    Raises:
        SchemaError: as `file_items`.
    """
    unseen = Unseen(recommender.bundle.schema, recommender.profiles)
    requests = unseen.watch(read_requests(path, recommender.bundle.schema, layout))
    before, identity = path.stat(), _identify(path, layout) | {"profiles": _fingerprint(recommender.profiles)}
    blocks = _request_blocks(recommender, requests, rows_at_once)
    return Source(identity, count_rows(path), _unchanged(path, before, blocks), unseen.notes)


def _parts(n_rows: int, rows_at_once: int) -> Iterator[slice]:
    return (slice(start, start + rows_at_once) for start in range(0, n_rows, rows_at_once))


def _request_blocks(recommender: Recommender, requests: Iterator[Request], rows_at_once: int) -> Iterator[Block]:
    def block(some: list[Request]) -> Block:
        return Block(len(some), lambda: ([request.user_id for request in some], recommender.encode_users(some)))

    while some := list(islice(requests, rows_at_once)):
        yield block(some)


def _encode_items(recommender: Recommender, items: ItemFile, rows: ItemRows) -> tuple[Ids, Floats]:
    features = {name: values for name, values in rows.columns.items() if name != ITEM_ID}
    column = rows.columns[ITEM_ID]
    values = column.tolist() if isinstance(column, np.ndarray) else column
    ids = parse_ids(values, recommender.bundle.schema.item_id_type, _name_id(items, rows))
    try:
        return ids, recommender.encode_item_columns(features, len(rows))
    except SchemaError:
        _find_fault(recommender, items, rows, features)
        raise


def _name_id(items: ItemFile, rows: ItemRows) -> Callable[[int], str]:
    return lambda index: f"{items.name_place(rows.places[index])}: {ITEM_ID}"


def _find_fault(recommender: Recommender, items: ItemFile, rows: ItemRows, features: Mapping[str, Any]) -> None:
    """Encode a block row by row, and say which one it is that fails."""
    for index, place in enumerate(rows.places):
        try:
            recommender.encode_item_columns({name: column[index : index + 1] for name, column in features.items()}, 1)
        except SchemaError as error:
            raise SchemaError(f"{items.name_place(place)}: {error}") from error


def _identify(path: Path, layout: RowLayout) -> dict[str, Any]:
    check_file(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        about = {"kind": "file", "suffix": kind_suffix(path), "sha256": digest, "size": file.tell()}
        return about | layout.identity()


def _unchanged(path: Path, before: os.stat_result, blocks: Iterator[Block]) -> Iterator[Block]:
    """Pass the blocks of a file on, and refuse to end if it is no longer as it was before it was hashed."""
    yield from blocks
    after = path.stat()
    if (after.st_ino, after.st_size, after.st_mtime_ns) != (before.st_ino, before.st_size, before.st_mtime_ns):
        raise SchemaError(f"{path.name} changed while it was read: export it again with --overwrite")


def _fingerprint(profiles: Profiles) -> str:
    """Hash profiles, since what is known of a user changes her vector."""
    digest = hashlib.sha256()
    columns = {"user_id": profiles.user_ids, **profiles.features, "offsets": profiles.offsets}
    for name, values in [*columns.items(), *profiles.history.columns().items()]:
        digest.update(f"{name} {values.dtype} {len(values)}\n".encode())
        for buffer in filter(None, to_arrow(values).buffers()):
            digest.update(buffer)
    return digest.hexdigest()
