"""What the gate lets through, of versions whose worth is known, by which events it is judged by.

    python tests/benchmarks/gate_worlds.py [--shops 20]

In each shop people take items from lists of the current version and, on other visits, of what they come across; nobody
takes an item twice. The truth is what the first ten of a list are worth to them when the test begins. Shops, versions
and NDCG are made here, by numpy alone; what is the project's is which events decide, and the bound that lets pass.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from evaluation.guardrails import Change, check_quality
from evaluation.online import find_unprompted

USERS, ITEMS, K, LIKED, MET = 4000, 150, 10, 2.2, 30
VISITS, WITH_LIST = 4, 0.5  # of a user in the days of the test; how many begin with a list
DISCOUNT = 1 / np.log2(np.arange(K) + 2)
NOISE = 0.9  # that versions share, of the scores; of their own the current one has .5
CANDIDATES = {
    "better": 0.2,
    "a little better": 0.35,
    "equal": 0.63,
    "a little worse": 0.75,
    "worse": 0.9,
}
RULES = ("all", "without a list", "before a list")


def rank(scores: np.ndarray) -> np.ndarray:
    """Return the K best items of each user, (U, K)."""
    best = np.argpartition(-scores, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
    return np.take_along_axis(best, order, 1)


def weigh(values: np.ndarray, lists: np.ndarray) -> np.ndarray:
    """Return what the lists of users hold of values (U, N), earlier places more, (U,)."""
    total: np.ndarray = (np.take_along_axis(values, lists, 1) * DISCOUNT).sum(axis=1)
    return total


class Shop:
    """People, the current version, and what they did in the days of the test."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        taste = self.rng.normal(0, 0.8, (USERS, 6)) @ self.rng.normal(0, 0.8, (6, ITEMS))
        liking = taste + self.rng.normal(0, 0.8, ITEMS)
        self.chance = 1 / (1 + np.exp(LIKED - liking))
        self.scores = liking + self.rng.normal(0, NOISE, liking.shape)
        self.current = self.draw_version(0.5)
        self.events: list[tuple[int, int, int, bool]] = []  # user, item, time, whether from a list
        self.shown: list[tuple[str, int]] = []  # user, time
        taken = np.zeros(liking.shape, bool)
        for _ in range(2):  # lists before the test
            self.show(taken, np.arange(USERS), None)
        self.known = taken.copy()
        for time in range(VISITS):
            has_list = self.rng.random(USERS) < WITH_LIST
            self.show(taken, np.flatnonzero(has_list), 10 * time)
            self.browse(taken, np.flatnonzero(~has_list), 10 * time)

    def draw_version(self, noise: float) -> np.ndarray:
        scores: np.ndarray = self.scores + self.rng.normal(0, noise, self.scores.shape)
        return scores

    def show(self, taken: np.ndarray, users: np.ndarray, time: int | None) -> None:
        """Let users take from lists of the current version."""
        lists = rank(np.where(taken, -np.inf, self.current))[users]
        looked = self.chance[users[:, None], lists] * DISCOUNT
        rows, places = np.nonzero(self.rng.random(lists.shape) < looked)
        taken[users[rows], lists[rows, places]] = True
        if time is not None:
            self.shown += [(str(user), time) for user in users]
            for row, place in zip(rows, places, strict=True):
                self.events.append((int(users[row]), int(lists[row, place]), time + 1, True))

    def browse(self, taken: np.ndarray, users: np.ndarray, time: int) -> None:
        """Let users come across items, whatever the versions think of them."""
        met = self.rng.random((len(users), ITEMS)).argsort(axis=1)[:, :MET]
        is_free = ~taken[users[:, None], met]
        is_taken = is_free & (self.rng.random(met.shape) < self.chance[users[:, None], met])
        for row, place in zip(*np.nonzero(is_taken), strict=True):
            taken[users[row], met[row, place]] = True
            self.events.append((int(users[row]), int(met[row, place]), time + 1, False))

    def judge(self, candidate: np.ndarray) -> tuple[float, dict[str, tuple[float, bool]]]:
        """Return the true change, and by each rule the measured one and whether it passes."""
        lists = [
            rank(np.where(self.known, -np.inf, scores)) for scores in (self.current, candidate)
        ]
        before, after = (weigh(self.chance, each).mean() for each in lists)
        table = pd.DataFrame(self.events, columns=["user_id", "item_id", "datetime", "listed"])
        shown = pd.DataFrame(self.shown, columns=["user_id", "datetime"])
        kept = {
            "all": np.ones(len(table), bool),
            "without a list": ~table["listed"].to_numpy(),
            "before a list": find_unprompted(table, shown, 0).to_numpy(),
        }
        found = {}
        for rule, is_kept in kept.items():
            targets = np.zeros(self.known.shape)
            targets[table["user_id"][is_kept], table["item_id"][is_kept]] = 1
            users = targets.any(axis=1)
            n_targets = targets[users].sum(axis=1).astype(int)
            ideal = np.cumsum(DISCOUNT)[np.minimum(n_targets, K) - 1]
            old, new = (weigh(targets, each)[users] / ideal for each in lists)
            check = check_quality(Change(old, new - old), 0.05)
            found[rule] = (float(new.mean() / old.mean() - 1), check.is_passed)
        return float(after / before - 1), found


def main() -> int:
    """Print a table; return 1 where better ones are stopped, or worse ones pass, by events before a list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shops", type=int, default=20)
    n_shops = parser.parse_args().shops
    results: dict[str, list[tuple[float, dict[str, tuple[float, bool]]]]] = {}
    for seed in range(n_shops):
        shop = Shop(seed)
        for name, noise in CANDIDATES.items():
            results.setdefault(name, []).append(shop.judge(shop.draw_version(noise)))
    print(f"| candidate | truly | {' | '.join(f'{rule}: measured, passed' for rule in RULES)} |")
    shares = {}
    for name, judged in results.items():
        words = [f"{100 * np.mean([truth for truth, _ in judged]):+.1f} %"]
        for rule in RULES:
            changes, passed = zip(*(found[rule] for _, found in judged), strict=True)
            shares[name, rule] = np.mean(passed)
            words.append(f"{100 * np.mean(changes):+.1f} %, {sum(passed)} of {n_shops}")
        print(f"| {name} | {' | '.join(words)} |", flush=True)
    rule = RULES[-1]
    is_fair = shares["better", rule] >= 0.9 and shares["equal", rule] >= 0.75
    return int(not is_fair or shares["worse", rule] > 0.1)


if __name__ == "__main__":
    sys.exit(main())
