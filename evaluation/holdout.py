"""Turn tables of interactions into test requests: reading, validation splits, requests.

Interactions are data frames of `user_id`, `item_id`, context columns and, where the data has
times, `datetime` (int64 UTC seconds). B test requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from datamodules.columns import columns_of_table
from datamodules.config import (
    Column,
    DataConfig,
    FeatureConfig,
    FeaturesConfig,
    TableConfig,
)
from datamodules.rejects import describe
from datamodules.sources import TableLike, read_file, take_table
from datamodules.tables import type_records
from evaluation.metrics import ItemSets, Targets
from serve.arrays import Doubles, Flags, Floats, IdType, Ints
from serve.cells import parse_id
from serve.clock import to_seconds
from serve.encode import context_keys, encode_features
from serve.errors import SchemaError, SchemaErrors
from serve.kinds import Feature
from serve.profiles import Profiles, feature_values
from serve.requests import History
from serve.schema import Schema

# counts of (user, item) pairs -> their strengths
Strength = Callable[[Doubles], Doubles]

Source = Path | TableLike

PAIR = ["user_id", "item_id"]
MAX_VALIDATION_USERS = 1024
_ID_KINDS: dict[IdType, Any] = {"integer": np.int64, "string": object}


# ---- reading


def read_interactions(source: Source, schema: Schema) -> pd.DataFrame:
    """Read interactions as training reads them.

    Args:
        source: a file or a table of any kind that training reads.
        schema: of the bundle that is judged.

    Returns:
        `user_id`, `item_id` and what there is of `datetime`, `position`, `event`, `weight` and
        context.

    Raises:
        SchemaError: names the first record that cannot be read.
    """
    columns = []
    for column in columns_of_table("interactions", _declare(schema)):
        if column.name == "weight":
            column = replace(column, low=0)
        if column.role != "id":
            column = replace(column, reason="")  # the file may lack it
        columns.append(column)

    return _read_table("interactions", source, columns, schema)


def read_users(source: Source, schema: Schema) -> pd.DataFrame:
    """Read `user_id` and the columns of the user features, one row a user."""
    columns = columns_of_table("users", _declare(schema))
    users = _read_table("users", source, columns, schema)
    is_twin = users["user_id"].duplicated()
    if is_twin.any():
        twin = users["user_id"][is_twin].tolist()[0]
        raise SchemaError(f"users: user_id {twin!r} is there twice; keep one row")

    return users


def read_moment(text: str, timezone: str | None) -> int:
    """Read an ISO date or time, or an epoch number, as UTC seconds."""
    seconds, is_valid = to_seconds([text], timezone)
    if not is_valid[0]:
        raise SchemaError(
            f"moment '{text}' cannot be read; allowed: an ISO date or time such as 2017-12-01"
        )

    return int(seconds[0])


def _declare(schema: Schema) -> DataConfig:
    """Declare the features of a bundle as its training did."""
    features = FeaturesConfig()
    for side in ("user", "context"):
        declared = {
            feature.name: FeatureConfig(feature.kind, feature.column)
            for feature in schema.features(side)
        }
        features = replace(features, **{side: declared})

    all_times = TableConfig(min_datetime="0001-01-02", max_datetime="9999-12-30")
    return DataConfig(all_times, features=features, timezone=schema.timezone)


def _read_table(
    table_name: str, source: Source, columns: Sequence[Column], schema: Schema
) -> pd.DataFrame:
    if isinstance(source, Path):
        file = read_file(source, TableConfig(), tuple(columns))
    else:
        file = take_table(table_name, source, TableConfig(), tuple(columns))
    if file.problems:
        raise SchemaErrors([problem.text for problem in file.problems])
    table = type_records(file, TableConfig(), schema.timezone, keeps_rows=False)
    lost = table.faults[table.faults["costs"] == "record"]
    if len(lost):
        raise SchemaError(f"{describe(lost)}; mend it or leave the record out")

    frame = table.frame
    id_types = {"user_id": schema.user_id_type, "item_id": schema.item_id_type}

    for name in frame.columns.intersection(PAIR):
        id_type = id_types[name]
        where = f"{Path(file.file).name}: {name}"
        codes, distinct = pd.factorize(frame[name])
        ids = [parse_id(value, id_type, where) for value in distinct]
        if name == "user_id":
            ids = [schema.parse_user_id(user_id, where) for user_id in ids]
        frame[name] = np.array(ids, _ID_KINDS[id_type])[codes]

    return frame


def _list_present(features: Iterable[Feature], rows: pd.DataFrame) -> list[Feature]:
    """Return the features whose column is there and not taken from the time."""
    return [
        feature
        for feature in features
        if not feature.is_derived and feature.column in rows
    ]


# ---- profiles


def profiles_from_frame(
    interactions: pd.DataFrame, users: pd.DataFrame, schema: Schema
) -> Profiles:
    """Make the profiles of all users of both tables.

    Args:
        interactions: events in any order; a history is ordered by time and position, if any, then
            by row.
        users: `user_id` and feature columns.
        schema: of the bundle that answers.
    """
    keys = [
        name for name in ("user_id", "datetime", "position") if name in interactions
    ]
    events = interactions.sort_values(keys, kind="stable")
    user_ids = np.unique(np.concatenate([interactions["user_id"], users["user_id"]]))
    rows = np.searchsorted(user_ids, events["user_id"].to_numpy())
    counts = np.bincount(rows, minlength=len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    kind = _ID_KINDS[schema.user_id_type]
    return Profiles(
        user_ids=np.asarray(user_ids, kind),
        features=profile_features(users, user_ids, schema),
        history=_to_history(events, schema),
        offsets=offsets,
    )


def profile_features(
    users: pd.DataFrame, user_ids: np.ndarray, schema: Schema
) -> dict[str, np.ndarray]:
    """Return the features of users by id, of those without a row missing values."""
    rows = users.set_index("user_id").astype(object)  # integers exact above 2**53
    rows = rows.reindex(user_ids)
    columns: dict[str, Any] = {}
    for feature in schema.user_features:
        name = feature.column
        columns[name] = rows[name] if name in rows else [None] * len(rows)

    return feature_values(schema.user_features, columns)


def _to_history(events: pd.DataFrame, schema: Schema) -> History:
    kinds: dict[str, Any] = {
        "item_id": _ID_KINDS[schema.item_id_type],
        "datetime": np.int64,
        "weight": np.float64,
    }

    columns: dict[str, Any] = {}
    for name in events.columns.intersection([*kinds]):
        columns[name] = events[name].to_numpy(kinds[name])
    if "event" in events:
        types = events["event"].astype(object)
        columns["event"] = types.where(types.notna(), None).to_numpy(object)

    features = schema.context_features
    if features:
        cells: Any = dict(events.items())
        encoded = encode_features(features, cells, len(events), schema.timezone)
        columns["context"] = context_keys(features, encoded.codes)

    return History(**columns)


# ---- parts


def split_validation(
    train: pd.DataFrame, holdout: pd.DataFrame, at: int | None, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split validation off training as the holdout was.

    It is a window as long, each user's last moment, or as many pairs. A user's only moment, or
    last pair, stays.

    Args:
        train: interactions before the holdout.
        holdout: interactions that are predicted.
        at: UTC seconds of a holdout that is all from one moment on.
        seed: draws pairs, whatever the order of rows.

    Returns:
        Training and validation.
    """
    if at is not None and "datetime" in train and "datetime" in holdout:
        length = max(int(holdout["datetime"].max()) - at, 1)
        is_late = train["datetime"] >= at - length
        if is_late.any() and not is_late.all():
            return train[~is_late], train[is_late]

    for name in ("datetime", "position"):
        if name in train:
            of_user = train.groupby("user_id")[name]
            is_last = train[name] == of_user.transform("max")
            is_last &= train[name] > of_user.transform("min")
            return train[~is_last], train[is_last]

    is_drawn = _draw_pairs(train, len(holdout.drop_duplicates(PAIR)), seed)
    return train[~is_drawn], train[is_drawn]


