"""Events on disk, by user and time: columns that are mapped into memory and read tile by tile.

    DIR/item.npy      (E,) int32 number of the item
    DIR/time.npy      (E,) int64 UTC seconds
    DIR/event.npy     (E,) int8 or wider: 0 without a type, else the number of the type from 1
    DIR/weight.npy    (E,) float32, or float64 where the data needs it

`datamodules/out_of_core.py` makes them of files. A `Part` is the first events of each user: what a
training sees. Whole users who are drawn stand for all in reports, leaks and the evaluation.

Letters: U users, E events, N items that have events, e events of a tile.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import DTypeLike, NDArray

from datamodules.config import DataConfig
from datamodules.sequences import Sequences, encode_users, tile_users
from datamodules.splits import VALIDATION_USERS, Split, find_moments
from datamodules.values import mean_and_scale
from serve.arrays import Ints, spans
from serve.encode import encode_features
from serve.events import Events
from serve.kinds import FIRST_CODE, UNKNOWN
from serve.schema import MIN_USERS, Schema

MAX_SAMPLE = 4_000_000  # events of the users who stand for all
COLUMNS = ("item", "time", "event", "weight")


# ---- columns of a folder


class ColumnWriter:
    """Append values to a `.npy` file, whose length is known at the end."""

    def __init__(self, path: Path, dtype: DTypeLike) -> None:
        path.unlink(missing_ok=True)  # somebody may still have the old one mapped
        self.file = path.open("wb")
        self.dtype = np.dtype(dtype)
        self.length = 0
        self.digest = hashlib.sha256()
        self._write_header()

    def append(self, values: NDArray[Any]) -> None:
        content = np.ascontiguousarray(values, self.dtype).data
        self.file.write(content)
        self.digest.update(content)
        self.length += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write_header(self) -> None:
        """Write the header of numpy, which leaves room for a longer shape."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self.file, header)


def open_columns(
    folder: Path, dtypes: Mapping[str, DTypeLike]
) -> dict[str, ColumnWriter]:
    """Begin the columns of a folder, which is made if there is none."""
    folder.mkdir(parents=True, exist_ok=True)

    return {
        name: ColumnWriter(folder / f"{name}.npy", dtype)
        for name, dtype in dtypes.items()
    }


def close_columns(columns: Mapping[str, ColumnWriter]) -> str:
    """Finish the columns, and wait until they are on disk; return their digest."""
    digest = hashlib.sha256()
    for column in columns.values():
        column.close()
        digest.update(column.digest.digest())

    return digest.hexdigest()


def map_events(folder: Path, offsets: Ints) -> Events:
    """Map the columns of a folder; an event without a type is 0, one without a weight 1."""
    n_events = int(offsets[-1])
    columns: dict[str, NDArray[Any]] = {
        "event": np.broadcast_to(np.int8(0), n_events),
        "weight": np.broadcast_to(np.float32(1.0), n_events),
    }
    for name in COLUMNS:
        path = folder / f"{name}.npy"
        if path.exists():
            # nothing of length 0 can be mapped
            columns[name] = np.load(path, mmap_mode="r" if n_events else None)
    item, time, event, weight = (columns[name] for name in COLUMNS)

    return Events(item, time, event, weight, offsets)


# ---- events of all users, and the first of each


class EventFacts(NamedTuple):
    """What a schema needs to know of the events of a training."""

    user_ids: Any  # those with events; of a table one for each event
    item_ids: Any
    lengths: Ints  # events of each user who has any
    first: int  # UTC seconds
    last: int
    weight: tuple[float, float]  # mean and scale of log(1 + weight)
    event_types: tuple[str, ...]  # most frequent first, ties by text


class Tile(NamedTuple):
    """Some events of a range of users."""

    users: slice
    positions: Ints  # (e,) of the events in the flat arrays
    events: Events


