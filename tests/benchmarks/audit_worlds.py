"""How often the audit finds a planted bias, and how often it finds something where nothing is wrong.

    python tests/benchmarks/audit_worlds.py [--seeds 100]

In each world a thousand users take items by popularity, and lists hold some of what they take. Both are drawn here, by
numpy alone; only `evaluation.audit` is the project's. An audit has four columns of users and one of items.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from evaluation.audit import LEVEL, audit
from evaluation.holdout import Events
from evaluation.metrics import ItemSets, Targets

USERS, ITEMS, K, PAST, TAKEN, PROVIDERS = 1000, 100, 10, 10, 2, 5
SHARES = {
    "one small": [0.88, 0.12],
    "five": [0.3, 0.3, 0.2, 0.15, 0.05],
    "ten": [0.1] * 10,
    "mostly missing": [0.7, 0.2, 0.07, 0.03],
}  # column of users -> how large its groups are
HITS = (0.05, 0.35, 0.93)  # chance that an item that is taken was listed
BIASES = {
    "nothing is wrong": None,
    "half as many hits for 12 %": ("one small", "NDCG@10"),
    "popular items for 12 %": ("one small", "popularity_lift@10"),
    "the same list for 12 %": ("one small", "coverage@10"),
    "half the exposure for a provider": ("provider", "exposure@10"),
}  # bias -> column and a figure where it must be found


class World:
    """People, what they had, what they take, and lists that hold some of it.

    Items come in fives that are alike, one of each provider.
    """

    def __init__(self, seed: int, hit: float) -> None:
        self.rng = np.random.default_rng(seed)
        rank = 1 + np.arange(ITEMS) // PROVIDERS
        self.liking = np.log(1 / rank**0.7)
        self.provider = np.arange(ITEMS) % PROVIDERS
        self.columns = {
            name: self.rng.choice(len(shares), USERS, p=shares) for name, shares in SHARES.items()
        }
        self.is_small = self.columns["one small"] == 1
        self.past = self.draw(np.broadcast_to(self.liking, (USERS, ITEMS)), PAST)
        self.taken = self.draw(np.broadcast_to(self.liking, (USERS, ITEMS)), TAKEN)
        self.hit = np.full(USERS, hit)
        self.appeal = np.broadcast_to(self.liking, (USERS, ITEMS)).copy()

    def draw(self, appeal: np.ndarray, n: int) -> np.ndarray:
        """Draw distinct items of each user, the first drawn first, (U, n)."""
        lot = appeal + self.rng.gumbel(size=appeal.shape)
        return np.argsort(-lot, axis=1)[:, :n]

    def plant(self, bias: str) -> None:
        """Make the lists of some users worse, or those of all hold less of a provider."""
        if bias.startswith("half as many"):
            self.hit[self.is_small] /= 2
        elif bias.startswith("popular"):
            self.appeal[self.is_small] *= 2.2
        elif bias.startswith("the same"):
            self.appeal[self.is_small] += 2 * self.rng.gumbel(size=ITEMS)
        elif bias.startswith("half the"):
            self.appeal[:, self.provider == 1] -= np.log(2)

    def recommend(self) -> np.ndarray:
        """Draw lists (U, K), and let them have what is taken with the chance of a hit."""
        rows = np.arange(USERS)
        appeal = self.appeal.copy()
        for items in self.taken.T:
            is_hit = self.rng.random(USERS) < self.hit
            appeal[rows, items] += np.where(is_hit, 6.0, -6.0)
        return self.draw(appeal, K)

    def audit(self) -> list[dict]:
        users = np.arange(USERS)
        targets = ItemSets.group(np.repeat(users, TAKEN), self.taken.ravel(), USERS)
        past = Events(np.repeat(users, PAST), self.past.ravel(), None, USERS, ITEMS)
        items = {"provider": self.provider}
        return audit(self.recommend(), Targets(targets, users), past, self.columns, items)


def find(bias: str, seed: int, hit: float) -> set[tuple[str, str, str]]:
    """Return column, group and figure of what the audit of a world finds."""
    world = World(seed, hit)
    world.plant(bias)
    return {
        (record["column"], record["group"], record["figure"])
        for record in world.audit()
        if record["p"] <= LEVEL
    }


def main() -> int:
    """Print how many audits of each kind find what is there; return 1 outside the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    n_seeds = parser.parse_args().seeds
    is_good = True
    print("| world | found | of | something else found |\n|---|---|---|---|")
    for bias, place in BIASES.items():
        n_found = n_else = 0
        for seed in range(n_seeds):
            hit = HITS[seed % len(HITS)] if place is None else HITS[1]
            found = find(bias, seed, hit)
            if place is None:
                n_found += bool(found)
                continue
            column, figure = place
            n_found += (column, "1", figure) in found
            n_else += any(one[0] != column for one in found)
        print(f"| {bias} | {n_found} | {n_seeds} | {n_else} |", flush=True)
        is_good &= n_found <= 0.05 * n_seeds if place is None else n_found >= 0.95 * n_seeds
    return int(not is_good)


if __name__ == "__main__":
    sys.exit(main())