def _draw_pairs(train: pd.DataFrame, n_held_out: int, seed: int) -> Flags:
    """Draw about as many pairs as are held out, but no user's last one; mark their rows (E,)."""
    pairs = train[PAIR].drop_duplicates().sort_values(PAIR, ignore_index=True)
    lot = pd.Series(np.random.default_rng(seed).random(len(pairs)))
    is_drawn = lot < n_held_out / (n_held_out + len(pairs))
    is_drawn &= lot != lot.groupby(pairs["user_id"]).transform("max")
    pair = train.groupby(PAIR).ngroup()  # numbered as the pairs are sorted
    return is_drawn.to_numpy()[pair.to_numpy()]


def sample_users(
    interactions: pd.DataFrame, seed: int, max_users: int = MAX_VALIDATION_USERS
) -> pd.DataFrame:
    """Keep at most so many users, drawn by the seed."""
    users = np.sort(interactions["user_id"].unique())
    drawn = np.random.default_rng(seed).permutation(users)[:max_users]
    return interactions[interactions["user_id"].isin(drawn)]


@dataclass(frozen=True)
class Events:
    """Interactions (E,) with times in seconds or None; a pair may come many times."""

    user_row: Ints
    item_row: Ints
    time: Ints | None
    n_users: int
    n_items: int
    is_ordered: bool = False  # a user's events are oldest first; else in no order

    def keep(self, is_kept: Flags) -> Events:
        """Keep the events of a mask (E,)."""
        time = None if self.time is None else self.time[is_kept]
        user_row = self.user_row[is_kept]
        item_row = self.item_row[is_kept]
        return replace(self, user_row=user_row, item_row=item_row, time=time)

    def join(self, other: Events) -> Events:
        """Put the events of two parts of one data set together."""
        time = None
        if self.time is not None and other.time is not None:
            time = np.concatenate([self.time, other.time])
        user_row = np.concatenate([self.user_row, other.user_row])
        item_row = np.concatenate([self.item_row, other.item_row])
        return replace(self, user_row=user_row, item_row=item_row, time=time)

    def since_last(self) -> Ints:
        """Return the seconds from each event to the last of all, (E,)."""
        if self.time is None:
            raise SchemaError(
                "the interactions have no times: name their datetime column or leave this out"
            )

        last = self.time.max(initial=np.iinfo(np.int64).min)
        return np.asarray(last - self.time)

    def matrix(self, strength: Strength) -> sparse.csr_array:
        """Return the users' strengths of each item.

        Args:
            strength: counts of (user, item) pairs -> their strengths, both (P,).

        Returns:
            A sparse matrix (U, N).
        """
        ones = np.ones(len(self.item_row))
        counts = sparse.csr_array(
            (ones, (self.user_row, self.item_row)), shape=(self.n_users, self.n_items)
        )
        counts.sum_duplicates()
        counts.data = strength(counts.data)
        return counts

    def popularity(self, strength: Strength) -> Floats:
        """Return the sum of each item's strengths, scaled into [0, 1), (N,)."""
        total = np.asarray(self.matrix(strength).sum(axis=0)).ravel()
        return np.asarray(total / (total.max(initial=0) + 1), np.float32)

    def count_items(self) -> Ints:
        """Return the events of each item, (N,)."""
        return np.bincount(self.item_row, minlength=self.n_items)

    def owned(self) -> ItemSets:
        """Return the distinct items of every user."""
        matrix = self.matrix(np.ones_like)
        return ItemSets(matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64))


