"""Read the declared columns of a table: CSV, JSON Lines, Parquet or a query; each record is a row or a reject."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from datamodules.config import Column, TableConfig, say_missing
from serve.errors import SchemaError, name_nearest

MAX_VALUE = 200  # characters of a value in the list of rejects
_KINDS = ".csv, .tsv, .jsonl, .ndjson (.gz may follow), .parquet"
_SCHEMES = {
    "postgres": "POSTGRES",
    "postgresql": "POSTGRES",
    "mysql": "MYSQL",
}  # scheme of a path -> type of ATTACH
_DATABASE = 'query: "SELECT * FROM your_table" beside the path'
_REMOTE = (
    "query: \"INSTALL httpfs; LOAD httpfs; SELECT * FROM '{}...'\" in place of the path"
)
_STAND_IN = (
    "\x1f"  # in the place of a delimiter of several bytes, which pyarrow does not read
)
REPLACED = "\ufffd"  # in the place of bytes that are not UTF-8
_BLOCK = 2**24  # bytes that pyarrow parses at once: no record may be longer


@dataclass(frozen=True)
class Records:
    """The records of one file or data frame: rows of raw cells, and those that are no rows."""

    file: str
    columns: tuple[Column, ...]  # those of the asked ones that are there
    frame: pd.DataFrame  # named as ours; cells of a text file are texts still
    lines: np.ndarray  # int64 (n,): line or record number of each row of the frame
    rejects: pd.DataFrame
    dropped: tuple[str, ...]  # columns that nobody asked for
    is_text: bool = False  # every cell is text because the file is, so a column of canonical integers means integers
    is_broken: bool = False  # some bytes are not UTF-8; `REPLACED` stands for them

    @property
    def n_records(self) -> int:
        return len(self.frame) + len(self.rejects)


def read_files(
    setting: str, table: TableConfig, columns: tuple[Column, ...]
) -> list[Records]:
    """Read the files of a table, in the order of their names; `setting` says where the path is declared."""
    if table.query is not None:
        return [_read_query(setting, table.query, table, columns)]
    files = [
        read_file(path, table, columns) for path in _find_files(setting, table.path)
    ]
    if not any(file.n_records for file in files):
        raise SchemaError(f"{table.path} is empty: expected at least one record")
    return files


def take_frame(name: str, frame: pd.DataFrame, columns: tuple[Column, ...]) -> Records:
    """Take a data frame instead of a file; rows are numbered from 1."""
    if not isinstance(frame, pd.DataFrame) or not len(frame):
        raise SchemaError(
            f"{name} is an empty table or a {type(frame).__name__}; allowed: a DataFrame with records"
        )
    frame = frame.set_axis(
        [str(column) for column in frame.columns], axis=1
    )  # numbers where there was no header
    found, dropped = _find_columns(name, columns, frame.columns)
    taken = pd.DataFrame(
        {column.name: frame[column.source].reset_index(drop=True) for column in found}
    )
    return Records(
        name, found, taken, np.arange(1, len(frame) + 1), make_rejects(name), dropped
    )


def make_rejects(
    file: Any,
    lines: Collection[int] = (),
    column: str | None = None,
    values: Collection[Any] = (),
    reason: Any = "",
) -> pd.DataFrame:
    """Make rejects; `file` and `reason` are those of all, or a list."""
    texts = [
        None
        if pd.api.types.is_scalar(value) and pd.isna(value)
        else str(value)[:MAX_VALUE]
        for value in values
    ]
    columns = {
        "file": file,
        "line": np.array(lines, np.int64),
        "column": column,
        "value": texts,
        "reason": reason,
    }
    return pd.DataFrame(columns).astype(
        {"file": "str", "column": "str", "value": "str", "reason": "str"}
    )


def _find_columns(
    file: str, columns: tuple[Column, ...], available: Iterable[str]
) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Return the asked columns that are there, and the names of those that nobody asked for."""
    names = list(available)
    asked = {column.source for column in columns}
    for column in columns:
        if names.count(column.source) > 1:
            raise SchemaError(
                f"{file}: {names.count(column.source)} columns are called '{column.source}'; rename one"
            )
        if column.reason and column.source not in names:
            nearest = name_nearest(column.source, names)
            raise SchemaError(
                f"{file}: column '{column.source}' is absent, {column.reason}; {nearest}"
            )
    found = tuple(column for column in columns if column.source in names)
    return found, tuple(name for name in names if name not in asked)


