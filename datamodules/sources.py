"""Find the records of a table in files, by a query or in a data frame: raw rows and rejects."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from datamodules.config import Column, TableConfig
from datamodules.read import (
    JSON_LINES,
    KINDS,
    PARQUET,
    REPLACED,
    TEXTS,
    FileRecords,
    kind_of,
    number_rows,
    read_json_lines,
    read_parquet,
    read_text,
)
from datamodules.rejects import MAX_VALUE, Problem, make_rejects
from datamodules.storage import fetch_files
from serve.errors import SchemaError, name_nearest, say, say_missing


class ArrowStream(Protocol):
    """A table that hands its rows over by Arrow's C interface, whichever library made it."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object: ...


class SparseMatrix(Protocol):
    """A matrix of scipy with a row per user and a column per item, which holds weights."""

    def tocoo(self) -> Any: ...


Record: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Record | Sequence[Any]] | NDArray[Any]
TableLike: TypeAlias = pd.DataFrame | ArrowStream | SparseMatrix | Record | Rows
"""A table in memory; a list holds rows, a mapping holds columns."""

_ALLOWED = (
    "a table of pandas, polars, pyarrow or DuckDB, a list of dicts, a dict of columns; a sparse "
    "matrix of users and items; pairs of ids, or any rows beside names: [user_id, item_id, ...]"
)
_PLAIN = (None, None, "utf-8")  # names, delimiter and encoding that nobody declared
_ATTACHED = {
    "postgres": "POSTGRES",
    "postgresql": "POSTGRES",
    "mysql": "MYSQL",
}  # scheme of a path -> TYPE of DuckDB's ATTACH
_SECRET = re.compile(r"(?<=//)\S*@|password=\S+")


@dataclass(frozen=True)
class Records:
    """The records of one table or file of it: rows of raw cells, and those that are no rows."""

    file: str  # of several the first
    columns: tuple[Column, ...]  # the requested columns that are there
    frame: pd.DataFrame  # by our names
    places: pd.DataFrame  # file, and line or record number, of each row
    rejects: pd.DataFrame
    dropped: tuple[str, ...]  # columns that are not declared
    is_text: bool = False  # cells of a text file, where 7 is an integer as well
    n_erased: int = 0  # records of erased users that were taken out
    problems: tuple[Problem, ...] = ()  # that forbid to use them
    n_streamed: int = 0  # records that were typed chunk by chunk, and are not in memory

    @property
    def n_records(self) -> int:
        return len(self.frame) + len(self.rejects) + self.n_streamed


def _join(files: Sequence[Records]) -> Records:
    """Put the records of the files of one table below each other."""
    first = find_fullest(files)
    filled = [file for file in files if len(file.frame)] or files
    frame = pd.concat([file.frame for file in filled], ignore_index=True)
    places = pd.concat([file.places for file in filled], ignore_index=True)
    rejects = pd.concat([file.rejects for file in files])
    dropped = dict.fromkeys(chain.from_iterable(file.dropped for file in files))
    is_text = any(file.is_text for file in files)

    return replace(
        first,
        frame=frame,
        places=places,
        rejects=rejects,
        dropped=tuple(dropped),
        is_text=is_text,
        problems=max((file.problems for file in files), key=len),
    )


def find_fullest(files: Sequence[Records]) -> Records:
    """Refuse a file that lacks a column of the others; return the first one with all columns."""
    filled = [file for file in files if len(file.frame)] or files
    fullest = max(filled, key=lambda file: len(file.columns))

    for file in filled:
        for column in fullest.columns:
            if column not in file.columns:
                raise SchemaError(
                    f"{file.file}: column '{column.source}' is absent, which {fullest.file} has"
                )

    return fullest


def read_files(
    setting: str, table: TableConfig, columns: tuple[Column, ...]
) -> Records:
    """Read the files of a table, or its query.

    Args:
        setting: the key of the configuration that has the path, for messages.
        table: path or pattern, and layout.
        columns: the columns to read; one without a `reason` may be absent.

    Returns:
        The records of all files, in the order of their names.

    Raises:
        SchemaError: no file, no record, or a declared column is absent.
    """
    if table.query is not None:
        name = setting.removesuffix(".path")
        return _read_query(name, table.query, table, columns)

    paths = find_files(setting, table.path)
    records = _join([read_file(path, table, columns) for path in paths])
    if not records.n_records:
        raise SchemaError(f"{table.path} is empty: expected at least one record")

    return records


