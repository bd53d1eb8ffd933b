"""Events beyond memory: typed chunk by chunk as all tables are, numbered and sorted by DuckDB.

    DIR/typed.json       the files and what was counted in them; written when all are typed
    DIR/typed/           typed rows
    DIR/faults.parquet   what the rejects list
    DIR/blocks.json      written when the blocks of `datamodules/blocks.py` are

What is finished is used again while the files stay as they were. DuckDB spills to the disk; each
statement has one operator that does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import DTypeLike, NDArray
from pandas.api.types import is_integer_dtype

from datamodules.blocks import Blocks, close_columns, map_events, open_columns
from datamodules.columns import EVENT_ROLES, columns_of_table
from datamodules.config import Column, DataConfig, TableConfig
from datamodules.fingerprint import fingerprint
from datamodules.read import PARQUET, kind_of, read_chunks
from datamodules.rejects import OUTLYING, make_rejects
from datamodules.sources import Records, find_files, find_fullest, take_records
from datamodules.tables import Tables, TypedTable, leave_out, type_records
from datamodules.values import MIN_VOID, find_voids
from serve.arrays import Flags
from serve.clock import to_iso
from serve.errors import SchemaError
from serve.files import ErasureList, make_private, write_json

BLOCKS = "blocks"  # folder of a run, removed when it is finished
FORMAT = 1
MEMORY_LIMIT = "2GB"  # of DuckDB
ROWS = 2**18  # rows that are typed at once
SORTED_ROWS = 2**20  # rows that are read back at once
BYTES_PER_EVENT = 500  # at the peak of a run in memory
BYTES_PER_LINE = 40  # of a text file
MAX_SHARE = 0.5  # of the free memory that events may take
_NEVER = 2**62  # seconds
_ALL_TIMES = (-62_135_510_400, 253_402_128_000)  # the years 1 to 9999
_NUMBERED = """
    SELECT users.number AS user, items.number AS item, datetime AS time,
        coalesce(types.id, 0) AS event, weight, file, line
    FROM events JOIN users ON users.id = user_id JOIN items ON items.id = item_id
        LEFT JOIN types USING (event)"""
_MEMINFO = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")


# ---- which runs are on disk


def is_on_disk(config: DataConfig) -> bool:
    """Return whether the events are worked on from disk.

    Raises:
        SchemaError: they are to be or do not fit, and a key asks for what only memory allows.
    """
    if config.on_disk is None:
        needed = BYTES_PER_EVENT * _estimate_rows(config.interactions)
        free = read_free_bytes()
        if needed < MAX_SHARE * free:
            return False
        if config.list_memory_keys() and needed < free:
            return False
    elif not config.on_disk:
        return False

    for fault in config.list_memory_keys():
        raise SchemaError(
            f"{fault}, which needs all events in memory; leave it out, "
            "or set data.on_disk: false where the memory suffices"
        )
    return True


def _estimate_rows(layout: TableConfig) -> int:
    """Estimate the rows of the files by their size; 0 where that is not known."""
    if layout.query is not None or layout.path is None or "://" in layout.path:
        return 0
    n_rows = 0
    for path in find_files("data.interactions.path", layout.path):
        if kind_of(path) == PARQUET:
            with pq.ParquetFile(path) as file:
                n_rows += file.metadata.num_rows
        else:
            n_rows += path.stat().st_size // BYTES_PER_LINE
    return n_rows


def read_free_bytes() -> int:
    """Return the free memory of the machine, within the limit of a container."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():  # not on macOS
        free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", _MEMINFO.read_text())[0])
    if _LIMIT.exists() and (limit := _LIMIT.read_text().strip()) != "max":
        used = int(_LIMIT.with_name("memory.current").read_text())
        free = min(free, max(int(limit) - used, 0))

    return free


# ---- typed rows


