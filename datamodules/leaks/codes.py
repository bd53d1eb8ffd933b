"""Cells of any kind as numbers, so that values can be counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.config import FeatureConfig
from serve.encoding import join_text, split_cell, to_text

MISSING = -1
"""Code of a missing cell."""
MOST_VALUES = 32
"""Numbers of more distinct values are cut into so many ranges, equally full, where few values are wanted."""


def code_feature(cells: pd.Series[Any], feature: FeatureConfig) -> NDArray[np.int64]:
    """Number the values of a feature, those of a number by range."""
    return cut_numbers(cells.to_numpy(np.float64)) if feature.kind == "numeric" else code_cells(cells)


def code_cells(cells: pd.Series[Any]) -> NDArray[np.int64]:
    """Number the values of a column of any kind, equal values alike; `MISSING` where features read none."""
    if cells.dtype == object:
        cells = cells.map(_to_hashable)
    codes, values = pd.factorize(cells)
    known = [not isinstance(value, (str, tuple)) or join_text(value) is not None for value in values]
    return np.where(np.array([*known, False])[codes], codes, MISSING).astype(np.int64)


def cut_numbers(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the ranges of a column of numbers, or its values if they are few; `MISSING` where there is none."""
    known = ~np.isnan(values)
    distinct, codes = np.unique(values[known], return_inverse=True)
    if len(distinct) > MOST_VALUES:
        codes = np.minimum((rank_numbers(values[known]) * MOST_VALUES).astype(np.int64), MOST_VALUES - 1)
    cut = np.full(len(values), MISSING, np.int64)
    cut[known] = codes
    return cut


def rank_numbers(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each number's mean rank as a share, within 0 to 1; NaN stays."""
    known = ~np.isnan(values)
    _, codes, counts = np.unique(values[known], return_inverse=True, return_counts=True)
    ranks = np.full(len(values), np.nan)
    ranks[known] = ((np.cumsum(counts) - counts / 2) / known.sum())[codes]
    return ranks


def list_tokens(ids: pd.Series[Any], cells: pd.Series[Any], feature: FeatureConfig) -> pd.DataFrame:
    """Return one row (id, token) for each value of each cell, written as vocabularies write it."""
    if feature.kind == "multi_categorical":
        tokens = cells.map(lambda cell: split_cell(cell, feature.separator))
    else:
        tokens = cells.map(to_text)
    return pd.DataFrame({"id": ids, "token": tokens}).explode("token").dropna().drop_duplicates()


def _to_hashable(cell: Any) -> Any:
    if isinstance(cell, np.ndarray):
        return tuple(cell.tolist())
    return tuple(cell) if isinstance(cell, list) else cell
