"""How often `bascule gate watch` rolls back equal versions, and versions that halve conversion.

    python tests/benchmarks/watch_worlds.py [--shops 30]

Six kinds of visitors, `--shops` of each, looked at every second day for four weeks after the change. Visits and
purchases are drawn here, by numpy alone; only `compare_versions` and the rule of `watch` are the project's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
from evaluation.watch import compare_versions

DAY, START, TOLERANCE = 86_400, 1_700_000_000, 0.05
CHANGE, N_DAYS = 28, 56
KINDS = {  # users, and the chance that a list of somebody is followed, by how likely they come on a day
    "falls with activity": (3000, lambda activity: 0.4 * (1 - activity)),
    "falls with its square": (3000, lambda activity: 0.4 * (1 - activity) ** 2),
    "falls with its 4th power": (3000, lambda activity: 0.4 * (1 - activity) ** 4),
    "alike": (3000, lambda activity: np.full(len(activity), 0.2)),
    "rises with activity": (3000, lambda activity: 0.1 + 0.4 * activity),
    "few users": (600, lambda activity: 0.4 * (1 - activity) ** 4),
}


def draw_shop(rng: np.random.Generator, kind: str, lift: float) -> pd.DataFrame:
    """Draw lists: `old` before the day of the change, `new`, whose conversion is `lift` times as much, after it."""
    n_users, chance = KINDS[kind]
    activity = rng.beta(1, 6, n_users)
    days, users = np.nonzero(rng.random((N_DAYS, n_users)) < activity)
    is_new = days >= CHANGE
    bought = rng.random(len(days)) < chance(activity)[users] * np.where(is_new, lift, 1.0)
    return pd.DataFrame(
        {
            "list": np.arange(len(days)),
            "user_id": users.astype(str),
            "conversions": bought.astype(float),
            "datetime": START + days * DAY,
            "version": np.where(is_new, "new", "old"),
            "arm": None,
        }
    )


def find_rollback(slots: pd.DataFrame) -> int | None:
    """Return the day after the change of the look that rolls back."""
    for day in range(CHANGE + 2, N_DAYS, 2):
        known = slots[slots["datetime"] <= START + day * DAY]
        found = compare_versions(known, "old", "new", "conversions")
        if found is not None and found.high < -TOLERANCE * found.control:
            return day - CHANGE
    return None


def main() -> int:
    """Print, for each kind, how many were rolled back and on which day; return 1 outside the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shops", type=int, default=30)
    n_shops = parser.parse_args().shops
    n_equal_back = 0
    worst_found = 1.0
    print("| visitors | equal, rolled back | halved, rolled back | median day |\n|---|---|---|---|")
    for number, kind in enumerate(KINDS):
        days = {}
        for lift in (1.0, 0.5):
            rng = np.random.default_rng([number, int(lift * 10)])
            days[lift] = [find_rollback(draw_shop(rng, kind, lift)) for _ in range(n_shops)]
        n_equal, n_halved = (sum(day is not None for day in days[lift]) for lift in (1.0, 0.5))
        n_equal_back += n_equal
        worst_found = min(worst_found, n_halved / n_shops)
        day = np.median([day for day in days[0.5] if day is not None] or [0])
        print(
            f"| {kind} | {n_equal} of {n_shops} | {n_halved} of {n_shops} | {day:.0f} |", flush=True
        )
    return int(n_equal_back > 0.05 * n_shops * len(KINDS) or worst_found < 0.8)


if __name__ == "__main__":
    sys.exit(main())