def type_events(config: DataConfig, erased: ErasureList, folder: Path) -> TypedTable:
    """Type the rows of the files, or take those that an interrupted run left.

    Args:
        config: where the interactions lie, and how they are written.
        erased: users whose records are left out and counted apart.
        folder: where the typed rows go; what is there of other files is removed.

    Returns:
        The faults and counts of all files; the frame has one row, for the types of ids.

    Raises:
        SchemaError: a file cannot be read, or has what only memory allows.
    """
    files = find_files("data.interactions.path", config.interactions.path)
    states = [path.stat() for path in files]
    stamps = [[state.st_size, state.st_mtime_ns] for state in states]
    forgotten = [[salt, *sorted(hashes)] for salt, hashes in erased.sets]
    declared = [asdict(config.interactions), config.timezone, config.exclude_users]
    sources = fingerprint(FORMAT, list(map(str, files)), stamps, forgotten, declared)
    note = _read_note(folder / "typed.json")
    if note.get("sources") != sources:
        shutil.rmtree(folder, ignore_errors=True)
        make_private(folder)
        note = _write_typed(config, files, erased, folder) | {"sources": sources}
        write_json(folder / "typed.json", note)

    faults = pq.read_table(folder / "faults.parquet").to_pandas()
    columns = columns_of_table("interactions", config)
    present = tuple(column for column in columns if column.name in note["columns"])
    empty = faults.head(0)
    counts = {"n_erased": note["erased"], "n_streamed": note["records"]}
    dropped = tuple(note["dropped"])
    records = Records(note["file"], present, empty, empty, empty, dropped, **counts)
    first = pd.DataFrame(note["first"])
    return TypedTable(records, first, empty, faults, note["right"])


