"""Ids that begin or end with white space: to a reader they look like others, which they are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from datamodules.reading.raw_records import RawRecords


def count_spaced_ids(raw: Mapping[str, Sequence[RawRecords]]) -> Iterator[str]:
    """Say for each column of ids that has such ids how many, and where the first is.

    The first is told by its place alone: what is said is kept with the run, which holds no ids of users.

    Args:
        raw: table -> its files.
    """
    for table, files in raw.items():
        names = dict.fromkeys(column.name for file in files for column in file.columns if column.role == "id")
        for name in names:
            found = [(file, _find_spaced(file.frame[name])) for file in files if name in file.frame]
            n_ids = len({text for _, texts in found for text in texts})
            if n_ids:
                file, texts = next((file, texts) for file, texts in found if len(texts))
                yield (
                    f"distinct ids in {table}.{name} with white space at an end: {n_ids:,}, the first in line "
                    f"{file.lines[texts.index[0]]} of {file.file}; each is another id than the same without"
                )


def _find_spaced(cells: pd.Series) -> pd.Series:
    """Return each such text once, by its row; a blank cell is no id."""
    is_text = isinstance(cells.dtype, pd.StringDtype)
    distinct = (cells[cells.str.strip().ne(cells)] if is_text else cells).drop_duplicates()  # few are left to compare
    return distinct[[isinstance(cell, str) and cell.strip() not in ("", cell) for cell in distinct]]
