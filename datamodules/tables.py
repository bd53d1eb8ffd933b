"""Three typed tables from files or data frames, and the list of the records that were left out."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.api import types

from datamodules.config import Column, DataConfig, TableConfig, columns_of_table
from datamodules.read import Records, make_rejects, read_files, take_frame
from datamodules.values import find_odd_ids, read_cells, unify_ids
from serve.encode import to_text
from serve.errors import SchemaError
from serve.state import NOBODY, ErasureList

PART = "part of the split"
"""Reserved column of the interactions where the split is given by files: train, validation or test."""
_PARTS = {"interactions": "train", "validation": "validation", "test": "test"}
"""Table -> its part."""
_IDS = {"users": "user_id", "items": "item_id"}
_KINDS = {
    "not a number": "numbers such as 1234.5",
    "not a time": "times such as 2024-05-31, 2024-05-31 18:05:00, or epoch seconds or milliseconds",
    "not an id": "ids",
    "no list of numbers": "vectors",
}
"""Reason of a fault -> what the cells should be."""
_REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
    ]
)


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


@dataclass(frozen=True)
class Rejects:
    """The records of the files that did not become a row."""

    tables: dict[str, pd.DataFrame]
    """Table -> file, line, column, value, reason; each bad record once, with its first fault. The line is that of a
    CSV or JSON Lines file, else the number of the record from 1; `column` and `value` are null where the fault has
    none. The files that a split names are tables of their own: `validation` and `test`."""
    records: dict[str, int]
    """Table -> records in its files, the bad ones included."""
    dropped: dict[str, tuple[str, ...]]
    """Table -> columns of its files that are not declared and were not read."""
    forgotten: dict[str, int] = field(default_factory=dict)
    """Table -> records of users who are to be forgotten; they are in none of the others."""
    hints: tuple[str, ...] = ()
    """Lines that look odd, though they were read."""

    @property
    def frame(self) -> pd.DataFrame:
        """The rejects of all tables."""
        return pd.concat(self.tables.values(), ignore_index=True)


def read_tables(config: DataConfig, tombstones: ErasureList = NOBODY) -> tuple[Tables, Rejects]:
    """Read the files of a configuration.

    How many records were rejected is for `check_reject_rates` to judge, once they are written.

    Args:
        config: what is declared.
        tombstones: of users whose records are left out before anything is made of them.

    Raises:
        SchemaError: a table as a whole does not fit: file missing, empty, unreadable or of unknown suffix,
            declared column absent or of another kind, one id with two different rows.
    """
    declared = {"interactions": config.interactions, "users": config.users, "items": config.items}
    raw = {
        name: read_files(f"data.{name}.path", table, columns_of_table(name, config))
        for name, table in declared.items()
        if table is not None
    }
    return _type_tables(config, raw, tombstones)


def tables_from_frames(
    config: DataConfig,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    *,
    tombstones: ErasureList = NOBODY,
) -> tuple[Tables, Rejects]:
    """Take data frames in place of the files; the files that a split names are read all the same.

    Checks and errors are those of `read_tables`.
    """
    frames = {"interactions": interactions, "users": users, "items": items}
    raw = {
        name: [take_frame(name, frame, columns_of_table(name, config))]
        for name, frame in frames.items()
        if frame is not None
    }
    return _type_tables(config, raw, tombstones)


def check_reject_rates(rejects: Rejects, max_rate: float) -> None:
    """Refuse a table of which too much is bad, naming its first bad record.

    Call it when the rejects are written, so that they can be looked at.

    Raises:
        SchemaError: a larger share of a table's records is rejected.
    """
    for table, rejected in rejects.tables.items():
        n_records = rejects.records[table]
        if len(rejected) > max_rate * n_records:
            raise SchemaError(
                f"{table}: {len(rejected):,} of {n_records:,} records are bad, more than data.max_reject_rate = "
                f"{max_rate:g}; the first: {_describe(rejected.iloc[0])}; mend the files, raise the rate, "
                "or declare a text that stands for missing values in `missing` of the table"
            )


def write_rejects(rejects: Rejects, path: Path) -> None:
    """Write the list as Parquet; an earlier one stays whole until the new one is complete."""
    table = pa.Table.from_pandas(rejects.frame, schema=_REJECTS, preserve_index=False)
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        pq.write_table(table.replace_schema_metadata(None), staged, compression="zstd")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)


def _describe(reject: pd.Series) -> str:
    column = "" if pd.isna(reject["column"]) else f"column '{reject['column']}', "
    value = "no value" if pd.isna(reject["value"]) else f"value {reject['value']!r}"
    return f"{reject['file']}, line {reject['line']}, {column}{value}: {reject['reason']}"


def _type_tables(config: DataConfig, raw: dict[str, list[Records]], tombstones: ErasureList) -> tuple[Tables, Rejects]:
    _check_sides(config, raw)
    raw |= _read_split_files(config)
    _check_parts_apart(raw)
    kept = {name: [_leave_out(file, tombstones) for file in files] for name, files in raw.items()}
    _check_same_columns([file for name in _PARTS for file in kept.get(name, ())])
    for name in _IDS:
        _check_same_columns(kept.get(name, ()))
    n_records = {name: sum(file.n_records for file in files) for name, files in kept.items()}
    forgotten = {name: sum(file.n_records for file in files) - n_records[name] for name, files in raw.items()}
    rows, bad = {}, {}
    for name, files in kept.items():
        rows[name], bad[name] = _type_table(name, files, config)
    rejects = Rejects(
        bad,
        n_records,
        {
            name: tuple(dict.fromkeys(column for file in files for column in file.dropped))
            for name, files in kept.items()
        },
        {name: count for name, count in forgotten.items() if count},
        tuple(_find_hints(kept, rows, config)),
    )
    return _join_tables(config, rows), rejects


def _check_sides(config: DataConfig, raw: Mapping[str, object]) -> None:
    """Refuse features of a table that is not given."""
    for name in _IDS:
        columns = columns_of_table(name, config)
        if name not in raw and len(columns) > 1:
            raise SchemaError(
                f"column '{columns[1].source}' is declared, {columns[1].reason}, but there is no {name} table: set "
                f"data.{name}"
            )


def _read_split_files(config: DataConfig) -> dict[str, list[Records]]:
    """Read the files that a split names, laid out as the interactions."""
    columns = columns_of_table("interactions", config)
    if config.split.kind == "files" and PART in {column.name for column in columns}:
        raise SchemaError(f"column '{PART}' is reserved where the split is given by files: rename yours")
    paths = {"validation": config.split.validation, "test": config.split.test}
    return {
        name: read_files(f"data.split.{name}", replace(config.interactions, path=path), columns)
        for name, path in paths.items()
        if path is not None
    }


def _check_parts_apart(raw: Mapping[str, Sequence[Records]]) -> None:
    """Refuse a file that would be trained on and tested with."""
    part_of: dict[Path, str] = {}
    for name in _PARTS:
        for file in raw.get(name, ()):
            other = part_of.setdefault(Path(file.file).resolve(), name)
            if other != name:
                raise SchemaError(f"{file.file} is a file of {name} and of {other}: give each part files of its own")


def _leave_out(raw: Records, tombstones: ErasureList) -> Records:
    """Take the records of forgotten users out.

    A record that could not be taken apart does not say whose it is: its text, which rejects would show, goes.
    """
    if not len(tombstones) or "user_id" not in raw.frame:
        return raw
    ids = raw.frame["user_id"]
    texts = pd.Series([cell if isinstance(cell, str) else to_text(cell) for cell in ids], dtype=object)
    codes, distinct = pd.factorize(texts)
    is_forgotten = np.array([*map(tombstones.holds, distinct), False], dtype=bool)[codes]  # the last for a missing id
    return replace(
        raw,
        frame=raw.frame[~is_forgotten].reset_index(drop=True),
        lines=raw.lines[~is_forgotten],
        rejects=raw.rejects.assign(value=pd.Series(None, raw.rejects.index, dtype="str")),
    )


def _check_same_columns(files: Sequence[Records]) -> None:
    """Refuse a file that lacks a column which another of its table has; a file without rows lacks none."""
    filled = [file for file in files if len(file.frame)]
    having = {column: file.file for file in reversed(filled) for column in file.columns}
    for file in filled:
        missing = [column for column in having if column not in file.columns]
        if missing:
            raise SchemaError(
                f"{file.file}: column '{missing[0].source}' is absent, which {having[missing[0]]} has; the files of a "
                "table have the same columns"
            )


def _type_table(name: str, files: Sequence[Records], config: DataConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the typed rows of all files, their ids of one type, and all rejects."""
    frames, bad = zip(
        *(_type_file(file, config.timezone, _layout_of(name, config).missing) for file in files), strict=True
    )
    columns = columns_of_table(name, config)
    frame, rejects = _join_frames(frames, columns), pd.concat(bad, ignore_index=True)
    for column in columns:
        if column.name in frame:
            _check_kind(column, frame[column.name], rejects)
    if name in _IDS:
        _check_one_row_each(name, frame, _IDS[name])
    return frame, rejects


