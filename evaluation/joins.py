"""Whether a holdout is of the items that a bundle can recommend, and of users whose histories are known."""

from __future__ import annotations

import pandas as pd

from serve.errors import SchemaError
from serve.schema import Repeats

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


def _mark_owned(holdout: pd.DataFrame, train: pd.DataFrame) -> pd.Series:
    owned = pd.MultiIndex.from_frame(train[_PAIR])
    return pd.Series(pd.MultiIndex.from_frame(holdout[_PAIR]).isin(owned))