def take_table(
    name: str,
    table: TableLike | None,
    layout: TableConfig,
    columns: tuple[Column, ...],
) -> Records:
    """Take a table in memory instead of a file; rows are numbered from 1.

    Raises:
        SchemaError: it is empty or no table, or a declared column is absent.
    """
    got = f"data.{name} is a {type(table).__name__}"
    if (layout.delimiter, layout.encoding) != _PLAIN[1:]:
        raise SchemaError(f"{got}; allowed of files alone: delimiter and encoding")
    try:
        records = _read_table(table, layout.names)
    except (pa.ArrowException, AttributeError, TypeError, ValueError) as error:
        raise SchemaError(f"{got} ({say(error)}); allowed: {_ALLOWED}") from error
    if not len(records.lines):
        raise SchemaError(
            f"data.{name} is an empty table: expected at least one record"
        )

    return take_records(name, records, columns)


def _read_table(table: Any, names: list[str] | None) -> FileRecords:
    if hasattr(table, "tocoo"):
        matrix = table.tocoo()
        cells = {"user_id": matrix.row, "item_id": matrix.col, "weight": matrix.data}
        table = pd.DataFrame(cells)
    if isinstance(table, (list, tuple, Mapping, np.ndarray)):
        # 2**53 + 1 stays so, also beside None
        table = pd.DataFrame(table, dtype=object)
    if type(table).__name__ == "LazyFrame":
        table = table.collect()
    if isinstance(getattr(table, "columns", None), pd.RangeIndex) and len(table):
        # a third column may hold weights or times
        table = table.set_axis(names or ["user_id", "item_id"], axis=1)
    elif names is not None:
        raise ValueError("names are for rows without them; take them out")
    if not isinstance(table, pd.DataFrame):
        rows = pa.table(table)
        return number_rows(rows.column_names, rows)

    names = list(map(str, table.columns))
    cells = {str(name): column for name, column in table.items()}
    return FileRecords(names, cells, np.arange(1, len(table) + 1), {})