def _layout_of(name: str, config: DataConfig) -> TableConfig:
    return {"users": config.users, "items": config.items}.get(name, config.interactions) or TableConfig()


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
            is_bad |= is_new
            if is_new.any():
                values = raw.frame.loc[is_new, column.name]
                rejects.append(make_rejects(raw.file, raw.lines[is_new], column.source, values, reason))
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
            raise SchemaError(
                f"column '{column.source}' does not hold {kind}: {len(wrong):,} of its values are not, the first: "
                f"{_describe(wrong.iloc[0])}; declare another column or kind, or mend the file"
            )
    widths = sorted(set(map(len, values.dropna()))) if column.role == "vector" else []
    if len(widths) > 1:
        raise SchemaError(
            f"column '{column.source}' has vectors of {widths[0]} and of {widths[-1]} numbers; all vectors of a column "
            "have one width"
        )


def _check_one_row_each(name: str, frame: pd.DataFrame, id_name: str) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    rows = frame[frame[id_name].duplicated(keep=False)]
    distinct = rows[~rows.duplicated()]
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if len(conflicting):
        first = conflicting.tolist()[0]
        both = distinct[distinct[id_name].eq(first)].head(2)
        columns = [f"'{column}'" for column in both if not both[column].duplicated().any()]
        raise SchemaError(
            f"{name}: {id_name} {first!r} has rows that differ in {', '.join(columns)} "
            f"({conflicting.nunique()} such ids); keep one row each"
        )


