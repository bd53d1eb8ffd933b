"""Interactions that the parameters of baselines are chosen on."""

from __future__ import annotations

import numpy as np
import pandas as pd

MOST_USERS = 1024
PAIR = ["user_id", "item_id"]


def sample_users(interactions: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Keep at most `MOST_USERS` users, drawn by the seed: enough to choose among five values."""
    users = np.sort(interactions["user_id"].unique())
    if len(users) <= MOST_USERS:
        return interactions
    drawn = np.random.default_rng(seed).permutation(users)[:MOST_USERS]
    return interactions[interactions["user_id"].isin(drawn)]


def hold_out_window(train: pd.DataFrame, at: int, length: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part the `length` seconds before `at`, and what is later, from what came before them."""
    is_late = train["datetime"].to_numpy() >= at - length
    return train[~is_late], train[is_late]


def hold_out_last(train: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part each user's last event, or all of her last moment, from what came before it.

    Without times the highest position is the last one. Who has nothing before it keeps it.
    """
    moment = train["datetime" if "datetime" in train else "position"]
    of_user = moment.groupby(train["user_id"])
    is_last = (moment == of_user.transform("max")) & (moment > of_user.transform("min"))
    return train[~is_last], train[is_last]


def hold_out_pairs(train: pd.DataFrame, share: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part a share of the pairs of user and item, drawn by the seed, from the others, whatever the order of rows.

    Nobody loses her last pair.
    """
    pair = train.groupby(PAIR).ngroup().to_numpy()
    pairs = train[PAIR].drop_duplicates().sort_values(PAIR, ignore_index=True)  # as the groups are numbered
    lot = pd.Series(np.random.default_rng(seed).random(len(pairs)))
    is_last = lot == lot.groupby(pairs["user_id"]).transform("max")
    is_drawn = ((lot < share) & ~is_last).to_numpy()[pair]
    return train[~is_drawn], train[is_drawn]


def count_pairs(rows: pd.DataFrame) -> int:
    """Count the pairs of user and item."""
    return int((~rows.duplicated(PAIR)).sum())
