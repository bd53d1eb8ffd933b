"""Let a Ray cluster do what a command does for the rows of a file or for all users.

The driver cuts the rows into blocks. Ray Data hands them to actors, and hands out again what a lost
node had. An actor runs the command of one process on a block, so that scores are the same bits. The
driver alone writes: a part is there as a whole or not at all, and once. So the parts are the
checkpoint: the next call makes those that are missing, and `_SUCCESS` comes last.
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
from serve.errors import BundleError, SchemaError, say
from serve.files import write_file
from serve.recommender import Recommender
from service.export import exporting, fingerprint, finish, identify, name_part

Command = Callable[[Namespace, Recommender], None]
_ROWS = 16_384  # of a part, in whole tiles of the recommender
_ROWS_OF = {"recommend": "requests", "export": "rows"}  # command -> its option
# decides nothing about the parts
_BESIDE = ("actors", "address", "bundle", "engine", "out", "overwrite", "registry")
_LOCAL = {"include_dashboard": False, "object_store_memory": 2**28}  # bytes, then disk


@dataclass
class PartMaker:
    """An actor of Ray, which runs a command on one block after the other."""

    command: Command
    options: Namespace
    version: str  # of the driver's bundle
    recommender: Recommender | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Return the part of a block as a file; a fault of the data is an answer, not an error."""
        content = b""
        fault = ""
        numbers = block.column("part").slice(0, 1)
        try:
            content = self._make(numbers[0].as_py(), block.drop_columns("part"))
        except (ValueError, OSError) as error:
            fault = say(error)
        return pa.table({"part": numbers, "content": [content], "fault": [fault]})

    def _make(self, number: int, block: pa.Table) -> bytes:
        options = self.options
        if self.recommender is None:
            self.recommender = Recommender.load(
                options.bundle, options.profiles, options.trusted_keys
            )
        if self.recommender.version != self.version:
            raise BundleError(
                f"{options.bundle} is version {self.recommender.version} on a worker, "
                f"{self.version} here: let the path lead all nodes to the same folder"
            )

        with TemporaryDirectory() as name:
            rows = Path(name) / f"rows from {number * _ROWS + 1}.parquet"
            part = Path(name) / name_part(0)
            pq.write_table(block, rows)
            out = part.parent if options.command == "export" else part
            changed = {"out": out, _ROWS_OF[options.command]: rows, "all_users": False}
            self.command(Namespace(**vars(options) | changed), self.recommender)
            return part.read_bytes()


def run_on_ray(command: Command, options: Namespace, recommender: Recommender) -> None:
    """Make the parts that the folder `out` of the options lacks.

    Args:
        command: does the same in one process, for the engine `local`.
        options: of the command.
        recommender: that of the options.

    Raises:
        SchemaError: a row cannot be read, or the folder holds another export.
        BundleError: Ray cannot do it.
        ModuleNotFoundError: Ray is not installed.
    """
    asked = {
        name: str(value) for name, value in vars(options).items() if name not in _BESIDE
    }
    known = fingerprint(recommender.profiles)
    plan = {"side": "user", "version": recommender.version, "profiles": known, **asked}
    path = getattr(options, _ROWS_OF[options.command])
    if path is not None:
        plan |= identify(path, SAME_NAMES)

    with exporting(options.out, plan, options.overwrite):
        blocks = _cut(path, recommender, options.out)
        for number, content in _run(blocks, command, options, recommender.version):
            write_file(options.out / name_part(number), content)
        finish(options.out)


def _cut(
    path: Path | None, recommender: Recommender, folder: Path
) -> Iterator[pa.Table]:
    """Yield the blocks of rows whose parts are not there, with their numbers."""
    if path is None:
        ids = to_arrow(recommender.profiles.user_ids)
        batches = iter(pa.table({"user_id": ids}).to_batches(_ROWS))
    else:
        with naming(path):
            batches = pq.ParquetFile(path).iter_batches(_ROWS)
    for number, batch in enumerate(batches):
        if not (folder / name_part(number)).exists():
            numbers = pa.array([number] * len(batch))
            yield pa.Table.from_batches([batch]).append_column("part", numbers)


def _run(
    blocks: Iterator[pa.Table], command: Command, options: Namespace, version: str
) -> Iterator[tuple[int, bytes]]:
    """Yield the numbers and files of parts as actors make them, on a cluster or this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
    os.environ["RAY_BACKEND_LOG_LEVEL"] = "fatal"  # of C++, on stderr
    try:
        import ray.data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; --engine ray needs Ray: pip install 'ray[data]>=2.55'"
        ) from error

    shared = vars(options) | {"engine": "local"}
    for name, value in shared.items():
        if isinstance(value, Path):
            shared[name] = value.absolute()
    job = {"command": command, "options": Namespace(**shared), "version": version}
    address = options.address or os.environ.get("RAY_ADDRESS", "local")
    local: Any = _LOCAL if address == "local" else {}
    quiet = logging.CRITICAL
    try:
        ray.init(address, log_to_driver=False, logging_level=quiet, **local)
        logging.getLogger("ray.data").setLevel(quiet)
        ray.data.DataContext.get_current().enable_progress_bars = False
        references: list[Any] = [ray.put(block) for block in blocks]
        n_actors = options.actors or int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
        n_actors = max(1, min(n_actors, len(references)))
        parts = ray.data.from_arrow_refs(references).map_batches(
            PartMaker,
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=n_actors),
            fn_constructor_kwargs=job,
            num_cpus=1,
        )
        for part in parts.iter_rows():
            if part["fault"]:
                raise SchemaError(part["fault"])
            yield part["part"], part["content"]
    except ray.exceptions.RayError as error:
        raise BundleError(f"Ray: {say(error)}") from error
    finally:
        ray.shutdown()