def _read_query(
    setting: str, query: str, table: TableConfig, columns: tuple[Column, ...]
) -> Records:
    """Run a query in DuckDB, which reads what the query names and installs nothing that it does not ask for."""
    import duckdb  # takes a while, and few ask for it

    setting = setting.removesuffix(".path")
    if (table.names, table.delimiter, table.encoding) != (None, None, "utf-8"):
        raise SchemaError(
            f"{setting} has a query beside names, delimiter or encoding; take them out"
        )
    name = f"{setting}.query"
    try:
        with duckdb.connect(
            config={"autoinstall_known_extensions": "false"}
        ) as database:
            if table.path is not None:
                kind = _SCHEMES.get(table.path.partition(":")[0])
                path = table.path.replace("'", "''")
                options = f"TYPE {kind}, READ_ONLY" if kind else "READ_ONLY"
                database.execute(f"ATTACH '{path}' AS source ({options}); USE source")
            selected = database.sql(query)
            rows = pa.table({}) if selected is None else selected.to_arrow_table()
    except (duckdb.Error, RuntimeError) as error:
        reason = " ".join(
            re.sub(r"(?<=//)\S*@|password=\S+", "...@", str(error)).split()
        )[:MAX_VALUE]
        advice = "; nothing is installed unasked: INSTALL it in DuckDB once" * (
            "extension" in reason.lower()
        )
        raise SchemaError(
            f"{name} fails: {reason}; allowed: SQL of DuckDB that ends in a SELECT{advice}"
        ) from error
    if not len(rows):
        raise SchemaError(
            f"{name} gives no row: expected a SELECT at its end, of at least one record"
        )
    found, dropped = _find_columns(name, columns, rows.column_names)
    return _take_arrow(name, rows, found, dropped)


def _find_files(setting: str, pattern: str | None) -> list[Path]:
    if scheme := re.match(r"([a-z][a-z0-9+]+)://", pattern or ""):
        remedy = _DATABASE if scheme[1] in _SCHEMES else _REMOTE.format(scheme[0])
        raise SchemaError(
            f"{setting} is at {scheme[0]}; allowed: {_KINDS} of this machine, or, by DuckDB, {remedy}"
        )
    path = Path(pattern or "")
    if pattern is None or path.is_dir():
        given = "not set" if pattern is None else f"the folder {path}"
        raise SchemaError(
            f"{setting} is {given}; allowed: a file of {_KINDS}, or a pattern such as 'events/*.parquet'"
        )
    if path.is_file():
        return [path]
    files = [
        file
        for file in map(Path, sorted({*glob.glob(pattern, recursive=True)}))
        if file.is_file()
    ]
    if not files:
        raise SchemaError(say_missing(str(path), setting))
    return files


