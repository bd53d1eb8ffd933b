"""Fit the schema: vocabularies, scales and limits, all taken from training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from datamodules.config import DataConfig, FeatureConfig
from datamodules.tables import Tables
from serve.encoding import split_cell, to_text
from serve.errors import SchemaError
from serve.owned import DAY
from serve.schema import Feature, IdType, Schema

MEMORY_LENGTH = 4000
SHORTEST_HISTORY, LONGEST_HISTORY = 10, 200
WIDEST_CELL = 32
DECAY_SHARES = (0.03, 0.09, 0.27, 0.9)
"""Time constants of decayed counts, as shares of the time that the training data spans."""
DEFAULT_SPAN = 100.0
"""Days taken for the span where the data has no times."""
POPULARITY_SHARES = (9 / 334, 28 / 334, 112 / 334)
"""Windows of recent popularity that did well on grocery data of 334 days, as shares of the span."""
_CALENDAR = {"hour_of_day": tuple(map(str, range(24))), "day_of_week": tuple(map(str, range(7)))}


def fit_schema(tables: Tables, train: pd.DataFrame, config: DataConfig) -> Schema:
    """Fit everything that training and serving must agree on.

    Args:
        tables: cleaned tables; of users and items, only those with training rows are looked at.
        train: training rows of the interactions.
        config: features, ties, repeats, timezone and history length.

    Raises:
        SchemaError: baskets are declared and there is no time to tell them apart.
    """
    if config.ties == "simultaneous" and "datetime" not in train:
        raise SchemaError(
            "data.ties is 'simultaneous' and the interactions have no datetime: events at one time need one"
        )
    users = tables.users[tables.users["user_id"].isin(train["user_id"])]
    items = tables.items[tables.items["item_id"].isin(train["item_id"])]
    weight_mean, weight_scale = _fit_weight(train)
    span = _span_days(train)
    has_datetime = "datetime" in train
    has_popularity = config.repeats == "allow" and has_datetime
    return Schema(
        user_features=_fit_features(config, "user", users),
        item_features=_fit_features(config, "item", items),
        context_features=_fit_features(config, "context", train),
        user_id_type=_id_type(train["user_id"]),
        item_id_type=_id_type(train["item_id"]),
        event_types=_by_frequency(train["event"]) if "event" in train else (),
        has_datetime=has_datetime,
        has_weight="weight" in train,
        weight_mean=weight_mean,
        weight_scale=weight_scale,
        timezone=config.timezone,
        ties="simultaneous" if is_set(train) else config.ties,
        repeats=config.repeats,
        history_length=config.history_length or _fit_history_length(train),
        memory_length=MEMORY_LENGTH,
        decay_days=_scale_days(DECAY_SHARES, span),
        popularity_days=_scale_days(POPULARITY_SHARES, span) if has_popularity else (),
        data_until=int(train["datetime"].max()) + 1 if has_datetime else 0,
    )


def is_set(interactions: pd.DataFrame) -> bool:
    """Say whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def _fit_features(config: DataConfig, side: str, rows: pd.DataFrame) -> tuple[Feature, ...]:
    declared = config.features.of(side)
    return tuple(_fit_feature(name, feature, rows) for name, feature in declared.items())


def _fit_feature(name: str, feature: FeatureConfig, rows: pd.DataFrame) -> Feature:
    column = str(feature.column)
    cells = rows[column]
    if feature.kind == "numeric":
        mean, scale = _mean_and_scale(cells.to_numpy(np.float64))
        return Feature(name, feature.kind, column, separator=feature.separator, mean=mean, scale=scale)
    if feature.kind == "multi_categorical":
        values = [split_cell(cell, feature.separator) for cell in cells]
        width = min(max(map(len, values), default=1), WIDEST_CELL)
        vocabulary = _order(Counter(value for cell in values for value in cell))
        return Feature(name, feature.kind, column, vocabulary, feature.separator, max(width, 1))
    vocabulary = _CALENDAR.get(feature.kind) or _by_frequency(cells)
    return Feature(name, feature.kind, column, vocabulary, feature.separator)


def _by_frequency(cells: pd.Series) -> tuple[str, ...]:
    """Return the distinct texts of a column, the most frequent first."""
    counts: Counter[str] = Counter()
    for value, count in cells.value_counts().items():
        text = to_text(value)
        if text is not None:  # 7, 7.0 and "7" are one text
            counts[text] += int(count)
    return _order(counts)


def _order(counts: Counter[str]) -> tuple[str, ...]:
    """Order by falling frequency, then by value."""
    return tuple(sorted(counts, key=lambda text: (-counts[text], text)))


def _mean_and_scale(numbers: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation of the finite numbers; a deviation of 0 becomes 1."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return 0.0, 1.0
    if known.min() == known.max():  # rounding could leave a deviation that is tiny and not 0
        return float(known[0]), 1.0
    return float(known.mean()), float(known.std())


def _fit_weight(train: pd.DataFrame) -> tuple[float, float]:
    """Return mean and scale of log(1 + weight)."""
    if "weight" not in train:
        return 0.0, 1.0
    return _mean_and_scale(np.log1p(train["weight"].to_numpy(np.float64)))


def _fit_history_length(train: pd.DataFrame) -> int:
    """Return the length that 95 % of the users do not exceed, within limits."""
    lengths = train["user_id"].value_counts().to_numpy()
    return int(np.clip(np.ceil(np.quantile(lengths, 0.95)), SHORTEST_HISTORY, LONGEST_HISTORY))


def _span_days(train: pd.DataFrame) -> float:
    if "datetime" not in train:
        return DEFAULT_SPAN
    return float(max(train["datetime"].max() - train["datetime"].min(), 1)) / DAY


def _scale_days(shares: Iterable[float], span: float) -> tuple[float, ...]:
    """Return shares of the span in days, to three digits."""
    return tuple(float(f"{share * span:.3g}") for share in shares)


def _id_type(ids: pd.Series) -> IdType:
    return "integer" if pd.api.types.is_integer_dtype(ids) else "string"
