"""Texts that seem to stand for missing values, found among the values that were wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import pandas as pd

MARKED = 0.5
"""At least so large a part of the wrong values of a column is one text where a mark is suspected."""
FEWEST = 3
"""A text that is wrong in fewer records is no mark, but a slip."""
_REASONS = ("not a number", "not a time", "no list of numbers")
"""Faults that a text in a column of another kind has."""
_KEYS = {"users": "data.users.missing", "items": "data.items.missing"}
"""Table -> where its marks are declared; those of all others with the interactions."""


def hint_at_mark(table: str, column: str, wrong: Mapping[str, int]) -> str | None:
    """Say which text seems to mark the missing values of a column and where to declare it, if there is one.

    Args:
        table: of the column.
        column: as in the file.
        wrong: wrong value -> records that have it.
    """
    value, count = max(wrong.items(), key=lambda pair: pair[1], default=("", 0))
    if count < max(FEWEST, MARKED * sum(wrong.values())):
        return None
    key = _KEYS.get(table, "data.interactions.missing")
    return (
        f"{table}.{column} is {value!r} in {count:,} bad records: if that stands for a missing value, add it to {key}"
    )


def hint_at_marks(table: str, rejects: pd.DataFrame) -> Iterator[str]:
    """Give a hint for each column whose rejects of a table share one text."""
    wrong = rejects[rejects["reason"].isin(_REASONS) & rejects["value"].notna()]
    for column, values in wrong.groupby("column", sort=False)["value"]:
        hint = hint_at_mark(table, str(column), Counter(values))
        if hint is not None:
            yield hint