@dataclass(frozen=True, eq=False)
class Blocks:
    """All events, by user, time and place in the files.

    Attributes:
        folder: where they lie.
        events: item numbers, times, numbers of types, weights.
        user_ids: (U,) ascending.
        item_ids: (N,) ascending.
        event_types: ascending; the first is number 1.
        columns: our names of the columns that the data has.
        digest: SHA-256 of all columns.
    """

    folder: Path
    events: Events
    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    event_types: tuple[str, ...]
    columns: tuple[str, ...]
    digest: str

    def read(self, index: Ints) -> dict[str, NDArray[Any]]:
        """Return columns of some events by our names, as profiles have them, (e,) each."""
        events = self.events
        types = np.array([None, *self.event_types], object)
        columns: dict[str, NDArray[Any]] = {
            "item_id": self.item_ids[events.item_row[index]],
            "datetime": np.asarray(events.time[index], np.int64),
        }
        if "event" in self.columns:
            columns["event"] = types[events.event[index]]
        if "weight" in self.columns:
            columns["weight"] = np.asarray(events.weight[index], np.float64)
        return columns

    def to_frame(self, users: Ints) -> pd.DataFrame:
        """Return the events of some users as a table in memory would have them."""
        offsets = self.events.offsets
        index = spans(offsets[users], offsets[users + 1])
        owners = np.repeat(self.user_ids[users], self.events.counts[users])
        frame = pd.DataFrame({"user_id": owners, **self.read(index)})
        texts = [name for name in frame if frame[name].dtype == object]
        return frame.astype(dict.fromkeys(texts, "str"))


@dataclass(frozen=True, eq=False)
class Part:
    """The first events of each user.

    Attributes:
        name: of its folder in that of the blocks.
        blocks: all events.
        counts: (U,) events of each user that belong to it.
    """

    name: str
    blocks: Blocks
    counts: Ints

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __contains__(self, column: object) -> bool:
        return column in self.blocks.columns

    def tiles(self) -> Iterator[Tile]:
        """Yield the events in tiles of whole users."""
        events = self.blocks.events
        for users in tile_users(events.offsets):
            starts = events.offsets[:-1][users]
            counts = self.counts[users]
            index = spans(starts, starts + counts)
            yield Tile(users, index, events.pick(index, _bound(counts)))

    @cached_property
    def facts(self) -> EventFacts:
        blocks = self.blocks
        item_counts = np.zeros(len(blocks.item_ids), np.int64)  # (N,)
        kinds = np.zeros((2, len(blocks.event_types) + 1), np.int64)  # events, users
        limits: list[int] = []
        scales = []

        for _, index, events in self.tiles():
            if not len(index):
                continue
            item_counts += np.bincount(events.item_row, minlength=len(item_counts))
            kinds += _count_types(events, kinds.shape[1])
            limits += [int(events.time.min()), int(events.time.max())]
            weights = np.asarray(blocks.events.weight[index], np.float64)
            logs = np.log1p(weights)
            mean, scale = mean_and_scale(logs)
            scales.append((len(logs), mean, scale * bool(np.ptp(logs))))

        has_events = self.counts > 0
        ids = (blocks.user_ids[has_events], blocks.item_ids[item_counts > 0])
        lengths = self.counts[has_events]
        weight = _merge_scales(scales)
        types = _rank_types(blocks.event_types, kinds)
        return EventFacts(*ids, lengths, min(limits), max(limits), weight, types)

    def to_sequences(
        self, users: pd.DataFrame, item_ids: NDArray[Any], schema: Schema
    ) -> Sequences:
        """Write the events as the towers read them, and map what was written.

        Args:
            users: the users table, of which only `user_id` is needed.
            item_ids: the catalogue's ids, (N,) ascending; all items of the part are among them.
            schema: says how features and event types are encoded.
        """
        blocks = self.blocks
        folder = blocks.folder / self.name
        rows = pd.Index(item_ids).get_indexer(pd.Index(blocks.item_ids))
        codes = {name: FIRST_CODE + i for i, name in enumerate(schema.event_types)}
        of_types = [codes.get(name, UNKNOWN) for name in blocks.event_types]
        code_of = np.array([UNKNOWN, *of_types])
        dtypes: dict[str, DTypeLike] = {
            "item": np.int32,
            "time": np.int64,
            "event": np.min_scalar_type(code_of.max()),
            "weight": np.float32,
        }
        columns = open_columns(folder, dtypes)

        for _, _, events in self.tiles():
            columns["item"].append(rows[events.item_row])
            columns["time"].append(events.time)
            columns["event"].append(code_of[events.event])
            columns["weight"].append(events.weight)
        close_columns(columns)

        is_user = self.counts > 0
        is_user |= pd.Index(blocks.user_ids).isin(users["user_id"])
        user_ids = blocks.user_ids[is_user]
        events = map_events(folder, _bound(self.counts[is_user]))
        n_events = len(events.item_row)
        return Sequences(
            events,
            encode_features((), {}, n_events),
            np.broadcast_to(np.float32(1.0), n_events),
            encode_users(users, user_ids, schema),
            user_ids,
        )


def _bound(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)])


def _count_types(events: Events, n_types: int) -> Ints:
    """Count the events of each type, and its users, (2, n_types)."""
    pairs = np.unique(events.segments * n_types + events.event)
    n_users = np.bincount(pairs % n_types, minlength=n_types)

    return np.stack([np.bincount(events.event, minlength=n_types), n_users])


