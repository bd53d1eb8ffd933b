"""Columns of users that were made from events of the test, such as the last item bought as of today.

A column may well say what the user had before the test, and so also what she has again: training events tell that.
What it says beyond them, more often than chance, it knows from the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.clean import find_rows
from datamodules.config import DataConfig, FeatureConfig
from datamodules.leaks.codes import MISSING, code_cells, list_tokens
from datamodules.leaks.leak import Leak
from datamodules.leaks.power import count_pairs, gain
from datamodules.leaks.tested import ItemNames, Tested, draw_tested, list_item_names
from datamodules.splits import Split
from datamodules.tables import Tables

MIN_USERS = 30
"""With fewer users whose value no training event explains, nothing is said: chance then moves a share by up to 9 %."""
FOREKNOWS = 0.5
"""Named where the test bears out half of what chance leaves open: more than a declared taste or a wish list does."""


def find_user_leaks(tables: Tables, split: Split, config: DataConfig) -> Iterator[Leak]:
    """Judge each user feature by what it tells of the held-out items that training events do not."""
    features = {str(feature.column): feature for feature in config.features.of("user").values()}
    if not features:
        return
    tested = draw_tested(split)
    names = list_item_names(tables.items, tested, config)
    users = find_rows(tables.users, "user_id", tested.user_ids)
    for column, feature in features.items():
        if feature.kind != "vector":
            leak = _match_names(column, feature, users[column], names) or _guess(column, users[column], tested)
            yield from (leak,) if leak else ()


def _match_names(
    column: str, feature: FeatureConfig, cells: pd.Series[Any], item_names: list[ItemNames]
) -> Leak | None:
    """Compare values of users with what their held-out items are called, where no training item is called so."""
    told = list_tokens(pd.Series(np.arange(len(cells))), cells.reset_index(drop=True), feature)
    best, leak = FOREKNOWS, None
    for names in item_names:
        user, name = told["id"].to_numpy(np.int64), names.find(told["token"])
        is_new = (name != MISSING) & ~names.is_had_before(user, name)
        user, name = user[is_new], name[is_new]
        if len(np.unique(user)) < MIN_USERS:
            continue
        share, chance = float(names.is_had_in_test(user, name).mean()), float(names.chance(user, name).mean())
        if gain(share, chance) >= best:
            best = gain(share, chance)
            message = (
                f"users.{column} is made from the test: of its {len(user):,} values that no training event of the user "
                f"explains, {share:.1%} are the {names.column} of one of her held-out items ({chance:.1%} by chance); "
                "make it from training events alone"
            )
            leak = Leak("made from the test", "users", column, best, message)
    return leak


def _guess(column: str, cells: pd.Series[Any], tested: Tested) -> Leak | None:
    """Learn which held-out item goes with a value from half of the users, and say how true it is of the others."""
    codes = code_cells(cells)
    ahead = _guess_gain(codes, tested.test_user, tested.test_item, tested.is_learnt)
    if ahead < FOREKNOWS:
        return None
    behind = max(_guess_gain(codes, tested.before_user, tested.before_item, tested.is_learnt), 0.0)
    if ahead - behind < FOREKNOWS:
        return None
    message = (
        f"users.{column} is made from the test: users of the same value share a held-out item, which it tells "
        f"{ahead:.0%} of the way from chance to certainty (a training item: {behind:.0%}); make it from training "
        "events alone"
    )
    return Leak("made from the test", "users", column, ahead, message)


def _guess_gain(
    codes: NDArray[np.int64], user: NDArray[np.int64], item: NDArray[np.int64], is_learnt: NDArray[np.bool_]
) -> float:
    """Return how well one item per value is guessed, from chance (0) to certainty (1).

    Args:
        codes: value of each user.
        user: of each distinct pair.
        item: of each distinct pair.
        is_learnt: of each user.
    """
    code, learnt = codes[user], is_learnt[user] & (codes[user] != MISSING)
    measured = ~is_learnt[user] & np.isin(code, code[learnt])
    if len(np.unique(user[measured])) < MIN_USERS:
        return 0.0
    width = int(item.max()) + 1
    frequency = np.bincount(item[learnt], minlength=width) / len(np.unique(user[learnt]))
    guess = _guess_item(code[learnt], user[learnt], item[learnt], frequency)
    owner = np.unique(user[measured])
    guessed = guess[codes[owner]]
    hits = np.isin(owner * width + guessed, user[measured] * width + item[measured])
    return gain(float(hits.mean()), float(frequency[guessed].mean()))


def _guess_item(
    code: NDArray[np.int64], user: NDArray[np.int64], item: NDArray[np.int64], frequency: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return for each code the item whose share of users exceeds its share among all users by most."""
    pairs = count_pairs(code, item)
    n_users = np.bincount(code[np.unique(user, return_index=True)[1]], minlength=int(code.max()) + 1)
    excess = pairs.count / n_users[pairs.left] - frequency[pairs.right]
    order = np.lexsort((-excess, pairs.left))[::-1]
    guess = np.zeros(len(n_users), np.int64)
    guess[pairs.left[order]] = pairs.right[order]  # the last write is the greatest excess
    return guess
