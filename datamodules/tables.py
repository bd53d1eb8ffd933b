"""Read three typed tables from files or data frames, and list the records that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import (
    EVENT_ROLES,
    Column,
    DataConfig,
    TableConfig,
    columns_of_table,
)
from datamodules.feedback import append_log, list_columns
from datamodules.rejects import (
    KINDS,
    OUTLYING,
    Rejects,
    advise,
    describe,
    describe_losses,
    find_limit,
    make_rejects,
    setting_of,
)
from datamodules.sources import Records, read_file, read_files, take_frame
from datamodules.values import find_outlying, join_frames, read_cells, unify_ids
from serve.cells import to_text
from serve.errors import SchemaError
from serve.files import NOBODY, ErasureList

PART = "part of the split"  # reserved column: the part that a file of the split gives
# reserved column: 0 for an event that is evidence alone; absent: 1 for all
TARGET_WEIGHT = "weight as a target"
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


def is_set(interactions: pd.DataFrame) -> bool:
    """Return whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def read_tables(
    config: DataConfig, erased: ErasureList = NOBODY
) -> tuple[Tables, Rejects]:
    """Read the files of a configuration.

    Args:
        config: where the tables lie, and how they are written.
        erased: users whose records are left out and counted apart.

    Returns:
        The tables, and every record or cell that is not in them. Rows + rejected records = records.

    Raises:
        SchemaError: in one line, that a file or column is missing or holds something else than is
            declared.
    """
    columns = _list_columns(config)
    files = {}
    for name in columns:
        layout: TableConfig | None = getattr(config, name)
        if layout is not None:
            files[name] = read_files(f"data.{name}.path", layout, columns[name])
    return _type_tables(config, columns, files, erased)


def tables_from_frames(
    config: DataConfig,
    interactions: pd.DataFrame,
    users: pd.DataFrame | None = None,
    items: pd.DataFrame | None = None,
    *,
    erased: ErasureList = NOBODY,
) -> tuple[Tables, Rejects]:
    """Do as `read_tables` with data frames in place of the files of the tables."""
    columns = _list_columns(config)
    frames = {"interactions": interactions, "users": users, "items": items}
    files = {}
    for name, frame in frames.items():
        if frame is not None:
            files[name] = [take_frame(name, frame, columns[name])]
    return _type_tables(config, columns, files, erased)


def _list_columns(config: DataConfig) -> dict[str, tuple[Column, ...]]:
    return {name: columns_of_table(name, config) for name in ("interactions", *IDS)}


def _type_tables(
    config: DataConfig,
    columns: Mapping[str, tuple[Column, ...]],
    files: dict[str, list[Records]],
    erased: ErasureList,
) -> tuple[Tables, Rejects]:
    for name in IDS:
        if name not in files and len(columns[name]) > 1:
            column = columns[name][1]
            raise SchemaError(
                f"column '{column.source}' is declared, {column.reason}; set data.{name}"
            )
    files |= _read_split_files(config, columns["interactions"])
    if config.feedback is not None:
        present = files["interactions"][0].columns
        log = read_file(Path(config.feedback), TableConfig(), list_columns(present))
        # ids of the log are texts whatever they are in the tables
        files["feedback"] = [replace(log, dropped=(), is_text=True)]
    for names in (_PARTS, ("users",), ("items",)):
        _check_same_columns([file for name in names for file in files.get(name, ())])

    layouts = {"users": config.users, "items": config.items, "feedback": None}
    tables = {}
    problems: list[str] = []
    hints: list[str] = []
    for name in files:
        layout = layouts.get(name, config.interactions) or TableConfig()
        remaining = [_leave_out(file, erased) for file in files[name]]
        table = type_records(remaining, layout, config.timezone, name in IDS)
        tables[name] = _reject_outliers(table)
        problems.extend(_find_problems(name, tables[name], config.max_reject_rate))
        hints.extend(describe_losses(name, tables[name].faults))
    if problems:
        raise SchemaError("; ".join(problems))
    for name in IDS:
        if name in tables:
            _check_one_row_each(name, tables[name])

    typed, logged = _join_tables(config, tables)
    erasures = {name: table.n_erased for name, table in tables.items()}
    rejects = Rejects(
        {name: table.list_faults("record") for name, table in tables.items()},
        {name: table.list_faults("cell") for name, table in tables.items()},
        {name: table.n_records for name, table in tables.items()},
        {name: table.dropped for name, table in tables.items()},
        {name: count for name, count in erasures.items() if count},
        tuple(hints),
        logged,
    )
    return typed, rejects


