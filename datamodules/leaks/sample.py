"""The training rows that leaks are looked for in: whole users, half to guess from and half to measure on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.clean import TARGET_WEIGHT
from datamodules.splits import Split

MOST_ROWS = 200_000
"""A sample of so many rows tells a share to well under one percent."""
MOST_ROWS_PER_USER = 2_000
"""So that one robot among the users is not the whole sample."""

_SEED = 0


@dataclass(frozen=True)
class Neighbours:
    """Pairs of rows that follow each other in some order, in both directions."""

    row: NDArray[np.int64]
    other: NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """n training rows of whole users; users and items as numbers from 0."""

    rows: pd.DataFrame
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    is_learnt: NDArray[np.bool_]
    """The rows of one half of the users: guesses are learnt from them and measured on the others."""
    is_target: NDArray[np.bool_] | None
    """None where nothing is declared about targets."""
    neighbours: tuple[Neighbours, ...]
    """By user and, where there is a time, by the time alone. Neighbours share what a request knows before the choice
    (the person, the place, the moment), but not the item chosen."""


def draw_sample(split: Split) -> Sample:
    """Draw users by a fixed seed until `MOST_ROWS` are reached."""
    rng = np.random.default_rng(_SEED)
    rows = _draw_rows(split.refit, rng)
    user, users = pd.factorize(rows["user_id"], sort=True)
    item, items = pd.factorize(rows["item_id"], sort=True)
    is_learnt = rng.permutation(len(users)) < len(users) // 2
    rank = rng.permutation(len(items))[item]  # at one time rows stand in any order, but not in that of the item
    keys = [rank, *(rows[name].to_numpy() for name in order_columns(rows))]
    neighbours = [_pair_up(np.lexsort([*keys, user]), item, user)]
    if "datetime" in rows:
        neighbours.append(_pair_up(np.lexsort(keys), item, np.zeros(len(rows), np.int64)))
    is_target = rows[TARGET_WEIGHT].to_numpy() > 0 if TARGET_WEIGHT in rows else None
    return Sample(rows, user, item, is_learnt[user], is_target, tuple(neighbours))


def order_columns(rows: pd.DataFrame) -> list[str]:
    """Return the column that orders a user's rows, if there is one."""
    return [name for name in ("datetime", "position") if name in rows][:1]


def _draw_rows(rows: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    user, users = pd.factorize(rows["user_id"], sort=True)
    keys = [rows[name].to_numpy() for name in order_columns(rows)]
    order = np.lexsort([*keys, user])
    size = np.bincount(user, minlength=len(users))
    place = np.arange(len(rows)) - (np.cumsum(size) - size)[user[order]]
    drawn = rng.permutation(len(users))
    total = np.cumsum(np.minimum(size, MOST_ROWS_PER_USER)[drawn])
    is_drawn = np.isin(user[order], drawn[total <= MOST_ROWS]) & (place < MOST_ROWS_PER_USER)
    return rows.iloc[order[is_drawn]]


def _pair_up(order: NDArray[np.intp], item: NDArray[np.int64], group: NDArray[np.int64]) -> Neighbours:
    """Pair each row with those before and after it in its group, where the item is another."""
    left, right = order[:-1], order[1:]
    is_pair = (group[left] == group[right]) & (item[left] != item[right])
    left, right = left[is_pair], right[is_pair]
    return Neighbours(np.concatenate([left, right]), np.concatenate([right, left]))
