"""Three typed tables from files or data frames, and the list of the records that were left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from datamodules.read import (
    REPLACED,
    Records,
    make_rejects,
    read_file,
    read_files,
    take_frame,
)
from datamodules.rejects import (
    KINDS,
    OTHER_LENGTH,
    Rejects,
    advise,
    describe,
    place_of,
    setting_of,
)
from datamodules.values import INTEGER, read_cells, unify_ids
from serve.clock import DAY
from serve.encode import to_text
from serve.errors import SchemaError
from serve.files import NOBODY, ErasureList

PART = "part of the split"  # reserved column of the interactions where files give the split
TARGET_WEIGHT = "weight as a target"  # reserved column: 0 for an event that is evidence alone; absent: 1 for all
_PARTS = {
    "interactions": "train",
    "validation": "validation",
    "test": "test",
}  # table -> its part
IDS = {"users": "user_id", "items": "item_id"}
_OUTLYING = "years from nearly all other times"
MIN_VOID = 3 * 365 * DAY
"""Of 20 times or more, those of the outer twentieths are outlying that a void parts from the rest: so many seconds or
more, and as long as the middle nine tenths."""
MAX_WIDTHS = 0.1  # vectors of other lengths for each of the usual one, up to which they are slips
MIN_INTEGER_IDS = (
    10  # so many integer ids and so small a share of texts: the texts look like slips
)
MAX_ODD_IDS = 0.01


@dataclass(frozen=True)
class Tables:
    """Three tables under our names."""

    interactions: pd.DataFrame
    """user_id, item_id; where there: datetime (int64 UTC seconds), position, event (text), weight (float64),
    context feature columns, `PART`; in file order."""
    users: pd.DataFrame  # user_id, features, audit columns; without a users table the ids of the interactions
    items: pd.DataFrame  # item_id, item feature columns; empty without an items table


def is_set(interactions: pd.DataFrame) -> bool:
    """Return whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def read_tables(
    config: DataConfig, erased: ErasureList = NOBODY
) -> tuple[Tables, Rejects]:
    """Read the files of a configuration, but for the records of users on the erasure list."""
    declared = {
        "interactions": config.interactions,
        "users": config.users,
        "items": config.items,
    }
    given = {name: table for name, table in declared.items() if table is not None}
    files = {
        name: read_files(f"data.{name}.path", one, columns_of_table(name, config))
        for name, one in given.items()
    }
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
    raw = {
        name: [take_frame(name, frame, columns_of_table(name, config))]
        for name, frame in given.items()
    }
    return _type_tables(config, raw, erased)


def _type_tables(
    config: DataConfig, raw: dict[str, list[Records]], erased: ErasureList
) -> tuple[Tables, Rejects]:
    for name in IDS:
        columns = columns_of_table(name, config)
        if name not in raw and len(columns) > 1:
            raise SchemaError(
                f"column '{columns[1].source}' is declared, {columns[1].reason}; set data.{name}"
            )
    raw |= _read_split_files(config)
    if config.feedback is not None:
        log = read_file(
            Path(config.feedback),
            TableConfig(),
            list_columns(raw["interactions"][0].columns),
        )
        raw["feedback"] = [
            replace(log, dropped=(), is_text=True)
        ]  # ids are texts whatever they are in the tables
    kept = {
        name: [_leave_out(file, erased) for file in files]
        for name, files in raw.items()
    }
    for names in (_PARTS, ("users",), ("items",)):
        _check_same_columns([file for name in names for file in kept.get(name, ())])
    n_records = {
        name: sum(file.n_records for file in files) for name, files in kept.items()
    }
    forgotten = {
        name: sum(file.n_records for file in files) - n_records[name]
        for name, files in raw.items()
    }
    typed = {name: _type_table(name, files, config) for name, files in kept.items()}
    problems = [
        problem
        for name, one in typed.items()
        for problem in _find_problems(name, one, config)
    ]
    if problems:
        raise SchemaError("; ".join(problems))
    for name in IDS:
        if name in typed:
            _check_one_row_each(name, typed[name], IDS[name])
    hints = [
        hint
        for name, files in kept.items()
        for file in files
        for hint in _find_hints(name, file)
    ]
    dropped = {
        name: dict.fromkeys(column for file in files for column in file.dropped)
        for name, files in kept.items()
    }
    tables, logged = _join_tables(
        config, {name: one.frame for name, one in typed.items()}
    )
    rejects = Rejects(
        {name: one.rejects for name, one in typed.items()},
        {name: one.cells for name, one in typed.items() if name in IDS},
        n_records,
        {name: tuple(columns) for name, columns in dropped.items()},
        {name: count for name, count in forgotten.items() if count},
        (
            *hints,
            *(
                hint
                for name, one in typed.items()
                for hint in _describe_losses(name, one)
            ),
        ),
        logged,
    )
    return tables, rejects