def _read_split_files(
    config: DataConfig, columns: tuple[Column, ...]
) -> dict[str, list[Records]]:
    """Read the files that a split names, which have the columns and layout of the interactions."""
    if config.split.kind != "files":
        return {}
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


def _leave_out(file: Records, erased: ErasureList) -> Records:
    """Take out the records of erased users, and the texts of torn records, which may be theirs."""
    if not len(erased) or "user_id" not in file.frame:
        return file
    # a text is compared as it is: " 7" is another user than "7"
    ids = file.frame["user_id"].astype(object)
    ids = ids.map(lambda cell: cell if isinstance(cell, str) else to_text(cell))
    is_erased = ids.isin(
        [user_id for user_id in ids.dropna().unique() if erased.holds(user_id)]
    )
    return replace(
        file,
        frame=file.frame[~is_erased].reset_index(drop=True),
        lines=file.lines[~is_erased],
        rejects=file.rejects.assign(value=None).astype({"value": "str"}),
        n_erased=int(is_erased.sum()),
    )


def _check_same_columns(files: Sequence[Records]) -> None:
    """Refuse a file that lacks a column of its table's other files, and one that is read twice."""
    filled = [file for file in files if len(file.frame)]
    for file in filled:
        for other in filled:
            for column in other.columns:
                if column not in file.columns:
                    raise SchemaError(
                        f"{file.file}: column '{column.source}' is absent, which {other.file} has"
                    )
    paths = Counter(Path(file.file).resolve() for file in files)
    for path, count in paths.items():
        if count > 1:
            raise SchemaError(
                f"{path} is a file of two parts of the split: give each part files of its own"
            )


# ---- from raw cells to typed rows


@dataclass(frozen=True)
class TypedTable:
    """Typed rows of a table, or of one file of it, and what was left out."""

    frame: pd.DataFrame
    places: pd.DataFrame  # file and line of each row
    faults: pd.DataFrame
    """File, line, column, value, reason, and what the fault costs: "record", "cell", or nothing."""
    n_right: Counter[str]  # column -> cells with a good value
    columns: tuple[Column, ...]
    n_records: int
    n_erased: int  # records of erased users, which are not counted in the others
    dropped: tuple[str, ...]  # columns that are not declared

    def list_faults(self, costs: str) -> pd.DataFrame:
        """Return the faults that cost a record, or a cell."""
        is_listed = self.faults["costs"] == costs
        return self.faults[is_listed].drop(columns="costs").reset_index(drop=True)


def type_records(
    files: Sequence[Records],
    layout: TableConfig,
    timezone: str | None,
    keeps_rows: bool,
) -> TypedTable:
    """Type the records of the files of one table.

    Args:
        files: one or more files.
        layout: how the table writes values.
        timezone: IANA name by whose clocks naive times are read; None: UTC.
        keeps_rows: a bad cell costs itself and not its row, unless it is an id.

    Returns:
        All rows in the order of the files, ids of one type, and all faults.
    """
    paths = pd.CategoricalDtype([file.file for file in files])
    parts = [_type_file(file, timezone, layout, keeps_rows, paths) for file in files]
    columns = max((part.columns for part in parts), key=len)
    places = [part.places for part in parts]
    faults = [part.faults for part in parts]
    dropped = chain.from_iterable(part.dropped for part in parts)
    return TypedTable(
        join_frames([part.frame for part in parts], columns),
        pd.concat(places, ignore_index=True),
        pd.concat(faults, ignore_index=True),
        sum((part.n_right for part in parts), Counter()),
        columns,
        sum(part.n_records for part in parts),
        sum(part.n_erased for part in parts),
        tuple(dict.fromkeys(dropped)),
    )


def _type_file(
    file: Records,
    timezone: str | None,
    layout: TableConfig,
    keeps_rows: bool,
    paths: Any,
) -> TypedTable:
    """Type the records of one file; a bad cell costs itself alone where the table keeps rows."""
    columns = {}
    faults = [file.rejects.assign(costs="record")]
    n_right = Counter[str]()
    is_lost = np.zeros(len(file.frame), bool)
    for column in file.columns:
        cells = file.frame[column.name]
        try:
            values, reasons = read_cells(column, cells, timezone, file.is_text, layout)
        except SchemaError as error:
            raise SchemaError(f"{file.file}: {error}") from error
        costs = "cell" if keeps_rows and column.role != "id" else "record"
        is_listed = is_lost.copy()
        is_wrong = np.zeros(len(cells), bool)
        for reason, is_fault in reasons.items():
            listed = make_rejects(
                file.file,
                file.lines[is_fault],
                column.source,
                cells[is_fault],
                reason,
            )
            costs_of_faults = np.where(is_listed[is_fault], "", costs)
            faults.append(listed.assign(costs=costs_of_faults))
            is_listed |= is_fault
            is_wrong |= is_fault
        n_right[column.name] = int((values.notna() & ~is_wrong).sum())
        if costs == "cell":
            values = values.mask(is_wrong & ~is_lost)
        else:
            is_lost = is_listed
        columns[column.name] = values
    frame = pd.DataFrame(columns)[~is_lost].reset_index(drop=True)
    names = pd.Series(file.file, frame.index, dtype=paths)
    places = pd.DataFrame({"file": names, "line": file.lines[~is_lost]})
    in_order = pd.concat(faults).sort_values("line", kind="stable")
    return TypedTable(
        frame,
        places,
        in_order,
        n_right,
        file.columns,
        file.n_records,
        file.n_erased,
        file.dropped,
    )


