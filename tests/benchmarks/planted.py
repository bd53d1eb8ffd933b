"""What a configuration that names only the data makes of tastes that are planted, beside its own baselines.

    OMP_NUM_THREADS=1 python tests/benchmarks/planted.py [--only sessions] [--seeds 0 1]

In these sets the order of a user's events says nothing (`sessions`, `tastes`), or what is popular changes (`fashion`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from datamodules.config import DataConfig, SplitConfig  # noqa: E402
from serve.events import DAY  # noqa: E402

METRIC = "NDCG@10"
BEGIN = 1_700_006_400
"""A midnight."""
FASHION_DAYS, FASHION_TEST = 365, 351

Rng = np.random.Generator
Planted = tuple[pd.DataFrame, SplitConfig]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    for name in args.only:
        for seed in args.seeds:
            events, split = SETS[name](np.random.default_rng(seed))
            print(f"{name}, seed {seed}, {len(events):,} events: {compare(events, split, seed)}")


def compare(events: pd.DataFrame, split: SplitConfig, seed: int) -> str:
    """Train, and say how Bascule ranks the test, and how far it is ahead of each baseline."""
    users, items = (pd.DataFrame({name: events[name].unique()}) for name in ("user_id", "item_id"))
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"enable_progress_bar": False}
        config = train.Config(DataConfig(split=split), trainer=quiet, out=Path(folder) / "run", seed=seed)
        metrics = train.run(config, (events, users, items)).metrics
    leads = [
        f"{name} {metrics['test'][name]['novel'][METRIC]:.4f} ({lead['novel'][METRIC]:+.4f}, "
        "{:+.4f} to {:+.4f})".format(*lead["novel"][f"{METRIC}_ci95"])
        for name, lead in metrics["paired"].items()
    ]
    return f"{METRIC} {metrics['test']['bascule']['novel'][METRIC]:.4f}; {', '.join(leads)}"


def plant_sessions(rng: Rng) -> Planted:
    """9,000 visitors of two to four events, each most often among the ten items of one of 200 tastes."""
    taste, popularity = rng.integers(0, 200, 2000), rng.permutation(fall(2000, 0.6))
    chances = [0.85 * share(popularity * (taste == one)) + 0.15 * popularity for one in range(200)]
    users = [(chances[rng.integers(200)], n) for n in rng.integers(2, 5, 9000)]
    return take_by_taste(users, rng), SplitConfig("leave_one_out")


def plant_tastes(rng: Rng) -> Planted:
    """150 users of some twelve events, each by one of four popularities of 120 items."""
    chances = [rng.permutation(fall(120, 0.9)) for _ in range(4)]
    users = [(chances[rng.integers(4)], n) for n in rng.poisson(12, 150).clip(3, 30)]
    return take_by_taste(users, rng), SplitConfig("leave_one_out")


def plant_fashion(rng: Rng) -> Planted:
    """500 users through a year in which each of 500 items is in fashion for some weeks; the test is its last days."""
    peaks, popularity = rng.uniform(-20, 385, 500), rng.permutation(fall(500, 0.7))
    rows = []
    for user, n in enumerate(rng.poisson(15, 500).clip(3, 50)):
        owned: list[int] = []
        for day in np.sort(rng.uniform(0, FASHION_DAYS, n)):
            chances = popularity * (np.exp(-(((day - peaks) / 20) ** 2)) + 0.002)
            chances[owned] = 0
            owned.append(int(rng.choice(500, p=share(chances))))
            rows.append((user, owned[-1], BEGIN + int(day * DAY)))
    at = pd.Timestamp(BEGIN + FASHION_TEST * DAY, unit="s").date().isoformat()
    return make_frame(rows), SplitConfig("time", at=at)


def take_by_taste(users: list[tuple[np.ndarray, int]], rng: Rng) -> pd.DataFrame:
    """Let each user take some items by the chances (N,) that she has, in no order, a minute apart."""
    rows = []
    for user, (chances, n) in enumerate(users):
        begin = BEGIN + rng.integers(100 * DAY)
        taken = rng.choice(len(chances), size=n, replace=False, p=chances)
        rows += [(user, int(item), int(begin + 60 * i)) for i, item in enumerate(taken)]
    return make_frame(rows)


def fall(n: int, power: float) -> np.ndarray:
    """Return chances that fall by a power of the rank, (n,)."""
    return share(1 / np.arange(1, n + 1) ** power)


def share(weights: np.ndarray) -> np.ndarray:
    chances: np.ndarray = weights / weights.sum()
    return chances


def make_frame(rows: list[tuple[int, int, int]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])


SETS: dict[str, Callable[[Rng], Planted]] = {
    "sessions": plant_sessions,
    "tastes": plant_tastes,
    "fashion": plant_fashion,
}

if __name__ == "__main__":
    main()