def _read_split_files(config: DataConfig) -> dict[str, list[Records]]:
    """Read the files that a split names, laid out as the interactions; none may be trained on and tested with."""
    columns = columns_of_table("interactions", config)
    if config.split.kind == "files" and PART in {column.name for column in columns}:
        raise SchemaError(
            f"column '{PART}' is reserved where the split is given by files: rename yours"
        )
    paths = {name: getattr(config.split, name) for name in ("validation", "test")}
    layouts = {
        name: replace(config.interactions, path=path, query=None)
        for name, path in paths.items()
        if path
    }
    return {
        name: read_files(f"data.split.{name}", one, columns)
        for name, one in layouts.items()
    }


def _leave_out(raw: Records, erased: ErasureList) -> Records:
    """Take the records of erased users out, and the texts of torn records, which do not say whose they are."""
    if not len(erased) or "user_id" not in raw.frame:
        return raw
    texts = [
        cell if isinstance(cell, str) else to_text(cell)
        for cell in raw.frame["user_id"]
    ]
    codes, distinct = pd.factorize(pd.Series(texts, dtype=object))
    is_forgotten = np.array([*map(erased.holds, distinct), False], dtype=bool)[
        codes
    ]  # the last for a missing id
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
                raise SchemaError(
                    f"{file.file}: column '{column.source}' is absent, which {having[column]} has"
                )
    for path, count in Counter(Path(file.file).resolve() for file in files).items():
        if count > 1:
            raise SchemaError(
                f"{path} is a file of two parts of the split: give each part files of its own"
            )


@dataclass(frozen=True)
class _Typed:
    """Typed rows, where each stood, and what was left out."""

    frame: pd.DataFrame
    places: pd.DataFrame  # file and line of each row
    rejects: pd.DataFrame
    cells: pd.DataFrame
    faults: pd.DataFrame  # of all cells, also those after the first of a record
    n_right: Counter[str]  # column -> cells with a good value

    def set_aside(
        self, column: Column, is_fault: np.ndarray, reason: str, keeps_rows: bool
    ) -> _Typed:
        """Leave out the rows at fault, or their cells of the column alone."""
        bad = self.places[is_fault]
        cells = self.frame.loc[is_fault, column.name]
        values = [
            str(one.entries())
            if column.role == "vector"
            else f"{np.datetime64(one, 's')}Z"
            for one in cells
        ]
        more = make_rejects(bad["file"], bad["line"], column.source, values, reason)
        faults = pd.concat([self.faults, more], ignore_index=True)
        if keeps_rows:
            blank = self.frame.assign(
                **{column.name: self.frame[column.name].mask(is_fault)}
            )
            return replace(
                self,
                frame=blank,
                cells=pd.concat([self.cells, more], ignore_index=True),
                faults=faults,
            )
        frame, places = (
            one[~is_fault].reset_index(drop=True) for one in (self.frame, self.places)
        )
        rejects = pd.concat([self.rejects, more], ignore_index=True)
        return replace(self, frame=frame, places=places, rejects=rejects, faults=faults)


def _type_table(name: str, files: Sequence[Records], config: DataConfig) -> _Typed:
    """Return the typed rows of all files, their ids of one type, and all rejects."""
    layouts = {"users": config.users, "items": config.items, "feedback": None}
    layout = layouts.get(name, config.interactions) or TableConfig()
    paths = pd.CategoricalDtype([file.file for file in files])
    parts = [
        _type_file(file, config.timezone, layout, name in IDS, paths) for file in files
    ]
    columns = columns_of_table(name, config)
    frame = _join_frames([part.frame for part in parts], columns)
    lists = (
        [getattr(part, field) for part in parts]
        for field in ("places", "rejects", "cells", "faults")
    )
    n_right = sum((part.n_right for part in parts), Counter[str]())
    places, rejects, cells, faults = (
        pd.concat(some, ignore_index=True) for some in lists
    )
    typed = _Typed(frame, places, rejects, cells, faults, n_right)
    for column in (column for column in columns if column.name in frame):
        values = typed.frame[column.name]
        if (
            column.role == "time"
            and (is_fault := _find_outlying(values.to_numpy(), column)).any()
        ):
            typed = typed.set_aside(column, is_fault, _OUTLYING, keeps_rows=False)
        elif column.role == "vector":
            widths = values.map(lambda one: one.entries().size, na_action="ignore")
            is_fault = (widths.notna() & widths.ne(widths.mode().max())).to_numpy(bool)
            typed = typed.set_aside(column, is_fault, OTHER_LENGTH, name in IDS)
    return typed


