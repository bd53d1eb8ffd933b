"""Let a Ray cluster do what a command does for the rows of a file or for all users.

The driver cuts the rows into blocks. Ray Data hands them to actors, and hands out again what a lost
node had. An actor runs the command of one process on a block, so that scores are the same bits. The
driver alone writes, part after part: each is there as a whole or not at all, and once. So the parts
are the checkpoint: the next call makes those that are missing, and `_SUCCESS` comes last.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.read import SAME_NAMES, naming
from serve.arrays import to_arrow
from serve.errors import BundleError, SchemaError, import_extra, say
from serve.files import write_file
from serve.recommender import Recommender
from service.export import (
    exporting,
    fingerprint,
    finish,
    identify,
    list_users,
    name_part,
)
from service.known_users import load_known

Command = Callable[[Namespace, Recommender], None]
ROWS = 16_384  # of a part, in whole tiles of the recommender
_ROWS_OF = {"recommend": "requests", "export": "rows"}  # command -> its option
_BESIDE = ("bundle", "engine", "out", "overwrite", "profiles", "registry")
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # of C++, on stderr
    "RAY_agent_register_timeout_ms": "60000",  # on a busy machine
}
_LOCAL = {"include_dashboard": False, "object_store_memory": 2**28}  # bytes, then disk


@dataclass
class PartMaker:
    """An actor of Ray, which runs a command on one block of rows after the other."""

    command: Command
    options: Namespace
    version: str  # of the driver's bundle
    recommender: Recommender | None = None  # loaded once, with the first block

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the part of a block as a file; a fault of the data is an answer, not an error."""
        content = b""
        fault = ""
        try:
            content = self._make(block)
        except (ValueError, OSError) as error:
            fault = say(error)
        return pa.table({"content": [content], "fault": [fault]})

    def _make(self, block: pa.Table) -> bytes:
        options = self.options
        if self.recommender is None:
            self.recommender = load_known(
                options.bundle, options.profiles, options.trusted_keys
            )
        if self.recommender.version != self.version:
            raise BundleError(f"{options.bundle} is another version on a worker")

        with TemporaryDirectory() as name:
            rows = Path(name) / "rows.parquet"
            part = Path(name) / name_part(0)
            pq.write_table(block, rows)
            out = part.parent if options.command == "export" else part
            changed = {"out": out, _ROWS_OF[options.command]: rows, "all_users": False}
            self.command(Namespace(**vars(options) | changed), self.recommender)
            return part.read_bytes()


def run_on_ray(command: Command, options: Namespace, recommender: Recommender) -> None:
    """Make the parts that the folder `out` of the options lacks.

    Args:
        command: does the same in one process.
        options: of the command.
        recommender: that of the options.

    Raises:
        SchemaError: a row cannot be read, or the folder holds another export.
        BundleError: Ray cannot do it.
        ModuleNotFoundError: Ray is not installed.
    """
    known = fingerprint(recommender.profiles)
    plan = {"side": "user", "version": recommender.version, "profiles": known}
    plan["rows_per_shard"] = str(ROWS)
    for name, value in vars(options).items():
        if name not in _BESIDE:
            plan[name] = str(value)
        if isinstance(value, Path):
            setattr(options, name, value.absolute())
    path = getattr(options, _ROWS_OF[options.command])
    if path is None:
        if getattr(options, "side", "user") == "item":
            raise SchemaError("--engine ray exports items of a file: give --rows")
        list_users(recommender.profiles, f"--{_ROWS_OF[options.command]}")
    else:
        plan |= identify(path, SAME_NAMES)
    options.engine = "local"  # in each actor

    maker = {"command": command, "options": options, "version": recommender.version}
    with exporting(options.out, plan, options.overwrite):
        for number, part in _make_parts(_cut(path, recommender), maker):
            if part["fault"]:
                first = number * ROWS
                raise SchemaError(f"in the rows after {first}: {part['fault']}")
            write_file(options.out / name_part(number), part["content"])
        finish(options.out)


def _cut(path: Path | None, recommender: Recommender) -> Iterator[pa.RecordBatch]:
    """Yield the blocks of rows of a file, or of all users with a profile."""
    if path is None:
        ids = to_arrow(recommender.profiles.user_ids)
        yield from pa.table({"user_id": ids}).to_batches(ROWS)
    else:
        with naming(path), pq.ParquetFile(path) as file:
            yield from file.iter_batches(ROWS)


def _make_parts(
    blocks: Iterator[pa.RecordBatch], maker: dict[str, Any]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the numbers and parts that are missing, on a cluster or a Ray of this machine."""
    os.environ.update(_SETTINGS)
    ray = import_extra("ray", "ray")
    data = import_extra("ray.data", "ray")
    address = os.environ.get("RAY_ADDRESS") or "local"
    local = _LOCAL if address == "local" else {}
    quiet = logging.CRITICAL
    try:
        ray.init(address, log_to_driver=False, logging_level=quiet, **local)
        logging.getLogger("ray.data").setLevel(quiet)
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        missing: dict[int, Any] = {}  # number -> block in the object store
        for number, block in enumerate(blocks):
            if not (maker["options"].out / name_part(number)).exists():
                missing[number] = ray.put(pa.Table.from_batches([block]))
        n_actors = int(ray.cluster_resources()["CPU"])
        made = data.from_arrow_refs(list(missing.values())).map_batches(
            PartMaker,
            batch_size=None,
            batch_format="pyarrow",
            compute=data.ActorPoolStrategy(size=n_actors),
            fn_constructor_kwargs=maker,
            num_cpus=1,
        )
        yield from zip(missing, made.iter_rows(), strict=True)
    except ray.exceptions.RayError as error:
        raise BundleError(f"Ray: {say(error)}") from error
    finally:
        ray.shutdown()