def _reject_outliers(table: TypedTable) -> TypedTable:
    """Leave out events of times that lie years from the others."""
    for column in table.columns:
        if column.role != "time":
            continue
        seconds = table.frame[column.name].to_numpy()
        is_outlier = find_outlying(seconds, column)
        places = table.places[is_outlier]
        moments = seconds[is_outlier].astype("datetime64[s]").astype(str)
        texts = [f"{moment}Z" for moment in moments]
        rejects = make_rejects(
            places["file"], places["line"], column.source, texts, OUTLYING
        )
        faults = [table.faults, rejects.assign(costs="record")]
        table = replace(
            table,
            frame=table.frame[~is_outlier].reset_index(drop=True),
            places=table.places[~is_outlier].reset_index(drop=True),
            faults=pd.concat(faults, ignore_index=True),
        )
    return table


# ---- what is refused, and what is said


def _find_problems(name: str, table: TypedTable, max_rate: float) -> Iterator[str]:
    """Say which columns hold something else than is declared."""
    for column in table.columns:
        n_right = table.n_right[column.name]
        is_of_column = table.faults["column"] == column.source
        for reason, kind in KINDS.items():
            wrong = table.faults[is_of_column & (table.faults["reason"] == reason)]
            if len(wrong) > find_limit(reason, wrong, n_right, max_rate):
                other = "another kind, such as text, in data.features"
                if column.name in EVENT_ROLES:
                    other = f"another column in data.{setting_of(name)}.columns"
                advice = advise(name, wrong) or f"; mend it, or declare {other}"
                yield (
                    f"column '{column.source}' does not hold {kind}: {len(wrong):,} values are "
                    "not, "
                    f"the first: {describe(wrong)}{advice}"
                )


def _check_one_row_each(name: str, table: TypedTable) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    id_name = IDS[name]
    frame = table.frame
    distinct = frame[frame[id_name].duplicated(keep=False)].drop_duplicates()
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if conflicting.empty:
        return
    rows = distinct[distinct[id_name] == conflicting.iloc[0]].head(2)
    columns = [f"'{column}'" for column in rows if not rows[column].duplicated().any()]
    places = [
        f"{place.file}, line {place.line}"
        for place in table.places.loc[rows.index].itertuples()
    ]
    raise SchemaError(
        f"{name}: {id_name} {conflicting.tolist()[0]!r} has rows that differ in "
        f"{', '.join(columns)} "
        f"({conflicting.nunique()} such ids): {'; '.join(places)}; keep one row each"
    )


# ---- three tables


def _join_tables(
    config: DataConfig, tables: Mapping[str, TypedTable]
) -> tuple[Tables, dict[str, int]]:
    """Join the parts of the split and the log, and give the ids of a side one type."""
    frames = {name: table.frame for name, table in tables.items()}
    if config.split.kind == "files":
        parts = []
        for name, part in _PARTS.items():
            if name in frames:
                parts.append(frames[name].assign(**{PART: part}))
        frames["interactions"] = join_frames(parts, tables["interactions"].columns)
    for side, id_name in IDS.items():
        names = [
            name
            for name in ("interactions", "feedback", side)
            if len(frames.get(name, ()))
        ]
        columns = unify_ids([frames[name][id_name] for name in names])
        for name, ids in zip(names, columns, strict=True):
            frames[name] = frames[name].assign(**{id_name: ids})
    interactions = frames["interactions"]
    logged: dict[str, int] = {}
    if "feedback" in frames:
        interactions, logged = append_log(interactions, frames["feedback"])
    if PART in interactions:
        interactions[PART] = interactions[PART].fillna(_PARTS["interactions"])
    users = interactions[["user_id"]].drop_duplicates(ignore_index=True)
    items = interactions[["item_id"]].head(0)
    typed = Tables(interactions, frames.get("users", users), frames.get("items", items))
    return typed, logged
