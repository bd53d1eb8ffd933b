"""Users taken out of the lists of rejected records that training left in a run.

A rejected record is named by file and line, so most of them do not say whose they are. A row that names the user
goes; of the others the value goes, since it may be hers, and where it stands and why it was rejected stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serve.bundle import REJECTS
from serve.durable import sync_folder, write_file
from serve.errors import BundleError
from serve.recommendations import to_arrow
from serve.requests import Id

_LISTS = (REJECTS, f".beside-*/{REJECTS}")
"""In a run, the second of a training that is not over."""
_VALUE = "value"


def erase_from_rejects(run: Path, user_ids: Iterable[Id]) -> dict[str, int]:
    """Rewrite the lists of a run; each is replaced in one step.

    Returns:
        How many `rejects` went and how many `rejected_values`.

    Raises:
        BundleError: a list is damaged; it stays as it is.
        OSError: the disk is full or fails.
    """
    names = "|".join(re.escape(str(user_id)) for user_id in user_ids)
    naming = re.compile(rf"(?<!\w)({names})(?!\w)")
    erased = {"rejects": 0, "rejected_values": 0}
    for path in sorted(path for pattern in _LISTS for path in run.glob(pattern)):
        table = _read(path)
        values = table.column(_VALUE).to_pylist()
        is_kept = np.array([value is None or not naming.search(value) for value in values], dtype=np.bool_)
        n_gone = int(np.count_nonzero(~is_kept))
        erased["rejects"] += n_gone
        erased["rejected_values"] += sum(value is not None for value in values) - n_gone
        _write(path, table.take(to_arrow(np.flatnonzero(is_kept))))
    return erased


def _read(path: Path) -> pa.Table:
    content = path.read_bytes()  # so that what Arrow calls a fault of the system is one of the contents
    try:
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            table = file.read()
        table.schema.field(_VALUE)
    except (pa.ArrowException, KeyError, UnicodeDecodeError, OSError) as error:
        raise BundleError(
            f"{path} is damaged, and may name who is to be forgotten: {error}; remove it, then do this again"
        ) from error
    return table


def _write(path: Path, table: pa.Table) -> None:
    place = table.column_names.index(_VALUE)
    blank = pa.nulls(table.num_rows, table.schema.field(_VALUE).type)
    sink = pa.BufferOutputStream()
    pq.write_table(table.set_column(place, _VALUE, blank), sink, compression="zstd")
    write_file(path, memoryview(sink.getvalue()))
    sync_folder(path.parent)
