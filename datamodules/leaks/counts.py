"""Columns of items that count events of the test, such as sales to date."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from datamodules.leaks.codes import rank_numbers
from datamodules.leaks.leak import Leak
from datamodules.splits import Split
from datamodules.tables import Tables

MIN_ITEMS = 100
"""With fewer tested items that have the number, nothing is said."""
COUNTS_TEST = 0.5
"""Named where counting the test as well takes away half of the disagreement: an honest trend takes away little."""

_EXACT = 1e-9


def find_item_leaks(tables: Tables, split: Split, config: DataConfig) -> Iterator[Leak]:
    """Judge each number of the items by whether it orders them as counts that include the test do."""
    columns = {str(feature.column) for feature in config.features.of("item").values() if feature.kind == "numeric"}
    if not columns or not len(split.test):
        return
    before = split.refit[["user_id", "item_id"]]
    with_test = pd.concat([before, split.test[["user_id", "item_id"]]])
    tested = split.test["item_id"].unique()
    counts = [_count(before, with_test, tested), _count(before.drop_duplicates(), with_test.drop_duplicates(), tested)]
    for column in sorted(columns):
        numbers = pd.Series(tables.items[column].to_numpy(np.float64), tables.items["item_id"]).dropna()
        found = max((_correlate(numbers, count) for count in counts), key=_judge)
        power = _judge(found)
        if power >= COUNTS_TEST:
            message = (
                f"items.{column} counts the test: it orders the tested items as the events with the test do (rank "
                f"correlation {found[1]:.4f}), not as those before it do ({found[0]:.4f}); count training events alone"
            )
            yield Leak("made from the test", "items", column, power, message)


def _count(before: pd.DataFrame, with_test: pd.DataFrame, tested: Any) -> pd.DataFrame:
    """Count the rows of each tested item."""
    parts = {"before": before, "with_test": with_test}
    return pd.DataFrame(
        {name: rows["item_id"].value_counts().reindex(tested, fill_value=0) for name, rows in parts.items()}
    )


def _correlate(numbers: pd.Series[float], count: pd.DataFrame) -> tuple[float, float]:
    """Return Spearman's correlation of a column with the counts before the test and with it, without sign."""
    count = count[count.index.isin(numbers.index)]
    if len(count) < MIN_ITEMS:
        return 0.0, 0.0
    values = numbers.reindex(count.index)
    return _spearman(values, count["before"]), _spearman(values, count["with_test"])


def _spearman(left: pd.Series[Any], right: pd.Series[Any]) -> float:
    ranks = [rank_numbers(values.to_numpy(np.float64)) for values in (left, right)]
    spread = [float(values.std()) for values in ranks]
    if min(spread) < _EXACT:
        return 0.0
    return abs(float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1])))


def _judge(correlations: tuple[float, float]) -> float:
    """Return the part of the disagreement with the counts before the test that the test takes away."""
    before, with_test = correlations
    return 1 - (1 - with_test) / (1 - before) if 1 - before > _EXACT else 0.0