def read_file(path: Path, table: TableConfig, columns: tuple[Column, ...]) -> Records:
    """Read one file by its suffix; it may hold no record."""
    suffix = (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
    is_typed = suffix in (".parquet", ".jsonl", ".ndjson")
    if is_typed and (table.names, table.delimiter, table.encoding) != (
        None,
        None,
        "utf-8",
    ):
        raise SchemaError(
            f"{path}: names, delimiter and encoding are those of a text file; take them out for {suffix}"
        )
    if not is_typed and table.names is None and suffix not in (".csv", ".tsv"):
        raise SchemaError(
            f"{path}: unknown suffix '{suffix}'; allowed: {_KINDS}, any other of a text with `names`"
        )
    try:
        if suffix == ".parquet":
            return _read_parquet(path, columns)
        data = path.read_bytes()
        if data.startswith(b"PK\x03\x04"):
            raise SchemaError(
                f"{path} is a zip archive: unpack it, save a spreadsheet as .csv, or compress by gzip"
            )
        data = (
            gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        ).removeprefix(codecs.BOM_UTF8)
        if is_typed:
            return _read_json_lines(path, data, columns)
        return _read_csv(path, data, table, columns)
    except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
        raise SchemaError(
            f"{path} cannot be read: {str(error).splitlines()[0]}; fetch or write it again"
        ) from error


def _read_parquet(path: Path, columns: tuple[Column, ...]) -> Records:
    found, dropped = _find_columns(str(path), columns, pq.read_schema(path).names)
    sources = [column.source for column in found]
    return _take_arrow(str(path), pq.ParquetFile(path).read(sources), found, dropped)


def _take_arrow(
    name: str, table: pa.Table, found: tuple[Column, ...], dropped: tuple[str, ...]
) -> Records:
    """Take the found columns of a typed table; rows are numbered from 1."""
    table = table.select([column.source for column in found]).rename_columns(
        [column.name for column in found]
    )
    # a column of integers with a gap would become floats, and an id above 2**53 another one
    frame = table.replace_schema_metadata(None).to_pandas(integer_object_nulls=True)
    return Records(
        name, found, frame, np.arange(1, len(frame) + 1), make_rejects(name), dropped
    )


def _read_json_lines(path: Path, data: bytes, columns: tuple[Column, ...]) -> Records:
    """Read one object a line; only the standard reader keeps "007", 7 and integers above 2**53 apart in a column."""
    lines = {
        number: line
        for number, line in enumerate(data.split(b"\n"), start=1)
        if line.strip()
    }
    records = {number: _read_object(line) for number, line in lines.items()}
    rows = {
        number: record for number, record in records.items() if isinstance(record, dict)
    }
    bad = {
        number: record for number, record in records.items() if isinstance(record, str)
    }
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    found, dropped = _find_columns(str(path), columns, keys) if rows else (columns, ())
    cells = {
        column.name: [row.get(column.source) for row in rows.values()]
        for column in found
    }
    frame = pd.DataFrame(
        {name: pd.Series(values, dtype=object) for name, values in cells.items()}
    )
    texts = [lines[number].decode(errors="replace").strip() for number in bad]
    rejects = make_rejects(str(path), list(bad), None, texts, list(bad.values()))
    return Records(
        str(path), found, frame, np.array(list(rows), np.int64), rejects, dropped
    )


def _read_object(line: bytes) -> dict[str, Any] | str:
    """Return the object of a line, or why there is none."""
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _read_csv(
    path: Path, data: bytes, table: TableConfig, columns: tuple[Column, ...]
) -> Records:
    """Read one file, all cells as text; a record with too few or too many cells is a reject."""
    try:
        text = data.decode(table.encoding)
        is_broken = False
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
        is_broken = True
    first = text[: text.find("\n") + 1 or None]
    delimiter = table.delimiter or (
        "\t" if ".tsv" in path.name.lower() else _guess_delimiter(first)
    )
    between = delimiter if len(delimiter.encode()) == 1 else _STAND_IN
    if between != delimiter:
        text = text.replace(between, " ").replace(delimiter, between)
    names, has_header = _read_names(path, text, table, between)
    _check_header(
        path,
        names,
        [column.source for column in columns if column.reason],
        delimiter,
        first,
    )
    found, dropped = _find_columns(str(path), columns, names)
    frame, bad = _parse(path, text, names, found, between)
    places = np.array([row.number for row in bad], np.int64) - 1
    all_lines = _find_lines(path, text, between, len(frame) + len(bad))
    lines = np.delete(all_lines, places)
    is_good = np.arange(len(frame)) >= has_header
    reasons = [
        f"too {'few' if row.actual_columns < row.expected_columns else 'many'} columns"
        for row in bad
    ]
    texts = [row.text.replace(between, delimiter).strip() for row in bad]
    rejects = make_rejects(str(path), all_lines[places], None, texts, reasons)
    for column in (
        found if between != delimiter else ()
    ):  # within quotes it was no delimiter
        frame[column.name] = frame[column.name].str.replace(
            between, delimiter, regex=False
        )
    rows = frame[is_good].reset_index(drop=True)
    return Records(
        str(path),
        found,
        rows,
        lines[is_good],
        rejects,
        dropped,
        is_text=True,
        is_broken=is_broken,
    )


def _guess_delimiter(line: str) -> str:
    """Return two colons where a line has them before any other delimiter, else the one that splits it most often."""
    first = min(
        (place for place in map(line.find, ",;\t|") if place >= 0), default=len(line)
    )
    return "::" if "::" in line[:first] else max(",;\t|", key=line.count)


def _read_names(
    path: Path, text: str, table: TableConfig, between: str
) -> tuple[list[str], bool]:
    """Return the names of the columns, and whether they stand in the file."""
    cells = [
        cell.strip()
        for cell in next(
            csv.reader(io.StringIO(text, newline=""), delimiter=between), []
        )
    ]
    if not any(cells):
        raise SchemaError(
            f"{path} is empty, or its first line is: expected at least one record"
        )
    if table.names is None and REPLACED in "".join(cells):
        raise SchemaError(
            f"{path}: the header is not UTF-8; save the file as UTF-8, or declare its encoding"
        )
    if table.names is not None and len(cells) != len(table.names):
        raise SchemaError(
            f"{path}: {len(table.names)} names are declared, but line 1 has {len(cells)} cells"
        )
    return table.names or cells, table.names is None


def _check_header(
    path: Path, names: list[str], asked: list[str], delimiter: str, first: str
) -> None:
    """Refuse a first line that is cut in the wrong places, or that is no header."""
    other = _guess_delimiter(first)
    if len(names) == 1 < len(asked) and other in first and other != delimiter:
        raise SchemaError(
            f"{path}, line 1: no {delimiter!r} stands between cells; declare delimiter: {other!r}"
        )
    if not {*names} & {*asked}:
        columns = ", ".join(asked)
        seen = ", ".join(names)[:MAX_VALUE]
        raise SchemaError(
            f"{path}, line 1: columns {columns} are absent; got {seen}; if that is a header, declare columns: "
            f"{{{asked[0]}: {names[0]}}}, else declare names: [{columns}, ...], all in the order of the file"
        )


def _parse(
    path: Path, text: str, names: list[str], found: tuple[Column, ...], between: str
) -> tuple[pd.DataFrame, list[pa_csv.InvalidRow]]:
    """Return all rows, a header's too, and the records with another number of cells than names, by place."""
    bad: list[pa_csv.InvalidRow] = []

    def skip(row: pa_csv.InvalidRow) -> str:
        bad.append(row)
        return "skip"

    asked = [f"c{names.index(column.source)}" for column in found]
    reading = pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK)
    reading.column_names = [f"c{place}" for place in range(len(names))]
    parsing = pa_csv.ParseOptions(
        delimiter=between, newlines_in_values=True, invalid_row_handler=skip
    )
    converting = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(asked, pa.string()), include_columns=asked
    )
    converting.null_values = [""]
    converting.strings_can_be_null = True
    try:
        cells = pa_csv.read_csv(io.BytesIO(text.encode()), reading, parsing, converting)
    except pa.ArrowInvalid:
        _scan_lines(
            path, text, between
        )  # says which quote is not closed, if that is why
        raise
    return cells.rename_columns([column.name for column in found]).to_pandas(), bad


