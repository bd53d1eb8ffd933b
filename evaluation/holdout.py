"""From tables of interactions to test requests: reading, validation splits, and who is asked about when.

Interactions are data frames of `user_id`, `item_id`, context columns and, where the data has times, `datetime` (int64
UTC seconds). B test requests.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from evaluation.metrics import ItemSets, Targets
from serve.arrays import Doubles, Flags, Floats, Ints
from serve.clock import to_seconds
from serve.encode import context_keys, encode_features, to_numbers, to_text, write_cell
from serve.errors import SchemaError, name_nearest, say
from serve.profiles import Profiles, feature_values
from serve.requests import History, parse_id
from serve.schema import DERIVED, WORDED, Feature, IdType, Schema

Column: TypeAlias = "pd.Series[Any]"
Strength = Callable[
    [Doubles], Doubles
]  # counts of (user, item) pairs -> their strengths

PAIR = ["user_id", "item_id"]
MAX_VALIDATION_USERS = 1024
_ID_KINDS: dict[IdType, Any] = {"integer": np.int64, "string": object}


def read_interactions(path: Path, schema: Schema) -> pd.DataFrame:
    """Read `user_id`, `item_id` and what there is of `datetime`, `position`, `event`, `weight` and context."""
    frame = _read_frame(path, PAIR)
    types: dict[str, IdType] = {
        "user_id": schema.user_id_type,
        "item_id": schema.item_id_type,
    }
    columns = {
        name: _read_ids(frame[name], types[name], f"{path.name}: {name}")
        for name in PAIR
    }
    if "datetime" in frame:
        columns["datetime"], is_valid = to_seconds(
            frame["datetime"].to_numpy(), schema.timezone
        )
        _refuse(~is_valid, frame["datetime"], f"{path.name}: datetime")
    for name, least in (("position", -np.inf), ("weight", 0)):
        if name in frame:
            columns[name] = pd.to_numeric(frame[name], errors="coerce").to_numpy(
                np.float64
            )
            is_good = np.isfinite(columns[name]) & (columns[name] >= least)
            _refuse(~is_good, frame[name], f"{path.name}: {name}")
    if "event" in frame:
        columns["event"] = np.array(
            [to_text(value) for value in frame["event"]], object
        )
    return pd.DataFrame(
        columns
        | _read_features(
            frame.drop(columns=list(columns)), schema.context_features, path
        )
    )


def read_users(path: Path, schema: Schema) -> pd.DataFrame:
    """Read `user_id` and the columns of the user features."""
    columns = [
        feature.column
        for feature in schema.user_features
        if feature.kind not in DERIVED
    ]
    frame = _read_frame(path, ["user_id", *columns])
    ids = _read_ids(frame["user_id"], schema.user_id_type, f"{path.name}: user_id")
    users = pd.DataFrame(
        {"user_id": ids} | _read_features(frame, schema.user_features, path)
    )
    for twin in users["user_id"][users["user_id"].duplicated()].tolist():
        raise SchemaError(f"{path.name}: user_id {twin!r} is there twice; keep one row")
    return users


def read_moment(text: str, timezone: str | None) -> int:
    """Read an ISO date or time, or an epoch number, as UTC seconds."""
    seconds, is_valid = to_seconds([text], timezone)
    if not is_valid[0]:
        raise SchemaError(
            f"moment '{text}' cannot be read; allowed: an ISO date or time such as 2017-12-01"
        )
    return int(seconds[0])


def _read_frame(path: Path, needed: Iterable[str]) -> pd.DataFrame:
    """Read Parquet, or CSV as text: an id such as 007, or NA, stays as it is."""
    if not path.name.lower().endswith((".csv", ".csv.gz", ".parquet")):
        raise SchemaError(
            f"{path.name}: cannot read '{path.suffix}'; allowed: .csv, .csv.gz, .parquet"
        )
    try:
        if path.suffix.lower() == ".parquet":
            frame = pd.read_parquet(path)
        else:  # with the header as a record: pandas would rename twins and shift short records
            cells = pd.read_csv(
                path, header=None, dtype=str, keep_default_na=False, na_values=[""]
            )
            frame = (
                cells[1:]
                .set_axis(cells.iloc[0].tolist(), axis=1)
                .reset_index(drop=True)
            )
    except (
        ValueError,
        OSError,
        EOFError,
        zlib.error,
    ) as error:  # of pandas, Arrow and gzip
        raise SchemaError(f"{path}: cannot be read: {say(error)}") from error
    for column in needed:
        if column not in frame:
            raise SchemaError(
                f"{path.name}: no column '{column}'; {name_nearest(column, map(str, frame))}"
            )
    for twin in frame.columns[frame.columns.duplicated() & frame.columns.notna()]:
        raise SchemaError(
            f"{path.name}: two columns are called '{twin}'; rename all but one"
        )
    return frame


def _read_ids(column: Column, id_type: IdType, where: str) -> np.ndarray:
    _refuse(column.isna().to_numpy(), column, where)
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:  # of values that cannot be hashed
        raise SchemaError(
            f"{where} holds lists; allowed: whole numbers or texts"
        ) from error
    return np.array(
        [parse_id(value, id_type, where) for value in values], _ID_KINDS[id_type]
    )[codes]


def _refuse(is_bad: Flags, column: Column, where: str) -> None:
    if is_bad.any():
        row = int(is_bad.argmax())
        got = f"{column.iloc[[row]].tolist()[0]!r} in record {row + 1}"  # of Python, not np.int64(-1)
        raise SchemaError(
            f"{where} is {got}, which cannot be read; mend it or leave the record out"
        )


def _read_features(
    frame: pd.DataFrame, features: Iterable[Feature], path: Path
) -> dict[str, Any]:
    """Return the columns that the frame has of the features, numbers as float64."""
    columns = {}
    for feature in _stated(features, frame):
        values = frame[feature.column].to_numpy(object)
        if feature.kind == "categorical" and any(
            map(pd.api.types.is_list_like, values)
        ):
            raise SchemaError(
                f"{path.name}: {feature.column} holds lists; expected one value each, as categorical"
            )
        columns[feature.column] = (
            to_numbers(feature, values) if feature.is_numeric else values
        )
    return columns


def _stated(features: Iterable[Feature], rows: pd.DataFrame) -> list[Feature]:
    return [
        feature
        for feature in features
        if feature.kind not in DERIVED and feature.column in rows
    ]


def profiles_from_frame(
    interactions: pd.DataFrame, users: pd.DataFrame, schema: Schema
) -> Profiles:
    """Make the profiles of all users of both tables, of events ordered by time and position, if any, then by row."""
    keys = [
        name for name in ("user_id", "datetime", "position") if name in interactions
    ]
    events = interactions.sort_values(keys, kind="stable")
    user_ids = np.unique(
        pd.concat([interactions["user_id"], users["user_id"]]).to_numpy()
    )
    counts = np.bincount(
        np.searchsorted(user_ids, events["user_id"].to_numpy()), minlength=len(user_ids)
    )
    rows = users.set_index("user_id")
    known = rows.astype(dict.fromkeys(rows.select_dtypes("integer"), object)).reindex(
        user_ids
    )  # above 2**53 exact
    names = {feature.column for feature in schema.user_features}
    stated = {
        name: known[name] if name in known else [None] * len(known) for name in names
    }
    kinds: dict[str, Any] = {
        "item_id": _ID_KINDS[schema.item_id_type],
        "datetime": np.int64,
        "weight": np.float64,
    }
    columns = {
        name: events[name].to_numpy(kind)
        for name, kind in kinds.items()
        if name in events
    }
    if "event" in events:
        columns["event"] = (
            events["event"]
            .astype(object)
            .where(events["event"].notna(), None)
            .to_numpy(object)
        )
    if schema.context_features:
        given = {
            one.column: events[one.column]
            for one in schema.context_features
            if one.column in events
        }
        context = encode_features(
            schema.context_features, given, len(events), schema.timezone
        )
        columns["context"] = context_keys(schema.context_features, context.codes)
    return Profiles(
        user_ids=np.asarray(user_ids, _ID_KINDS[schema.user_id_type]),
        features=feature_values(schema.user_features, stated),
        history=History(**columns),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def split_validation(
    train: pd.DataFrame, holdout: pd.DataFrame, at: int | None, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split validation off training as the holdout was: a window as long, each user's last, or as many of the pairs.

    A user's only moment, or last pair, stays. Pairs are drawn by the seed, whatever the order of rows.
    """
    if at is not None and "datetime" in train and "datetime" in holdout:
        is_late = train["datetime"] >= at - max(int(holdout["datetime"].max()) - at, 1)
        if is_late.any() and not is_late.all():
            return train[~is_late], train[is_late]
    for name in ("datetime", "position"):
        if name in train:
            of_user = train.groupby("user_id")[name]
            is_last = (train[name] == of_user.transform("max")) & (
                train[name] > of_user.transform("min")
            )
            return train[~is_last], train[is_last]
    pair = train.groupby(PAIR).ngroup().to_numpy()
    pairs = (
        train[PAIR].drop_duplicates().sort_values(PAIR, ignore_index=True)
    )  # as the groups are numbered
    n_held_out = len(holdout.drop_duplicates(PAIR))
    lot = pd.Series(np.random.default_rng(seed).random(len(pairs)))
    is_only = lot == lot.groupby(pairs["user_id"]).transform("max")
    is_drawn = ((lot < n_held_out / (n_held_out + len(pairs))) & ~is_only).to_numpy()[
        pair
    ]
    return train[~is_drawn], train[is_drawn]


