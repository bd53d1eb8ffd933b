"""A table of answers, read as a whole or request by request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from service.command_line import align

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = 10  # rows of a repr
_MAX_CELL = 70  # characters


@dataclass(frozen=True, eq=False, repr=False)
class Answers:
    """Rows of a table; `answers[i]` and iteration give the rows of each request as dictionaries.

    Attributes:
        table: a `pyarrow.Table`; its column `request` counts from 0.
        n_requests: number of requests, also of those without rows.
        notes: sentences about unknown users and short lists.

    Example:
        >>> recommender.recommend(["u0", "u1"], k=3).to_pandas()["rank"].tolist()
        [1, 2, 3, 1, 2, 3]
    """

    table: Any
    n_requests: int
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.n_requests

    def __getitem__(self, index: int) -> list[dict[str, Any]]:
        request = range(self.n_requests)[index]
        of_rows = self.table.column("request").to_numpy()
        start, stop = np.searchsorted(of_rows, [request, request + 1])
        return list(self.table.slice(start, stop - start).to_pylist())

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return map(self.__getitem__, range(self.n_requests))

    def to_pandas(self) -> pd.DataFrame:
        frame: pd.DataFrame = self.table.to_pandas()
        return frame

    def __repr__(self) -> str:
        rows = [self.table.column_names]
        for row in self.table.slice(0, _SHOWN).to_pylist():
            rows.append([_show(cell) for cell in row.values()])
        lines = align(rows)
        if len(self.table) > _SHOWN:
            lines.append(f"... {len(self.table)} rows")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _show(cell: Any) -> str:
    if cell is None:
        return ""
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"
