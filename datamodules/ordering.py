"""One order of the rows, whatever order a file has: the same data gives the same model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from datamodules.tables import Tables
from serve.encoding import to_text
from serve.schema import Ties

MANY_TIES = 0.2
"""From this share of tied events on it is said whose order they are in."""


def order_tables(tables: Tables, ties: Ties) -> Tables:
    """Order users and items by id, and interactions by user, time and position.

    Events that this leaves tied keep the order of the table where they are `ordered`. Where they came at once, or
    the data has neither time nor position, they are ordered by what they are.
    """
    events = tables.interactions
    keys = [name for name in ("user_id", "datetime", "position") if name in events]
    if ties == "simultaneous" or is_set(events):
        keys.append("item_id")
        keys += sorted(str(name) for name in events if name not in keys)
    return Tables(_order(events, keys), _order(tables.users, ["user_id"]), _order(tables.items, ["item_id"]))


def is_set(interactions: pd.DataFrame) -> bool:
    """Say whether a user's events have no order: there is neither a time nor a position."""
    return "datetime" not in interactions and "position" not in interactions


def hint_at_ties(interactions: pd.DataFrame, ties: Ties) -> Iterator[str]:
    """Say that many events follow each other only because the file lists them so, where they do."""
    if ties == "simultaneous" or "datetime" not in interactions or "position" in interactions:
        return
    moments = interactions[["user_id", "datetime", "item_id"]].drop_duplicates()
    share = float(moments.duplicated(["user_id", "datetime"], keep=False).mean())
    if share >= MANY_TIES:
        yield (
            f"{share:.1%} of events are at the very time of another one of their user, and follow it as in the table: "
            "data.ties: simultaneous if that order says nothing, as in a basket"
        )


def _order(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    order = np.lexsort([_rank(frame[name]) for name in reversed(keys)])
    return frame.iloc[order].reset_index(drop=True)


def _rank(column: pd.Series[Any]) -> np.ndarray:
    """Return numbers that order as the values do; mixed values order as texts."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    texts = column if isinstance(column.dtype, pd.StringDtype) else column.map(_write).astype("str")
    codes, _ = pd.factorize(texts, sort=True)
    return codes


def _write(value: Any) -> str | None:
    return repr(value) if isinstance(value, (tuple, list, np.ndarray)) else to_text(value)