def _type_file(
    raw: Records,
    timezone: str | None,
    layout: TableConfig,
    keeps_rows: bool,
    paths: Any,
) -> _Typed:
    """Return the rows and all rejects of a file; a row is lost by a bad id, and by any bad cell unless it is kept."""
    typed: dict[str, pd.Series] = {}
    faults = [make_rejects(raw.file)]
    cells = [make_rejects(raw.file)]
    records = [raw.rejects]
    is_bad = np.zeros(len(raw.frame), bool)
    n_right = Counter[str]()
    for column in raw.columns:
        given = raw.frame[column.name]
        is_blank = is_bad.copy()
        is_cell = keeps_rows and column.role != "id"
        is_torn = np.zeros(len(given), bool)
        if raw.is_broken:
            is_torn = (
                given.str.contains(REPLACED, regex=False).fillna(False).to_numpy(bool)
            )
        try:
            read = read_cells(
                column, given.mask(is_torn, None), timezone, raw.is_text, layout
            )
        except SchemaError as error:
            raise SchemaError(f"{raw.file}: {error}") from error
        for reason, is_fault in {"not UTF-8": is_torn, **read.faults}.items():
            faults.append(
                make_rejects(
                    raw.file,
                    raw.lines[is_fault],
                    column.source,
                    given[is_fault],
                    reason,
                )
            )
            (cells if is_cell else records).append(faults[-1][~is_blank[is_fault]])
            is_blank |= is_fault
        typed[column.name] = (
            read.values.mask(is_blank & ~is_bad) if is_cell else read.values
        )
        is_wrong = np.logical_or.reduce([is_torn, *read.faults.values()])
        n_right[column.name] = int((read.values.notna() & ~is_wrong).sum())
        is_bad = is_bad if is_cell else is_blank
    frame = pd.DataFrame(typed)[~is_bad].reset_index(drop=True)
    places = pd.DataFrame(
        {
            "file": pd.Series(raw.file, frame.index, dtype=paths),
            "line": raw.lines[~is_bad],
        }
    )
    bad_cells, bad = (
        pd.concat(some).sort_values("line", kind="stable") for some in (cells, records)
    )
    return _Typed(frame, places, bad, bad_cells, pd.concat(faults), n_right)


def _find_outlying(seconds: np.ndarray, column: Column) -> np.ndarray:
    """Mark times that a void of years parts from nearly all others, (n,), unless a limit says which are right."""
    ordered = np.sort(seconds)
    tail = len(seconds) // 20
    if not tail:
        return np.zeros(len(seconds), bool)
    is_void = np.diff(ordered) >= max(ordered[-1 - tail] - ordered[tail], MIN_VOID)
    first = np.append(-1, np.flatnonzero(is_void[:tail]))[-1] + 1
    last = len(ordered) - 1 - tail + np.append(np.flatnonzero(is_void[-tail:]), tail)[0]
    is_early = seconds < ordered[first]
    is_late = seconds > ordered[last]
    return np.asarray(
        (is_early & (column.low is None)) | (is_late & (column.high is None))
    )


def _join_frames(
    frames: Sequence[pd.DataFrame], columns: tuple[Column, ...]
) -> pd.DataFrame:
    """Put rows of the same columns below each other; those without rows have no say in a type."""
    filled = [frame for frame in frames if len(frame)]
    if len(filled) < 2:
        return (filled or list(frames))[0]
    joined = pd.concat(filled, ignore_index=True)
    for name in (column.name for column in columns if column.role == "id"):
        joined[name] = pd.concat(
            unify_ids([frame[name] for frame in filled]), ignore_index=True
        )
    return joined


def _find_problems(name: str, typed: _Typed, config: DataConfig) -> Iterator[str]:
    """Say which columns hold something else than is declared: more wrong than right cells, or many that are alike."""
    for column in (
        column
        for column in columns_of_table(name, config)
        if column.name in typed.frame
    ):
        n_right = typed.n_right[column.name]
        of_column = typed.faults[typed.faults["column"] == column.source]
        other = "another kind, such as text, in data.features"
        if column.name in EVENT_ROLES:
            other = f"another column in data.{setting_of(name)}.columns"
        for reason, kind in KINDS.items():
            wrong = of_column[of_column["reason"] == reason]
            advice = advise(name, wrong)
            most = config.max_reject_rate * (len(wrong) + n_right)
            if not advice or "missing:" in advice:  # they may be slips
                most = MAX_WIDTHS * n_right if reason == OTHER_LENGTH else n_right
            if len(wrong) > min(most, n_right):
                count = f"{len(wrong):,} values are not"
                first = f"column '{column.source}' does not hold {kind}: {count}, the first: {describe(wrong)}"
                yield first + (advice or f"; mend it, or declare {other}")


