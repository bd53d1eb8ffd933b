"""A folder of Parquet shards that a killed writer can go on with.

    _plan.json             what the shards are made from; another plan is refused
    part-00000.parquet     a shard, there as a whole or not at all
    _SUCCESS               written last: without it the export is not complete

Readers of Parquet folders leave out names that begin with `_`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from serve.durable import sync_folder, write_file
from serve.errors import BundleError, SchemaError

PLAN = "_plan.json"
SUCCESS = "_SUCCESS"

_OURS = re.compile(rf"({PLAN}|{SUCCESS}|part-\d{{5,}}\.parquet)(\.part)?")

Side = Literal["user", "item"]


@dataclass(frozen=True)
class Plan:
    """What an export is made from: the same plan gives the same shards."""

    space_id: str
    version: str
    """Of the bundle."""
    side: Side
    source: Mapping[str, Any]
    """Kind and content of what is encoded, by hash."""
    rows_per_shard: int


class Shards:
    """The shards of one plan in a folder that nobody else writes into meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    @contextmanager
    def open(cls, folder: Path, plan: Plan, overwrite: bool) -> Iterator[Shards]:
        """Take the folder, new or left by a killed export of the same plan.

        Args:
            folder: made if need be.
            plan: of this export.
            overwrite: remove what an export, finished or not, left there.

        Raises:
            SchemaError: the folder holds a finished export, one of another plan or other files, or another
                export writes into it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            _check_strangers(folder)
            if overwrite:
                _clear(folder)
            _check_plan(folder, plan)
            write_file(folder / PLAN, _to_json(plan))
            yield cls(folder)

    def has(self, number: int) -> bool:
        """Tell whether a shard is finished."""
        return self._path(number).exists()

    def count_rows(self, number: int) -> int:
        """Return how many rows a finished shard has."""
        return count_rows(self._path(number))

    def write(self, number: int, table: pa.Table) -> None:
        """Write a shard: ids, then vectors, which do not compress."""
        ids, vectors = table.column_names
        sink = pa.BufferOutputStream()
        options = {"use_dictionary": [ids], "write_statistics": [ids], "compression": {ids: "zstd", vectors: "none"}}
        pq.write_table(table, sink, **options)
        write_file(self._path(number), memoryview(sink.getvalue()))

    def finish(self, n_shards: int, n_rows: int) -> None:
        """Say that all shards are there."""
        sync_folder(self.folder)  # the shards must be there before it is said
        write_file(self.folder / SUCCESS, _to_json({"shards": n_shards, "rows": n_rows}))
        sync_folder(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"


@contextmanager
def open_shard(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a finished shard; Arrow does not say which file it cannot read.

    Raises:
        BundleError: it is damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise BundleError(f"{path} is damaged: {error}; remove it, and export anew") from error


def count_rows(path: Path) -> int:
    """Return how many rows a finished shard has.

    Raises:
        BundleError: it is damaged.
    """
    with open_shard(path) as file:
        return int(file.metadata.num_rows)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let nobody else write into a folder of shards.

    Raises:
        SchemaError: an export writes into it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SchemaError(f"another export writes into {folder}: wait for it, or choose another --out") from error
    finally:
        os.close(descriptor)


def _check_strangers(folder: Path) -> None:
    for name in sorted(os.listdir(folder)):
        if not _OURS.fullmatch(name):
            raise SchemaError(f"{folder} holds '{name}', which is of no export: choose another --out")


def _check_plan(folder: Path, plan: Plan) -> None:
    """Refuse to go on with a finished export, or with one of another plan."""
    if (folder / SUCCESS).exists():
        raise SchemaError(f"{folder} holds a finished export: choose another --out, or add --overwrite")
    if not any(folder.glob("part-*.parquet")):
        return  # nothing that could be lost, such as after a first row that was refused
    there, wanted = read_plan(folder / PLAN), json.loads(_to_json(plan))
    for name, value in wanted.items():
        if there.get(name) != value:
            got = f"{name} {_show(there.get(name))}, this one {_show(value)}"
            raise SchemaError(f"{folder} holds part of another export, of {got}: choose another --out, or --overwrite")


def read_plan(path: Path) -> dict[str, Any]:
    """Read what the shards of a folder are made from.

    Raises:
        SchemaError: the file is missing or no plan.
    """
    try:
        plan: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SchemaError(f"{path} is no plan of an export: {error}; choose another --out, or --overwrite") from error
    if not isinstance(plan, dict):
        raise SchemaError(f"{path} is no plan of an export: choose another --out, or --overwrite")
    return plan


def _clear(folder: Path) -> None:
    """Remove an export; first what says that it is whole."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name != SUCCESS):
        path.unlink()
        if path.name == SUCCESS:
            sync_folder(folder)
    sync_folder(folder)


def _to_json(content: Plan | dict[str, int]) -> bytes:
    fields = asdict(content) if isinstance(content, Plan) else content
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()


def _show(value: Any) -> str:
    return json.dumps(value)
