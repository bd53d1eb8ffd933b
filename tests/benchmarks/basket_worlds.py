"""Tables of baskets in which items may come again: planted ones with a known truth, and one of real households.

Each function returns interactions and what is declared of them. `tests/benchmarks/panel.py` trains on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from datamodules.config import DataConfig, SplitConfig
from serve.clock import DAY

BEGIN = 1_700_006_400
"""A midnight."""
Rng = np.random.Generator
World = tuple[pd.DataFrame, DataConfig]


def plant_last_baskets(
    rng: Rng, dates: str = "numbers", n_users: int = 2000, n_items: int = 1500, again: float = 0.2
) -> World:
    """3 to 12 baskets by two of 40 tastes, of which a share of the items comes again; the last one is the test."""
    taste_of = rng.integers(0, 40, n_items)
    popularity = rng.permutation(_fall(n_items, 0.7))
    chances = [_share(popularity * (0.9 * (taste_of == one) + 0.003)) for one in range(40)]
    rows = []
    for user in range(n_users):
        mine = np.mean([chances[one] for one in rng.integers(0, 40, 2)], axis=0)
        owned: list[int] = []
        day = rng.uniform(0, 200)
        for number in range(rng.integers(3, 13)):
            basket = set(rng.choice(n_items, rng.integers(2, 9), p=mine).tolist())
            n_again = rng.binomial(len(basket), again) if owned else 0
            basket = {*sorted(basket)[n_again:], *rng.choice(owned or [0], n_again).tolist()}
            owned += basket
            day += rng.exponential(10)
            rows += [(user, item, number, int(day)) for item in sorted(basket)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "number", "day"])
    return _date(events, dates)


def read_last_baskets(data: Path, rng: Rng, dates: str, n_users: int = 800) -> World:
    """The last 12 baskets of some households of Complete Journey; the last one is the test."""
    columns = ["household_id", "product_id", "basket_id", "transaction_timestamp"]
    table = pd.read_parquet(data / "complete-journey" / "transactions.parquet", columns=columns)
    table.columns = pd.Index(["user_id", "item_id", "basket", "datetime"])
    table["datetime"] = table["datetime"].dt.as_unit("s").astype("int64")
    drawn = rng.choice(np.unique(table["user_id"]), n_users, replace=False)
    table = table[table["user_id"].isin(drawn)].sort_values(["user_id", "datetime", "basket"])
    first = table.groupby("basket")["datetime"].transform("min")
    table["number"] = first.groupby(table["user_id"]).rank("dense").astype("int64")
    table["number"] -= table.groupby("user_id")["number"].transform("max") - 12
    table = table[table["number"] > 0]
    table = table[table.groupby("item_id")["user_id"].transform("size") >= 10]
    days = (table["datetime"] - table["datetime"].min()) // DAY
    return _date(table.assign(day=days)[["user_id", "item_id", "number", "day"]], dates)


def plant_members(rng: Rng, n_items: int = 170, n_users: int = 1500, moves: float = 0.0) -> World:
    """People who take what everybody takes, again no more than by chance; popularity may move within the year."""
    popularity = rng.permutation(_fall(n_items, 0.9))
    peaks = rng.uniform(0, 365, n_items)
    rows = []
    for user in range(n_users):
        for day in np.unique(rng.integers(0, 365, 1 + rng.poisson(6))):
            fashion = 1 + moves * np.exp(-(((day - peaks) / 30) ** 2))
            basket = rng.choice(n_items, 1 + rng.poisson(1.5), p=_share(popularity * fashion))
            rows += [(user, item, 0, int(day)) for item in np.unique(basket).tolist()]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "number", "day"])
    events, data = _date(events, "days")
    at = pd.Timestamp(BEGIN + 345 * DAY, unit="s").date().isoformat()
    return events, replace(data, split=SplitConfig("time", at=at))


def plant_small(rng: Rng, n_items: int = 150, n_users: int = 600) -> World:
    """Weekly baskets of few items, by one of four tastes and by ten usual items; the last one is the test."""
    tastes = [rng.permutation(_fall(n_items, 1.0)) for _ in range(4)]
    rows = []
    for user in range(n_users):
        mine = tastes[rng.integers(4)]
        usual = rng.choice(n_items, 10, replace=False, p=mine)
        for number in range(rng.integers(3, 20)):
            basket = {*rng.choice(usual, 2).tolist(), *rng.choice(n_items, 2, p=mine).tolist()}
            rows += [(user, item, number, 7 * number) for item in sorted(basket)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "number", "day"])
    return _date(events, "numbers")


def _date(events: pd.DataFrame, dates: str) -> World:
    """Date baskets: by `days`, by `numbers` from a common start, with the last one `alike`, or by `positions` alone.

    `numbers alike` has baskets by numbers, the last ones alike, and is split by time; `alike by time` has them by days,
    so that most people come back after months.
    """
    data = DataConfig(ties="simultaneous", repeats="allow", split=SplitConfig("leave_one_out"))
    day = events["number"] if dates.startswith("numbers") else events["day"]
    if dates == "positions":
        return events[["user_id", "item_id"]].assign(position=events["number"]), data
    if dates in ("alike", "alike by time", "numbers alike"):
        last = events.groupby("user_id")["number"].transform("max")
        end = int(day.max()) + 1
        later = 0 if dates == "numbers alike" else 29
        day = day.where(events["number"] < last, end + later)
        if dates != "alike":
            at = pd.Timestamp(BEGIN + end * DAY, unit="s").isoformat()
            data = replace(data, split=SplitConfig("time", at=at))
    return events[["user_id", "item_id"]].assign(datetime=BEGIN + day * DAY), data


def _fall(n: int, power: float) -> np.ndarray:
    """Return chances that fall by a power of the rank, (n,)."""
    return _share(1 / np.arange(1, n + 1) ** power)


def _share(weights: np.ndarray) -> np.ndarray:
    chances: np.ndarray = weights / weights.sum()
    return chances


PLANTED_BASKETS: dict[str, Callable[[Rng], World]] = {
    "last baskets, numbered": plant_last_baskets,
    "last baskets, positions alone": partial(plant_last_baskets, dates="positions"),
    "last baskets, dated alike": partial(plant_last_baskets, dates="alike"),
    "last baskets, dated alike, by time": partial(plant_last_baskets, dates="alike by time"),
    "last baskets, numbered, the last alike, by time": partial(
        plant_last_baskets, dates="numbers alike"
    ),
    "last baskets, few items": plant_small,
    "members, repeats by chance": plant_members,
    "members, popularity moves": partial(plant_members, moves=20.0),
}
REAL_BASKETS: dict[str, Callable[[Path, Rng], World]] = {
    "Complete Journey, 800 households, last basket, numbered": partial(
        read_last_baskets, dates="numbers"
    ),
    "Complete Journey, 800 households, last basket, dated alike": partial(
        read_last_baskets, dates="alike"
    ),
    "Complete Journey, 800 households, last basket, dated alike, by time": partial(
        read_last_baskets, dates="alike by time"
    ),
}
