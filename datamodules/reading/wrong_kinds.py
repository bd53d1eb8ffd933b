"""A column most of whose cells are not what is declared: no slips in some rows, but another column or kind is meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datamodules.reading.cells import Cells
from datamodules.reading.columns import Column
from datamodules.reading.raw_records import RawRecords
from serve.errors import SchemaError

_KINDS = {
    "not a number": "numbers",
    "not a time": "times",
    "not an id": "ids",
    "no list of numbers": "vectors",
}
"""Reason of a fault -> what the cells should be."""


@dataclass
class KindCount:
    """Cells of one column, over all files of its table."""

    right: int = 0
    wrong: int = 0
    first: str = ""
    """Place and value of the first wrong one."""


KindCounts = dict[tuple[str, str], KindCount]
"""Column of the file and reason -> cells."""


def count_kinds(counts: KindCounts, raw: RawRecords, column: Column, cells: Cells) -> None:
    """Add the cells that one file has of a column."""
    for reason in _KINDS.keys() & cells.faults.keys():
        count = counts.setdefault((column.source, reason), KindCount())
        is_wrong = cells.faults[reason]
        is_missing = cells.values.isna().to_numpy() | cells.faults.get("missing", False)
        places = np.flatnonzero(is_wrong)
        if len(places) and not count.first:
            value = raw.frame[column.name].iloc[places[0]]
            count.first = f"{raw.file}, line {raw.lines[places[0]]}: {str(value)[:40]!r}"
        count.wrong += len(places)
        count.right += int(np.count_nonzero(~is_wrong & ~is_missing))


def check_kinds(counts: Mapping[tuple[str, str], KindCount]) -> None:
    """Refuse a column with more wrong than right cells.

    Raises:
        SchemaError: names the column and its first wrong value.
    """
    for (source, reason), count in counts.items():
        if count.wrong > count.right:
            kind = _KINDS[reason]
            raise SchemaError(
                f"column '{source}' holds no {kind}: {count.wrong:,} of its {count.wrong + count.right:,} values are "
                f"none, the first in {count.first}; declare another column or kind, or mend the file"
            )