def read_file(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> Records:
    """Read one file by its suffix; it may hold no record."""
    kind = kind_of(path)
    layout = (table.names, table.delimiter, table.encoding)
    problems = []
    if kind in (PARQUET, *JSON_LINES) and layout != _PLAIN:
        raise SchemaError(
            f"{path}: names, delimiter and encoding are those of a text file; take them out for "
            f"{kind}"
        )

    if kind == PARQUET:
        records = read_parquet(path, {column.source for column in columns})
    elif kind in JSON_LINES:
        records = read_json_lines(path)
    elif kind in TEXTS or table.names is not None:
        records = read_text(path, *layout)
        header = "".join(records.names)
        if REPLACED in header:
            encoding = "utf-16" if "\0" in header else "cp1252"
            text = f"{path}, line 1: not UTF-8"
            problems.append(Problem(text, f"encoding: {encoding}"))
            # read on, so that all faults are found at once
            records = read_text(path, table.names, table.delimiter, encoding)
    else:
        raise SchemaError(
            f"{path}: unknown suffix '{kind}'; allowed: {KINDS}, any other of a text with `names`"
        )

    taken = take_records(str(path), records, columns)
    return replace(taken, problems=(*problems, *taken.problems))


def take_records(
    file: str, records: FileRecords, columns: tuple[Column, ...]
) -> Records:
    """Take the requested columns that are there, by our names."""
    names = records.names
    required = [column.source for column in columns if column.reason]
    if names and not {*names} & {*required}:
        listed = ", ".join(required)
        raise SchemaError(
            f"{file}: columns {listed} are absent; got {str(names)[:MAX_VALUE]}; declare columns, "
            "or of a text the delimiter, or, if its line 1 is no header, "
            f"names: [{listed}, ...], all in the order of the file"
        )

    # a file of JSON Lines without records has no names
    problems = _find_problems(file, columns, records) if names else ()
    present = [column for column in columns if column.source in names or not names]
    cells = {
        column.name: _to_series(records.columns.get(column.source, []))
        for column in present
    }
    requested = {column.source for column in columns}
    bad = pd.DataFrame(list(records.bad.values()), columns=["text", "reason"])
    rejects = make_rejects(file, records.bad, None, bad["text"], bad["reason"])
    places = pd.DataFrame({"line": records.lines})
    places["file"] = pd.Series(file, places.index, dtype=object)
    dropped = tuple(name for name in names if name not in requested)
    frame = pd.DataFrame(cells)

    return Records(
        file,
        tuple(present),
        frame,
        places,
        rejects,
        dropped,
        records.is_text,
        problems=tuple(problems),
    )


def _to_series(cells: pd.Series | list[Any] | pa.ChunkedArray) -> pd.Series:
    """Return a column of a data frame.

    A column of integers with a gap would become floats, and an id above 2**53 another one.
    """
    if isinstance(cells, pd.Series):
        return cells.reset_index(drop=True)
    if isinstance(cells, list):
        return pd.Series(cells, dtype=object)
    try:
        return pd.Series(cells.to_pandas(integer_object_nulls=True))
    except pa.ArrowNotImplementedError:  # such as a list of string views
        return pd.Series(cells.to_pylist(), dtype=object)


def _find_problems(
    file: str, columns: tuple[Column, ...], records: FileRecords
) -> Iterator[Problem]:
    """Yield which requested columns are absent, or there more than once."""
    names = records.names
    for column in columns:
        count = names.count(column.source)
        if column.reason and not count:
            nearest = name_nearest(column.source, names)
            yield Problem(
                f"{file}: column '{column.source}' is absent, {column.reason}; {nearest}"
            )
        if count > 1:
            text = f"{file}: {count} columns are called '{column.source}'; rename all but one"
            apart = json.dumps(_name_apart(names), ensure_ascii=False)
            yield Problem(text, f"names: {apart}" if records.is_text else "")


def _name_apart(names: list[str]) -> list[str]:
    """Return names of which the later equal ones end in the number of their column."""
    return [
        name if names.index(name) == number else f"{name} {number + 1}"
        for number, name in enumerate(names)
    ]


def _read_query(
    setting: str, query: str, table: TableConfig, columns: tuple[Column, ...]
) -> Records:
    """Run a query in DuckDB, which installs nothing that the query does not ask for."""
    import duckdb  # takes a while, and few queries are declared

    if (table.names, table.delimiter, table.encoding) != _PLAIN:
        raise SchemaError(
            f"{setting} has a query beside names, delimiter or encoding; take them out"
        )

    name = f"{setting}.query"
    try:
        with duckdb.connect(
            config={"autoinstall_known_extensions": "false"}
        ) as database:
            if table.path is not None:
                database.execute(_attach(table.path))
            result = database.sql(query)
            rows = pa.table({}) if result is None else result.to_arrow_table()
    except (duckdb.Error, RuntimeError) as error:
        reason = " ".join(_SECRET.sub("...@", str(error)).split())[:MAX_VALUE]
        raise SchemaError(
            f"{name} fails: {reason}; allowed: SQL of DuckDB that ends in a SELECT, and as path a "
            "database, or none where the query names files; an extension needs INSTALL once; text "
            "that is not UTF-8 is read by read_csv('FILE', encoding = 'latin-1')"
        ) from error

    if not len(rows):
        raise SchemaError(
            f"{name} gives no row: expected a SELECT at its end, of at least one record"
        )

    return take_records(name, number_rows(rows.column_names, rows), columns)


def _attach(path: str) -> str:
    """Return the statement that makes a database the source of a query."""
    kind = _ATTACHED.get(path.partition(":")[0])
    options = f"TYPE {kind}, READ_ONLY" if kind else "READ_ONLY"
    quoted = path.replace("'", "''")
    return f"ATTACH '{quoted}' AS source ({options}); USE source"


def find_files(setting: str, pattern: str | None) -> list[Path]:
    """Return the files that a path or pattern names, in the order of their names."""
    path = Path(pattern or "")
    if pattern is None or path.is_dir():
        got = "not set" if pattern is None else f"the folder {path}"
        raise SchemaError(
            f"{setting} is {got}; allowed: a file of {KINDS}, or a pattern such as "
            "'events/*.parquet'"
        )

    scheme, is_remote, _ = pattern.partition("://")
    if scheme in _ATTACHED:
        raise SchemaError(
            f"{setting} is at {scheme}://; allowed: {KINDS} of this machine or of object storage, "
            "or by DuckDB a query: beside the path of a database"
        )

    if is_remote:
        try:
            return fetch_files(pattern)
        except (OSError, ValueError) as error:
            raise SchemaError(
                f"{setting}: {say(error)}; allowed: a file of this machine, or of object "
                "storage, such as s3://shop/events/*.parquet"
            ) from error

    if path.is_file():
        return [path]
    matches = sorted(set(glob.glob(pattern, recursive=True)))
    files = [path for path in map(Path, matches) if path.is_file()]

    if not files:
        raise SchemaError(say_missing(str(path), setting))
    return files
