"""Events that a service logged, appended to the interactions that a configuration names.

The log is a file as `python -m evaluation.feedback` writes it: user_id, item_id, event, datetime, weight; ids are
texts, times UTC seconds. It comes in the columns that the interactions have. An event that the tables hold already
counts once, and a pair of user and item that was dismissed, and not taken back, leaves training altogether.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.config import Column

DISMISS = "dismiss"  # as `service.state` logs them
UNDISMISS = "undismiss"
_PAIR = ["user_id", "item_id"]
_TAKEN = (
    *_PAIR,
    "datetime",
    "weight",
)  # columns of the log that the interactions may have, but for the event
_EVENT = Column("event", "event", "text", "which a log of events has")


def list_columns(found: tuple[Column, ...]) -> tuple[Column, ...]:
    """Return the columns that are read of a log, of those found in the interactions, under its own names."""
    taken = (one for one in found if one.name in _TAKEN)
    return (
        *(
            replace(one, source=one.name, may_be_empty=one.name == "weight")
            for one in taken
        ),
        _EVENT,
    )


def append_log(
    events: pd.DataFrame, log: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Append the rows of a log, oldest first, to the interactions, both typed alike; count what became of all rows.

    A missing weight becomes the mean of log(1 + weight), as in serving; positions go on after those of the tables.
    """
    is_sign = log["event"].isin((DISMISS, UNDISMISS)).to_numpy()
    logged = _fill(log[~is_sign], events)
    rows = pd.concat([events, logged], ignore_index=True) if len(logged) else events
    is_logged = np.arange(len(rows)) >= len(events)
    is_dismissed = _find_dismissed(rows, log[is_sign])
    keys = [name for name in (*_PAIR, "datetime", "event") if name in events]
    is_known = is_logged & ~is_dismissed & rows.duplicated(keys).to_numpy()
    counts = {
        "appended": int((is_logged & ~is_dismissed & ~is_known).sum()),
        "known": int(is_known.sum()),
        "dismissals": int(is_sign.sum()),
        "of_dismissed_pairs": int((is_logged & is_dismissed).sum()),
        "interactions_of_dismissed_pairs": int((~is_logged & is_dismissed).sum()),
    }
    return rows[~is_known & ~is_dismissed].reset_index(drop=True), counts


def _fill(log: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Return the log in the columns of the interactions, with what they always have."""
    log = log[[name for name in log if name in events]].reset_index(drop=True)
    if "weight" in events:
        mean = np.expm1(np.log1p(events["weight"].clip(lower=0)).mean())
        log = log.assign(weight=log["weight"].fillna(mean))
    if "position" in events:
        log = log.assign(position=events["position"].max() + 1 + np.arange(len(log)))
    return log


def _find_dismissed(rows: pd.DataFrame, signs: pd.DataFrame) -> np.ndarray:
    """Mark the rows of pairs of which the last sign is a dismissal, (n,)."""
    last = signs.drop_duplicates(_PAIR, keep="last")
    dismissed = last.loc[last["event"] == DISMISS, _PAIR]
    if dismissed.empty:
        return np.zeros(len(rows), bool)
    return np.asarray(
        pd.MultiIndex.from_frame(rows[_PAIR]).isin(pd.MultiIndex.from_frame(dismissed))
    )
