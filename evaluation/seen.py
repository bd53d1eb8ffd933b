"""Refuse to measure by events that the answers have seen.

Two parts of a recommender may know what it is asked for: the profiles, whose histories must end
before the test, and the weights, which learned from what their training was given.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from serve.arrays import Flags
from serve.bundle import BUNDLE, MEASURED, PROFILES, Bundle
from serve.errors import SchemaError
from serve.profiles import MANIFEST, Profiles

PAIR = ["user_id", "item_id"]


def refuse_known(profiles: Profiles, past: pd.DataFrame, test: pd.DataFrame) -> None:
    """Refuse profiles that hold events of the test.

    Args:
        profiles: those that are asked.
        past: the interactions before the test.
        test: the interactions to predict.

    Raises:
        SchemaError: a user has more events of a target in their profile than before the test.
    """
    targets = pd.MultiIndex.from_frame(test[PAIR].drop_duplicates())
    known = list_events(profiles, test["user_id"])
    n_known = known.groupby(PAIR).size().reindex(targets, fill_value=0)
    n_before = past.groupby(PAIR).size().reindex(targets, fill_value=0)
    n_seen = int((n_known > n_before).sum())
    if n_seen:
        raise SchemaError(
            f"the profiles hold {n_seen:,} of the {len(targets):,} targets of the test: ask by "
            "profiles of the events before it"
        )


def refuse_learned(bundle: Bundle, test: pd.DataFrame) -> None:
    """Refuse weights that have learned from events of the test.

    The profiles beside a bundle hold all events that its training was given. Where they are not
    there, all events before the end of its data count as given.

    Args:
        bundle: its facts say how many events its figures and its weights have seen.
        test: the interactions to predict.

    Raises:
        SchemaError: some were learned from.
    """
    config = bundle.manifest.facts.config
    seen = config.get("seen")
    if seen is None:  # a stage, or a private bundle
        return
    is_dated = "datetime" in test and bundle.schema.has_datetime
    is_refitted = seen["weights"]["events"] > seen["figures"]["events"]
    is_split_by_time = config["data"]["split"]["kind"] == "time"
    if not is_refitted and not (is_dated and is_split_by_time):
        return  # what is given was held out

    is_learned = np.ones(len(test), np.bool_)
    if is_dated:
        is_learned = test["datetime"].to_numpy() < bundle.schema.data_until
    folder = bundle.path.parent
    if (folder / PROFILES / MANIFEST).exists():
        published = Profiles.load(folder / PROFILES, bundle.manifest.version)
        events = list_events(published, test["user_id"])
        is_learned = is_learned & find_rows(test, events, [*PAIR, "datetime"])
    if not is_learned.any():
        return

    remedy = "train with --refit profiles, or split the test off before the training"
    if (folder / MEASURED).exists():
        remedy = f"{folder / MEASURED / BUNDLE} has not: measure that"
    raise SchemaError(
        f"the weights of {bundle.path} have learned from {int(is_learned.sum()):,} of the "
        f"{len(test):,} events of the test; {remedy}"
    )


def list_events(profiles: Profiles, user_ids: pd.Series) -> pd.DataFrame:
    """Return the events in the profiles of some users: `user_id`, `item_id` and any `datetime`."""
    users = np.repeat(profiles.user_ids, np.diff(profiles.offsets))
    events = pd.DataFrame({"user_id": users, "item_id": profiles.history.item_id})
    if profiles.history.datetime is not None:
        events["datetime"] = profiles.history.datetime
    return events[events["user_id"].isin(user_ids)]


def find_rows(rows: pd.DataFrame, table: pd.DataFrame, names: list[str]) -> Flags:
    """Mark the rows that a table has, too, by those of the named columns that both have."""
    keys = [name for name in names if name in rows and name in table]
    wanted = pd.MultiIndex.from_frame(table[keys])
    return pd.MultiIndex.from_frame(rows[keys]).isin(wanted)
