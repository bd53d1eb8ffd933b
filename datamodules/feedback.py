"""Events that a service logged, appended to the interactions that a configuration names.

The log is a file as `bascule feedback` writes it: user_id, item_id, event, datetime, weight; ids
are texts, times UTC seconds. An event that the tables hold already counts once, and a pair of user
and item that was dismissed, and not taken back, leaves training altogether. A weight below 0 is a
return, in tables without weights too (`RETURN`): cleaning takes back what it undoes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.config import Column
from serve.arrays import Flags, Ties
from serve.errors import SchemaError

DISMISS = "dismiss"  # as `service.state` logs them
UNDISMISS = "undismiss"
RETURN = "is a return"
_PAIR = ["user_id", "item_id"]
_READ = (*_PAIR, "datetime")  # columns read where the interactions have them
_NUMBERED = (
    "data.feedback is set, data.ties is 'simultaneous' and the interactions have a position and no "
    "datetime: each logged event would be a basket of its own; allowed: interactions with a "
    "datetime; give them one, or leave data.feedback out"
)
_EVENT = Column("event", "event", "text", "which a log of events has")
_WEIGHT = Column("weight", "weight", "number", "which a log of events has")


def list_columns(interactions: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the columns to read of a log, given those of the interactions."""
    columns = [
        replace(column, source=column.name, may_be_empty=False)
        for column in interactions
        if column.name in _READ
    ]
    return (*columns, _EVENT, _WEIGHT)


def append_log(
    events: pd.DataFrame, log: pd.DataFrame, ties: Ties
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Append the rows of a log to the interactions.

    A missing weight becomes the mean of log(1 + weight), as in serving; positions go on after
    those of the interactions.

    Args:
        events: the interactions.
        log: oldest first, in columns of the same types.
        ties: how the interactions of one time or position are read.

    Returns:
        the rows to train on, and counts of what became of all rows.

    Raises:
        SchemaError: baskets are numbered, and no number is known for what was logged.
    """
    is_numbered = "position" in events and "datetime" not in events
    if is_numbered and ties == "simultaneous":
        raise SchemaError(_NUMBERED)

    is_sign = log["event"].isin((DISMISS, UNDISMISS))
    logged = _fill(log[~is_sign], events)
    rows = pd.concat([events, logged], ignore_index=True) if len(logged) else events
    if RETURN in rows:
        rows[RETURN] = rows[RETURN].eq(True)
    is_logged = np.arange(len(rows)) >= len(events)
    is_dismissed = _find_dismissed(rows, log[is_sign])
    keys = [name for name in (*_PAIR, "datetime", "event") if name in events]
    is_known = is_logged & ~is_dismissed & rows.duplicated(keys).to_numpy()
    is_kept = ~is_known & ~is_dismissed
    counts = {
        "appended": is_logged & is_kept,
        "known": is_known,
        "dismissals": is_sign,
        "of_dismissed_pairs": is_logged & is_dismissed,
        "interactions_of_dismissed_pairs": ~is_logged & is_dismissed,
    }
    kept = rows[is_kept].reset_index(drop=True)

    return kept, {name: int(marked.sum()) for name, marked in counts.items()}


def _fill(log: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Return the log in the columns of the interactions."""
    is_return = (log["weight"] < 0).to_numpy()
    log = log[[name for name in log if name in events]].reset_index(drop=True)
    if "weight" not in events and is_return.any():
        log[RETURN] = is_return
    if "weight" in events:
        mean = np.expm1(np.log1p(events["weight"].clip(lower=0)).mean())
        log["weight"] = log["weight"].fillna(mean)

    if "position" in events:
        log["position"] = events["position"].max() + 1 + np.arange(len(log))
    return log


def _find_dismissed(rows: pd.DataFrame, signs: pd.DataFrame) -> Flags:
    """Mark the rows of pairs whose last sign is a dismissal, (n,)."""
    last = signs.drop_duplicates(_PAIR, keep="last")
    dismissed = pd.MultiIndex.from_frame(last.loc[last["event"] == DISMISS, _PAIR])
    return np.asarray(pd.MultiIndex.from_frame(rows[_PAIR]).isin(dismissed))