def _read_note(path: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {}
    return note


def _write_typed(
    config: DataConfig, files: list[Path], erased: ErasureList, folder: Path
) -> dict[str, Any]:
    """Type the rows of all files chunk by chunk; return what was counted."""
    layout = config.interactions
    columns = columns_of_table("interactions", config)
    wanted = {column.source for column in columns}
    unlimited = tuple(map(_take_all_times, columns))
    texts = (layout.names, layout.delimiter, layout.encoding)
    excluded = [str(user_id).strip() for user_id in config.exclude_users]

    (folder / "typed").mkdir()
    n_right: Counter[str] = Counter()
    counts: Counter[str] = Counter(records=0, erased=0, excluded=0)
    faults = []
    chunks: list[Records] = []
    for number, path in enumerate(files):
        for raw in read_chunks(path, wanted, ROWS, texts):
            records = leave_out(take_records(str(path), raw, unlimited), erased)
            chunks = [find_fullest([*chunks, records])]
            table = type_records(records, layout, config.timezone, keeps_rows=False)
            rows = table.frame.assign(file=number, line=table.places["line"])
            is_excluded = rows["user_id"].astype("str").isin(excluded)
            _refuse_rows(rows, str(path))
            counts.update(
                records=records.n_records,
                erased=records.n_erased,
                excluded=int(is_excluded.sum()),
                chunks=1,
            )
            n_right.update(table.n_right)
            faults.append(table.faults)
            chunk = pa.Table.from_pandas(rows[~is_excluded], preserve_index=False)
            pq.write_table(chunk, folder / f"typed/{counts['chunks']:06d}.parquet")

    if not counts["records"]:
        raise SchemaError(f"{layout.path} is empty: expected at least one record")
    (first,) = chunks
    with open_database(folder) as database:
        limits = _find_limits(database, columns)
        outliers = _list_outliers(database, limits, columns, files)
        row = database.sql("SELECT user_id, item_id FROM rows LIMIT 1").df()
    listed = pa.Table.from_pandas(pd.concat([*faults, outliers]), preserve_index=False)
    pq.write_table(listed, folder / "faults.parquet")

    return {
        **counts,
        "right": n_right,
        "limits": limits,
        "file": first.file,
        "dropped": first.dropped,
        "columns": [column.name for column in first.columns],
        "first": row.to_dict("list"),
    }


def _take_all_times(column: Column) -> Column:
    """Return a column of times without outliers, which are found among all of them later."""
    if column.role != "time":
        return column
    low = _ALL_TIMES[0] if column.low is None else column.low
    high = _ALL_TIMES[1] if column.high is None else column.high
    return replace(column, low=low, high=high)


def _refuse_rows(rows: pd.DataFrame, file: str) -> None:
    """Refuse rows that only memory allows, by a `SchemaError`."""
    fault = None
    if "datetime" not in rows:
        fault = "has no datetime"
    elif "position" in rows:
        fault = "has a position"
    elif "weight" in rows and (rows["weight"] < 0).any():
        fault = "has returns, which are events of a weight below 0"
    if fault is not None:
        raise SchemaError(
            f"{file} {fault}, which needs all events in memory; take it out of the file, or set "
            "data.on_disk: false where the memory suffices"
        )


def _find_limits(database: Any, columns: Sequence[Column]) -> tuple[int, int]:
    """Return between which times, exclusively, all events lie but for outliers."""
    (column,) = (column for column in columns if column.role == "time")
    count, first, last = database.sql(
        "SELECT count(*), min(datetime), max(datetime) FROM rows"
    ).fetchall()[0]
    early = -np.inf
    late = np.inf
    tail = count // 20
    if tail and last - first > MIN_VOID:
        ends = []
        for order in ("", "DESC"):
            ordered = (
                database.view("rows").project("datetime").order(f"datetime {order}")
            )
            ends.append(ordered.limit(tail + 1).fetchnumpy()["datetime"])
        early, late = find_voids(ends[0], ends[1][::-1], column)

    return int(max(early, -_NEVER)), int(min(late, _NEVER))


def _list_outliers(
    database: Any,
    limits: tuple[int, int],
    columns: Sequence[Column],
    files: list[Path],
) -> pd.DataFrame:
    """List the events outside the limits as rejects."""
    sources = {column.name: column.source for column in columns}
    early, late = limits
    found = (
        database.view("rows")
        .filter(f"datetime <= {early} OR datetime >= {late}")
        .project("file, line, datetime")
        .order("file, line")
        .df()
    )
    listed = make_rejects(
        [str(files[number]) for number in found["file"]],
        found["line"],
        sources["datetime"],
        list(map(to_iso, found["datetime"].tolist())),
        OUTLYING,
    )
    return listed.assign(costs="record")


# ---- numbers, order and blocks


@contextmanager
def open_database(folder: Path) -> Iterator[Any]:
    """Open DuckDB over the typed rows, as the view `rows`."""
    import duckdb  # takes a while, and few runs need it

    settings: dict[str, Any] = {
        "temp_directory": str(folder / "spilled"),
        "memory_limit": MEMORY_LIMIT,
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": "false",
    }
    with duckdb.connect(config=settings) as database:
        typed = database.read_parquet(
            str(folder / "typed" / "*.parquet"), union_by_name=True
        )
        typed.create_view("rows")
        yield database


def read_blocks(tables: Tables, folder: Path) -> tuple[Blocks, dict[str, int]]:
    """Number and sort the typed rows of a folder, or take the blocks that lie there.

    Args:
        tables: users and items; the interactions have a row, for the types of ids.
        folder: where `type_events` left the rows.

    Returns:
        The blocks, and what cleaning took out.
    """
    path = folder / "blocks.json"
    typed = _read_note(folder / "typed.json")
    note = _read_note(path)
    users = tables.users["user_id"].to_numpy()
    sources = fingerprint(typed["sources"], users, FORMAT)
    if note.get("sources") != sources:
        path.unlink(missing_ok=True)
        with open_database(folder) as database:
            note = _write_blocks(database, tables, typed, folder)
        note["sources"] = sources
        write_json(path, note)
        shutil.rmtree(folder / "spilled", ignore_errors=True)

    user_ids = _read_ids(folder / "users.parquet")
    item_ids = _read_ids(folder / "items.parquet")
    events = map_events(folder, np.load(folder / "offsets.npy"))
    names = tuple(name for name in EVENT_ROLES if name in typed["columns"])
    types = tuple(note["types"])
    blocks = Blocks(folder, events, user_ids, item_ids, types, names, note["digest"])
    cleaned = ("duplicate_events", "zero_weights_kept")
    counts = {name: note[name] for name in cleaned}
    return blocks, counts | {"excluded_events": typed["excluded"]}


def _read_ids(path: Path) -> NDArray[Any]:
    ids = pq.read_table(path).column("id").to_pandas()
    return np.asarray(ids.to_numpy())


def _write_blocks(
    database: Any, tables: Tables, typed: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """Number users, items and types, sort the events, and write the columns."""
    early, late = typed["limits"]
    has_event = "event" in typed["columns"]
    has_weight = "weight" in typed["columns"]
    ids = {}
    for name in ("user_id", "item_id"):
        is_text = not is_integer_dtype(tables.interactions[name])
        ids[name] = f"CAST({name} AS VARCHAR)" if is_text else name
    chosen = (
        f"{ids['user_id']} AS user_id, {ids['item_id']} AS item_id, datetime, "
        f"{'event' if has_event else 'NULL'} AS event, "
        f"{'weight' if has_weight else '1.0'} AS weight, file, line"
    )
    inside = f"datetime > {early} AND datetime < {late}"
    database.view("rows").filter(inside).project(chosen).create_view("events")

    n_users = _number(database, "user", tables.users["user_id"], folder)
    _number(database, "item", tables.items["item_id"].head(0), folder)
    types = database.sql("SELECT DISTINCT event FROM events WHERE event IS NOT NULL")
    names = sorted(name for (name,) in types.fetchall())
    numbered = pa.table(
        {"event": pa.array(names, pa.string()), "id": range(1, len(names) + 1)}
    )
    database.register("types", numbered)
    is_exact = "bool_and(weight = CAST(CAST(weight AS FLOAT) AS DOUBLE))"
    ((fits,),) = database.view("events").aggregate(is_exact).fetchall()

    path = _sort(database, folder)
    dtypes: dict[str, DTypeLike] = {"item": np.int32, "time": np.int64}
    if has_event:
        dtypes["event"] = np.min_scalar_type(-len(names) - 1)
    if has_weight:
        dtypes["weight"] = np.float32 if fits else np.float64
    columns = open_columns(folder, dtypes)
    counts = np.zeros(n_users, np.int64)
    cleaned = Counter(duplicate_events=0, zero_weights_kept=0)
    for rows in _read_groups(path):
        is_twin = _find_twins(rows)
        distinct = rows[~is_twin]
        cleaned["duplicate_events"] += int(is_twin.sum())
        cleaned["zero_weights_kept"] += int((distinct["weight"] == 0).sum())
        np.add.at(counts, distinct["user"].to_numpy(), 1)
        for name, column in columns.items():
            column.append(distinct[name].to_numpy())

    digest = close_columns(columns)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(counts)]))
    path.unlink()
    return {"types": names, "digest": digest, **cleaned}


