"""Figures of use: what followed the lists that were shown, with intervals over users.

They are computed from the three tables of `service/event_log.py`: lists, slots and events. Only
lists that were shown count: what is asked for, nobody need have seen. A request may ask for the
lists of many users. An event belongs to the slot of the list that it names,
else to the latest slot that showed its item to its user within a window before it; the others
followed no list, and are counted apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serve.arrays import Doubles
from serve.bundle import BUNDLE, CURRENT, ITEMS_FILE
from serve.clock import DAY, find_zone, to_local
from serve.recommender import Recommender
from service.event_log import DISMISS, SHOWN, UNDISMISS, read_log
from service.live_items import LiveItems
from service.registry import Registry
from service.sources import BundleSource, RegistrySource, Source

Figures = dict[str, Any]

WINDOW = DAY  # seconds in which an event that names no list follows one
MAX_DELAY = 30 * DAY  # seconds in which an event that names a list follows it
MAX_RATIO = 10.0  # of a value to the largest usual one: more is an error or a lie
MAX_LISTS = 50  # of one user and day: who asks for more is no person
RETENTION_DAYS = (1, 7, 28)
MIN_USERS = 5  # of a group: figures of fewer people are not published
DISMISSALS = (DISMISS, UNDISMISS)  # no events of interest
Z = 1.959964  # of a two-sided interval of 95 %
_OUTCOMES = ["clicks", "conversions", "dismissals", "value"]


@dataclass(frozen=True)
class Feedback:
    """The slots that were shown, and the events that followed them."""

    lists: pd.DataFrame  # `user_id` is missing where nobody was named
    slots: pd.DataFrame  # with clicks, conversions, dismissals and value of each
    events: pd.DataFrame  # with `slot`, the row of its slot, -1 without a list


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval of 95 %."""

    value: float
    low: float
    high: float


def estimate_mean(values: Doubles, users: Any) -> Estimate:
    """Estimate a mean of rows, of which those of one user depend on each other (delta method).

    Args:
        values: (R,) at least one row.
        users: (R,) the user of each row.

    Returns:
        The mean, and its interval by the sums of users.
    """
    mean = float(values.mean())
    numbers = pd.factorize(users)[0]
    sums = np.bincount(numbers, values.astype(np.float64) - mean)
    n_users = len(sums)
    variance = (sums**2).sum() * n_users / max(n_users - 1, 1)
    half = Z * float(np.sqrt(variance)) / len(values)
    return Estimate(mean, mean - half, mean + half)


def read_frames(path: Path) -> list[pd.DataFrame]:
    """Read the lists that were shown, their slots, and events of the file of a state."""
    lists, slots, events = (table.to_pandas() for table in read_log(path))
    lists = keep_shown(lists, events)
    return [lists, slots[slots["list"].isin(lists["list"])], events]


