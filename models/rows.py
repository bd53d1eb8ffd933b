"""Rows of a table, with a gradient that is added up in half the time that indexing takes for it on a CPU."""

from __future__ import annotations

from torch import Tensor


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Do as `table[rows]` with a table (n, W) and rows of any shape (...), none of them negative: (..., W)."""
    return table.index_select(0, rows.flatten()).view(*rows.shape, table.shape[1])  # (..., W)
