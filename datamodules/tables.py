"""Three typed tables from files or data frames, and the list of the records that were left out."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.config import Column, DataConfig, TableConfig, columns_of_table
from datamodules.read import Records, make_rejects, read_files, take_frame
from datamodules.values import INTEGER, read_cells, unify_ids
from serve.durable import NOBODY, ErasureList
from serve.encode import to_text
from serve.errors import SchemaError

PART = "part of the split"  # reserved column of the interactions where files give the split
TARGET_WEIGHT = "weight as a target"  # reserved column: 0 for an event that is evidence alone; absent: 1 for all
_PARTS = {"interactions": "train", "validation": "validation", "test": "test"}  # table -> its part
_IDS = {"users": "user_id", "items": "item_id"}
_KINDS = {
    "not a number": "numbers such as 1234.5",
    "not a time": "times such as 2024-05-31, 2024-05-31 18:05:00, or epoch seconds or milliseconds",
    "not an id": "ids",
    "no list of numbers": "vectors",
}  # reason of a fault -> what the cells should be
_REJECTS = {"file": "string", "line": "int64", "column": "string", "value": "string", "reason": "string"}
MIN_INTEGER_IDS, MAX_ODD_IDS = 10, 0.01  # so many integer ids and so small a share of texts: the texts look like slips


@dataclass(frozen=True)
class Tables:
    """Three tables under our names."""

    interactions: pd.DataFrame
    """user_id, item_id; where there: datetime (int64 UTC seconds), position, event (text), weight (float64),
    context feature columns, `PART`; in file order."""
    users: pd.DataFrame  # user_id, features, audit columns; without a users table the ids of the interactions
    items: pd.DataFrame  # item_id, item feature columns; empty without an items table


@dataclass(frozen=True)
class Rejects:
    """The records of the files that did not become a row."""

    tables: dict[str, pd.DataFrame]
    """Table (or file of the split) -> file, line or record number from 1, column, value and reason of each bad record
    with its first fault."""
    records: dict[str, int]  # table -> records in its files, the bad ones included
    dropped: dict[str, tuple[str, ...]]  # table -> columns of its files that are not declared and were not read
    forgotten: dict[str, int] = field(default_factory=dict)  # table -> records of erased users, nowhere else counted
    hints: tuple[str, ...] = ()  # lines that look odd, though they were read

    @property
    def frame(self) -> pd.DataFrame:
        """The rejects of all tables."""
        return pd.concat(self.tables.values(), ignore_index=True)


def is_set(interactions: pd.DataFrame) -> bool:
    """Return whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def read_tables(config: DataConfig, erased: ErasureList = NOBODY) -> tuple[Tables, Rejects]:
    """Read the files of a configuration, but for the records of users on the erasure list."""
    declared = {"interactions": config.interactions, "users": config.users, "items": config.items}
    given = {name: table for name, table in declared.items() if table is not None}
    files = {name: read_files(f"data.{name}.path", one, columns_of_table(name, config)) for name, one in given.items()}
    return _type_tables(config, files, erased)


def tables_from_frames(
    config: DataConfig,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    *,
    erased: ErasureList = NOBODY,
) -> tuple[Tables, Rejects]:
    """Do as `read_tables` with data frames in place of the files, but for those that a split names."""
    frames = {"interactions": interactions, "users": users, "items": items}
    given = {name: frame for name, frame in frames.items() if frame is not None}
    raw = {name: [take_frame(name, frame, columns_of_table(name, config))] for name, frame in given.items()}
    return _type_tables(config, raw, erased)


def check_reject_rates(rejects: Rejects, max_rate: float) -> None:
    """Refuse a table of which a larger share is rejected, once the rejects are written and can be looked at."""
    for table, rejected in rejects.tables.items():
        if len(rejected) > max_rate * rejects.records[table]:
            raise SchemaError(
                f"{table}: {len(rejected):,} of {rejects.records[table]:,} records are bad, more than "
                f"data.max_reject_rate = {max_rate:g}; the first: {_describe(rejected)}; mend them or raise the rate"
            )


def write_rejects(rejects: Rejects, path: Path) -> None:
    """Write the list as Parquet; an earlier one stays whole until the new one is complete."""
    table = pa.Table.from_pandas(rejects.frame, pa.schema(list(_REJECTS.items())), preserve_index=False)
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        pq.write_table(table.replace_schema_metadata(None), staged, compression="zstd")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _describe(rejects: pd.DataFrame) -> str:
    """Describe the first of some rejects."""
    file, line, column, value, reason = rejects.astype(object).where(rejects.notna(), None).iloc[0]
    return f"{file}, line {line}, column {column!r}, value {value!r}: {reason}"