def _number(database: Any, side: str, others: pd.Series[Any], folder: Path) -> int:
    """Number the ids of the events and some others, ascending; keep them as a file and a view."""
    distinct = database.view("events").project(f"{side}_id AS id").distinct()
    there = distinct.fetchnumpy()["id"]
    ids = np.unique(np.append(np.asarray(there), others.to_numpy()))
    path = folder / f"{side}s.parquet"
    numbers = np.arange(len(ids), dtype=np.int32)
    pq.write_table(pa.table({"id": pa.array(ids), "number": numbers}), path)
    database.read_parquet(str(path)).create_view(f"{side}s")
    return len(ids)


def _sort(database: Any, folder: Path) -> Path:
    """Write the numbered events by user, time and place in the files."""
    numbered = folder / "numbered.parquet"
    ordered = folder / "ordered.parquet"
    database.sql(_NUMBERED).write_parquet(str(numbered))
    rows = database.read_parquet(str(numbered)).order("user, time, file, line")
    rows.project("user, item, time, event, weight").write_parquet(str(ordered))
    numbered.unlink()
    return ordered


def _read_groups(path: Path) -> Iterator[pd.DataFrame]:
    """Yield the rows of a file in whole groups of one user and time."""
    rest = None
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(SORTED_ROWS):
            rows = pd.concat([rest, batch.to_pandas()], ignore_index=True)
            last = rows[["user", "time"]].iloc[-1]
            is_last = (rows["user"] == last["user"]) & (rows["time"] == last["time"])
            yield rows[~is_last]
            rest = rows[is_last]
    if rest is not None:
        yield rest


def _find_twins(rows: pd.DataFrame) -> Flags:
    """Mark the rows (n,) that equal an earlier one in every column; users and times ascend."""
    is_twin = np.zeros(len(rows), np.bool_)
    is_tied = rows.duplicated(["user", "time"], keep=False).to_numpy()
    is_twin[is_tied] = rows[is_tied].duplicated()
    return is_twin
