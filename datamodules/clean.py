"""Clean tables: duplicates out, ids joined, rows in one order whatever the file's, targets weighed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from datamodules.tables import IDS, TARGET_WEIGHT, Tables, is_set
from serve.encode import to_text
from serve.errors import SchemaError, name_nearest
from serve.schema import Ties


@dataclass(frozen=True)
class CleaningReport:
    """How many rows were taken out, and what was kept though it looks odd."""

    duplicate_events: int  # rows equal to an earlier one in every column
    negative_weights: int  # events taken out because their weight is below 0: a return, not a purchase
    zero_weights_kept: int  # events kept with weight 0
    duplicate_users: int
    duplicate_items: int


def clean(tables: Tables) -> tuple[Tables, CleaningReport]:
    """Remove events that equal another in every column, and those of negative weight; cleaning is idempotent."""
    events = tables.interactions
    users = tables.users
    items = tables.items
    weights = events["weight"] if "weight" in events else pd.Series(1.0, events.index)
    is_duplicate = events.duplicated()
    is_negative = weights < 0
    kept = events[~is_duplicate & ~is_negative].reset_index(drop=True)
    cleaned = Tables(
        kept,
        users.drop_duplicates(ignore_index=True),
        items.drop_duplicates(ignore_index=True),
    )
    report = CleaningReport(
        duplicate_events=int(is_duplicate.sum()),
        negative_weights=int((is_negative & ~is_duplicate).sum()),
        zero_weights_kept=int((weights.eq(0) & ~is_duplicate).sum()),
        duplicate_users=len(users) - len(cleaned.users),
        duplicate_items=len(items) - len(cleaned.items),
    )
    return cleaned, report


def measure_unlisted(tables: Tables, given: Collection[str]) -> dict[str, float]:
    """Return the share of the users, and of the items, of the interactions that have no row in a given table."""
    return {
        name: float((~_find_listed(tables, name)).mean())
        for name in IDS
        if name in given
    }


def check_joins(tables: Tables, given: Collection[str]) -> None:
    """Refuse a users or items table in which no id of the interactions has a row."""
    for name, id_name in IDS.items():
        rows: pd.DataFrame = getattr(tables, name)
        if name not in given or rows.empty or _find_listed(tables, name).any():
            continue
        known, asked = (
            frame[id_name].tolist()[0] for frame in (rows, tables.interactions)
        )
        raise SchemaError(
            f"none of the {name} with events has a row in the {name} table: {id_name} is {asked!r} in the interactions "
            f"and {known!r} in the {name}; name the right column as {id_name} in data.{name}.columns"
            + ", or write whole numbers without .0"
            * any(str(one).endswith(".0") for one in (known, asked))
        )


def _find_listed(tables: Tables, name: str) -> pd.Series[Any]:
    """Mark the distinct ids of the interactions that have a row in a table."""
    ids = tables.interactions[IDS[name]].drop_duplicates()
    return ids.isin(getattr(tables, name)[IDS[name]])


def order_tables(tables: Tables, ties: Ties) -> Tables:
    """Order users and items by id, interactions by user, time and position; ties of baskets and sets by all columns."""
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

    def write(value: Any) -> str | None:
        return (
            repr(value)
            if isinstance(value, (tuple, list, np.ndarray))
            else to_text(value)
        )

    texts = (
        column
        if isinstance(column.dtype, pd.StringDtype)
        else column.map(write).astype("str")
    )
    return pd.factorize(texts, sort=True)[0]


def weigh_targets(interactions: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Add `TARGET_WEIGHT`, of mean 1 over the targets, if anything about targets is declared."""
    types = [*(config.targets.events or ()), *config.events]
    if not types and config.targets.min_weight is None:
        return interactions
    _check_target_columns(interactions, config, types)
    is_target = np.ones(len(interactions), bool)
    weight = np.ones(len(interactions), np.float64)
    if config.targets.events is not None:
        is_target &= interactions["event"].isin(config.targets.events).to_numpy()
    if config.targets.min_weight is not None:
        is_target &= (interactions["weight"] >= config.targets.min_weight).to_numpy()
    if config.events:
        weight = np.asarray(
            interactions["event"].map(config.events).fillna(1.0), np.float64
        )
    if not is_target.any():
        raise SchemaError(
            "data.targets: no event is a target; declare other events or a lower min_weight"
        )
    return interactions.assign(
        **{TARGET_WEIGHT: np.where(is_target, weight / weight[is_target].mean(), 0.0)}
    )


def only_targets(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are targets."""
    return (
        interactions[interactions[TARGET_WEIGHT] > 0]
        if TARGET_WEIGHT in interactions
        else interactions
    )


def only_evidence(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are no targets."""
    return (
        interactions[interactions[TARGET_WEIGHT] == 0]
        if TARGET_WEIGHT in interactions
        else interactions.iloc[:0]
    )


def _check_target_columns(
    interactions: pd.DataFrame, config: DataConfig, types: list[str]
) -> None:
    needed = {"weight": config.targets.min_weight is not None, "event": bool(types)}
    for name in (
        name
        for name, is_needed in needed.items()
        if is_needed and name not in interactions
    ):
        raise SchemaError(
            f"data.targets or data.events reads '{name}', which is absent: set data.interactions.columns"
        )
    known = set(interactions["event"].dropna().unique()) if types else set()
    for name in types:
        if name not in known:
            raise SchemaError(
                f"event '{name}' is declared, but no interaction is one; {name_nearest(name, known)}"
            )
