"""Interactions on disk: typed as all tables are, sorted by DuckDB, mapped into memory.

    DIR/typed/       typed rows, a file for each chunk of the files that were read
    DIR/all          all events, by user, time and place in the files
    DIR/train, DIR/refit     the events that a training sees, as the towers read them

Whole users who are drawn stand for all in reports, in the schema and in the evaluation.

Letters: U users, E events, N items that have events, e some events.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandas.api.types import is_integer_dtype

from datamodules.columns import columns_of_table
from datamodules.config import DataConfig
from datamodules.read import JSON_LINES, kind_of, read_chunks
from datamodules.sequences import Sequences, encode_users, tile_users
from datamodules.sources import Records, find_files, find_fullest, take_records
from datamodules.tables import Tables, TypedTable, leave_out, type_records
from datamodules.values import unify_ids
from serve.arrays import Ints, to_arrow
from serve.encode import encode_features
from serve.errors import SchemaError
from serve.events import Events
from serve.files import ErasureList, make_private
from serve.kinds import FIRST_CODE, UNKNOWN
from serve.schema import Schema

PartName = Literal["train", "refit"]

FOLDER = "on_disk"  # of a run, removed when it is finished
MEMORY_LIMIT = "2GB"  # of DuckDB
ROWS = 2**18  # that are typed at once
SORTED_ROWS = 2**20  # that are written at once
MAX_LINES = 2**40  # of a file
MAX_SAMPLE = 4_000_000  # events of the users who stand for all

_NUMBERS = [("item", np.int64), ("time", np.int64), ("event", np.int64)]
_STORED = np.dtype([*_NUMBERS, ("weight", np.float64)])
_ENCODED = np.dtype([*_NUMBERS, ("weight", np.float32)])
_EVENTS = """
    CREATE VIEW events AS
    SELECT CAST(user_id AS {id_types[user_id]}) AS user_id,
        CAST(item_id AS {id_types[item_id]}) AS item_id,
        datetime AS time, {event} AS event, {weight} AS weight, place
    FROM typed"""
_NUMBERED = """
    SELECT users.number AS user, items.number AS item, time,
        coalesce(types.number + 1, 0) AS event, weight, place
    FROM events JOIN users ON users.id = user_id JOIN items ON items.id = item_id
        LEFT JOIN types ON types.id = event"""
# Of events that are equal in all columns one stays, at the first place.
_ORDERED = """
    SELECT "user", item, time, event, weight FROM numbered
    GROUP BY "user", item, time, event, weight
    ORDER BY "user", time, min(place)"""


@dataclass(frozen=True, eq=False)
class OnDisk:
    """All events, by user, time and place in the files.

    Attributes:
        folder: where they lie.
        events: item numbers, times, types and weights; the first type is number 1, none is 0.
        user_ids: (U,) ascending.
        item_ids: (N,) ascending.
        event_types: ascending.
        columns: our names of the columns that the data has.
        users: the users table, or the ids alone.
        counts: (U,) by part: how many of each user's first events belong to it.
    """

    folder: Path
    events: Events
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    event_types: tuple[str, ...]
    columns: tuple[str, ...]
    users: pd.DataFrame = field(default_factory=pd.DataFrame)
    counts: Mapping[PartName, Ints] = field(default_factory=dict)

    def count(self) -> dict[str, int]:
        """Count events, and the users and items that have some."""
        return {
            "interactions": len(self.events.time),
            "users": int(np.count_nonzero(self.events.counts)),
            "items": len(self.item_ids),
        }

    def read(self, events: Events) -> dict[str, NDArray[Any]]:
        """Return columns of some of the events by our names, (e,) each."""
        item_ids = self.item_ids[events.item_row]
        columns = {"item_id": item_ids, "datetime": events.time}
        if "event" in self.columns:
            types = np.array([None, *self.event_types], object)
            columns["event"] = types[events.event]
        if "weight" in self.columns:
            columns["weight"] = events.weight
        return columns

    def draw(self, seed: int) -> pd.DataFrame:
        """Return the events of drawn users, `MAX_SAMPLE` at most, as a table in memory has them."""
        counts = self.events.counts
        order = np.random.default_rng(seed).permutation(np.flatnonzero(counts))
        is_taken = np.cumsum(counts[order]) <= MAX_SAMPLE
        users = np.sort(order[is_taken])

        offsets = self.events.offsets
        events = self.events.between(offsets[users], offsets[users + 1])
        owners = np.repeat(self.user_ids[users], counts[users])
        frame = pd.DataFrame({"user_id": owners, **self.read(events)})
        texts = [name for name in frame if frame[name].dtype == object]
        return frame.astype(dict.fromkeys(texts, "str"))

    def count_before(self, moment: int) -> Ints:
        """Count the events of each user before a moment, (U,)."""
        offsets = self.events.offsets
        n_before = np.zeros(len(self.user_ids), np.int64)
        for users in tile_users(offsets):
            tile = self.events.between(offsets[:-1][users], offsets[1:][users])
            is_before = tile.time < moment  # (e,)
            n_before[users] = np.bincount(tile.segments, is_before, len(tile))
        return n_before

    def tiles(self, part: PartName) -> Iterator[tuple[slice, Events]]:
        """Yield ranges of users with their events of a part."""
        for users in tile_users(self.events.offsets):
            starts = self.events.offsets[:-1][users]
            stops = starts + self.counts[part][users]
            yield users, self.events.between(starts, stops)

    def list_items(self, part: PartName) -> pd.DataFrame:
        """Return `item_id` of the items that have events in a part."""
        has_events = np.zeros(len(self.item_ids), np.bool_)
        for _, events in self.tiles(part):
            has_events[events.item_row] = True
        return pd.DataFrame({"item_id": self.item_ids[has_events]})

    def build_sequences(
        self,
        part: PartName,
        others: pd.DataFrame,
        item_ids: NDArray[Any],
        schema: Schema,
    ) -> Sequences:
        """Write the events of a part as the towers read them, and map what was written.

        Args:
            part: the events.
            others: `user_id` of users who are there without events as well.
            item_ids: the catalogue's ids, (N,) ascending; all items of the part are among them.
            schema: says how features and event types are encoded.
        """
        rows = pd.Index(item_ids).get_indexer(pd.Index(self.item_ids))  # (N,)
        codes = {name: FIRST_CODE + i for i, name in enumerate(schema.event_types)}
        of_types = [codes.get(name, UNKNOWN) for name in self.event_types]
        type_codes = np.array([UNKNOWN, *of_types])

        path = self.folder / part
        path.unlink(missing_ok=True)  # somebody may still have the old one mapped
        with path.open("wb") as file:
            for _, events in self.tiles(part):
                item_rows = rows[events.item_row]
                types = type_codes[events.event]
                columns = (item_rows, events.time, types, events.weight)
                _pack(columns, _ENCODED).tofile(file)

        counts = self.counts[part]
        everyone = pd.concat([self.users, others[["user_id"]]])
        everyone = everyone.drop_duplicates("user_id")
        is_there = pd.Index(self.user_ids).isin(everyone["user_id"])
        is_there |= counts > 0
        user_ids = self.user_ids[is_there]
        mapped = _map_events(path, _ENCODED, counts[is_there])
        n_events = len(mapped.item_row)

        return Sequences(
            mapped,
            encode_features((), {}, n_events),
            np.broadcast_to(np.float32(1.0), n_events),
            encode_users(everyone, user_ids, schema),
            user_ids,
        )


def _pack(columns: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return records of as many columns, (e,)."""
    records = np.empty(len(columns[0]), dtype)
    for name, values in zip(dtype.names or (), columns, strict=True):
        records[name] = values
    return records


