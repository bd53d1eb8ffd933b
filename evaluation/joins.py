"""Whether a holdout is of the items that a bundle can recommend, of users with histories, and not known from these."""

from __future__ import annotations

import pandas as pd

from serve.errors import SchemaError
from serve.schema import Repeats, Schema

MANY = 0.5
"""A larger share of the holdout's users without a history is told of."""
_PAIR = ["user_id", "item_id"]


def check_reachable(holdout: pd.DataFrame, train: pd.DataFrame, catalogue: pd.Series, repeats: Repeats) -> None:
    """Refuse a holdout of which no list can hold anything: every figure would be 0.

    Args:
        holdout: interactions to predict; an empty one is not judged.
        train: the users' histories.
        catalogue: ids of the bundle's items.
        repeats: of the bundle.

    Raises:
        SchemaError: no item of the holdout is in the catalogue, or each is one that its user has and that is not
            recommended again.
    """
    if holdout.empty:
        return
    known = holdout[holdout["item_id"].isin(catalogue)]
    if known.empty:
        asked, listed = holdout["item_id"].tolist()[0], catalogue.tolist()[0]
        raise SchemaError(
            f"none of the {holdout['item_id'].nunique():,} items of --holdout is in the bundle's catalogue: item_id is "
            f"{asked!r} in the holdout and {listed!r} in the catalogue; expected: ids written as in the data that the "
            "bundle was trained on; name the right column item_id, or give the bundle of this data"
        )
    if repeats == "exclude" and _mark_owned(known, train).all():
        user, item = known[_PAIR].iloc[0].tolist()
        raise SchemaError(
            f"every item of --holdout in the catalogue is one that its user has in --train, as {user!r} has {item!r}, "
            "and this bundle recommends no item again; expected: items that are new to their users; leave the events "
            "of the holdout out of --train"
        )


def say_strangers(holdout: pd.DataFrame, train: pd.DataFrame) -> str | None:
    """Say how many users of the holdout have no history, if most of them have none."""
    users = holdout["user_id"].drop_duplicates()
    n_strangers = int((~users.isin(train["user_id"])).sum())
    if n_strangers <= MANY * len(users):
        return None
    return (
        f"users of --holdout without an event in --train: {n_strangers:,} of {len(users):,}; all of them are asked "
        "for without a history"
    )


def say_gaps(train: pd.DataFrame, schema: Schema) -> str | None:
    """Say which columns the bundle was trained with and the histories lack, as where they are called otherwise."""
    is_read = {"datetime": schema.has_datetime, "event": bool(schema.event_types), "weight": schema.has_weight}
    lacking = [name for name in is_read if is_read[name] and name not in train]
    if not lacking:
        return None
    return f"columns that the bundle was trained with and --train lacks: {', '.join(lacking)}; they count as missing"


def say_leaks(holdout: pd.DataFrame, train: pd.DataFrame, at: int | None) -> list[str]:
    """Say what the users' histories hold of what is to be predicted, or of the time after the moment of the question.

    Without times the same user and item in both may be a choice that was made again.
    """
    said = []
    if "datetime" in train and "datetime" in holdout:
        keys = [name for name in (*_PAIR, "datetime", "event", "weight") if name in train and name in holdout]
        is_known = pd.MultiIndex.from_frame(holdout[keys]).isin(pd.MultiIndex.from_frame(train[keys]))
        if is_known.any():
            n_events = f"{int(is_known.sum()):,} of {len(holdout):,}"
            said.append(f"events of --holdout that are in --train too: {n_events}; what is asked for is known")
    if at is not None and "datetime" in train and (train["datetime"] >= at).any():
        n_events = f"{int((train['datetime'] >= at).sum()):,} of {len(train):,}"
        said.append(f"events of --train at or after --at: {n_events}; nobody can know them at that moment")
    return said


def _mark_owned(holdout: pd.DataFrame, train: pd.DataFrame) -> pd.Series:
    owned = pd.MultiIndex.from_frame(train[_PAIR])
    return pd.Series(pd.MultiIndex.from_frame(holdout[_PAIR]).isin(owned))
