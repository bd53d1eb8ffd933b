"""Clean tables: remove duplicates, check joins, order rows, weigh targets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from datamodules.tables import IDS, Tables
from datamodules.values import TARGET_WEIGHT, is_set
from serve.arrays import Ties
from serve.cells import to_text
from serve.errors import SchemaError, name_nearest


@dataclass(frozen=True)
class CleaningReport:
    """Count the rows that were taken out, and those that were kept though they look odd."""

    duplicate_events: int  # rows equal to an earlier one in every column
    negative_weights: int  # events of a weight below 0: a return, not a purchase
    zero_weights_kept: int  # events kept with weight 0
    duplicate_users: int
    duplicate_items: int


def clean(tables: Tables) -> tuple[Tables, CleaningReport]:
    """Remove rows that equal another in every column, and events of negative weight."""
    events = tables.interactions
    distinct = events.drop_duplicates()
    weights = distinct.get("weight", pd.Series(1.0, distinct.index))
    is_return = weights < 0
    kept = distinct[~is_return].reset_index(drop=True)
    users = tables.users.drop_duplicates(ignore_index=True)
    items = tables.items.drop_duplicates(ignore_index=True)

    report = CleaningReport(
        duplicate_events=len(events) - len(distinct),
        negative_weights=int(is_return.sum()),
        zero_weights_kept=int((weights == 0).sum()),
        duplicate_users=len(tables.users) - len(users),
        duplicate_items=len(tables.items) - len(items),
    )

    return Tables(kept, users, items), report


def measure_unlisted(tables: Tables, given: Collection[str]) -> dict[str, float]:
    """Return the share of users and items with events that have no row in a given table."""
    return {
        name: float((~_find_listed(tables, name)).mean())
        for name in IDS
        if name in given
    }


def check_joins(tables: Tables, given: Collection[str]) -> None:
    """Refuse a users or items table in which no id of the interactions has a row.

    Args:
        tables: typed tables.
        given: the names of the tables that were read.

    Raises:
        SchemaError: shows an id of either table.
    """
    for name, id_name in IDS.items():
        rows: pd.DataFrame = getattr(tables, name)
        if name not in given or rows.empty or _find_listed(tables, name).any():
            continue
        id_of_event = tables.interactions[id_name].tolist()[0]
        id_of_row = rows[id_name].tolist()[0]
        raise SchemaError(
            f"none of the {name} with events has a row in the {name} table: {id_name} is "
            f"{id_of_event!r} in the "
            f"interactions and {id_of_row!r} in the {name}; name the right column as {id_name} in "
            f"data.{name}.columns, "
            "or write whole numbers without .0"
        )


def _find_listed(tables: Tables, name: str) -> pd.Series[Any]:
    """Mark the distinct ids of the interactions that have a row in a table."""
    ids = tables.interactions[IDS[name]].drop_duplicates()
    return ids.isin(getattr(tables, name)[IDS[name]])


def order_tables(tables: Tables, ties: Ties) -> Tables:
    """Order users and items by id, interactions by user, time and position.

    Ties of baskets and sets are ordered by all columns, so that the order of the file plays no
    part.
    """
    events = tables.interactions
    keys = [name for name in ("user_id", "datetime", "position") if name in events]
    if ties == "simultaneous" or is_set(events):
        keys.append("item_id")
        keys += sorted(str(name) for name in events if name not in keys)

    return Tables(
        _order(events, keys),
        _order(tables.users, ["user_id"]),
        _order(tables.items, ["item_id"]),
    )


def _order(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    order = np.lexsort([_rank(frame[name]) for name in reversed(keys)])
    return frame.iloc[order].reset_index(drop=True)


def _rank(column: pd.Series[Any]) -> np.ndarray:
    """Return numbers that order as the values do; mixed values order as texts."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    if not isinstance(column.dtype, pd.StringDtype):
        column = column.map(_write).astype("str")
    return pd.factorize(column, sort=True)[0]


def _write(value: Any) -> str | None:
    is_list = isinstance(value, (tuple, list, np.ndarray))
    return repr(value) if is_list else to_text(value)


def weigh_targets(interactions: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Add `TARGET_WEIGHT`, of mean 1 over the targets, if anything about targets is declared.

    Args:
        interactions: cleaned events.
        config: its `targets` say which events are predicted, its `events` how their losses are
            weighed.

    Raises:
        SchemaError: a declared column is absent, or no event is a target or of a declared type.
    """
    target_types = config.targets.events
    min_weight = config.targets.min_weight
    if target_types is None and min_weight is None and not config.events:
        return interactions
    types = [*(target_types or ()), *config.events]
    _check_target_columns(interactions, config, types)
    is_target = np.ones(len(interactions), bool)
    weight = np.ones(len(interactions), np.float64)

    if target_types:
        is_target &= interactions["event"].isin(target_types).to_numpy()
    if min_weight is not None:
        is_target &= (interactions["weight"] >= min_weight).to_numpy()
    if config.events:
        weights = interactions["event"].map(config.events).fillna(1.0)
        weight = np.asarray(weights, np.float64)

    if target_types == [] or not is_target.any():
        raise SchemaError(
            "data.targets: no event is a target; declare other events or a lower min_weight"
        )

    weight = np.where(is_target, weight / weight[is_target].mean(), 0.0)

    return interactions.assign(**{TARGET_WEIGHT: weight})


def only_targets(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are targets."""
    if TARGET_WEIGHT not in interactions:
        return interactions
    return interactions[interactions[TARGET_WEIGHT] > 0]


def only_evidence(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are no targets."""
    if TARGET_WEIGHT not in interactions:
        return interactions.iloc[:0]
    return interactions[interactions[TARGET_WEIGHT] == 0]


def _check_target_columns(
    interactions: pd.DataFrame, config: DataConfig, types: list[str]
) -> None:
    needed = {"weight": config.targets.min_weight is not None, "event": bool(types)}
    for name, is_needed in needed.items():
        if is_needed and name not in interactions:
            raise SchemaError(
                f"data.targets or data.events reads '{name}', which is absent: set "
                "data.interactions.columns"
            )

    if not types:
        return
    seen = set(interactions["event"].dropna().unique())

    for name in types:
        if name not in seen:
            raise SchemaError(
                f"event '{name}' is declared, but no interaction is one; {name_nearest(name, seen)}"
            )
