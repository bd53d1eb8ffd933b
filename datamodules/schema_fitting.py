"""Fit the schema: vocabularies, scales and limits, all taken from training rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from datamodules.feature_fitting import append_new, by_frequency, fit_feature, mean_and_scale
from datamodules.ordering import is_set
from datamodules.tables import Tables
from serve.errors import SchemaError
from serve.owned import DAY
from serve.schema import Feature, IdType, Repeats, Schema

MEMORY_LENGTH = 4000
SHORTEST_HISTORY, LONGEST_HISTORY = 10, 100
LONGEST_SET, LONGEST_RECENT = 500, 20
DECAY_SHARES = (0.03, 0.09, 0.27, 0.9)
"""Time constants of decayed counts, as shares of the time that the training data spans."""
DEFAULT_SPAN = 100.0
"""Days taken for the span where the data has no times."""
POPULARITY_SHARES = (9 / 334, 28 / 334, 112 / 334)
"""Windows of recent popularity that did well on grocery data of 334 days, as shares of the span."""


def fit_schema(tables: Tables, train: pd.DataFrame, config: DataConfig, previous: Schema | None = None) -> Schema:
    """Fit everything that training and serving must agree on.

    Args:
        tables: cleaned tables; of users and items, only those with training rows are looked at.
        train: training rows of the interactions.
        config: features, ties, repeats, timezone and history length.
        previous: a schema fitted before, whose codes and scales stay: vocabularies and event types grow at their end
            alone, a value that is gone keeps its code, and means, scales, buckets and vector widths are as before.

    Raises:
        SchemaError: baskets or repeats are declared and there is no time or order to tell them by; or a feature's
            kind or the type of the ids is not the previous one.
    """
    if config.ties == "simultaneous" and "datetime" not in train:
        raise SchemaError(
            "data.ties is 'simultaneous' and the interactions have no datetime that says which events are; allowed: "
            "ordered, or a column of times"
        )
    if config.repeats == "allow" and is_set(train):
        raise SchemaError(
            "data.repeats is 'allow' and the interactions have neither datetime nor position: without an order nothing "
            "says what is taken again; allowed: exclude, or columns that order the events"
        )
    users = tables.users[tables.users["user_id"].isin(train["user_id"])]
    items = tables.items[tables.items["item_id"].isin(train["item_id"])]
    weight_mean, weight_scale = _fit_weight(train, previous)
    span = _span_days(train)
    has_datetime = "datetime" in train
    return Schema(
        user_features=_fit_features(config, "user", users, previous),
        item_features=_fit_features(config, "item", items, previous),
        context_features=_fit_features(config, "context", train, previous),
        user_id_type=_fit_id_type(train, "user", previous),
        item_id_type=_fit_id_type(train, "item", previous),
        event_types=_fit_event_types(train, previous),
        has_datetime=has_datetime,
        has_weight="weight" in train,
        weight_mean=weight_mean,
        weight_scale=weight_scale,
        timezone=config.timezone,
        ties="simultaneous" if is_set(train) else config.ties,
        repeats=config.repeats,
        history_length=config.history_length or _fit_history_length(train, config.repeats),
        memory_length=MEMORY_LENGTH,
        decay_days=_scale_days(DECAY_SHARES, span),
        popularity_days=_popularity_days(config, train, span),
        data_until=int(train["datetime"].max()) + 1 if has_datetime else 0,
    )


def _popularity_days(config: DataConfig, train: pd.DataFrame, span: float) -> tuple[float, ...]:
    """Choose the windows of popularity: recent ones as of a moment; of a set, which has no time, one of everything.

    Elsewhere every event of a window is a target, and popularity would be of the future too.
    """
    if is_set(train):
        return (1.0,)
    return _scale_days(POPULARITY_SHARES, span) if config.repeats == "allow" and "datetime" in train else ()


def _fit_features(config: DataConfig, side: str, rows: pd.DataFrame, previous: Schema | None) -> tuple[Feature, ...]:
    before = {} if previous is None else {feature.name: feature for feature in previous.features(side)}
    return tuple(
        fit_feature(name, declared, rows[str(declared.column)], before.get(name))
        for name, declared in config.features.of(side).items()
    )


def _fit_event_types(train: pd.DataFrame, previous: Schema | None) -> tuple[str, ...]:
    found = by_frequency(train["event"]) if "event" in train else ()
    return append_new(() if previous is None else previous.event_types, found)


def _fit_id_type(train: pd.DataFrame, side: str, previous: Schema | None) -> IdType:
    name = f"{side}_id"
    found: IdType = "integer" if pd.api.types.is_integer_dtype(train[name]) else "string"
    before = found if previous is None else getattr(previous, f"{name}_type")
    if found != before:
        raise SchemaError(f"{name} is {found}; the previous schema has {before} ids: give the ids as they were")
    return found


def _fit_weight(train: pd.DataFrame, previous: Schema | None) -> tuple[float, float]:
    """Return mean and scale of log(1 + weight)."""
    if previous is not None and previous.has_weight:
        return previous.weight_mean, previous.weight_scale
    if "weight" not in train:
        return 0.0, 1.0
    return mean_and_scale(np.log1p(train["weight"].to_numpy(np.float64)))


def _fit_history_length(train: pd.DataFrame, repeats: Repeats) -> int:
    """Return the length that nearly no history exceeds, within limits.

    With repeats the memory holds the whole past, and the blocks are for the recent part of it.
    """
    pairs = train[["user_id", "item_id"]].drop_duplicates() if is_set(train) else train
    longest = np.ceil(np.quantile(pairs["user_id"].value_counts().to_numpy(), 0.99))
    limit = LONGEST_RECENT if repeats == "allow" else LONGEST_SET if is_set(train) else LONGEST_HISTORY
    return int(np.clip(longest, SHORTEST_HISTORY, limit))


def _span_days(train: pd.DataFrame) -> float:
    if "datetime" not in train:
        return DEFAULT_SPAN
    return float(max(train["datetime"].max() - train["datetime"].min(), 1)) / DAY


def _scale_days(shares: Iterable[float], span: float) -> tuple[float, ...]:
    """Return shares of the span in days, to three digits."""
    return tuple(float(f"{share * span:.3g}") for share in shares)
