"""Vectors of many users or items as Parquet shards: constant memory, and a killed export goes on where it stopped.

The product of a user vector and an item vector is the item's score, but for what no vector holds: the memory of an
owned item, where repeats are allowed, and what items add to their neighbours (`serve.neighbours`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa

from serve.command_line import Progress
from serve.export_sources import Block, Source, catalogue_items, file_items, file_users, profile_users
from serve.recommendations import ids_to_arrow, to_arrow
from serve.recommender import Recommender
from serve.requests import Id
from serve.row_layout import AS_OURS, RowLayout
from serve.schema import IdType
from serve.shards import Plan, Shards, Side

ROWS_PER_SHARD = 65_536
_ROWS_AT_ONCE = 4096  # a divisor of a shard


def export_items(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    stream: TextIO,
    layout: RowLayout = AS_OURS,
) -> list[str]:
    """Export item vectors.

    Args:
        recommender: of the bundle.
        rows: file of items with `item_id` and raw features; None: the catalogue.
        folder: of the shards.
        overwrite: replace an export that is there.
        stream: gets a progress bar if it is a terminal.
        layout: of the file of rows.

    Returns:
        Lines to say: how many vectors there are, and what was not read.

    Raises:
        SchemaError: a row that cannot be encoded, by file and place, or a folder that holds something else. Shards
            that are finished stay.
    """
    if rows is None:
        source = catalogue_items(recommender, _ROWS_AT_ONCE)
    else:
        source = file_items(recommender, rows, _ROWS_AT_ONCE, layout)
    return _export(recommender, "item", source, folder, overwrite, stream)


def export_users(
    recommender: Recommender,
    rows: Path | None,
    folder: Path,
    overwrite: bool,
    stream: TextIO,
    layout: RowLayout = AS_OURS,
) -> list[str]:
    """Export user vectors, as `export_items` does.

    Args:
        recommender: of the bundle, with profiles.
        rows: file of requests; None: a request of each user that has a profile.
        folder: of the shards.
        overwrite: replace an export that is there.
        stream: gets a progress bar if it is a terminal.
        layout: of the file of rows.
    """
    if rows is None:
        source = profile_users(recommender, _ROWS_AT_ONCE)
    else:
        source = file_users(recommender, rows, _ROWS_AT_ONCE, layout)
    return _export(recommender, "user", source, folder, overwrite, stream)


def _export(
    recommender: Recommender, side: Side, source: Source, folder: Path, overwrite: bool, stream: TextIO
) -> list[str]:
    manifest, schema = recommender.bundle.manifest, recommender.bundle.schema
    plan = Plan(manifest.space_id, manifest.version, side, source.identity, ROWS_PER_SHARD)
    id_type = schema.user_id_type if side == "user" else schema.item_id_type
    with Shards.open(folder, plan, overwrite) as shards, closing(Progress(source.n_rows, stream)) as progress:
        n_rows = n_shards = 0
        for group in _groups(source.blocks):
            if shards.has(n_shards):
                progress.skip(sum(block.n_rows for block in group))
                n_here = shards.count_rows(n_shards)  # fewer where users were forgotten since
            else:
                table = _encode_all(group, f"{side}_id", id_type, recommender.bundle.vectors.shape[1], progress)
                shards.write(n_shards, table)
                n_here = table.num_rows
            n_rows, n_shards = n_rows + n_here, n_shards + 1
        shards.finish(n_shards, n_rows)
    return [f"{n_rows} {side} vectors: {folder}", *source.remarks()]


def _groups(blocks: Iterable[Block]) -> Iterator[Iterator[Block]]:
    """Deal blocks to shards; a shard's blocks must be taken before the next shard's. At least one shard."""
    remaining = iter(blocks)
    first = next(remaining, None)
    if first is None:
        yield iter(())
    while first is not None:
        yield chain([first], islice(remaining, ROWS_PER_SHARD // _ROWS_AT_ONCE - 1))
        first = next(remaining, None)


def _encode_all(blocks: Iterable[Block], id_name: str, id_type: IdType, width: int, progress: Progress) -> pa.Table:
    ids: list[Id | None] = []
    vectors = [np.empty((0, width), dtype=np.float32)]
    for block in blocks:
        some_ids, some_vectors = block.encode()
        ids.extend(some_ids)
        vectors.append(some_vectors)
        progress.advance(block.n_rows)
    lists = pa.FixedSizeListArray.from_arrays(to_arrow(np.concatenate(vectors).ravel()), width)
    return pa.Table.from_arrays([ids_to_arrow(ids, id_type), lists], names=[id_name, "vector"])
