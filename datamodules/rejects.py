"""Records and cells that became no value: listed with their place and reason, and what to declare so that they do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.config import COMMA_NUMBER
from serve.errors import SchemaError
from serve.files import replacing

OTHER_LENGTH = "of another length than most"
KINDS = {
    "not a number": "numbers such as 1234.5",
    "not a time": "times such as 2024-05-31, 2024-05-31 18:05:00, or epoch seconds or milliseconds",
    "not an id": "ids",
    "no list of numbers": "vectors",
    "not UTF-8": "UTF-8",
    OTHER_LENGTH: "vectors of one length",
}  # reason of a fault -> what the cells should be
_REJECTS = {
    "file": "string",
    "line": "int64",
    "column": "string",
    "value": "string",
    "reason": "string",
}
_REJECTS["costs"] = (
    "string"  # "record": it became no row; "cell": its row is kept, in which the cell is missing
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+")
# how people write dates and times of the day, beside ISO
_DAYS = (
    *(
        "%d.%m.%Y",
        "%d/%m/%Y",
        "%m/%d/%Y",
        "%d-%m-%Y",
        "%m-%d-%Y",
        "%Y/%m/%d",
        "%Y.%m.%d",
    ),
    *("%d.%m.%y", "%d/%m/%y", "%m/%d/%y", "%d-%m-%y", "%m-%d-%y"),
)
_CLOCKS = (
    "",
    " %H:%M",
    " %H:%M:%S",
    " %H:%M:%S.%f",
    " %I:%M %p",
    " %I:%M:%S %p",
    " %H:%M%z",
    " %H:%M %z",
)
_MAX_GUESSED = 500  # texts by which formats are guessed


@dataclass(frozen=True)
class Rejects:
    """The records of the files that did not become a row."""

    tables: dict[str, pd.DataFrame]
    """Table (or file of the split) -> file, line or record number from 1, column, value and reason of each bad record
    with its first fault."""
    cells: dict[
        str, pd.DataFrame
    ]  # the same of bad cells of users and items, whose rows are kept without them
    records: dict[str, int]  # table -> records in its files, the bad ones included
    dropped: dict[
        str, tuple[str, ...]
    ]  # table -> columns of its files that are not declared and were not read
    forgotten: dict[str, int] = field(
        default_factory=dict
    )  # table -> records of erased users, nowhere else counted
    hints: tuple[str, ...] = ()  # lines that look odd, though they were read
    logged: dict[str, int] = field(
        default_factory=dict
    )  # what became of the rows of a log of events

    @property
    def frame(self) -> pd.DataFrame:
        """The rejects and the bad cells of all tables, and which of the two they are."""
        costs = {"record": self.tables, "cell": self.cells}
        parts = [
            frame.assign(costs=cost)
            for cost, some in costs.items()
            for frame in some.values()
        ]
        return pd.concat(parts, ignore_index=True)


def check_reject_rates(rejects: Rejects, max_rate: float) -> None:
    """Refuse a table of which a larger share is rejected, once the rejects are written and can be looked at."""
    for table, rejected in rejects.tables.items():
        if len(rejected) > max_rate * rejects.records[table]:
            raise SchemaError(
                f"{table}: {len(rejected):,} of {rejects.records[table]:,} records are bad, more than "
                f"data.max_reject_rate = {max_rate:g}; the first: {describe(rejected)}; "
                f"mend them or raise the rate{advise(table, rejected)}"
            )


def write_rejects(rejects: Rejects, path: Path) -> None:
    """Write the list as Parquet; an earlier one stays whole until the new one is complete."""
    table = pa.Table.from_pandas(
        rejects.frame, pa.schema(list(_REJECTS.items())), preserve_index=False
    )
    with replacing(path) as sink:
        pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")


def describe(rejects: pd.DataFrame) -> str:
    """Describe the first of some rejects."""
    file, line, column, value, reason = (
        rejects.astype(object).where(rejects.notna(), None).iloc[0]
    )
    return f"{file}, line {line}, column {column!r}, value {value!r}: {reason}"


def place_of(rejects: pd.DataFrame) -> str:
    """Say where the first of some rejects stands."""
    return f"line {rejects['line'].iloc[0]} of {rejects['file'].iloc[0]}"


def setting_of(name: str) -> str:
    return name if name in ("users", "items") else "interactions"


def advise(name: str, rejects: pd.DataFrame) -> str:
    """Say what to declare so that bad cells of one kind, the first one's, are read."""
    if not len(rejects):
        return ""
    is_alike = (
        rejects[["column", "reason"]]
        .eq(rejects[["column", "reason"]].iloc[0])
        .all(axis=1)
    )
    advice = _name_key(
        str(rejects["reason"].iloc[0]), rejects["value"][is_alike].dropna().tolist()
    )
    return f"; declare {advice} in data.{setting_of(name)}" if advice else ""


def _name_key(reason: str, texts: Sequence[str]) -> str:
    """Say which declaration reads some bad cells, as a key and its value; empty where none is known."""
    texts = [text.strip() for text in texts]
    if reason == "not a time":
        return " or ".join(
            f"time_formats: {forms}".replace("'", '"')
            for forms in _guess_formats(texts)
        )
    if reason == "not UTF-8":
        return "encoding: latin-1"
    if reason != "not a number" or not texts:
        return ""
    commas = [
        text for text in texts if "," in text and re.fullmatch(COMMA_NUMBER, text)
    ]
    if commas and all(map(_THOUSANDS.fullmatch, commas)):
        return 'decimal: "," or numbers without commas for thousands'
    if commas:
        return 'decimal: ","'
    if all(re.fullmatch(r"[+-]?\d+\.\d+", text) for text in texts):
        return 'decimal: "."'
    return f'missing: ["{texts[0]}"]' if len(set(texts)) == 1 else ""


def _guess_formats(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield the formats that read most texts: one list, or several if they may be written in either way."""
    some = texts[:: len(texts) // _MAX_GUESSED + 1]
    read = {
        day: [form for text in some if (form := _find_format(text, day)) is not None]
        for day in _DAYS
    }
    most = max(map(len, read.values()))
    yield from (
        sorted(set(forms), key=len)
        for forms in read.values()
        if forms and len(forms) == most
    )


def _find_format(text: str, day: str) -> str | None:
    """Return the format that reads a text of a date that is written in this way, and of a time of the day, if any."""
    for clock in _CLOCKS:
        with suppress(ValueError):
            datetime.strptime(text, day + clock)
            return day + clock
    return None