def keep_shown(lists: pd.DataFrame, events: pd.DataFrame) -> pd.DataFrame:
    """Keep the lists that the shop confirms, or that an event of their user names soon after.

    Of one user, or of one request for nobody, `MAX_LISTS` a day count: the first ones.
    """
    is_confirmation = lists["policy"] == SHOWN
    confirmed = lists["request_id"][is_confirmation]
    pair = ["request_id", "user_id"]
    # of the events of a day one tells as much as all
    events = events.assign(day=events["datetime"] // DAY).drop_duplicates(
        [*pair, "day"]
    )
    named = lists.reset_index().merge(events, on=pair, suffixes=("", "_event"))
    is_soon = _follows(named["datetime_event"] - named["datetime"])
    is_named = lists.index.isin(named["index"][is_soon])
    is_shown = lists["request_id"].isin(confirmed) | is_named
    shown = lists[is_shown & ~is_confirmation]

    owner = shown["user_id"].fillna(shown["request_id"])
    n_before = shown.groupby([owner, shown["datetime"] // DAY]).cumcount()
    return shown[n_before < MAX_LISTS].reset_index(drop=True)


def _follows(delay: pd.Series[int]) -> pd.Series[bool]:
    """Tell whether an event may follow the list that it names, as clocks of callers differ."""
    return delay.between(-DAY, MAX_DELAY)


def find_unprompted(
    test: pd.DataFrame, lists: pd.DataFrame, since: int, timezone: str | None = None
) -> pd.Series[bool]:
    """Tell which events came before the first list that their user was shown.

    Later ones tell versions apart by what was shown: what was taken from a list is not taken again,
    so that events without a list then lack just the best items of the version that listed.

    Args:
        test: events from a moment on, with `user_id` and `datetime`. Where all times are whole
            days, an event may have happened as late as its day ends.
        lists: the lists that were shown; of those before the moment, the ones that an event after
            it may follow count.
        since: that moment in UTC seconds.
        timezone: in which days begin; None is UTC.

    Returns:
        A flag for each row of `test`.
    """
    recent = lists[lists["datetime"] >= since - WINDOW]
    first = recent.groupby("user_id")["datetime"].min()
    first_of_row = test["user_id"].astype("str").map(first)

    times = test["datetime"]
    has_clock = (to_local(times.to_numpy(), find_zone(timezone)) % DAY).any()
    end = times if has_clock else times + DAY - 1
    return ~(end >= first_of_row)  # also where there is no list


def add_profiles(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where profiles are, as the service has it."""
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="DIR",
        help="folder of profiles, as the service has it; default: beside the bundle, "
        "or in the registry",
    )


def load_served(home: Path, state: Path, profiles: Path | None) -> Recommender | None:
    """Load what a service answers with, to look at its log: bundle, profiles and live items.

    Args:
        home: folder of the run, or of the registry.
        state: folder of the state.
        profiles: folder of the profiles; by default, as in a service, the one in `home`.

    Returns:
        The recommender; None if the folder has no bundle.
    """
    source: Source = BundleSource(home / BUNDLE, profiles)
    if (home / CURRENT).exists():
        source = RegistrySource(Registry(home), profiles)
    elif not (home / BUNDLE).exists():
        return None

    with closing(LiveItems(state / ITEMS_FILE, source.load())) as items:
        return items.recommender


def join(
    lists: pd.DataFrame,
    slots: pd.DataFrame,
    events: pd.DataFrame,
    *,
    targets: Sequence[str],
    window: int = WINDOW,
) -> Feedback:
    """Find the slot that each event followed.

    Args:
        lists: as `service.event_log.Log` has them, and so the other tables.
        slots: the items of the lists.
        events: what users did.
        targets: types of events that are conversions; all but dismissals, if none is named.
        window: seconds in which an event that names no list follows one.
    """
    slots = slots.merge(lists, on="list", how="left", validate="many_to_one")
    slots = slots.reset_index(drop=True)
    events = events.sort_values("datetime", kind="stable").reset_index(drop=True)
    slot = _find_slots(slots, events, window)
    events = events.assign(slot=slot)

    is_dismissal = events["event"].isin(DISMISSALS)
    is_reaction = ~is_dismissal & ~(events["weight"] < 0)  # what comes back is none
    is_target = is_reaction
    if targets:
        is_target = is_reaction & events["event"].isin(targets)
    outcomes = {
        "clicks": is_reaction,
        "conversions": is_target,
        "dismissals": events["event"] == DISMISS,
        "value": winsorise(events, is_target),
    }
    # a click that is sent a thousand times is one click
    has_slot = (slot >= 0) & ~events.duplicated(["slot", "event"]).to_numpy()

    for name, outcome in outcomes.items():
        weights = np.asarray(outcome, np.float64)[has_slot]
        slots[name] = np.bincount(slot[has_slot], weights, minlength=len(slots))

    return Feedback(lists, slots, events)


def winsorise(events: pd.DataFrame, is_target: pd.Series[bool]) -> pd.Series[float]:
    """Return the values of conversions, cut at ten times what 99 % of their users stay below."""
    values = events["weight"].fillna(1.0).where(is_target, 0.0)
    highest = values[is_target].groupby(events["user_id"]).max()
    if not len(highest):
        return values
    usual = float(highest.quantile(0.99, interpolation="lower"))
    if not usual:
        return values
    return values.clip(upper=MAX_RATIO * usual)


def _find_slots(slots: pd.DataFrame, events: pd.DataFrame, window: int) -> Any:
    """Return the row of the slot that each event followed, else -1, (E,)."""
    pair = ["user_id", "item_id"]
    keys = slots[["request_id", *pair, "datetime"]].assign(slot=slots.index)
    keys = keys.drop_duplicates(["request_id", *pair])
    of_list = keys.rename(columns={"datetime": "listed"})
    merged = events.merge(of_list, on=["request_id", *pair], how="left")
    named = merged["slot"].where(_follows(merged["datetime"] - merged["listed"]))

    shown = keys.drop(columns="request_id").dropna(subset="user_id")
    shown = shown.sort_values("datetime", kind="stable")
    near = pd.merge_asof(events, shown, on="datetime", by=pair, tolerance=window)
    slot = named.where(events["request_id"].notna(), near["slot"])
    return slot.fillna(-1).to_numpy(np.int64)


def measure(feedback: Feedback, item_ids: Collection[str]) -> Figures:
    """Return the figures of use of everything that was shown.

    Args:
        feedback: the log, with what followed.
        item_ids: the items of the catalogue, as texts; none if there is no bundle.

    Returns:
        Name -> number, None, or {value, low, high} with an interval of 95 % over users.
    """
    events = feedback.events
    shown = feedback.slots["item_id"]
    coverage = None
    unknown_share = None
    if len(item_ids):
        catalogue = pd.Series([*item_ids], dtype="str")
        coverage = float(catalogue.isin(shown).mean())
        is_unknown = ~events["item_id"].isin(catalogue)
        unknown_share = _mean(is_unknown, events["user_id"])

    is_nobody = feedback.lists["user_id"].isna()
    has_no_list = events["slot"] < 0
    figures = measure_rates(feedback.slots) | _measure_engagement(feedback)
    return figures | {
        "items_shown": int(shown.nunique()),
        "coverage": coverage,
        "unknown_item_share": unknown_share,
        "lists_of_nobody": int(is_nobody.sum()),
        "events_without_list": int(has_no_list.sum()),
    }


def measure_rates(slots: pd.DataFrame) -> Figures:
    """Return rates per slot and per list, with intervals over users.

    Args:
        slots: of a `Feedback`; with `is_new` where a bundle is known, with `is_unknown` where its
            profiles are.
    """
    # A list of nobody stands for a user of its own.
    owner = slots["user_id"].fillna(slots["list"].astype("str"))
    by_list = slots.groupby("list", sort=False)
    owner_of_list = owner.groupby(slots["list"], sort=False).first()
    lists = by_list[_OUTCOMES].sum()
    figures: Figures = {
        "users": int(slots["user_id"].nunique()),
        "lists": len(lists),
        "click_through": _mean(slots["clicks"] > 0, owner),
    }
    outcomes = {
        "lists_with_event": lists["clicks"] > 0,
        "conversion": lists["conversions"] > 0,
        "value_per_list": lists["value"],
        "dismissals_per_list": lists["dismissals"],
    }

    for name, values in outcomes.items():
        figures[name] = _mean(values, owner_of_list)

    figures |= {"new_item_share": None, "unknown_user_share": None}
    if "is_new" in slots:
        figures["new_item_share"] = _mean(slots["is_new"], owner)
    if "is_unknown" in slots:
        is_unknown = by_list["is_unknown"].first()
        figures["unknown_user_share"] = _mean(is_unknown, owner_of_list)

    return figures


def measure_groups(
    slots: pd.DataFrame, by: Sequence[str]
) -> dict[str, dict[str, Figures]]:
    """Return rates of groups of slots.

    Args:
        slots: as in `measure_rates`.
        by: names of columns, such as version, arm and policy.

    Returns:
        Column -> value -> rates, where at least `MIN_USERS` have the value.
    """
    groups: dict[str, dict[str, Figures]] = {}
    for name in by:
        groups[name] = {}
        for value, rows in slots.groupby(name):
            figures = measure_rates(rows)
            if figures["users"] >= MIN_USERS:
                groups[name][str(value)] = figures

    return groups


def _measure_engagement(feedback: Feedback) -> Figures:
    """Return events and active days per user, and how many came back.

    Active are days with a list or an event.
    """
    events = feedback.events
    lists = feedback.lists.dropna(subset="user_id")
    days = pd.concat([table[["user_id", "datetime"]] for table in (lists, events)])
    days = days.assign(day=days["datetime"] // DAY).drop_duplicates(["user_id", "day"])

    by_user = days.groupby("user_id")["day"]
    n_days = by_user.size()
    n_events = events.groupby("user_id").size().reindex(n_days.index, fill_value=0)
    figures: Figures = {
        "events_per_user": _mean(n_events, n_events.index),
        "active_days_per_user": _mean(n_days, n_days.index),
    }

    last = days["day"].max()
    first = by_user.min()
    since = days["day"] - days["user_id"].map(first)

    for span in RETENTION_DAYS:
        is_back = ((since > 0) & (since <= span)).groupby(days["user_id"]).any()
        is_back = is_back[first + span <= last]  # of later users nobody knows yet
        figures[f"back_within_{span}"] = _mean(is_back, is_back.index)

    return figures


def _mean(values: pd.Series[Any], users: Any) -> dict[str, float] | None:
    """Return the mean of rows and its interval; None without rows.

    The interval holds no value that a mean of such rows cannot have: no share below 0 or above 1.
    """
    if not len(values):
        return None

    found = estimate_mean(values.to_numpy(), users)
    low = max(found.low, 0.0) if values.min() >= 0 else found.low
    high = min(found.high, 1.0) if values.dtype == np.bool_ else found.high
    return {"value": found.value, "low": low, "high": high}
