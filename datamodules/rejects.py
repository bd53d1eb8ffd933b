"""List the records and cells that became no value, and say what to declare."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from serve.errors import SchemaErrors
from serve.files import replacing

MAX_VALUE = 200  # characters of a value that are listed
PADDED = "blanks around them, which were taken away"
CURRENCY = "a currency, which was taken away"
MENDED = {PADDED: "ids", CURRENCY: "numbers"}  # reasons that cost nothing
OUTLYING = "years from nearly all other times"
MAX_WIDTHS = 0.1  # vectors of other lengths per vector of the usual one that are slips
OTHER_LENGTH = "of another length than most"
KINDS = {
    "not a number": "numbers such as 1234.5",
    "not a time": "times such as 2024-05-31 18:05, epoch seconds, or as in time_formats",
    "not an id": "ids",
    "no list of numbers": "vectors",
    "not UTF-8": "UTF-8",
    "a list": "single values, as those of kind multi_categorical or vector need not be",
    OTHER_LENGTH: "vectors of one length",
}  # reason of a fault -> what the cells should be
GROUPS = "[. \xa0\u202f]"  # between thousands where the decimal sign is a comma
COMMA_NUMBER = rf"[+-]?(?:\d+|\d{{1,3}}(?:{GROUPS}\d{{3}})+)(?:,\d*)?(?:[eE][+-]?\d+)?"
UNIT = r"([A-Z]{3}|[$£¤¥฿₡₦₩₪₫€₱₲₴₸₹₺₽₾₿])"  # a code as of ISO 4217, or a sign
_AMOUNT = "([+-]?\\d[\\d.,'’ \xa0\u202f]*?)(?:[.,][-–])?"  # CHF 12.- has no cents
# An amount with a currency before or after it; `BARE` is what stands there without.
MONEY = re.compile(rf"^\s*(?:([+-]?){UNIT}\s*{_AMOUNT}|{_AMOUNT}\s*{UNIT})\s*$")
BARE = r"\1\3\4"
_TEXTS = ("file", "column", "value", "reason")
_THOUSANDS = r"[+-]?\d{1,3}(?:,\d{3})+"
_POINT_NUMBER = r"[+-]?\d+\.\d+"
_TIME_FORMATS = (
    "%d.%m.%Y",
    "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M%z",
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y",
    "%d/%m/%Y %H:%M",
    "%m/%d/%Y",
    "%m/%d/%Y %H:%M",
    "%Y/%m/%d %H:%M",
)
_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
        ("costs", pa.string()),  # "record": it is no row; "cell": its row is kept
    ]
)


class Problem(NamedTuple):
    """What forbids to use a table, and the key of its configuration that mends it."""

    text: str
    key: str = ""  # such as `decimal: ","`; empty if none does

    def say(self, name: str) -> str:
        """Name the key with its place; `name` is a table or file of the split."""
        if not self.key:
            return self.text
        return f"{self.text}; declare {self.key} in data.{setting_of(name)}"


@dataclass(frozen=True)
class Rejects:
    """The records of the files that did not become a row, by table or file of the split."""

    faults: dict[str, pd.DataFrame]
    """File, line or record number from 1, column, value and reason of each fault, and what it
    costs: "record"; "cell" of users and items, whose row is kept without it; or nothing more."""
    records: dict[str, int]  # records in the files, the bad ones included
    dropped: dict[str, tuple[str, ...]]  # columns that are not declared
    forgotten: dict[str, int] = field(default_factory=dict)
    """Records of erased users, which are counted nowhere else."""
    logged: dict[str, int] = field(default_factory=dict)
    """What became of the rows of a log of events."""

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """The bad records of each table, each with its first fault."""
        return {
            name: faults[faults["costs"] == "record"]
            for name, faults in self.faults.items()
        }

    @property
    def frame(self) -> pd.DataFrame:
        """The bad records and the bad cells of all tables."""
        faults = pd.concat(self.faults.values())
        return faults[faults["costs"] != ""].reset_index(drop=True)

    @property
    def hints(self) -> list[str]:
        """How many cells and times were set aside, and where; published, so no cell is quoted."""
        hints = []
        for name, faults in self.faults.items():
            for what, cells in MENDED.items():
                n_mended = (faults["reason"] == what).sum()
                if n_mended:
                    hints.append(f"{n_mended:,} {cells} of {name} had {what}")
            bad_cells = faults[faults["costs"] == "cell"]
            groups = bad_cells.groupby(["column", "reason"], sort=False)
            for (column, reason), bad in groups:
                hints.append(
                    f"{len(bad):,} cells of {name}.{column} are {reason} and count as missing: "
                    f"see {place_of(bad)}"
                )
            odd = faults[faults["reason"] == OUTLYING]
            if len(odd):
                days = ", ".join(odd["value"].str[:10].unique()[:4])
                hints.append(
                    f"{len(odd):,} events are {OUTLYING}, such as of {days}: see {place_of(odd)}; "
                    f"they are rejected, unless data.{setting_of(name)} has min_datetime or "
                    "max_datetime"
                )

        return hints


def make_rejects(
    file: Any,
    lines: Collection[int] = (),
    column: str | None = None,
    values: Collection[Any] = (),
    reason: Any = "",
) -> pd.DataFrame:
    """Make rejects; `file` and `reason` are those of all, or a list."""
    texts = pd.Series(list(values), dtype=object).astype("str").str[:MAX_VALUE]
    columns = {
        "file": file,
        "line": np.array(list(lines), np.int64),
        "column": column,
        "value": texts.to_numpy(),
        "reason": reason,
    }
    return pd.DataFrame(columns).astype(dict.fromkeys(_TEXTS, "str"))


def check_reject_rates(rejects: Rejects, max_rate: float) -> None:
    """Refuse a table of which a larger share is rejected.

    Call it after `write_rejects`, so that the rejects can be looked at.

    Args:
        rejects: the rejects of all tables.
        max_rate: the largest share, 0 to 1, of a table's records.

    Raises:
        SchemaError: names the first reject, and what to declare so that it is read.
    """
    excesses: list[str] = []
    for name, faults in rejects.faults.items():
        excesses += find_excess(name, faults, rejects.records[name], max_rate)
    if excesses:
        raise SchemaErrors(excesses)


def find_excess(
    name: str, faults: pd.DataFrame, n_records: int, max_rate: float
) -> Iterator[str]:
    """Say that a larger share of the records of a table is rejected, if that is so."""
    rejected = faults[faults["costs"] == "record"]
    if len(rejected) > max_rate * n_records:
        rate = min(len(rejected) / n_records + 0.01, 1.0)
        yield (
            f"{name}: {len(rejected):,} of {n_records:,} records are bad, more than "
            f"data.max_reject_rate = {max_rate:g}; the first: {describe(rejected)}; mend them or "
            f"declare max_reject_rate: {rate:.2f} in data"
        )


def write_rejects(rejects: Rejects, path: Path) -> None:
    """Write the list as Parquet; an earlier one stays whole until the new one is complete."""
    table = pa.Table.from_pandas(rejects.frame, _SCHEMA, preserve_index=False)
    with replacing(path) as sink:
        pq.write_table(table.replace_schema_metadata(None), sink, compression="zstd")


def describe(rejects: pd.DataFrame) -> str:
    """Describe the first of some rejects."""
    first = rejects.astype(object).where(rejects.notna(), None).iloc[0]
    column = "" if first["column"] is None else f"column {first['column']!r}, "
    return (
        f"{first['file']}, line {first['line']}, {column}"
        f"value {first['value']!r}: {first['reason']}"
    )


def place_of(rejects: pd.DataFrame) -> str:
    """Say where the first of some rejects stands."""
    return f"line {rejects['line'].iloc[0]} of {rejects['file'].iloc[0]}"


def setting_of(name: str) -> str:
    """Return the table of the configuration that lays out a table or file of the split."""
    return name if name in ("users", "items") else "interactions"


def find_remedy(reason: str, values: pd.Series[Any]) -> str:
    """Return the key and value of a table that reads bad cells, or an empty text."""
    texts = values.fillna("").str.strip()
    if reason == "not UTF-8":
        return "encoding: cp1252"
    if reason == "not a time":
        formats = _find_formats(texts)
        return f"time_formats: {json.dumps(formats)}" if formats else ""
    if reason != "not a number":
        return ""

    amounts = texts.str.replace(MONEY, BARE, regex=True)
    with_comma = amounts[amounts.str.fullmatch(f"(?=.*,){COMMA_NUMBER}")]
    if len(with_comma):
        is_thousands = with_comma.str.fullmatch(_THOUSANDS).all()
        other = " or numbers without commas for thousands" if is_thousands else ""
        return f'decimal: ","{other}'
    if amounts.str.fullmatch(_POINT_NUMBER).all():
        return 'decimal: "."'
    return f'missing: ["{texts.iloc[0]}"]' if texts.nunique() == 1 else ""


def _find_formats(texts: pd.Series[Any]) -> list[str]:
    """Return the common formats that read the texts, each the one that reads most of the rest."""
    formats: list[str] = []
    while len(texts):
        unread = {}
        for form in _TIME_FORMATS:
            times = pd.to_datetime(texts, format=form, errors="coerce", utc=True)
            unread[form] = texts[times.isna()]
        best = min(unread, key=lambda form: len(unread[form]))
        if len(unread[best]) == len(texts):
            break
        formats.append(best)
        texts = unread[best]

    return formats


def find_limit(
    reason: str, wrong: pd.DataFrame, n_right: int, max_rate: float
) -> float:
    """Return how many bad cells of a column are slips; few if another declaration reads them."""
    if reason == OTHER_LENGTH:
        return MAX_WIDTHS * n_right
    key = find_remedy(reason, wrong["value"])
    if not key or key.startswith("missing"):
        return n_right
    return min(n_right, max_rate * (len(wrong) + n_right))
