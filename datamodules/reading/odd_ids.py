"""Texts among integer ids, such as a line of totals: for the sake of one, all ids of the column are texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from pandas.api import types

from datamodules.reading.raw_records import RawRecords
from serve.request_values import INTEGER

FEWEST, MOST = 10, 0.01
"""Integers among which a text seems to be no id, and the share of the ids up to which several do."""


def hint_at_odd_ids(raw: Mapping[str, Sequence[RawRecords]], typed: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Say for each column of ids that few texts keep from being integers how many, and where the first is.

    It is told by its place alone: what is said is kept with the run, which holds no ids of users.

    Args:
        raw: table -> its files; of these, text files alone are looked at: others say the type of each id.
        typed: table -> what was made of them.
    """
    for table, every in raw.items():
        files = [file for file in every if file.is_text]
        names = dict.fromkeys(column.name for file in files for column in file.columns if column.role == "id")
        for name in (name for name in names if not types.is_integer_dtype(typed[table][name])):
            found = [(file, _list_ids(file.frame[name])) for file in files if name in file.frame]
            odd = [(file, ids[~ids.str.fullmatch(INTEGER.pattern)]) for file, ids in found]
            n_ids, n_odd = (len({text for _, texts in part for text in texts}) for part in (found, odd))
            if 0 < n_odd <= max(1, MOST * n_ids) and n_ids - n_odd >= FEWEST:
                file, texts = next((file, texts) for file, texts in odd if len(texts))
                yield (
                    f"all ids of {table}.{name} are texts, since {n_odd:,} of {n_ids:,} are no integers, the first in "
                    f"line {file.lines[texts.index[0]]} of {file.file}: if that is no record, such as a line of "
                    "totals, take it out"
                )


def _list_ids(cells: pd.Series) -> pd.Series:
    """Return each id once, by its row; a blank cell is none."""
    distinct = cells.dropna().astype("str").drop_duplicates()
    return distinct[distinct.str.strip() != ""]
