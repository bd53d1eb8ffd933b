"""Tables in which nothing personal can be learned: a model must be level with the plainest baseline.

Every function returns what `panel.Planted` holds: interactions, what is declared of them, and users
and items where these have features.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from serve.clock import DAY

Rng = np.random.Generator
World = tuple[pd.DataFrame, DataConfig, pd.DataFrame | None, pd.DataFrame | None]

BEGIN = 1_700_006_400  # a midnight
N_USERS, N_ITEMS = 400, 200
N_EVENTS = 12  # of a user, on average
N_DAYS = 360
TEST_DAY = 346
N_COINS = 100  # items of the coin tosses
CHANCE = 0.12
N_CATEGORIES = 10
FEW_USERS = 100


def popularity_in_order(rng: Rng) -> World:
    """Every user takes items by one popularity."""
    return take(rng, N_USERS), DataConfig(), None, None


def popularity_of_a_set(rng: Rng) -> World:
    """The same without dates."""
    events = take(rng, N_USERS)[["user_id", "item_id"]]
    return events, DataConfig(split=SplitConfig("pairs")), None, None


def popularity_that_moves(rng: Rng) -> World:
    """Every user takes items by the popularity of the day, which drifts; the test is the last days."""
    n_steps = N_DAYS // 10 + 1
    drift = rng.normal(0, 0.45, (n_steps, N_ITEMS)).cumsum(axis=0)  # logits by step
    logits = drift + np.log(popularity(rng, N_ITEMS))
    rows = []
    for user, n in enumerate(rng.poisson(N_EVENTS, N_USERS).clip(3, 40)):
        owned: list[int] = []
        for day in np.sort(rng.uniform(0, N_DAYS, n)):
            chances = np.exp(logits[int(day) // 10])
            chances[owned] = 0
            owned.append(int(rng.choice(N_ITEMS, p=chances / chances.sum())))
            rows.append((user, owned[-1], BEGIN + int(day * DAY)))
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    at = pd.Timestamp(BEGIN + TEST_DAY * DAY, unit="s").date().isoformat()
    return events, DataConfig(split=SplitConfig("time", at=at)), None, None


def coin_tosses(rng: Rng) -> World:
    """Every pair of a user and an item is there by the same chance."""
    user, item = np.nonzero(rng.random((N_USERS, N_COINS)) < CHANCE)
    events = pd.DataFrame({"user_id": user, "item_id": item})
    return events, DataConfig(split=SplitConfig("pairs")), None, None


def features_that_say_nothing(rng: Rng) -> World:
    """Groups of users and categories of items are drawn apart from what is taken."""
    group, category = (rng.integers(0, N_CATEGORIES, n) for n in (N_USERS, N_ITEMS))
    users = pd.DataFrame({"user_id": np.arange(N_USERS), "group": [f"g{one}" for one in group]})
    users["age"] = rng.normal(40, 10, N_USERS)
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS)})
    items["category"] = [f"c{one}" for one in category]
    features = FeaturesConfig(
        user={"group": "categorical", "age": "numeric"}, item={"category": "categorical"}
    )
    return take(rng, N_USERS), DataConfig(features=features), users, items


def more_features_than_users(rng: Rng) -> World:
    """Ten times as many features as users, all of them noise."""
    names = [f"f{number}" for number in range(10 * FEW_USERS)]
    users = pd.DataFrame(rng.normal(size=(FEW_USERS, len(names))), columns=names)
    users.insert(0, "user_id", np.arange(FEW_USERS))
    features = FeaturesConfig(user=dict.fromkeys(names, "numeric"))
    return take(rng, FEW_USERS), DataConfig(features=features), users, None


def take(rng: Rng, n_users: int) -> pd.DataFrame:
    """Let each user take some items by one popularity, a minute apart."""
    chances = popularity(rng, N_ITEMS)
    rows = []
    for user, n in enumerate(rng.poisson(N_EVENTS, n_users).clip(3, 30)):
        begin = int(BEGIN + rng.integers(100 * DAY))
        taken = rng.choice(N_ITEMS, n, replace=False, p=chances)
        rows += [(user, int(item), begin + 60 * place) for place, item in enumerate(taken)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])


def popularity(rng: Rng, n_items: int) -> np.ndarray:
    """Return chances that fall by a power of the rank, in a drawn order, (N,)."""
    weights = 1 / np.arange(1, n_items + 1) ** 0.9
    return rng.permutation(weights / weights.sum())


NULL_WORLDS: dict[str, Callable[[Rng], World]] = {
    "null: popularity": popularity_in_order,
    "null: popularity of a set": popularity_of_a_set,
    "null: popularity that moves": popularity_that_moves,
    "null: coin tosses": coin_tosses,
    "null: features that say nothing": features_that_say_nothing,
    "null: ten times as many features as users": more_features_than_users,
}
