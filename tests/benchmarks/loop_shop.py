"""The simulated shop of loop.py: people with known tastes, fashions, and items that come each week.

To about a seventh of the people lists are shown. The others come by other channels and never get one; some of both are
newcomers of each week. Nobody takes an item twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

PEOPLE = 2_000
"""At the beginning."""
NEWCOMERS = 50
"""People who come for the first time, each week."""
LISTED = 0.15
"""Share of the people to whom lists are shown."""
GENRES = 8
TASTE = 1.7
"""Standard deviation of what people think of a genre; at 1.3 one list for all may win the first validation."""
ITEMS = 120
NEW = 12
"""Items that come each week."""
MET = 20
"""Items that people come across on a visit without a list."""
COMES = 0.6
"""Chance that somebody to whom lists are shown comes in a turn."""
COMES_AGAIN = 0.9
"""The same, after a visit on which something was taken."""
OTHERS_COME = 0.4
"""The same, of everybody else."""
WEEK = 7 * 86_400
PAST = 4
"""Weeks of data before the first."""


class Shop:
    """People, items and what they like; weeks count from the first one of the services.

    Attributes:
        born: week in which an item comes, (N,).
        arrives: week in which a person comes for the first time, (U,).
        is_listed: whether lists are shown to a person, (U,).
    """

    def __init__(self, seed: int, n_weeks: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        n_items = ITEMS + NEW * n_weeks
        n_people = PEOPLE + NEWCOMERS * n_weeks
        weeks = np.arange(n_weeks)
        self.born = np.concatenate([np.full(ITEMS, -PAST), np.repeat(weeks, NEW)])
        self.arrives = np.concatenate([np.full(PEOPLE, -PAST), np.repeat(weeks, NEWCOMERS)])
        self.is_listed = rng.random(n_people) < LISTED
        self.genre = rng.integers(GENRES, size=n_items)
        self.quality = rng.normal(0, 0.8, n_items)
        self.taste = rng.normal(0, TASTE, (n_people, GENRES))
        self.fashion = np.cumsum(rng.normal(0, 0.45, (n_weeks + PAST, GENRES)), axis=0)
        self.start = int(time.time()) // 86_400 * 86_400 - WEEK * (n_weeks + 1)

    def like(self, week: int) -> np.ndarray:
        """Return the probability that a person takes an item they look at, (U, N)."""
        liking = self.taste[:, self.genre] + self.quality + self.fashion[week + PAST][self.genre]
        chance: np.ndarray = 1 / (1 + np.exp(2.2 - liking))
        return np.where(self.born <= week, chance, 0.0)

    def come(self, rng: np.random.Generator, week: int, is_pleased: np.ndarray) -> np.ndarray:
        """Tell who comes in a turn, (U,).

        Args:
            rng: draws.
            week: of the turn.
            is_pleased: whether a person took something the last time, (U,).
        """
        chance = np.where(is_pleased, COMES_AGAIN, COMES)
        chance = np.where(self.is_listed, chance, OTHERS_COME)
        return (rng.random(len(chance)) < chance) & (self.arrives <= week)

    def meet(
        self, rng: np.random.Generator, week: int, people: Sequence[int], owned: np.ndarray
    ) -> list[tuple[int, int]]:
        """Return people and the items that they take of those that they come across.

        Args:
            rng: draws.
            week: of the visit.
            people: who come.
            owned: what each person has, (U, N).
        """
        there = np.flatnonzero(self.born <= week)
        rows = np.asarray(people, np.int64)[:, None]
        places = rng.random((len(rows), len(there))).argpartition(MET, axis=1)[:, :MET]
        met = there[places]
        is_taken = (rng.random(met.shape) < self.like(week)[rows, met]) & ~owned[rows, met]
        takers, columns = np.nonzero(is_taken)
        return list(zip(rows[takers, 0].tolist(), met[takers, columns].tolist(), strict=True))

    def remember(self, rng: np.random.Generator) -> pd.DataFrame:
        """Return what people took in the weeks before the first, without any list."""
        owned = np.zeros((len(self.arrives), len(self.born)), bool)
        nobody = np.zeros(len(self.arrives), bool)
        parts = []
        for week in range(-PAST, 0):
            people = np.flatnonzero(self.come(rng, week, nobody))
            taken = self.meet(rng, week, people.tolist(), owned)
            events = pd.DataFrame(taken, columns=["user_id", "item_id"])
            owned[events["user_id"], events["item_id"]] = True
            seconds = rng.integers(WEEK, size=len(events))
            parts.append(events.assign(datetime=self.start + week * WEEK + seconds))
        return pd.concat(parts).sort_values("datetime")

    def items(self, week: int) -> pd.DataFrame:
        """Return the table of the items that there are."""
        there = np.flatnonzero(self.born <= week)
        genres = [f"genre {genre}" for genre in self.genre[there]]
        return pd.DataFrame({"item_id": there, "genre": genres})