def _find_lines(path: Path, text: str, between: str, n_records: int) -> np.ndarray:
    """Return the line on which each record begins, (n_records,): by the standard reader where not every line is one."""
    is_plain = text.rstrip("\r\n").count("\n") + 1 == n_records
    lines = (
        np.arange(1, n_records + 1)
        if is_plain
        else np.array(_scan_lines(path, text, between), np.int64)
    )
    if len(lines) != n_records:
        raise SchemaError(
            f"{path}: {len(lines):,} records counted, but {n_records:,} read: mend its quotes"
        )
    return lines


def _scan_lines(path: Path, text: str, between: str) -> list[int]:
    """Return the line on which each record begins; refuse a quote that is not closed."""
    csv.field_size_limit(_BLOCK)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
    lines: list[int] = []
    end = 0
    while (record := _next_record(reader)) is not None:
        if record is False and reader.line_num > end + 1:
            raise SchemaError(
                f"{path}: the quote opened on line {end + 1} is not closed; the last good line is {end}"
            )
        if record != []:
            lines.append(end + 1)
        end = reader.line_num
    return lines


def _next_record(reader: Any) -> Any:
    """Return the next record, False for one whose quotes are wrong, None at the end."""
    try:
        return next(reader, None)
    except csv.Error:
        return False
