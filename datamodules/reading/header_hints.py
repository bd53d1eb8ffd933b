"""First lines that seem to be a header, of files that are read with `names` and should have none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from datamodules.config import TableConfig
from datamodules.reading.columns import Column
from datamodules.reading.raw_records import RawRecords

FEWEST = 10
"""Among fewer other ids, one without a digit may be an id as well."""


def hint_at_headers(raw: Mapping[str, Sequence[RawRecords]], layouts: Mapping[str, TableConfig]) -> Iterator[str]:
    """Give a hint for each file whose first line was read as a record though it seems to name the columns.

    Args:
        raw: table -> its files.
        layouts: table -> what is declared of them.
    """
    for table, files in raw.items():
        for file in files:
            if layouts[table].names is not None and _begins_with_header(file):
                yield (  # what the line holds is not said, since it may be ids, and what is said stays with the run
                    f"{file.file} is read with names, and its line 1 looks like a header: if it is one, take out names "
                    "or that line"
                )


def _begins_with_header(file: RawRecords) -> bool:
    """Tell whether line 1 has the declared names for ids, or, in both columns of ids, words among numbered ids."""
    if not file.is_text or not len(file.lines) or file.lines[0] != 1:
        return False
    ids = _list_ids(file)
    are_names = [_is_name(column, file.frame[column.name]) for column in ids]
    are_words = [_is_word(file.frame[column.name]) for column in ids]
    return all(are_names) or (len(ids) > 1 and all(map(max, are_names, are_words)))


def _list_ids(file: RawRecords) -> list[Column]:
    return [column for column in file.columns if column.role == "id"]


def _is_name(column: Column, cells: pd.Series) -> bool:
    return _simplify(str(cells.iloc[0])) in (_simplify(column.name), _simplify(column.source))


def _simplify(name: str) -> str:
    return name.casefold().replace("_", "").replace(" ", "")


def _is_word(cells: pd.Series) -> bool:
    """Tell whether the first cell has letters and no digit, and each of the others has a digit."""
    texts = cells.fillna("").astype("str")
    first, others = texts.iloc[0], texts.iloc[1:]
    is_word = any(map(str.isalpha, first)) and not any(map(str.isdigit, first))
    return is_word and len(others) >= FEWEST and bool(others[others != ""].str.contains(r"\d").all())