def _find_hints(
    raw: Mapping[str, Sequence[Records]], typed: Mapping[str, pd.DataFrame], config: DataConfig
) -> Iterator[str]:
    """Say where a header seems to have been read as a record, and where a few texts keep ids from being integers.

    Places alone are named: hints are kept with the run, which holds no ids of users.
    """
    for table, files in raw.items():
        for file in (file for file in files if file.is_text and len(file.frame)):
            ids = [column for column in file.columns if column.role == "id"]
            first = [str(file.frame[column.name].iloc[0]).casefold() for column in ids]
            names = [(column.name, column.source.casefold()) for column in ids]
            if _layout_of(table, config).names and all(map(_is_in, first, names)):
                yield f"{file.file} is read with names, and its line 1 looks like a header: take one of them out"
            for column in ids:
                odd = find_odd_ids(file.frame[column.name])
                if len(odd) and not types.is_integer_dtype(typed[table][column.name]):
                    yield (
                        f"all ids of {table}.{column.name} are texts, since {len(odd):,} of them are no integers, the "
                        f"first in line {file.lines[odd.index[0]]} of {file.file}"
                    )


def _is_in(text: str, names: Sequence[str]) -> bool:
    return text in names


def _join_tables(config: DataConfig, typed: dict[str, pd.DataFrame]) -> Tables:
    """Name the parts of the split, and give the ids of a side one type in both of its tables."""
    frames = {name: frame for name, frame in typed.items() if name not in ("validation", "test")}
    if config.split.kind == "files":
        parts = [typed[name].assign(**{PART: part}) for name, part in _PARTS.items() if name in typed]
        frames["interactions"] = _join_frames(parts, columns_of_table("interactions", config))
    for name, id_name in _IDS.items():
        filled = [table for table in ("interactions", name) if len(frames.get(table, ()))]
        for table, ids in zip(filled, unify_ids([frames[table][id_name] for table in filled]), strict=True):
            frames[table] = frames[table].assign(**{id_name: ids})
    interactions = frames["interactions"]
    return Tables(
        interactions,
        frames.get("users", interactions[["user_id"]].drop_duplicates(ignore_index=True)),
        frames.get("items", interactions[["item_id"]].head(0)),
    )