def _rank_types(names: tuple[str, ...], counts: Ints) -> tuple[str, ...]:
    """Return the types of several users, by their events and users (2, types + 1)."""
    n_events, n_users = counts[:, 1:].tolist()
    ranked = sorted(zip(np.negative(n_events).tolist(), names, n_users, strict=True))

    return tuple(name for _, name, users in ranked if users >= MIN_USERS)


def _merge_scales(tiles: list[tuple[int, float, float]]) -> tuple[float, float]:
    """Return mean and scale of all numbers, given the count, mean and deviation of each tile."""
    sizes, means, deviations = np.array(tiles).T
    mean = means[0] if len(tiles) == 1 else np.average(means, weights=sizes)
    squares = deviations**2 + (means - mean) ** 2
    scale = deviations[0]
    if len(tiles) > 1:
        scale = np.sqrt(np.average(squares, weights=sizes))

    return float(mean), float(scale) or 1.0


# ---- the split


@dataclass(frozen=True, eq=False)
class BlockSplit:
    """Parts of all events, and the split of the users who stand for all.

    Attributes:
        blocks: all events.
        train: what the first training sees.
        refit: everything before the test.
        sample: the events of the drawn users.
        split: parts of the sample.
    """

    blocks: Blocks
    train: Part
    refit: Part
    sample: pd.DataFrame
    split: Split

    @property
    def is_whole(self) -> bool:
        """Whether the sample is all there is."""
        return len(self.sample) == len(self.blocks.events.item_row)

    def count(self) -> dict[str, int]:
        """Count all events, users and items, and those of the sample."""
        blocks = self.blocks
        n_users = int(np.count_nonzero(blocks.events.counts))
        return {
            "interactions": len(blocks.events.item_row),
            "users": n_users,
            "items": len(blocks.item_ids),
            "of_drawn_users": len(self.sample),
        }


def split_blocks(blocks: Blocks, config: DataConfig, seed: int) -> BlockSplit:
    """Split as `datamodules.splits` does: each part begins at an event of each user.

    Args:
        blocks: all events.
        config: its `split` is by time, by the last event of each user, or none.
        seed: draws users.

    Raises:
        SchemaError: a part would be empty.
    """
    counts = blocks.events.counts  # (U,)
    rng = np.random.default_rng(seed)
    moments: tuple[int | None, int | None] = (None, None)
    drawn = rng.permutation(0)

    if config.split.kind == "time":
        times = blocks.events.time
        limits = int(times.min()), int(times.max())
        moments = find_moments(*limits, str(config.split.at), config.timezone)
        learned, refitted = (_count_before(blocks, moment) for moment in moments)
    else:
        has_test = (counts > 1) & (config.split.kind == "leave_one_out")
        refitted = counts - has_test
        able = np.flatnonzero(refitted > 1)
        most = min(VALIDATION_USERS, int(refitted.sum()) // 2)
        drawn = rng.permutation(able)[: None if config.split.strict else most]
        learned = refitted.copy()
        learned[drawn] -= 1

    users = _draw_users(counts, drawn, seed)
    sample = blocks.to_frame(users)
    n_before = spans(np.zeros_like(users), counts[users])  # (e,) of the same user
    is_train = n_before < np.repeat(learned[users], counts[users])
    is_test = n_before >= np.repeat(refitted[users], counts[users])
    split = Split(
        sample[is_train],
        sample[~is_train & ~is_test],
        sample[is_test],
        config.split.kind,
        *moments,
    )
    train = Part("train", blocks, learned)

    return BlockSplit(blocks, train, Part("refit", blocks, refitted), sample, split)


def _count_before(blocks: Blocks, moment: int) -> Ints:
    """Count the events of each user before a moment, (U,)."""
    counts = blocks.events.counts
    n_before = np.zeros_like(counts)
    for users, _, events in Part("all", blocks, counts).tiles():
        is_before = events.time < moment
        n_users = users.stop - users.start
        n_before[users] = np.bincount(events.segments, is_before, n_users)

    return n_before


def _draw_users(counts: Ints, first: Ints, seed: int) -> Ints:
    """Draw users with at most `MAX_SAMPLE` events (U,) together, those of `first` before others."""
    if counts.sum() <= MAX_SAMPLE:
        return np.flatnonzero(counts)
    others = np.random.default_rng(seed).permutation(np.flatnonzero(counts))
    order = pd.unique(np.concatenate([first, others]))
    is_taken = np.cumsum(counts[order]) <= MAX_SAMPLE

    return np.sort(order[is_taken])