# ---- requests


@dataclass(frozen=True)
class Ids:
    """Ids by row: users ascending, items in the order of the bundle's catalogue."""

    users: pd.Index[Any]
    items: pd.Index[Any]

    @classmethod
    def number(cls, item_ids: Iterable[Any], parts: Iterable[pd.DataFrame]) -> Ids:
        """Number the users of all parts of a data set."""
        users = pd.concat([part["user_id"] for part in parts]).unique()
        return cls(pd.Index(users).sort_values(), pd.Index(item_ids))

    def events(self, interactions: pd.DataFrame) -> Events:
        """Return the interactions as rows, without those of items outside the catalogue."""
        keys = [name for name in ("datetime", "position") if name in interactions]
        interactions = interactions.sort_values(keys, kind="stable")
        time = None
        if "datetime" in interactions:
            time = interactions["datetime"].to_numpy(np.int64)
        user_row = _rows_of(self.users, interactions["user_id"])
        item_row = _rows_of(self.items, interactions["item_id"])
        n_users = len(self.users)
        events = Events(user_row, item_row, time, n_users, len(self.items), bool(keys))
        return events.keep(item_row >= 0)


@dataclass(frozen=True)
class HeldOut:
    """B test requests: targets, and the first held-out interaction of each."""

    targets: Targets
    rows: pd.DataFrame


