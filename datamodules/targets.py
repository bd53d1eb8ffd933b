"""Which events are predicted, and how much each counts; the others are evidence in histories."""

from __future__ import annotations

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from serve.errors import SchemaError, name_nearest

TARGET_WEIGHT = "weight as a target"
"""Reserved column of the interactions: 0 for an event that is evidence alone. Absent: every event counts 1."""


def weigh_targets(interactions: pd.DataFrame, config: DataConfig) -> pd.DataFrame:
    """Add `TARGET_WEIGHT`, of mean 1 over the targets, if anything about targets is declared.

    Raises:
        SchemaError: a declared column or type of event is not there, or no event is a target.
    """
    types = [*(config.targets.events or ()), *config.events]
    if not types and config.targets.min_weight is None:
        return interactions
    _check_columns(interactions, config, types)
    is_target = np.ones(len(interactions), bool)
    weight = np.ones(len(interactions), np.float64)
    if config.targets.events is not None:
        is_target &= interactions["event"].isin(config.targets.events).to_numpy()
    if config.targets.min_weight is not None:
        is_target &= (interactions["weight"] >= config.targets.min_weight).to_numpy()
    if config.events:
        weight = np.asarray(interactions["event"].map(config.events).fillna(1.0), np.float64)
    if not is_target.any():
        raise SchemaError(
            "data.targets: no event is a target; declare other events or a lower min_weight"
            + _say_weights(interactions)
        )
    return interactions.assign(**{TARGET_WEIGHT: np.where(is_target, weight / weight[is_target].mean(), 0.0)})


def only_targets(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are targets."""
    return interactions[interactions[TARGET_WEIGHT] > 0] if TARGET_WEIGHT in interactions else interactions


def only_evidence(interactions: pd.DataFrame) -> pd.DataFrame:
    """Return the events that are no targets."""
    return interactions[interactions[TARGET_WEIGHT] == 0] if TARGET_WEIGHT in interactions else interactions.iloc[:0]


def _say_weights(interactions: pd.DataFrame) -> str:
    if "weight" not in interactions:
        return ""
    return f" (weights are {interactions['weight'].min():g} to {interactions['weight'].max():g})"


def _check_columns(interactions: pd.DataFrame, config: DataConfig, types: list[str]) -> None:
    if config.targets.min_weight is not None and "weight" not in interactions:
        raise SchemaError(
            f"data.targets.min_weight is {config.targets.min_weight:g}, but the interactions have no weight: "
            "set data.interactions.columns.weight"
        )
    if types and "event" not in interactions:
        raise SchemaError(
            f"event '{types[0]}' is declared, but the interactions have no event: set data.interactions.columns.event"
        )
    known = set(interactions["event"].dropna().unique()) if types else set()
    for name in types:
        if name not in known:
            raise SchemaError(f"event '{name}' is declared, but no interaction is one; {name_nearest(name, known)}")
