"""From held-out interactions to test requests: who is asked about, at which moment, and what is right.

Interactions are data frames of `user_id`, `item_id`, context columns and, where the data has times,
`datetime` (int64 UTC seconds). B test requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from evaluation.events import Events
from evaluation.targets import ItemSets, Targets
from serve.encoding import split_cell, to_text
from serve.errors import SchemaError
from serve.requests import DERIVED
from serve.schema import Feature, Schema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Ids:
    """The rows of users and items: an id's place in its index is its row."""

    users: pd.Index[Any]
    """Ascending."""
    items: pd.Index[Any]
    """The catalogue of the bundle."""

    def events(self, interactions: pd.DataFrame) -> Events:
        """Return the interactions as rows, without those of items outside the catalogue."""
        item_row = self.items.get_indexer(pd.Index(interactions["item_id"]))
        events = Events(
            user_row=self.users.get_indexer(pd.Index(interactions["user_id"])).astype(np.int64),
            item_row=item_row.astype(np.int64),
            time=interactions["datetime"].to_numpy(np.int64) if "datetime" in interactions else None,
            n_users=len(self.users),
            n_items=len(self.items),
        )
        return events.keep(item_row >= 0)


@dataclass(frozen=True)
class HeldOut:
    """B test requests."""

    targets: Targets
    rows: pd.DataFrame
    """(B, ...) the first held-out interaction of each request: its user, and the context of a target."""


def number_ids(item_ids: Iterable[Any], parts: Iterable[pd.DataFrame]) -> Ids:
    """Number the users of all parts of a data set, and the items of a catalogue in its order."""
    users = pd.concat([part["user_id"] for part in parts]).unique()
    return Ids(pd.Index(users).sort_values(), pd.Index(item_ids))


def group_requests(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every user in the holdout; its targets are the distinct items held out of her.

    Without context she gets one list, at whatever times she took them: judged by each time alone, it would be wrong
    about all the others.

    Raises:
        SchemaError: nothing is held out.
    """
    if holdout.empty:
        raise SchemaError("the holdout has no interactions; give at least one, or a split that holds some out")
    return _group(holdout, ids, ["user_id"])


def group_situations(holdout: pd.DataFrame, ids: Ids) -> HeldOut:
    """Make a request of every situation that targets were held out in.

    That is a user at a time, and without times a user and an item, in the context of its first event.
    """
    return _group(holdout, ids, ["user_id", "datetime" if "datetime" in holdout else "item_id"])


def _group(holdout: pd.DataFrame, ids: Ids, keys: list[str]) -> HeldOut:
    request = holdout.groupby(keys).ngroup().to_numpy(np.int64)
    _, first = np.unique(request, return_index=True)
    rows = holdout.iloc[first]
    pairs = pd.DataFrame({"request": request, "item_id": holdout["item_id"].array}).drop_duplicates()
    item_row = ids.items.get_indexer(pd.Index(pairs["item_id"]))
    sets = ItemSets.group(pairs["request"].to_numpy(), item_row, len(rows))
    users = ids.users.get_indexer(pd.Index(rows["user_id"])).astype(np.int64)
    return HeldOut(Targets(sets, users), rows)


def plain_requests(rows: pd.DataFrame, at: int | None) -> list[dict[str, Any]]:
    """Ask for each row's user, at the moment `at` if there is one, without any context."""
    moment = {} if at is None else {"datetime": _as_moment(at)}
    return [{"user_id": user_id, **moment} for user_id in rows["user_id"].tolist()]


def has_context(rows: pd.DataFrame, schema: Schema) -> bool:
    """Tell whether the rows say more than whose they are."""
    return bool(_given_features(rows, schema)) or (schema.has_datetime and "datetime" in rows)


def contextual_requests(rows: pd.DataFrame, schema: Schema) -> list[dict[str, Any]]:
    """Ask for each row's user in the situation of that row: its datetime and its context features."""
    requests = plain_requests(rows, at=None)
    if schema.has_datetime and "datetime" in rows:
        for request, seconds in zip(requests, rows["datetime"].tolist(), strict=True):
            request["datetime"] = _as_moment(seconds)
    features = _given_features(rows, schema)
    columns = [_raw_values(feature, rows[feature.column]) for feature in features]
    names = [feature.name for feature in features]
    for request, values in zip(requests, zip(*columns, strict=True), strict=False):
        request["context"] = dict(zip(names, values, strict=True))
    return requests


def _given_features(rows: pd.DataFrame, schema: Schema) -> list[Feature]:
    """Return the context features that a request states itself and that the rows know."""
    stated = [feature for feature in schema.context_features if feature.kind not in DERIVED]
    return [feature for feature in stated if feature.column in rows]


def _raw_values(feature: Feature, column: pd.Series[Any]) -> list[Any]:
    """Return the values as a request states them: numbers, texts or lists of texts, None where missing."""
    if feature.kind == "categorical":
        return [to_text(value) for value in column]
    if feature.kind == "multi_categorical":
        return [split_cell(cell, feature.separator) or None for cell in column]
    values: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return values


def _as_moment(seconds: int) -> datetime:
    """Say a time with its zone: as a number, one before 1973 would be ambiguous."""
    return _EPOCH + timedelta(seconds=seconds)