def group_requests(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every user; its targets are their distinct held-out items."""
    if holdout.empty:
        raise SchemaError(
            "the holdout has no interactions; give at least one, or a split that holds some out"
        )

    return _group(holdout, ids, ["user_id"])


def group_situations(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every user and time, or, without times, of every user and item."""
    second = "datetime" if "datetime" in holdout else "item_id"
    return _group(holdout, ids, ["user_id", second])


def _group(holdout: pd.DataFrame, ids: Ids, keys: list[str]) -> HeldOut:
    request = holdout.groupby(keys).ngroup().to_numpy(np.int64)
    _, first = np.unique(request, return_index=True)
    rows = holdout.iloc[first]
    pairs = pd.DataFrame({"request": request, "item_id": holdout["item_id"].array})
    pairs = pairs.drop_duplicates()
    items = _rows_of(ids.items, pairs["item_id"])
    sets = ItemSets.group(pairs["request"].to_numpy(), items, len(rows))
    return HeldOut(Targets(sets, _rows_of(ids.users, rows["user_id"])), rows)


def _rows_of(index: pd.Index[Any], values: pd.Series) -> Ints:
    return index.get_indexer(pd.Index(values)).astype(np.int64)


def plain_requests(rows: pd.DataFrame, at: int | None) -> list[dict[str, Any]]:
    """Ask for each row's user, at the moment `at` if there is one, without any context."""
    moment = {} if at is None else {"datetime": to_moment(at)}
    return [{"user_id": user_id, **moment} for user_id in rows["user_id"].tolist()]


def has_context(rows: pd.DataFrame, schema: Schema) -> bool:
    """Return whether the rows hold a time or context that requests can state."""
    has_time = schema.has_datetime and "datetime" in rows
    return has_time or bool(_list_present(schema.context_features, rows))


def contextual_requests(rows: pd.DataFrame, schema: Schema) -> list[dict[str, Any]]:
    """Ask for each row's user at its datetime and in its context."""
    requests = plain_requests(rows, at=None)
    if schema.has_datetime and "datetime" in rows:
        for request, seconds in zip(requests, rows["datetime"].tolist(), strict=True):
            request["datetime"] = to_moment(seconds)

    for feature in _list_present(schema.context_features, rows):
        column = rows[feature.column].astype(object)
        cells: list[Any] = column.where(column.notna(), None).tolist()
        if feature.has_vocabulary:
            cells = list(map(feature.write, cells))
        for request, cell in zip(requests, cells, strict=True):
            request.setdefault("context", {})[feature.name] = cell

    return requests


def to_moment(seconds: int) -> datetime:
    """Return a time with its zone: as a number, one before 1973 would be ambiguous."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