def _map_events(path: Path, dtype: np.dtype[Any], counts: Ints) -> Events:
    """Map the events of users with `counts` events, (U,); there is one at least."""
    rows = np.asarray(np.memmap(path, dtype, mode="r"))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Events(rows["item"], rows["time"], rows["event"], rows["weight"], offsets)


# ---- typed rows


def type_interactions(
    config: DataConfig, erased: ErasureList, folder: Path
) -> TypedTable:
    """Type the rows of the files, some at a time, and write them.

    Args:
        config: where the interactions lie, and how they are written.
        erased: users whose records are left out and counted apart.
        folder: where the typed rows go; what was there is removed.

    Returns:
        The faults and counts of all files; the frame has one row, for the types of ids.

    Raises:
        SchemaError: a file cannot be read, or has what only memory allows.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    (folder / "typed").mkdir()
    parts: list[Records] = []
    faults: list[pd.DataFrame] = []
    first_rows: list[pd.DataFrame] = []
    n_right: Counter[str] = Counter()

    for typed in _type_chunks(config, erased):
        _check(typed)
        rows = pa.Table.from_pandas(typed.frame, preserve_index=False)
        pq.write_table(rows, folder / "typed" / f"{len(parts):06d}.parquet")
        parts.append(_strip(typed.records))
        faults.append(typed.faults)
        n_right.update(typed.n_right)
        if len(typed.frame) or not first_rows:
            first_rows.append(typed.frame.head(1))

    n_records = sum(part.n_streamed for part in parts)
    if not n_records:
        path = config.interactions.path
        raise SchemaError(f"{path} is empty: expected at least one record")
    n_erased = sum(part.n_erased for part in parts)
    whole = replace(find_fullest(parts), n_erased=n_erased, n_streamed=n_records)
    ids = {}
    for name in ("user_id", "item_id"):
        ids[name] = unify_ids([rows[name] for rows in first_rows])[-1]
    listed = pd.concat(faults, ignore_index=True)

    return TypedTable(whole, pd.DataFrame(ids), whole.places, listed, n_right)


def _strip(records: Records) -> Records:
    """Keep the counts of records, and no row."""
    stripped = replace(records, n_streamed=records.n_records)
    for name in ("frame", "places", "rejects"):
        stripped = replace(stripped, **{name: getattr(records, name).head(0)})
    return stripped


def _type_chunks(config: DataConfig, erased: ErasureList) -> Iterator[TypedTable]:
    """Yield typed rows with their `place` among all files."""
    layout = config.interactions
    columns = columns_of_table("interactions", config)
    wanted = {column.source for column in columns}
    texts = (layout.names, layout.delimiter, layout.encoding)

    for number, path in enumerate(find_files("data.interactions.path", layout.path)):
        if kind_of(path) in JSON_LINES:
            raise SchemaError(_say_fault(str(path), "lines of JSON"))
        for raw in read_chunks(path, wanted, ROWS, texts):
            taken = take_records(str(path), raw, columns)
            records = leave_out(taken, erased, config.keys)
            typed = type_records(records, layout, config.timezone, keeps_rows=False)
            place = number * MAX_LINES + typed.places["line"]
            yield replace(typed, frame=typed.frame.assign(place=place))


def _check(typed: TypedTable) -> None:
    """Refuse rows that only memory allows, by a `SchemaError`."""
    names = [column.name for column in typed.records.columns]
    fault = None
    if "datetime" not in names:
        fault = "no datetime"
    elif "position" in names:
        fault = "a position"
    elif "weight" in names and (typed.frame["weight"] < 0).any():
        fault = "returns, which are events of a weight below 0"
    if fault is not None:
        raise SchemaError(_say_fault(typed.records.file, fault))


def _say_fault(file: str, fault: str) -> str:
    return (
        f"{file} has {fault}, which needs all events in memory; change the file, or set "
        "data.on_disk: false where the memory suffices"
    )


# ---- numbers and order


def store_events(tables: Tables, folder: Path) -> tuple[OnDisk, dict[str, int]]:
    """Number and sort the rows that `type_interactions` left.

    Args:
        tables: gives the users, and by a row of the interactions the types of ids.
        folder: of the rows, and of what is made of them.

    Returns:
        The events, and what cleaning took out or kept of them.

    Raises:
        SchemaError: no row is there.
    """
    import duckdb  # takes a while, and few runs need it

    settings: dict[str, Any] = {
        "temp_directory": str(folder / "spilled"),
        "memory_limit": MEMORY_LIMIT,
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": "false",
    }
    with duckdb.connect(config=settings) as database:
        rows = database.read_parquet(
            str(folder / "typed/*.parquet"), union_by_name=True
        )
        rows.create_view("typed")
        database.sql(_describe(rows.columns, tables.interactions))
        user_ids = _number(database, "users", "user_id", tables.users["user_id"])
        item_ids = _number(database, "items", "item_id")
        event_types = _number(database, "types", "event")
        ((n_rows,),) = database.sql("SELECT count(*) FROM events").fetchall()
        if not n_rows:
            raise SchemaError("no interaction is left: all records are rejected")

        # A file between the two leaves each all of the memory.
        database.sql(_NUMBERED).write_parquet(str(folder / "numbered.parquet"))
        numbered = database.read_parquet(str(folder / "numbered.parquet"))
        numbered.create_view("numbered")
        database.sql(_ORDERED).write_parquet(str(folder / "ordered.parquet"))
        present = tuple(rows.columns)

    shutil.rmtree(folder / "typed")
    (folder / "numbered.parquet").unlink()
    counts = np.zeros(len(user_ids), np.int64)  # (U,)
    n_zeros = 0
    with (
        pq.ParquetFile(folder / "ordered.parquet") as ordered,
        (folder / "all").open("wb") as file,
    ):
        n_kept = ordered.metadata.num_rows
        for batch in ordered.iter_batches(SORTED_ROWS):
            users, *cells = [column.to_numpy() for column in batch.columns]
            counts += np.bincount(users, minlength=len(counts))
            n_zeros += int(np.count_nonzero(cells[-1] == 0))
            _pack(cells, _STORED).tofile(file)
    (folder / "ordered.parquet").unlink()

    events = _map_events(folder / "all", _STORED, counts)
    types = tuple(event_types.tolist())
    stored = OnDisk(folder, events, user_ids, item_ids, types, present)
    return stored, {"duplicate_events": n_rows - n_kept, "zero_weights_kept": n_zeros}


def _describe(names: Sequence[str], interactions: pd.DataFrame) -> str:
    """Return the statement that gives all events the same columns."""
    id_types = {}
    for name in ("user_id", "item_id"):
        is_number = is_integer_dtype(interactions[name])
        id_types[name] = "BIGINT" if is_number else "VARCHAR"
    return _EVENTS.format(
        id_types=id_types,
        event="event" if "event" in names else "CAST(NULL AS VARCHAR)",
        weight="weight" if "weight" in names else "CAST(1 AS DOUBLE)",
    )


def _number(
    database: Any, table: str, column: str, others: Sequence[Any] | pd.Series[Any] = ()
) -> NDArray[Any]:
    """Number the values of a column of the events and some others, ascending; return them."""
    there = database.view("events").filter(f"{column} IS NOT NULL").project(column)
    found = np.asarray(there.distinct().fetchnumpy()[column])
    values = np.unique(np.append(found, np.asarray(others, found.dtype)))
    numbers = np.arange(len(values), dtype=np.int32)
    numbered = pa.table({"id": to_arrow(values), "number": numbers})
    database.register(table, numbered)
    return values