def sample_users(interactions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Keep at most `MAX_VALIDATION_USERS` users, drawn by the seed: enough to choose among five values."""
    drawn = np.random.default_rng(seed).permutation(
        np.sort(interactions["user_id"].unique())
    )[:MAX_VALIDATION_USERS]
    return interactions[interactions["user_id"].isin(drawn)]


@dataclass(frozen=True)
class Events:
    """Interactions (E,) in any order, with times in seconds or None; a pair may come many times."""

    user_row: Ints
    item_row: Ints
    time: Ints | None
    n_users: int
    n_items: int

    def keep(self, kept: Flags) -> Events:
        """Keep the events of the mask `kept` (E,)."""
        time = None if self.time is None else self.time[kept]
        return Events(
            self.user_row[kept], self.item_row[kept], time, self.n_users, self.n_items
        )

    def join(self, other: Events) -> Events:
        """Put the events of two parts of one data set together."""
        user_row, item_row = np.hstack(
            [(one.user_row, one.item_row) for one in (self, other)]
        )
        time = (
            None
            if self.time is None or other.time is None
            else np.concatenate([self.time, other.time])
        )
        return Events(user_row, item_row, time, self.n_users, self.n_items)

    def since_last(self) -> Ints:
        """Return the seconds from each event to the last of all, (E,)."""
        if self.time is None:
            raise SchemaError(
                "the interactions have no times: name their datetime column or leave this out"
            )
        return np.asarray(self.time.max(initial=np.iinfo(np.int64).min) - self.time)

    def matrix(self, strength: Strength) -> sparse.csr_array:
        """Return the users' strengths of each item, (U, N)."""
        shape = (self.n_users, self.n_items)
        counts = sparse.csr_array(
            (np.ones(len(self.item_row)), (self.user_row, self.item_row)), shape=shape
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


@dataclass(frozen=True)
class Ids:
    """Ids whose place is their row: users ascending, items in the order of the bundle's catalogue."""

    users: pd.Index[Any]
    items: pd.Index[Any]

    @classmethod
    def number(cls, item_ids: Iterable[Any], parts: Iterable[pd.DataFrame]) -> Ids:
        """Number the users of all parts of a data set."""
        users = pd.concat([part["user_id"] for part in parts]).unique()
        return cls(pd.Index(users).sort_values(), pd.Index(item_ids))

    def events(self, interactions: pd.DataFrame) -> Events:
        """Return the interactions as rows, without those of items outside the catalogue."""
        pairs = zip((self.users, self.items), PAIR, strict=True)
        user_row, item_row = (_rows_of(ids, interactions[name]) for ids, name in pairs)
        time = (
            interactions["datetime"].to_numpy(np.int64)
            if "datetime" in interactions
            else None
        )
        return Events(user_row, item_row, time, len(self.users), len(self.items)).keep(
            item_row >= 0
        )


@dataclass(frozen=True)
class HeldOut:
    """B test requests, and the first held-out interaction of each: its user, and the context of a target."""

    targets: Targets
    rows: pd.DataFrame


def group_requests(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every user in the holdout; its targets are their distinct held-out items."""
    if holdout.empty:
        raise SchemaError(
            "the holdout has no interactions; give at least one, or a split that holds some out"
        )
    return _group(holdout, ids, ["user_id"])


def group_situations(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every user and time, without times of every user and item, in the context of its first row."""
    return _group(
        holdout, ids, ["user_id", "datetime" if "datetime" in holdout else "item_id"]
    )


def _group(holdout: pd.DataFrame, ids: Ids, keys: list[str]) -> HeldOut:
    request = holdout.groupby(keys).ngroup().to_numpy(np.int64)
    _, first = np.unique(request, return_index=True)
    rows = holdout.iloc[first]
    pairs = pd.DataFrame(
        {"request": request, "item_id": holdout["item_id"].array}
    ).drop_duplicates()
    sets = ItemSets.group(
        pairs["request"].to_numpy(), _rows_of(ids.items, pairs["item_id"]), len(rows)
    )
    return HeldOut(Targets(sets, _rows_of(ids.users, rows["user_id"])), rows)


def _rows_of(index: pd.Index[Any], values: Column) -> Ints:
    return index.get_indexer(pd.Index(values)).astype(np.int64)


def plain_requests(rows: pd.DataFrame, at: int | None) -> list[dict[str, Any]]:
    """Ask for each row's user, at the moment `at` if there is one, without any context."""
    moment = {} if at is None else {"datetime": to_moment(at)}
    return [{"user_id": user_id, **moment} for user_id in rows["user_id"].tolist()]


def has_context(rows: pd.DataFrame, schema: Schema) -> bool:
    """Return whether the rows hold a time or context that requests can state."""
    return bool(_stated(schema.context_features, rows)) or (
        schema.has_datetime and "datetime" in rows
    )


def contextual_requests(rows: pd.DataFrame, schema: Schema) -> list[dict[str, Any]]:
    """Ask for each row's user in the situation of that row: its datetime and its context features."""
    requests = plain_requests(rows, at=None)
    if schema.has_datetime and "datetime" in rows:
        for request, seconds in zip(requests, rows["datetime"].tolist(), strict=True):
            request["datetime"] = to_moment(seconds)
    for feature in _stated(schema.context_features, rows):
        column = rows[feature.column]
        values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
        if feature.kind in WORDED:
            values = [write_cell(feature, cell) for cell in column]
        for request, value in zip(requests, values, strict=True):
            request.setdefault("context", {})[feature.name] = value
    return requests


def to_moment(seconds: int) -> datetime:
    """Return a time with its zone: as a number, one before 1973 would be ambiguous."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
