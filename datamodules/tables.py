"""From files or data frames to three typed tables, and the list of the records that were left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from datamodules.config import DataConfig, TableConfig
from datamodules.reading.cells import unify_ids
from datamodules.reading.columns import Column, interaction_columns, item_columns, user_columns
from datamodules.reading.forgotten import leave_out_forgotten
from datamodules.reading.header_hints import hint_at_headers
from datamodules.reading.missing_marks import empty_marks
from datamodules.reading.odd_ids import hint_at_odd_ids
from datamodules.reading.raw_records import RawRecords, take_frame
from datamodules.reading.raw_tables import read_raw
from datamodules.reading.rejects import Rejects
from datamodules.reading.spaced_ids import count_spaced_ids
from datamodules.reading.typed_tables import TypedTable, check_same_columns, check_same_widths, join_frames, type_table
from serve.errors import SchemaError
from serve.state.tombstones import NOBODY, Tombstones

PART = "part of the split"
"""Reserved column of the interactions where the split is given by files: train, validation or test."""
_PARTS = {"interactions": "train", "validation": "validation", "test": "test"}
"""Table -> its part."""


@dataclass(frozen=True)
class Tables:
    """Three tables under our names."""

    interactions: pd.DataFrame
    """user_id, item_id; where there: datetime (int64 UTC seconds), position, event (text), weight (float64);
    context feature columns; `PART` where the split is given by files. In file order, part by part."""
    users: pd.DataFrame
    """user_id, user feature columns, audit columns; without a users table the ids of the interactions."""
    items: pd.DataFrame
    """item_id, item feature columns; empty without an items table."""


def read_tables(config: DataConfig, tombstones: Tombstones = NOBODY) -> tuple[Tables, Rejects]:
    """Read the files of a configuration.

    How many records were rejected is for `check_reject_rates` to judge, once they are written.

    Args:
        config: what is declared.
        tombstones: of users whose records are left out before anything is made of them.

    Raises:
        SchemaError: a table as a whole does not fit: file missing, empty, unreadable or of unknown suffix,
            declared column absent or of another kind, one id with two different rows.
    """
    raw = {"interactions": read_raw("data.interactions.path", config.interactions, interaction_columns(config))}
    if config.users is not None:
        raw["users"] = read_raw("data.users.path", config.users, user_columns(config))
    if config.items is not None:
        raw["items"] = read_raw("data.items.path", config.items, item_columns(config))
    return _type_tables(config, raw, tombstones)


def tables_from_frames(
    config: DataConfig,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    *,
    tombstones: Tombstones = NOBODY,
) -> tuple[Tables, Rejects]:
    """Take data frames in place of the files; the files that a split names are read all the same.

    Checks and errors are those of `read_tables`.
    """
    raw = {"interactions": [take_frame("interactions", interactions, interaction_columns(config))]}
    if users is not None:
        raw["users"] = [take_frame("users", users, user_columns(config))]
    if items is not None:
        raw["items"] = [take_frame("items", items, item_columns(config))]
    return _type_tables(config, raw, tombstones)


def _type_tables(
    config: DataConfig, raw: dict[str, list[RawRecords]], tombstones: Tombstones
) -> tuple[Tables, Rejects]:
    _check_sides(config, raw)
    raw |= _read_split_files(config)
    _check_parts_apart(raw)
    raw, forgotten = leave_out_forgotten(raw, tombstones)
    raw = {name: [empty_marks(file, _layout_of(name, config).missing) for file in raw[name]] for name in raw}
    alike = [[name for name in names if name in raw] for names in (_PARTS, ("users",), ("items",))]
    for names in alike:
        check_same_columns([file for name in names for file in raw[name]])
    typed = {name: type_table(name, files, _columns_of(name, config), config.timezone) for name, files in raw.items()}
    for names in filter(None, alike):
        check_same_widths([typed[name] for name in names], _columns_of(names[0], config))
    for name, id_name in (("users", "user_id"), ("items", "item_id")):
        if name in typed:
            _check_one_row_each(name, typed[name], id_name)
    rejects = Rejects(
        {name: table.rejects for name, table in typed.items()},
        {name: table.n_records for name, table in typed.items()},
        {name: table.dropped for name, table in typed.items()},
        forgotten,
        tuple(hint_at_headers(raw, {name: _layout_of(name, config) for name in raw})),
        tuple(count_spaced_ids(raw)),
        tuple(hint_at_odd_ids(raw, {name: table.frame for name, table in typed.items()})),
    )
    return _join_tables(config, typed), rejects


def _columns_of(name: str, config: DataConfig) -> tuple[Column, ...]:
    return {"users": user_columns, "items": item_columns}.get(name, interaction_columns)(config)


def _layout_of(name: str, config: DataConfig) -> TableConfig:
    return {"users": config.users, "items": config.items}.get(name, config.interactions) or TableConfig()


def _check_sides(config: DataConfig, raw: dict[str, list[RawRecords]]) -> None:
    """Refuse features of a table that is not given."""
    for name in ("users", "items"):
        columns = _columns_of(name, config)
        if name not in raw and len(columns) > 1:
            raise SchemaError(
                f"column '{columns[1].source}' is declared, {columns[1].reason}, but there is no {name} table: set "
                f"data.{name}"
            )


def _read_split_files(config: DataConfig) -> dict[str, list[RawRecords]]:
    """Read what a split names: files laid out as the interactions."""
    paths = {"validation": config.split.validation, "test": config.split.test}
    columns = interaction_columns(config)
    if config.split.kind == "files" and PART in {column.name for column in columns}:
        raise SchemaError(f"column '{PART}' is reserved where the split is given by files: rename yours")
    return {
        name: read_raw(f"data.split.{name}", replace(config.interactions, path=path), columns)
        for name, path in paths.items()
        if path is not None
    }


def _check_parts_apart(raw: dict[str, list[RawRecords]]) -> None:
    """Refuse a file that would be trained on and tested with."""
    part_of: dict[Path, str] = {}
    for name in filter(raw.__contains__, _PARTS):
        for file in raw[name]:
            other = part_of.setdefault(Path(file.file).resolve(), name)
            if other != name:
                raise SchemaError(f"{file.file} is a file of {name} and of {other}: give each part files of its own")


def _join_tables(config: DataConfig, typed: dict[str, TypedTable]) -> Tables:
    """Name the parts of the split, and give the ids of a side one type in both of its tables."""
    frames = {name: table.frame for name, table in typed.items() if name not in _PARTS}
    frames["interactions"] = typed["interactions"].frame
    if config.split.kind == "files":
        parts = [typed[name].frame.assign(**{PART: part}) for name, part in _PARTS.items() if name in typed]
        frames["interactions"] = join_frames(parts, interaction_columns(config))
    for name, id_name in (("users", "user_id"), ("items", "item_id")):
        filled = [table for table in ("interactions", name) if len(frames.get(table, ()))]
        for table, ids in zip(filled, unify_ids([frames[table][id_name] for table in filled]), strict=True):
            frames[table] = frames[table].assign(**{id_name: ids})
    interactions = frames["interactions"]
    return Tables(
        interactions,
        frames.get("users", interactions[["user_id"]].drop_duplicates(ignore_index=True)),
        frames.get("items", interactions[["item_id"]].head(0)),
    )


def _check_one_row_each(name: str, table: TypedTable, id_name: str) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    rows = table.frame[table.frame[id_name].duplicated(keep=False)]
    distinct = rows[~rows.duplicated()]
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if len(conflicting):
        first = conflicting.tolist()[0]
        both = distinct[distinct[id_name].eq(first)].head(2)
        files = dict.fromkeys(table.files[place] for place in table.file_of_row[both.index])
        columns = [f"'{column}'" for column in both if not both[column].duplicated().any()]
        raise SchemaError(
            f"{name}: {id_name} {first!r} has rows that differ ({conflicting.nunique()} such ids), in "
            f"{' and '.join(files)}: in {', '.join(columns)}; keep one row each"
        )
