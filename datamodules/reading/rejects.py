"""Records that were left out while reading, one by one and with the reason."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.reading.mark_hints import hint_at_marks
from serve.errors import SchemaError

SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("reason", pa.string()),
    ]
)
LONGEST_VALUE = 200
"""Longer values are cut in the list of rejects."""


@dataclass(frozen=True)
class Rejects:
    """What of the files did not become a row."""

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
    headers: tuple[str, ...] = ()
    """A hint for each file whose first record seems to be none, but a header."""
    spaced_ids: tuple[str, ...] = ()
    """For each column with ids that begin or end with white space: how many, and where."""
    odd_ids: tuple[str, ...] = ()
    """A hint for each column of ids that a few texts keep from being integers."""

    @property
    def frame(self) -> pd.DataFrame:
        """The rejects of all tables."""
        return pd.concat(self.tables.values(), ignore_index=True)


def reject_frame(
    file: str, lines: pd.Series, column: pd.Series | str, values: pd.Series, reasons: pd.Series | str
) -> pd.DataFrame:
    """Make rejects of one file, in the columns of `Rejects.tables`."""
    frame = pd.DataFrame(
        {"file": file, "line": lines, "column": column, "value": values.astype(object), "reason": reasons}
    )
    is_null = frame["value"].isna()
    texts = frame["value"].map(lambda value: str(value)[:LONGEST_VALUE].encode(errors="replace").decode())
    return frame.assign(value=texts.mask(is_null, None).astype("str"))


def check_reject_rates(rejects: Rejects, max_rate: float) -> None:
    """Refuse a table of which too much is bad, naming its first bad record.

    Call it when the rejects are written, so that they can be looked at.

    Raises:
        SchemaError: a larger share of a table's records is rejected.
    """
    for table, rejected in rejects.tables.items():
        n_records = rejects.records[table]
        if len(rejected) <= max_rate * n_records:
            continue
        first = rejected.iloc[0]
        column = "" if pd.isna(first["column"]) else f"column '{first['column']}', "
        value = "no value" if pd.isna(first["value"]) else f"value {first['value']!r}"
        raise SchemaError(
            f"{table}: {len(rejected):,} of {n_records:,} records are bad, more than data.max_reject_rate = "
            f"{max_rate:g}; the first: {first['file']}, line {first['line']}, {column}{value}: {first['reason']}; "
            f"{next(hint_at_marks(table, rejected), 'mend the files or raise the rate')}"
        )


def write_rejects(rejects: Rejects, path: Path) -> None:
    """Write the list as Parquet; an earlier one stays whole until the new one is complete."""
    table = pa.Table.from_pandas(rejects.frame, schema=SCHEMA, preserve_index=False)
    staged = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        pq.write_table(table.replace_schema_metadata(None), staged, compression="zstd")
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