def _describe_losses(name: str, typed: _Typed) -> Iterator[str]:
    """Say how many cells and times were set aside, and where the first stood; hints are kept, so they tell no cell."""
    for (column, reason), bad in typed.cells.groupby(["column", "reason"], sort=False):
        advice = (
            advise(name, bad) if (name, reason) == ("items", "not a number") else ""
        )
        yield f"{len(bad):,} cells of {name}.{column} are {reason} and count as missing: see {place_of(bad)}{advice}"
    odd = typed.rejects[typed.rejects["reason"] == _OUTLYING]
    if len(odd):
        first, last = (
            str(np.datetime64(one, "s"))
            for one in typed.frame["datetime"].agg(["min", "max"])
        )
        seen = ", ".join(sorted({one[:10] for one in odd["value"]})[:4])
        yield (
            f"{len(odd):,} events are years from all others ({first[:10]} to {last[:10]}), such as of {seen}: see "
            f"{place_of(odd)}; they are rejected, unless data.{setting_of(name)} has min_datetime or max_datetime"
        )


def _check_one_row_each(name: str, typed: _Typed, id_name: str) -> None:
    """Refuse two different rows of one id; equal ones are for cleaning."""
    frame = typed.frame
    distinct = frame[frame[id_name].duplicated(keep=False)].drop_duplicates()
    conflicting = distinct.loc[distinct[id_name].duplicated(), id_name]
    if len(conflicting):
        both = distinct[distinct[id_name].eq(conflicting.iloc[0])].head(2)
        columns = [
            f"'{column}'" for column in both if not both[column].duplicated().any()
        ]
        (file, line), (other_file, other) = typed.places.loc[both.index].itertuples(
            index=False
        )
        raise SchemaError(
            f"{name}: {id_name} {conflicting.tolist()[0]!r} has rows that differ in {', '.join(columns)} "
            f"({conflicting.nunique()} such ids): {file}, line {line}; {other_file}, line {other}; keep one row each"
        )


def _find_hints(table: str, file: Records) -> Iterator[str]:
    """Say on which line a text, such as a header, keeps ids from being integers; hints are kept, so they name no id."""
    for column in (
        column for column in file.columns if file.is_text and column.role == "id"
    ):
        ids = file.frame[column.name].dropna().drop_duplicates()
        odd = ids[~ids.str.fullmatch(INTEGER)]
        if (
            0 < len(odd) <= max(1, MAX_ODD_IDS * len(ids))
            and len(ids) - len(odd) >= MIN_INTEGER_IDS
        ):
            line = int(file.lines[odd.index[0]])
            place = f"line {line} of {file.file}" + ", which looks like a header" * (
                line == 1
            )
            yield f"{len(odd):,} of the ids of {table}.{column.name} are no integers, so all are texts: see {place}"


def _join_tables(
    config: DataConfig, frames: dict[str, pd.DataFrame]
) -> tuple[Tables, dict[str, int]]:
    """Name the parts of the split, give the ids of a side one type in all its tables, and append a log to train on."""
    if config.split.kind == "files":
        parts = [
            frames[name].assign(**{PART: part})
            for name, part in _PARTS.items()
            if name in frames
        ]
        frames["interactions"] = _join_frames(
            parts, columns_of_table("interactions", config)
        )
    for name, id_name in IDS.items():
        filled = [
            table
            for table in ("interactions", "feedback", name)
            if len(frames.get(table, ()))
        ]
        for table, ids in zip(
            filled, unify_ids([frames[table][id_name] for table in filled]), strict=True
        ):
            frames[table] = frames[table].assign(**{id_name: ids})
    interactions = frames["interactions"]
    logged = dict[str, int]()
    if "feedback" in frames:
        interactions, logged = append_log(interactions, frames["feedback"])
    if PART in interactions:
        interactions[PART] = interactions[PART].fillna(_PARTS["interactions"])
    users = frames.get(
        "users", interactions[["user_id"]].drop_duplicates(ignore_index=True)
    )
    return Tables(
        interactions, users, frames.get("items", interactions[["item_id"]].head(0))
    ), logged
