"""Few values so far from all others of a numeric feature that, scaled with them, these are hardly told apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodules.config import DataConfig
from datamodules.tables import Tables

FAR = 100.0
"""Times as far from the median as the farthest of the other values. Between two neighbours in the tail of a log-normal
column, or of counts, there is no such gap."""
FLATTENED = 10.0
"""Times that far values make the standard deviation larger: below it the others can still be told apart."""
MOST = 0.25
"""Share of the rows that may be far: what more have is no slip, and no mark of what is missing."""
_TABLES = {"user": "users", "item": "items", "context": "interactions"}


def hint_at_far_values(tables: Tables, config: DataConfig) -> Iterator[str]:
    """Say of each numeric feature whether few rows are far from all others, and what to do about them."""
    for side, table in _TABLES.items():
        declared = config.features.of(side).values()
        for column in dict.fromkeys(str(feature.column) for feature in declared if feature.kind == "numeric"):
            numbers = getattr(tables, table)[column].to_numpy(np.float64)
            known = numbers[np.isfinite(numbers)]
            is_far = find_far(known)
            if is_far.any():
                yield _describe(f"{table}.{column}", known[is_far], known[~is_far])


def find_far(numbers: np.ndarray) -> np.ndarray:
    """Return which finite numbers (n,) are far from all others and flatten them, bool (n,)."""
    none, n_most = np.zeros(len(numbers), bool), int(MOST * len(numbers))
    if not n_most:
        return none
    numbers = numbers / max(np.abs(numbers).max(), 1.0)  # squares stay finite
    distances = np.abs(numbers - np.median(numbers))
    ordered = np.sort(distances)[-n_most - 1 :]
    gaps = np.flatnonzero((ordered[:-1] > 0) & (ordered[1:] >= FAR * ordered[:-1]))
    if not len(gaps):
        return none
    is_far: np.ndarray = distances > ordered[gaps[0]]
    return is_far if numbers.std() >= FLATTENED * numbers[~is_far].std() else none


def _describe(column: str, far: np.ndarray, others: np.ndarray) -> str:
    farthest = far[np.abs(far - np.median(others)).argmax()]
    such = f"{farthest:g}" if len(np.unique(far)) == 1 else f"values such as {farthest:g}"
    n_rows = len(far) + len(others)
    return (
        f"{column} has {such} in {len(far):,} of {n_rows:,} rows, all others lie from {others.min():g} to "
        f"{others.max():g} and are hardly told apart on its scale: mend such rows, empty the cell if the value stands "
        "for a missing one, or give the feature a `min` and `max`, which reject them"
    )