def _type_tables(config: DataConfig, raw: dict[str, list[Records]], erased: ErasureList) -> tuple[Tables, Rejects]:
    for name in _IDS:
        columns = columns_of_table(name, config)
        if name not in raw and len(columns) > 1:
            raise SchemaError(f"column '{columns[1].source}' is declared, {columns[1].reason}; set data.{name}")
    raw |= _read_split_files(config)
    kept = {name: [_leave_out(file, erased) for file in files] for name, files in raw.items()}
    for names in (_PARTS, ("users",), ("items",)):
        _check_same_columns([file for name in names for file in kept.get(name, ())])
    n_records = {name: sum(file.n_records for file in files) for name, files in kept.items()}
    forgotten = {name: sum(file.n_records for file in files) - n_records[name] for name, files in raw.items()}
    typed = {name: _type_table(name, files, config) for name, files in kept.items()}
    dropped = {name: dict.fromkeys(column for file in files for column in file.dropped) for name, files in kept.items()}
    rejects = Rejects(
        {name: rejects for name, (_, rejects) in typed.items()},
        n_records,
        {name: tuple(columns) for name, columns in dropped.items()},
        {name: count for name, count in forgotten.items() if count},
        tuple(hint for name, files in kept.items() for file in files for hint in _find_hints(name, file)),
    )
    return _join_tables(config, {name: frame for name, (frame, _) in typed.items()}), rejects


def _read_split_files(config: DataConfig) -> dict[str, list[Records]]:
    """Read the files that a split names, laid out as the interactions; none may be trained on and tested with."""
    columns = columns_of_table("interactions", config)
    if config.split.kind == "files" and PART in {column.name for column in columns}:
        raise SchemaError(f"column '{PART}' is reserved where the split is given by files: rename yours")
    layouts = {name: replace(config.interactions, path=getattr(config.split, name)) for name in ("validation", "test")}
    return {name: read_files(f"data.split.{name}", one, columns) for name, one in layouts.items() if one.path}


def _leave_out(raw: Records, erased: ErasureList) -> Records:
    """Take the records of erased users out, and the texts of torn records, which do not say whose they are."""
    if not len(erased) or "user_id" not in raw.frame:
        return raw
    texts = [cell if isinstance(cell, str) else to_text(cell) for cell in raw.frame["user_id"]]
    codes, distinct = pd.factorize(pd.Series(texts, dtype=object))
    is_forgotten = np.array([*map(erased.holds, distinct), False], dtype=bool)[codes]  # the last for a missing id
    rejects = raw.rejects.assign(value=pd.Series(None, raw.rejects.index, dtype="str"))
    frame = raw.frame[~is_forgotten].reset_index(drop=True)
    return replace(raw, frame=frame, lines=raw.lines[~is_forgotten], rejects=rejects)


def _check_same_columns(files: Sequence[Records]) -> None:
    """Refuse a file that lacks a column which another of its table has, and one that is given twice."""
    filled = [file for file in files if len(file.frame)]
    having = {column: file.file for file in reversed(filled) for column in file.columns}
    for file in filled:
        for column in having:
            if column not in file.columns:
                raise SchemaError(f"{file.file}: column '{column.source}' is absent, which {having[column]} has")
    for path, count in Counter(Path(file.file).resolve() for file in files).items():
        if count > 1:
            raise SchemaError(f"{path} is a file of two parts of the split: give each part files of its own")


