"""Users taken out of the folders that `serve export --side user` wrote."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from serve.durable import sync_folder
from serve.errors import SchemaError
from serve.recommendations import to_arrow
from serve.requests import Id
from serve.shards import PLAN, SUCCESS, Shards, count_rows, locked, open_shard, read_plan

_SHARDS = "part-*.parquet"


def check_export(folder: Path) -> None:
    """Refuse a folder that holds no export of users.

    Raises:
        SchemaError: it holds something else, or an export of items.
    """
    if not (folder / PLAN).exists():
        raise SchemaError(f"{folder} holds no export: give the --out of `serve export --side user`")
    side = read_plan(folder / PLAN).get("side")
    if side != "user":
        raise SchemaError(f"{folder} is an export of side {side!r}, which names no user; allowed: user")


def erase_from_export(folder: Path, user_ids: Collection[Id]) -> int:
    """Rewrite the shards that hold any of the users; return how many rows went.

    A shard is replaced in one step. Whoever is killed in between calls it again.

    Raises:
        SchemaError: an export is writing into the folder.
        BundleError: a shard is damaged.
        OSError: the disk is full or fails.
    """
    with locked(folder):
        for partial in folder.glob(f"{_SHARDS}.part"):
            partial.unlink()  # of a kill; nobody reads it
        shards, paths = Shards(folder), sorted(folder.glob(_SHARDS))
        n_gone = sum(_erase_from_shard(shards, path, user_ids) for path in paths)
        if n_gone:
            sync_folder(folder)
        if (folder / SUCCESS).exists():  # also where nothing went: a kill may have come before this
            shards.finish(len(paths), sum(map(count_rows, paths)))
    return n_gone


def _erase_from_shard(shards: Shards, path: Path, user_ids: Collection[Id]) -> int:
    with open_shard(path) as file:
        ids = file.read(["user_id"]).column("user_id").to_pylist()
        is_kept = np.array([user_id not in user_ids for user_id in ids], dtype=np.bool_)
        if is_kept.all():
            return 0
        kept: pa.Table = file.read().take(to_arrow(np.flatnonzero(is_kept)))
    shards.write(int(path.stem.removeprefix("part-")), kept)
    return int(np.count_nonzero(~is_kept))
