"""From the raw records of a table's files to typed rows, and every bad record with its first fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.reading.cell_shapes import clear_misshapen
from datamodules.reading.cells import Cells, read_cells, unify_ids
from datamodules.reading.columns import Column
from datamodules.reading.raw_records import RawRecords
from datamodules.reading.rejects import reject_frame
from datamodules.reading.wrong_kinds import KindCounts, check_kinds, count_kinds, refuse_lists
from serve.errors import SchemaError


@dataclass(frozen=True)
class TypedTable:
    """All files of a table."""

    frame: pd.DataFrame
    """The good rows, file by file."""
    file_of_row: np.ndarray
    """int64 (n,): place in `files`."""
    files: tuple[str, ...]
    rejects: pd.DataFrame
    n_records: int
    dropped: tuple[str, ...]


def type_table(name: str, files: Sequence[RawRecords], columns: tuple[Column, ...], timezone: str | None) -> TypedTable:
    """Type the cells, file by file; ids are of one type over all.

    Args:
        name: of the table, for messages.
        files: at least one.
        columns: those asked for.
        timezone: of naive times.

    Raises:
        SchemaError: a column is as a whole of another kind than declared.
    """
    counts: KindCounts = {}
    frames, rejects = zip(*(_type_file(raw, timezone, counts) for raw in files), strict=True)
    check_kinds(name, counts)
    return TypedTable(
        join_frames(frames, columns),
        np.repeat(np.arange(len(files)), list(map(len, frames))),
        tuple(raw.file for raw in files),
        pd.concat(rejects, ignore_index=True),
        sum(raw.n_records for raw in files),
        tuple(dict.fromkeys(name for raw in files for name in raw.dropped)),
    )


def check_same_columns(files: Sequence[RawRecords]) -> None:
    """Refuse a file that lacks a column which another of its table has; a file without rows lacks none."""
    filled = [raw for raw in files if len(raw.frame)]
    having = {column: raw.file for raw in reversed(filled) for column in raw.columns}
    for raw in filled:
        missing = [column for column in having if column not in raw.columns]
        if missing:
            raise SchemaError(
                f"{raw.file}: column '{missing[0].source}' is absent, which {having[missing[0]]} has; the files of a "
                "table have the same columns"
            )


def check_same_widths(tables: Sequence[TypedTable], columns: tuple[Column, ...]) -> None:
    """Refuse vectors of one column that are of one width in one file and of another in the next.

    Args:
        tables: whose files have the same columns; inside a file the widths are equal already.
        columns: those asked for.
    """
    for column in (column for column in columns if column.role == "vector"):
        found = [pair for table in tables for pair in _list_widths(table, column.name)]
        for file, width in found:
            first_file, first = found[0]
            if width != first:
                raise SchemaError(
                    f"{file}: the vectors of column '{column.source}' have {width} numbers, those of {first_file} have "
                    f"{first}; all vectors of a column have one width"
                )


def _list_widths(table: TypedTable, name: str) -> Iterator[tuple[str, int]]:
    """Return each file that has a vector in a column, and how wide its first one is."""
    cells = table.frame[name]
    is_there = cells.notna().to_numpy()
    places, rows = np.unique(table.file_of_row[is_there], return_index=True)
    for place, cell in zip(places, cells[is_there].iloc[rows], strict=True):
        yield table.files[place], len(cell)


def join_frames(frames: Sequence[pd.DataFrame], columns: tuple[Column, ...]) -> pd.DataFrame:
    """Put rows of the same columns below each other; their ids become of one type.

    Args:
        frames: at least one; those without rows have no say in a type.
        columns: that tell which hold ids.
    """
    filled = [frame for frame in frames if len(frame)]
    if len(filled) < 2:
        return (filled or list(frames))[0]
    joined = pd.concat(filled, ignore_index=True)
    for name in (column.name for column in columns if column.role == "id"):
        joined[name] = pd.concat(unify_ids([frame[name] for frame in filled]), ignore_index=True)
    return joined


def _type_file(raw: RawRecords, timezone: str | None, counts: KindCounts) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the good rows and all rejects of a file, each bad record with its first fault."""
    typed: dict[str, pd.Series] = {}
    rejects = [raw.rejects]
    is_bad = np.zeros(len(raw.frame), bool)
    for column in raw.columns:
        cells = _read_column(raw, column, timezone)
        typed[column.name] = cells.values
        count_kinds(counts, raw, column, cells)
        for reason, is_fault in cells.faults.items():
            is_new = is_fault & ~is_bad
            is_bad |= is_new
            if is_new.any():
                rejects.append(_reject(raw, column, is_new, reason))
    frame = pd.DataFrame(typed)[~is_bad].reset_index(drop=True)
    return frame, pd.concat(rejects).sort_values("line", ignore_index=True)


def _read_column(raw: RawRecords, column: Column, timezone: str | None) -> Cells:
    refuse_lists(raw, column)
    cells, misshapen = clear_misshapen(column, raw.frame[column.name])
    try:
        read = read_cells(column, cells, timezone, raw.is_text)
    except SchemaError as error:
        raise SchemaError(f"{raw.file}: {error}") from error
    return Cells(read.values, {**misshapen, **read.faults})


def _reject(raw: RawRecords, column: Column, is_fault: np.ndarray, reason: str) -> pd.DataFrame:
    values = raw.frame.loc[is_fault, column.name].reset_index(drop=True)
    return reject_frame(raw.file, pd.Series(raw.lines[is_fault]), column.source, values, reason)
