"""What tested users had before the test and in it, and what those items are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.clean import find_rows
from datamodules.config import DataConfig, FeatureConfig
from datamodules.leaks.codes import MISSING, list_tokens
from datamodules.splits import Split

MOST_USERS = 20_000
"""A sample of so many tested users tells a share to under one percent."""

_SEED = 0


@dataclass(frozen=True)
class Tested:
    """Tested users and the distinct pairs of user and item, by their places in `user_ids` and `item_ids`."""

    user_ids: NDArray[Any]
    item_ids: NDArray[Any]
    before_user: NDArray[np.int64]
    before_item: NDArray[np.int64]
    test_user: NDArray[np.int64]
    test_item: NDArray[np.int64]
    is_learnt: NDArray[np.bool_]
    """The half of the users from whom guesses are learnt."""


@dataclass(frozen=True)
class ItemNames:
    """One column that items may be called by, as pairs of user and name: what each user had of which name."""

    column: str
    names: pd.Index[Any]
    before: NDArray[np.int64]
    """Ascending keys user * number of names + name."""
    test: NDArray[np.int64]
    frequency: NDArray[np.float64]
    """Share of all held-out items that have each name."""
    n_items: NDArray[np.int64]
    """Distinct held-out items of each user."""

    def find(self, tokens: pd.Series[Any]) -> NDArray[np.int64]:
        """Return the place of each token among the names; `MISSING` where it is none."""
        return self.names.get_indexer(pd.Index(tokens)).astype(np.int64)

    def is_had_before(self, user: NDArray[np.int64], name: NDArray[np.int64]) -> NDArray[np.bool_]:
        return _is_in(user * len(self.names) + name, self.before)

    def is_had_in_test(self, user: NDArray[np.int64], name: NDArray[np.int64]) -> NDArray[np.bool_]:
        return _is_in(user * len(self.names) + name, self.test)

    def chance(self, user: NDArray[np.int64], name: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return how likely the user's test has the name if her items were drawn from those of all."""
        chance: NDArray[np.float64] = 1 - (1 - self.frequency[name]) ** self.n_items[user]
        return chance


def draw_tested(split: Split) -> Tested:
    """Draw tested users by a fixed seed; without a test, validation is in its place."""
    before, test = (split.refit, split.test) if len(split.test) else (split.train, split.validation)
    rng = np.random.default_rng(_SEED)
    users = pd.Index(np.sort(rng.permutation(np.unique(test["user_id"].to_numpy()))[:MOST_USERS]))
    items = pd.Index(np.unique(np.concatenate([before["item_id"].to_numpy(), test["item_id"].to_numpy()])))
    pairs = [_distinct_pairs(rows, users, items) for rows in (before, test)]
    is_learnt = rng.permutation(len(users)) < len(users) // 2
    return Tested(users.to_numpy(), items.to_numpy(), *pairs[0], *pairs[1], is_learnt)


def list_item_names(items: pd.DataFrame, tested: Tested, config: DataConfig) -> list[ItemNames]:
    """Return the names of items by their id and by each of their features but vectors."""
    ids = pd.Series(tested.item_ids)
    features = {str(one.column): one for one in config.features.of("item").values()}
    known = find_rows(items, "item_id", tested.item_ids)
    columns = {"item_id": (ids, FeatureConfig("categorical"))} | {
        column: (known[column].reset_index(drop=True), feature)
        for column, feature in features.items()
        if feature.kind != "vector"
    }
    return [_name_items(column, cells, feature, tested) for column, (cells, feature) in columns.items()]


def _distinct_pairs(
    rows: pd.DataFrame, users: pd.Index[Any], items: pd.Index[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    user = users.get_indexer(pd.Index(rows["user_id"]))
    is_drawn = user != MISSING
    item = items.get_indexer(pd.Index(rows["item_id"][is_drawn]))
    keys = np.unique(user[is_drawn] * len(items) + item)
    return keys // len(items), keys % len(items)


def _name_items(column: str, cells: pd.Series[Any], feature: FeatureConfig, tested: Tested) -> ItemNames:
    tokens = list_tokens(pd.Series(np.arange(len(cells))), cells, feature).sort_values("id", kind="stable")
    name, names = pd.factorize(tokens["token"])
    start = np.searchsorted(tokens["id"].to_numpy(np.int64), np.arange(len(cells) + 1))

    def keys_of(user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        count = np.diff(start)[item]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start[item], count)
        keys: NDArray[np.int64] = np.repeat(user, count) * len(names) + name[place]
        return keys

    in_test = keys_of(tested.test_user, tested.test_item)
    return ItemNames(
        column,
        pd.Index(names),
        np.sort(keys_of(tested.before_user, tested.before_item)),
        np.sort(in_test),
        np.bincount(in_test % max(len(names), 1), minlength=len(names)) / max(len(tested.test_user), 1),
        np.bincount(tested.test_user, minlength=len(tested.user_ids)),
    )


def _is_in(keys: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(ascending, keys), len(ascending) - 1)
    is_there: NDArray[np.bool_] = ascending[place] == keys
    return is_there
