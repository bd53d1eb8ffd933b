"""A column whose cells are not what is declared: no slips in some rows, but another column or kind is meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from datamodules.reading.cell_shapes import LISTS
from datamodules.reading.cells import Cells
from datamodules.reading.columns import Column
from datamodules.reading.mark_hints import hint_at_mark
from datamodules.reading.raw_records import RawRecords
from serve.errors import SchemaError

_KINDS = {
    "not a number": "numbers",
    "not a time": "times",
    "not an id": "ids",
    "no list of numbers": "vectors",
}
"""Reason of a fault -> what the cells should be."""
_ALLOWED = {
    "not a number": "numbers such as 1234.5, without currency, decimal comma or separators of thousands",
    "not a time": "ISO dates and times such as 2024-05-31 or 2024-05-31 18:05:00, and epoch seconds, ms, us or ns",
}
"""Reason of a fault -> what is read, where the kind alone does not say it."""
_LONGEST = 40
"""Longer values are cut in messages."""


@dataclass
class KindCount:
    """Cells of one column, over all files of its table."""

    right: int = 0
    wrong: int = 0
    first: str = ""
    """Place and value of the first wrong one."""
    values: Counter[str] = field(default_factory=Counter)
    """Wrong value -> cells."""


KindCounts = dict[tuple[str, str], KindCount]
"""Column of the file and reason -> cells."""


def count_kinds(counts: KindCounts, raw: RawRecords, column: Column, cells: Cells) -> None:
    """Add the cells that one file has of a column."""
    for reason in _KINDS.keys() & cells.faults.keys():
        count = counts.setdefault((column.source, reason), KindCount())
        is_wrong = cells.faults[reason]
        is_missing = cells.values.isna().to_numpy() | cells.faults.get("missing", False)
        places = np.flatnonzero(is_wrong)
        values = [str(value)[:_LONGEST] for value in raw.frame[column.name].iloc[places]]
        count.values.update(values)
        if values and not count.first:
            count.first = f"{raw.file}, line {raw.lines[places[0]]}: {values[0]!r}"
        count.wrong += len(places)
        count.right += int(np.count_nonzero(~is_wrong & ~is_missing))


def check_kinds(table: str, counts: Mapping[tuple[str, str], KindCount]) -> None:
    """Refuse a column with more wrong than right cells.

    Raises:
        SchemaError: names the column and its first wrong value.
    """
    for (source, reason), count in counts.items():
        if count.wrong > count.right:
            kind = _KINDS[reason]
            hint = hint_at_mark(table, source, count.values) or "declare another column or kind, or mend the file"
            allowed = f"allowed: {_ALLOWED[reason]}; " if reason in _ALLOWED else ""
            raise SchemaError(
                f"column '{source}' does not hold {kind}: {count.wrong:,} of its {count.wrong + count.right:,} values "
                f"are not, the first in {count.first}; {allowed}{hint}"
            )


def refuse_lists(raw: RawRecords, column: Column) -> None:
    """Refuse a column of single values that holds a list: written out as one text it would be a value of its own.

    Raises:
        SchemaError: names the column, its first list and the kinds that lists are read as.
    """
    cells = raw.frame[column.name]
    if column.role != "category" or not (cells.dtype == object or isinstance(cells.dtype, pd.ArrowDtype)):
        return
    if not any(issubclass(kind, LISTS) for kind in set(map(type, cells))):
        return
    place = next(place for place, cell in enumerate(cells) if isinstance(cell, LISTS))
    value = list(cells.iloc[place])
    raise SchemaError(
        f"{raw.file}: column '{column.source}', {column.reason} as categorical, holds lists, the first in line "
        f"{raw.lines[place]}: {str(value)[:_LONGEST]!r}; allowed: one value in each cell; declare the kind "
        "multi_categorical for several values, or vector for the numbers of an embedding"
    )
