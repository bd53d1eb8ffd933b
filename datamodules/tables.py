"""Read three typed tables from files or data frames, and list the records that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.columns import columns_of_table
from datamodules.config import Column, DataConfig, TableConfig
from datamodules.feedback import append_log, list_columns
from datamodules.rejects import (
    KINDS,
    MENDED,
    Problem,
    Rejects,
    describe,
    find_excess,
    find_limit,
    find_remedy,
    make_rejects,
    place_of,
)
from datamodules.sources import (
    Records,
    TableLike,
    find_fullest,
    read_file,
    read_files,
    take_table,
)
from datamodules.values import read_cells, unify_ids
from serve.cells import Pseudonyms, to_text
from serve.errors import SchemaError, SchemaErrors
from serve.files import NOBODY, ErasureList

PART = "part of the split"  # reserved column: the part that a file of the split gives
IDS = {"users": "user_id", "items": "item_id"}
_PARTS = {"interactions": "train", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Tables:
    """Three tables under our names."""

    interactions: pd.DataFrame
    """user_id, item_id; where there: datetime (int64 UTC seconds), position, event (text), weight
    (float64), context feature columns, `PART`; in file order."""
    users: pd.DataFrame
    """user_id, features, audit columns; without a users table the ids of the interactions."""
    items: pd.DataFrame  # item_id, feature columns; empty without an items table


def read_tables(
    config: DataConfig,
    erased: ErasureList = NOBODY,
    interactions: TypedTable | None = None,
) -> tuple[Tables, Rejects]:
    """Read the files of a configuration.

    Args:
        config: where the tables lie, and how they are written.
        erased: users whose records are left out and counted apart.
        interactions: stand for their files, which were typed before.

    Returns:
        The tables, and every record or cell that is not in them. Rows + rejected records = records.

    Raises:
        SchemaError: in a line each, which files or columns are missing or hold something else than
            is declared.
    """
    columns = _list_columns(config)
    files = {}
    unread = []
    for name in columns:
        layout: TableConfig | None = getattr(config, name)
        is_typed = name == "interactions" and interactions is not None
        if layout is None or is_typed:
            continue
        try:
            files[name] = read_files(f"data.{name}.path", layout, columns[name])
        except SchemaError as error:
            unread.append(str(error))

    if interactions is not None:
        files = {"interactions": interactions.records, **files}
    return _type_tables(config, columns, files, unread, erased, interactions)


def tables_from_frames(
    config: DataConfig,
    interactions: TableLike,
    users: TableLike | None = None,
    items: TableLike | None = None,
    *,
    erased: ErasureList = NOBODY,
) -> tuple[Tables, Rejects]:
    """Do as `read_tables` with tables in memory in place of files."""
    columns = _list_columns(config)
    frames = {"interactions": interactions, "users": users, "items": items}
    files = {}
    for name, frame in frames.items():
        if frame is not None or name == "interactions":
            layout: TableConfig = getattr(config, name) or TableConfig()
            files[name] = take_table(name, frame, layout, columns[name])

    return _type_tables(config, columns, files, (), erased)


def _list_columns(config: DataConfig) -> dict[str, tuple[Column, ...]]:
    return {name: columns_of_table(name, config) for name in ("interactions", *IDS)}


def _type_tables(
    config: DataConfig,
    columns: Mapping[str, tuple[Column, ...]],
    files: dict[str, Records],
    unread: Sequence[str],
    erased: ErasureList,
    interactions: TypedTable | None = None,
) -> tuple[Tables, Rejects]:
    """Type what was read, and refuse all faults at once, with those of files that were not read."""
    for name in IDS:
        if name not in files and not unread and len(columns[name]) > 1:
            column = columns[name][1]
            raise SchemaError(
                f"column '{column.source}' is declared, {column.reason}; set data.{name}"
            )

    if config.split.kind == "files" and not unread:
        files |= _read_split_files(config, columns["interactions"])
        _check_parts([files[name] for name in _PARTS if name in files])

    if config.feedback is not None and not unread:
        present = files["interactions"].columns
        log = read_file(Path(config.feedback), TableConfig(), list_columns(present))
        # ids of the log are texts whatever they are in the tables
        files["feedback"] = replace(log, dropped=(), is_text=True)

    layouts = {"users": config.users, "items": config.items, "feedback": None}
    tables = {}
    faults = list(unread)
    excesses: list[str] = []

    for name, raw in files.items():
        layout = layouts.get(name, config.interactions) or TableConfig()
        records = leave_out(raw, erased, config.keys)
        try:
            if name == "interactions" and interactions is not None:
                table = interactions
            else:
                table = type_records(records, layout, config.timezone, name in IDS)
        except SchemaError as error:
            faults.append(str(error))
            continue
        problems, rest = _find_problems(table, config.max_reject_rate)
        if name in IDS and not layout.keep:
            problems += _find_conflicts(name, records)
        faults += [problem.say(name) for problem in problems]
        excesses += find_excess(name, rest, records.n_records, config.max_reject_rate)
        tables[name] = table

    if faults:
        raise SchemaErrors([*faults, *excesses])

    typed, logged = _join_tables(config, tables)
    return typed, _sum_up(tables, logged, config.keys is not None)


def _sum_up(
    tables: Mapping[str, TypedTable], logged: dict[str, int], hides_values: bool
) -> Rejects:
    """Gather what was left out of each table; a cell in the wrong column may hold an id."""
    rejects = Rejects({}, {}, {}, {}, logged)
    for name, table in tables.items():
        records = table.records
        faults = table.faults
        rejects.faults[name] = drop_values(faults) if hides_values else faults
        rejects.records[name] = records.n_records
        rejects.dropped[name] = records.dropped
        if records.n_erased:
            rejects.forgotten[name] = records.n_erased

    return rejects


def _read_split_files(
    config: DataConfig, columns: tuple[Column, ...]
) -> dict[str, Records]:
    """Read the files that a split names, which have the columns and layout of the interactions."""
    if any(column.name == PART for column in columns):
        raise SchemaError(
            f"column '{PART}' is reserved where the split is given by files: rename yours"
        )

    files = {}

    for name in ("validation", "test"):
        path = getattr(config.split, name)
        if path:
            layout = replace(config.interactions, path=path, query=None)
            files[name] = read_files(f"data.split.{name}", layout, columns)

    return files


def leave_out(
    records: Records, erased: ErasureList, keys: Pseudonyms | None
) -> Records:
    """Take out the records of erased users, then put pseudonyms in the place of ids.

    The texts of torn records go as well, which may hold an id.

    Args:
        records: raw cells.
        erased: users by any name that they have or had.
        keys: of pseudonyms, None without.
    """
    if not (len(erased) or keys) or "user_id" not in records.frame:
        return records
    cells = records.frame["user_id"].tolist()
    names = {str(cell): _list_names(cell, keys) for cell in cells}
    known = [names[str(cell)] for cell in cells]
    is_erased = np.array([any(map(erased.holds, each)) for each in known], bool)
    frame = records.frame
    if keys:
        user_ids = pd.Series([each[-1] or None for each in known], dtype=object)
        frame = frame.assign(user_id=user_ids)
    frame = frame[~is_erased].reset_index(drop=True)
    places = records.places[~is_erased].reset_index(drop=True)
    rejects = drop_values(records.rejects)
    n_erased = int(is_erased.sum())

    return replace(
        records, frame=frame, places=places, rejects=rejects, n_erased=n_erased
    )


def drop_values(rejects: pd.DataFrame) -> pd.DataFrame:
    return rejects.assign(value=None).astype({"value": "str"})


def _list_names(cell: Any, keys: Pseudonyms | None) -> list[str]:
    """Return the names of a user; an old erasure list has ids with the blanks around them."""
    text = to_text(cell) or ""
    return [str(cell), *(keys.list_names(text) if keys and text else [text])]


def _check_parts(parts: Sequence[Records]) -> None:
    """Refuse parts of a split with other columns, and a file that is read twice."""
    find_fullest(parts)
    counts = Counter(path for part in parts for path in part.places["file"].unique())
    path, count = counts.most_common(1)[0]
    if count > 1:
        raise SchemaError(
            f"{path} is a file of two parts of the split: give each part files of its own"
        )


# ---- from raw cells to typed rows


@dataclass(frozen=True)
class TypedTable:
    """Typed rows of a table, and what was left out."""

    records: Records  # that it was made of
    frame: pd.DataFrame
    places: pd.DataFrame  # file and line of each row
    faults: pd.DataFrame
    """File, line, column, value, reason, and what the fault costs: "record", "cell", or nothing."""
    n_right: dict[str, int]  # column of the file -> cells with a good value


def type_records(
    records: Records, layout: TableConfig, timezone: str | None, keeps_rows: bool
) -> TypedTable:
    """Type the records of one table.

    Args:
        records: raw cells.
        layout: how the table writes values.
        timezone: IANA name by whose clocks naive times are read; None: UTC.
        keeps_rows: a bad cell costs itself and not its row, unless it is an id.

    Returns:
        All good rows in the order of the files, ids of one type, and all faults.
    """
    columns = {}
    n_right = {}
    faults = [records.rejects.assign(costs="record")]
    is_lost = np.zeros(len(records.frame), bool)

    for column in records.columns:
        cells = records.frame[column.name]
        try:
            values, reasons = read_cells(
                column, cells, timezone, records.is_text, layout
            )
        except SchemaError as error:
            raise SchemaError(f"{records.file}: {error}") from error
        costs = "cell" if keeps_rows and column.role != "id" else "record"
        is_wrong = np.zeros(len(cells), bool)
        for reason, is_fault in reasons.items():
            places = records.places[is_fault]
            listed = make_rejects(
                places["file"], places["line"], column.source, cells[is_fault], reason
            )
            is_listed = (is_lost | is_wrong)[is_fault] | (reason in MENDED)
            faults.append(listed.assign(costs=np.where(is_listed, "", costs)))
            if reason not in MENDED:
                is_wrong |= is_fault
        n_right[column.source] = int((values.notna() & ~is_wrong).sum())
        if costs == "cell":
            values = values.mask(is_wrong)
        else:
            is_lost |= is_wrong
        columns[column.name] = values

    frame = pd.DataFrame(columns)[~is_lost].reset_index(drop=True)
    places = records.places[~is_lost].reset_index(drop=True)
    in_order = pd.concat(faults).sort_values(
        ["file", "line"], kind="stable", ignore_index=True
    )

    return TypedTable(records, frame, places, in_order, n_right)


# ---- what is refused, and what is said


def _find_problems(
    table: TypedTable, max_rate: float
) -> tuple[list[Problem], pd.DataFrame]:
    """Find the columns that hold something else than is declared.

    Returns:
        The problems, one for each kind of fault, and the faults that are none of them.
    """
    unfit = [table.faults.head(0)]
    for (source, reason), wrong in table.faults.groupby(["column", "reason"]):
        n_right = table.n_right.get(str(source), 0)
        limit = find_limit(str(reason), wrong, n_right, max_rate)
        if reason in KINDS and len(wrong) > limit:
            unfit.append(wrong)

    problems = list(table.records.problems)
    told = pd.concat(unfit)
    for reason, wrong in told.groupby("reason"):
        columns = ", ".join(f"'{source}'" for source in wrong["column"].unique())
        text = (
            f"column {columns} does not hold {KINDS[str(reason)]}: {len(wrong):,} values are not, "
            f"the first: {describe(wrong)}"
        )
        key = find_remedy(str(reason), wrong["value"])
        if not key:
            text += (
                "; mend it, as by a `query`, or declare another column, or another kind in "
                "data.features"
            )
        problems.append(Problem(text, key))

    return problems, table.faults.drop(told.index)


def _find_conflicts(name: str, records: Records) -> Iterator[Problem]:
    """Find rows of one id that differ as they are written; equal ones are for cleaning."""
    id_name = IDS[name]
    if id_name not in records.frame:
        return
    ids = records.frame[id_name].astype("str").str.strip()
    is_doubled = ids.duplicated(keep=False) & (ids.fillna("") != "")
    rows = records.frame[is_doubled].astype("str").assign(**{id_name: ids})
    distinct = rows.drop_duplicates().sort_values(id_name, kind="stable")
    pair = distinct[distinct[id_name].duplicated(keep=False)].head(2)
    if len(pair):
        columns = pair.columns[pair.nunique(dropna=False) > 1]
        places = records.places.loc[pair.index]
        text = (
            f"{name}: {id_name} '{pair[id_name].iloc[0]}' has rows that differ in "
            f"{', '.join(map(repr, columns))}: {place_of(places)} and {place_of(places[1:])}; "
            "keep one row each"
        )
        yield Problem(text, "keep: last")


# ---- three tables


def _join_tables(
    config: DataConfig, tables: Mapping[str, TypedTable]
) -> tuple[Tables, dict[str, int]]:
    """Join the parts of the split and the log, and give the ids of a side one type."""
    frames = {name: table.frame for name, table in tables.items()}
    for side, id_name in IDS.items():
        sources = (*_PARTS, "feedback", side)
        names = [name for name in sources if len(frames.get(name, ()))]
        columns = unify_ids([frames[name][id_name] for name in names])
        for name, ids in zip(names, columns, strict=True):
            frames[name] = frames[name].assign(**{id_name: ids})

    if config.split.kind == "files":
        parts = []
        for name, part in _PARTS.items():
            if len(frames.get(name, ())):
                parts.append(frames[name].assign(**{PART: part}))
        frames["interactions"] = pd.concat(parts, ignore_index=True)

    interactions = frames["interactions"]
    logged: dict[str, int] = {}

    if "feedback" in frames:
        interactions, logged = append_log(interactions, frames["feedback"], config.ties)
    if PART in interactions:
        interactions[PART] = interactions[PART].fillna(_PARTS["interactions"])
    users = interactions[["user_id"]].drop_duplicates(ignore_index=True)
    items = interactions[["item_id"]].head(0)
    typed = Tables(interactions, frames.get("users", users), frames.get("items", items))

    return typed, logged
