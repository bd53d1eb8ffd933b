"""From files or data frames to three typed tables, and the list of the records that were left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.cells import read_cells, unify_ids
from datamodules.columns import Column, interaction_columns, item_columns, user_columns
from datamodules.config import DataConfig
from datamodules.raw_tables import RawTable, read_raw, take_frame
from datamodules.rejects import Rejects, check_reject_rate, reject_frame
from serve.errors import SchemaError


@dataclass(frozen=True)
class Tables:
    """Three tables under our names."""

    interactions: pd.DataFrame
    """user_id, item_id; where there: datetime (int64 UTC seconds), position, event (text), weight (float64);
    context feature columns. In file order."""
    users: pd.DataFrame
    """user_id, user feature columns, audit columns; without a users table the ids of the interactions."""
    items: pd.DataFrame
    """item_id, item feature columns; empty without an items table."""


def read_tables(config: DataConfig) -> tuple[Tables, Rejects]:
    """Read the files of a configuration.

    Raises:
        SchemaError: a table as a whole does not fit: file missing, empty, unreadable or of unknown suffix,
            declared column absent, one id with two different rows, too many bad records.
    """
    raw = {"interactions": read_raw("interactions", config.interactions, interaction_columns(config))}
    if config.users is not None:
        raw["users"] = read_raw("users", config.users, user_columns(config))
    if config.items is not None:
        raw["items"] = read_raw("items", config.items, item_columns(config))
    return _type_tables(config, raw)


def tables_from_frames(
    config: DataConfig,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
) -> tuple[Tables, Rejects]:
    """Take data frames in place of the files; checks and errors are those of `read_tables`."""
    raw = {"interactions": take_frame("interactions", interactions, interaction_columns(config))}
    if users is not None:
        raw["users"] = take_frame("users", users, user_columns(config))
    if items is not None:
        raw["items"] = take_frame("items", items, item_columns(config))
    return _type_tables(config, raw)


def _type_tables(config: DataConfig, raw: dict[str, RawTable]) -> tuple[Tables, Rejects]:
    _check_sides(config, raw)
    typed, rejected = {}, {}
    for name, table in raw.items():
        typed[name], rejected[name] = _type_table(table, config.timezone)
        check_reject_rate(name, rejected[name], table.n_records, config.max_reject_rate)
    for side in ("user", "item"):
        _unify_side(typed, f"{side}_id", f"{side}s")
    interactions = typed["interactions"]
    tables = Tables(
        interactions,
        typed.get("users", interactions[["user_id"]].drop_duplicates(ignore_index=True)),
        typed.get("items", interactions[["item_id"]].head(0)),
    )
    rejects = Rejects(
        pd.concat(rejected.values(), ignore_index=True),
        {name: table.n_records for name, table in raw.items()},
        {name: table.dropped for name, table in raw.items()},
    )
    return tables, rejects


def _check_sides(config: DataConfig, raw: dict[str, RawTable]) -> None:
    """Refuse features of a table that is not given."""
    for name, columns in (("users", user_columns(config)), ("items", item_columns(config))):
        if name not in raw and len(columns) > 1:
            raise SchemaError(
                f"column '{columns[1].source}' is declared, but there is no {name} table: set data.{name}"
            )


def _type_table(raw: RawTable, timezone: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good rows and all rejects of a table, each bad record with its first fault."""
    typed: dict[str, pd.Series] = {}
    rejects = [raw.rejects]
    is_bad = np.zeros(len(raw.frame), bool)
    for column in raw.columns:
        try:
            cells = read_cells(column, raw.frame[column.name], timezone, raw.is_text)
        except SchemaError as error:
            raise SchemaError(f"{raw.file}: {error}") from error
        typed[column.name] = cells.values
        for reason, is_fault in cells.faults.items():
            is_new = is_fault & ~is_bad
            is_bad |= is_new
            if is_new.any():
                rejects.append(_reject(raw, column, is_new, reason))
    frame = pd.DataFrame(typed)[~is_bad].reset_index(drop=True)
    return frame, pd.concat(rejects).sort_values("line", ignore_index=True)


def _reject(raw: RawTable, column: Column, is_fault: np.ndarray, reason: str) -> pd.DataFrame:
    values = raw.frame.loc[is_fault, column.name].reset_index(drop=True)
    return reject_frame(raw.file, pd.Series(raw.lines[is_fault]), column.source, values, reason)


def _unify_side(typed: dict[str, pd.DataFrame], id_name: str, table: str) -> None:
    """Give a side's ids one type in both tables, and each id one row in its own."""
    names = [name for name in ("interactions", table) if name in typed]
    for name, ids in zip(names, unify_ids([typed[name][id_name] for name in names]), strict=True):
        typed[name] = typed[name].assign(**{id_name: ids})
    if table in typed:
        _check_one_row_each(typed[table], id_name, table)


def _check_one_row_each(frame: pd.DataFrame, id_name: str, table: str) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    distinct = frame[~frame.duplicated()]
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if len(conflicting):
        raise SchemaError(
            f"{table}: {id_name} {conflicting.tolist()[0]!r} has rows that differ "
            f"({conflicting.nunique()} such ids); keep one row each"
        )
