"""Figures of use: what followed the lists that were shown, with intervals over users.

Three tables of a log: `lists` (list, request_id, user_id, datetime, version, policy, arm), `slots` (list, position,
item_id, score, propensity) and `events` (user_id, item_id, event, datetime, weight, request_id). A request may ask for
the lists of many users. Ids are texts, times UTC seconds.
An event belongs to the slot of the list that it names, else to the latest slot that showed its item to its user within
a window before it; the others followed no list, and are counted apart.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from serve.clock import DAY
from serve.errors import SchemaError
from service.database import name_fault
from service.state import MARK

Figures = dict[str, Any]

WINDOW = (
    DAY  # seconds after a list in which an event that names none counts as its outcome
)
RETENTION_DAYS = (1, 7, 28)
MIN_USERS = 5  # of a group: what fewer people did is not told
DISMISSALS = ("dismiss", "undismiss")  # no events of interest
Z = 1.959964  # of a two-sided interval of 95 %
_LISTS = (
    "SELECT number AS list, request_id, CAST(user_id AS TEXT) AS user_id, datetime, bundle_version AS version, policy, "
    "arm FROM answers ORDER BY number"
)
_SLOTS = "SELECT answer AS list, position, CAST(item_id AS TEXT) AS item_id, score, propensity FROM shown ORDER BY 1, 2"
_EVENTS = (
    "SELECT CAST(user_id AS TEXT) AS user_id, CAST(item_id AS TEXT) AS item_id, event, datetime, weight, request_id "
    "FROM events ORDER BY datetime, number"
)


def read_log(path: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read lists, slots and events of a state, which a service may be writing meanwhile; all of one moment."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with (
        name_fault(path),
        closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as database,
    ):
        database.execute("BEGIN")
        if database.execute("PRAGMA application_id").fetchone() != (MARK,):
            raise SchemaError(
                f"{path} is of another kind or format: give the state of a service of this version"
            )
        lists, slots, events = (
            pd.read_sql_query(query, database) for query in (_LISTS, _SLOTS, _EVENTS)
        )
    times = {"datetime": "int64"}  # of an empty table, SQLite does not tell
    return lists.astype(times), slots, events.astype(times)


@dataclass(frozen=True)
class Feedback:
    """What was shown, and what followed."""

    lists: (
        pd.DataFrame
    )  # with `user_id` of known and unknown users; those of nobody have None
    slots: pd.DataFrame  # with `clicks`, `conversions`, `dismissals` and `value` of the events that belong to each
    events: pd.DataFrame  # with `slot`, the row of the slot that each belongs to, -1 where it followed no list


def join(
    lists: pd.DataFrame,
    slots: pd.DataFrame,
    events: pd.DataFrame,
    targets: Sequence[str],
    window: int = WINDOW,
) -> Feedback:
    """Find the slot that each event followed; events named in `targets` are conversions, all if none is named."""
    slots = slots.merge(
        lists, on="list", how="left", validate="many_to_one"
    ).reset_index(drop=True)
    events = events.sort_values("datetime", kind="stable").reset_index(drop=True)
    keys = slots[["request_id", "user_id", "item_id", "datetime"]].assign(
        slot=slots.index
    )
    keys = keys.drop_duplicates(["request_id", "user_id", "item_id"])
    named = events.merge(
        keys.drop(columns="datetime"),
        on=["request_id", "user_id", "item_id"],
        how="left",
    )["slot"]
    shown = keys.dropna(subset="user_id").sort_values("datetime", kind="stable")
    near = pd.merge_asof(
        events,
        shown.drop(columns="request_id"),
        on="datetime",
        by=["user_id", "item_id"],
        tolerance=window,
    )["slot"]
    slot = named.where(events["request_id"].notna(), near).fillna(-1).astype("int64")
    events = events.assign(slot=slot.to_numpy())
    is_dismissal = events["event"].isin(DISMISSALS)
    is_target = ~is_dismissal & (events["event"].isin(targets) if targets else True)
    weight = events["weight"].fillna(1.0).where(is_target, 0.0)
    outcomes = {
        "clicks": ~is_dismissal,
        "conversions": is_target,
        "dismissals": events["event"] == "dismiss",
        "value": weight,
    }
    has_slot = events["slot"].to_numpy() >= 0
    counts = {
        name: np.bincount(
            slot[has_slot], np.asarray(one, np.float64)[has_slot], minlength=len(slots)
        )
        for name, one in outcomes.items()
    }
    return Feedback(lists, slots.assign(**counts), events)


def measure(feedback: Feedback, item_ids: Collection[str]) -> Figures:
    """Return the figures of use of everything that was shown, of a catalogue with these items."""
    slots = feedback.slots
    lists = feedback.lists
    events = feedback.events
    shown = slots["item_id"]
    catalogue = pd.Series([*item_ids], dtype="str")
    is_unknown = ~events["item_id"].isin(catalogue).to_numpy()
    return {
        **measure_rates(slots),
        **_measure_engagement(feedback),
        "items_shown": int(shown.nunique()),
        "coverage": float(catalogue.isin(shown).mean()) if len(catalogue) else None,
        "unknown_item_share": _ratio(is_unknown, events["user_id"])
        if len(catalogue)
        else None,
        "lists_of_nobody": int(lists["user_id"].isna().sum()),
        "events_without_list": int((events["slot"] < 0).sum()),
    }


def measure_rates(slots: pd.DataFrame) -> Figures:
    """Return click-through per slot, and per list how many had an event or a conversion, value and dismissals."""
    owner = slots["user_id"].where(
        slots["user_id"].notna(), slots["list"].astype("str")
    )  # nobody's stands for itself
    by_list = slots.groupby("list", sort=False)
    per_list = by_list[["clicks", "conversions", "dismissals", "value"]].sum()
    of_list = owner.groupby(slots["list"], sort=False).first()
    return {
        "users": int(slots["user_id"].nunique()),
        "lists": len(per_list),
        "click_through": _ratio((slots["clicks"] > 0).to_numpy(), owner),
        "lists_with_event": _ratio((per_list["clicks"] > 0).to_numpy(), of_list),
        "conversion": _ratio((per_list["conversions"] > 0).to_numpy(), of_list),
        "value_per_list": _ratio(per_list["value"].to_numpy(), of_list),
        "dismissals_per_list": _ratio(per_list["dismissals"].to_numpy(), of_list),
        "new_item_share": _ratio(slots["is_new"].to_numpy(), owner)
        if "is_new" in slots
        else None,
        "unknown_user_share": _ratio(by_list["is_unknown"].first().to_numpy(), of_list)
        if "is_unknown" in slots
        else None,
    }


def measure_groups(
    slots: pd.DataFrame, by: Sequence[str]
) -> dict[str, dict[str, Figures]]:
    """Return column -> value -> rates, of columns such as version, arm, policy, segment and position."""
    found: dict[str, dict[str, Figures]] = {}
    for name in by:
        groups = (
            (str(value), measure_rates(rows)) for value, rows in slots.groupby(name)
        )
        found[name] = {
            value: figures for value, figures in groups if figures["users"] >= MIN_USERS
        }
    return found


def _measure_engagement(feedback: Feedback) -> Figures:
    """Return events and active days of a user, and how many came back: active are days with a list or an event."""
    lists = feedback.lists.dropna(subset="user_id")
    events = feedback.events
    days = pd.concat([one[["user_id", "datetime"]] for one in (lists, events)])
    days = days.assign(day=days["datetime"] // DAY).drop_duplicates(["user_id", "day"])
    by_user = days.groupby("user_id")["day"]
    n_events = (
        events.groupby("user_id").size().reindex(by_user.size().index, fill_value=0)
    )
    users = pd.Series(n_events.index)
    figures: Figures = {
        "events_per_user": _ratio(n_events.to_numpy(), users),
        "active_days_per_user": _ratio(by_user.size().to_numpy(), users),
    }
    first = by_user.transform("min")
    last = days["day"].max()
    for n_days in RETENTION_DAYS:
        is_later = (days["day"] > first) & (days["day"] <= first + n_days)
        back = is_later.groupby(days["user_id"]).any()
        is_old = by_user.min() + n_days <= last  # of the others nobody knows yet
        figures[f"back_within_{n_days}"] = _ratio(
            back[is_old].to_numpy(), pd.Series(back.index[is_old])
        )
    return figures


def _ratio(values: NDArray[Any], owner: pd.Series[Any]) -> dict[str, float] | None:
    """Return the mean of rows and its interval of 95 % by the sums of users (delta method); None without rows."""
    if not len(values):
        return None
    mean = float(values.mean())
    number = pd.factorize(owner)[0]
    sums = np.bincount(number, values.astype(np.float64) - mean)
    n_users = len(sums)
    half = (
        Z
        * float(np.sqrt((sums**2).sum() * n_users / max(n_users - 1, 1)))
        / len(values)
    )
    return {"value": mean, "low": mean - half, "high": mean + half}