def _type_table(name: str, files: Sequence[Records], config: DataConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the typed rows of all files, their ids of one type, and all rejects."""
    layout = {"users": config.users, "items": config.items}.get(name, config.interactions) or TableConfig()
    frames, bad = zip(*(_type_file(file, config.timezone, layout.missing) for file in files), strict=True)
    columns = columns_of_table(name, config)
    frame, rejects = _join_frames(frames, columns), pd.concat(bad, ignore_index=True)
    for column in columns:
        if column.name in frame:
            _check_kind(column, frame[column.name], rejects)
    if name in _IDS:
        _check_one_row_each(name, frame, _IDS[name])
    return frame, rejects


def _type_file(raw: Records, timezone: str | None, marks: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good rows and all rejects of a file, each bad record with its first fault."""
    typed: dict[str, pd.Series] = {}
    rejects = [raw.rejects]
    is_bad = np.zeros(len(raw.frame), bool)
    for column in raw.columns:
        try:
            cells = read_cells(column, raw.frame[column.name], timezone, raw.is_text, marks)
        except SchemaError as error:
            raise SchemaError(f"{raw.file}: {error}") from error
        typed[column.name] = cells.values
        for reason, is_fault in cells.faults.items():
            is_new = is_fault & ~is_bad
            if is_new.any():
                values = raw.frame.loc[is_new, column.name]
                rejects.append(make_rejects(raw.file, raw.lines[is_new], column.source, values, reason))
            is_bad |= is_new
    frame = pd.DataFrame(typed)[~is_bad].reset_index(drop=True)
    return frame, pd.concat(rejects).sort_values("line", ignore_index=True)


def _join_frames(frames: Sequence[pd.DataFrame], columns: tuple[Column, ...]) -> pd.DataFrame:
    """Put rows of the same columns below each other; those without rows have no say in a type."""
    filled = [frame for frame in frames if len(frame)]
    if len(filled) < 2:
        return (filled or list(frames))[0]
    joined = pd.concat(filled, ignore_index=True)
    for name in (column.name for column in columns if column.role == "id"):
        joined[name] = pd.concat(unify_ids([frame[name] for frame in filled]), ignore_index=True)
    return joined


def _check_kind(column: Column, values: pd.Series, rejects: pd.DataFrame) -> None:
    """Refuse a column with more wrong than right cells, or with vectors of different widths: no slips of some rows."""
    for reason, kind in _KINDS.items():
        wrong = rejects[(rejects["column"] == column.source) & (rejects["reason"] == reason)]
        if len(wrong) > values.notna().sum():
            count = f"{len(wrong):,} values are not"
            raise SchemaError(f"column '{column.source}' does not hold {kind}: {count}, the first: {_describe(wrong)}")
    widths = sorted({vector.entries().size for vector in values.dropna()}) if column.role == "vector" else []
    if len(widths) > 1:
        raise SchemaError(f"column '{column.source}' has vectors of {widths[0]} and of {widths[-1]} numbers")


def _check_one_row_each(name: str, frame: pd.DataFrame, id_name: str) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    distinct = frame[frame[id_name].duplicated(keep=False)].drop_duplicates()
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if len(conflicting):
        both = distinct[distinct[id_name].eq(conflicting.iloc[0])].head(2)
        columns = [f"'{column}'" for column in both if not both[column].duplicated().any()]
        raise SchemaError(
            f"{name}: {id_name} {conflicting.tolist()[0]!r} has rows that differ in {', '.join(columns)} "
            f"({conflicting.nunique()} such ids); keep one row each"
        )


def _find_hints(table: str, file: Records) -> Iterator[str]:
    """Say on which line a text, such as a header, keeps ids from being integers; hints are kept, so they name no id."""
    for column in (column for column in file.columns if file.is_text and column.role == "id"):
        ids = file.frame[column.name].dropna().drop_duplicates()
        odd = ids[~ids.str.fullmatch(INTEGER)]
        if 0 < len(odd) <= max(1, MAX_ODD_IDS * len(ids)) and len(ids) - len(odd) >= MIN_INTEGER_IDS:
            line = int(file.lines[odd.index[0]])
            place = f"line {line} of {file.file}" + ", which looks like a header" * (line == 1)
            yield f"{len(odd):,} of the ids of {table}.{column.name} are no integers, so all are texts: see {place}"


def _join_tables(config: DataConfig, frames: dict[str, pd.DataFrame]) -> Tables:
    """Name the parts of the split, and give the ids of a side one type in both of its tables."""
    if config.split.kind == "files":
        parts = [frames[name].assign(**{PART: part}) for name, part in _PARTS.items() if name in frames]
        frames["interactions"] = _join_frames(parts, columns_of_table("interactions", config))
    for name, id_name in _IDS.items():
        filled = [table for table in ("interactions", name) if len(frames.get(table, ()))]
        for table, ids in zip(filled, unify_ids([frames[table][id_name] for table in filled]), strict=True):
            frames[table] = frames[table].assign(**{id_name: ids})
    interactions = frames["interactions"]
    users = frames.get("users", interactions[["user_id"]].drop_duplicates(ignore_index=True))
    return Tables(interactions, users, frames.get("items", interactions[["item_id"]].head(0)))
