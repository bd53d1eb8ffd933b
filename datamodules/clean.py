"""Clean tables: remove duplicates and returns, check joins, order rows, weigh targets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import DataConfig, TableConfig
from datamodules.feedback import RETURN
from datamodules.tables import IDS, PART, Tables
from datamodules.values import TARGET_WEIGHT, is_set, mark_shared
from serve.arrays import Ties
from serve.cells import to_text
from serve.clock import to_seconds
from serve.errors import SchemaError, name_nearest

DECIMALS = 9  # of a weight that a return may change
_NOTHING_DECLARED = DataConfig()
_IGNORED = re.compile(r"[\W_]+|(?<!\d)0+(?=\d)")  # signs and leading zeros of an id


@dataclass(frozen=True)
class CleaningReport:
    """Count the rows that were taken out, and those that were kept though they look odd."""

    duplicate_events: int  # rows equal to an earlier one in every column
    negative_weights: int  # events of a weight below 0: a return, not a purchase
    zero_weights_kept: int  # events kept with weight 0
    duplicate_users: int
    duplicate_items: int
    taken_back: int = 0  # events that returns undo; of others they lower the weight
    excluded_events: int = 0  # of the users of `data.exclude_users`


def clean(
    tables: Tables, config: DataConfig = _NOTHING_DECLARED
) -> tuple[Tables, CleaningReport]:
    """Remove rows that equal another in every column, excluded users, and returns.

    Args:
        tables: typed.
        config: says which users are excluded, which of several rows of an id is kept, and which
            events a return takes back.
    """
    events = tables.interactions
    if config.exclude_users:
        excluded = [str(user_id).strip() for user_id in config.exclude_users]
        events = events[~events["user_id"].astype("str").isin(excluded)]
    distinct = events.drop_duplicates()
    if RETURN in distinct:  # of a service, in tables without weights
        distinct = distinct.assign(weight=np.where(distinct[RETURN], -1.0, 1.0))
    weights = distinct.get("weight", pd.Series(1.0, distinct.index))
    n_returns = int((weights < 0).sum())
    kept = distinct
    if n_returns:
        kept = _take_back(distinct, config)
    if RETURN in kept:
        kept = kept.drop(columns=[RETURN, "weight"])
    users = _keep_one(tables.users, "user_id", config.users)
    items = _keep_one(tables.items, "item_id", config.items)

    report = CleaningReport(
        duplicate_events=len(events) - len(distinct),
        negative_weights=n_returns,
        zero_weights_kept=int((weights == 0).sum()),
        duplicate_users=len(tables.users) - len(users),
        duplicate_items=len(tables.items) - len(items),
        taken_back=len(distinct) - len(kept) - n_returns,
        excluded_events=len(tables.interactions) - len(events),
    )

    return Tables(kept.reset_index(drop=True), users, items), report


def _keep_one(
    frame: pd.DataFrame, id_name: str, layout: TableConfig | None
) -> pd.DataFrame:
    """Keep one row of each id: they are equal where it is not declared which counts."""
    keep = (layout and layout.keep) or "first"
    return frame.drop_duplicates(id_name, keep=keep, ignore_index=True)


# ---- returns


def _take_back(events: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Leave out returns, which are the events of a weight below 0, and what they undo.

    A return takes its amount from the latest earlier event of its user and item, then from the one
    before; where targets are declared, from these alone. It does not reach over the border to the
    test: training must not know what comes back.
    """
    rows = events.assign(is_return=events["weight"] < 0)
    if config.split.kind == "time":
        moments, _ = to_seconds([str(config.split.at)], config.timezone)
        rows[PART] = rows["datetime"] >= moments[0]
    if config.targets.events and "event" in rows:
        is_target = rows["event"].isin(config.targets.events)
        rows = rows[rows["is_return"] | is_target]

    keys = [name for name in ("user_id", "item_id", PART) if name in rows]
    rows = rows[mark_shared(rows, rows[rows["is_return"]], keys)]
    order = [name for name in ("datetime", "position") if name in rows]
    # at one moment things are bought before they are returned
    rows = rows.sort_values([*order, "is_return"], kind="stable")
    left = events["weight"].copy()
    left[rows.index] = _match_returns(rows["weight"], rows.groupby(keys).ngroup())
    is_gone = (left == 0) & (events["weight"] != 0)

    return events.assign(weight=left)[~is_gone]


def _match_returns(amounts: pd.Series[Any], groups: pd.Series[Any]) -> pd.Series[Any]:
    """Return what is left of each amount if negative ones undo the latest before them.

    The stock of a group is the running sum that never falls below 0. Of what came in, the part
    stays that no later stock falls below.

    Args:
        amounts: (n,) in the order of time.
        groups: (n,) number of the group of each.
    """
    total = amounts.groupby(groups).cumsum()
    stock = total - total.groupby(groups).cummin().clip(upper=0.0)
    later = stock[::-1].groupby(groups).cummin()[::-1]
    # sums of decimals are not exact
    return (later - stock + amounts).clip(lower=0.0).round(DECIMALS)


# ---- joins


def measure_unlisted(tables: Tables, given: Collection[str]) -> dict[str, float]:
    """Return the share of users and items with events that have no row in a given table."""
    return {
        name: float((~_find_listed(tables, name)).mean())
        for name in IDS
        if name in given
    }


def describe_unlisted(tables: Tables) -> Iterator[str]:
    """Yield how many items of the interactions have no row in the items table, if there is one."""
    is_listed = _find_listed(tables, "items")
    if len(tables.items) and not is_listed.all():
        yield (
            f"{(~is_listed).sum():,} items without a row in the items table, "
            f"{(~is_listed).mean():.0%} of those with events, are not recommended: "
            f"{_show_ids(tables, 'items')}; write them alike in both, or see data.unlisted"
        )


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
        raise SchemaError(
            f"none of the {name} with events has a row in the {name} table: {id_name} is "
            f"{_show_ids(tables, name)}; name the right column as {id_name} in "
            f"data.{name}.columns, or write the ids alike in both, whole numbers without .0"
        )


def _find_listed(tables: Tables, name: str) -> pd.Series[bool]:
    """Return for each distinct id of the interactions whether a table has a row of it."""
    ids = tables.interactions[IDS[name]].drop_duplicates()
    return ids.isin(getattr(tables, name)[IDS[name]]).set_axis(ids)


def _show_ids(tables: Tables, name: str) -> str:
    """Show an id without a row and one of the table that looks alike, or else the first ones."""
    is_listed = _find_listed(tables, name)
    unlisted = _spell(is_listed.index[~is_listed])
    listed = _spell(getattr(tables, name)[IDS[name]])
    alike = [(unlisted[key], listed[key]) for key in unlisted if key in listed]
    ours, theirs = [*alike, *zip(unlisted.values(), listed.values(), strict=False)][0]
    return f"{ours!r} in the interactions and {theirs!r} in the {name}"


def _spell(ids: pd.Series[Any] | pd.Index[Any]) -> dict[str, Any]:
    """Return ids by their letters and digits, without case and leading zeros."""
    return {_IGNORED.sub("", str(written).lower()): written for written in ids.tolist()}


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
