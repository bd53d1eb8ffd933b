"""Whether lists follow a season: the share of two departments of a planted shop, month by month.

python tests/benchmarks/season.py [--kind week_of_year] [--categories] [--repeats allow] [--seed 1]

40,000 events of two years, 640 items in eight departments. Garden is taken 2.5 times as often in
May, kitchen in December. Printed are the shares in lists of thirty, for nobody in particular and
for known users, at the middle of each month of the year after.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))

import bascule

DEPARTMENTS = ("garden", "kitchen", "books", "toys", "clothes", "pets", "tools", "sports")
PEAKS = {"garden": 5, "kitchen": 12}  # department -> its month
LIFT = 2.5
N_USERS, N_ITEMS, N_EVENTS, N_DAYS = 1600, 640, 40_000, 731
N_ASKED, K = 300, 30


def make_shop(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw events by the tastes of users for departments, which the months of peaks change."""
    rng = np.random.default_rng(seed)
    activity = rng.gamma(2.0, size=N_USERS)
    users = rng.choice(N_USERS, N_EVENTS, p=activity / activity.sum())
    seconds = np.sort(rng.integers(N_DAYS * 86_400, size=N_EVENTS))
    times = pd.Timestamp("2023-01-01") + pd.to_timedelta(seconds, unit="s")
    shares = rng.dirichlet(np.ones(len(DEPARTMENTS)), N_USERS)[users]  # (E, departments)
    for number, name in enumerate(DEPARTMENTS):
        rows = np.flatnonzero(times.month == PEAKS.get(name))
        usual = shares[rows, number]
        lifted = np.minimum(LIFT * usual, 0.95)
        shares[rows] *= ((1 - lifted) / (1 - usual))[:, None]
        shares[rows, number] = lifted

    drawn = shares.cumsum(axis=1) < rng.random((N_EVENTS, 1))
    chosen = np.minimum(drawn.sum(axis=1), len(DEPARTMENTS) - 1)
    popularity = rng.pareto(1.5, N_ITEMS) + 0.2
    departments = np.arange(N_ITEMS) % len(DEPARTMENTS)
    items = np.empty(N_EVENTS, int)
    for number in range(len(DEPARTMENTS)):
        known = np.flatnonzero(departments == number)
        rows = np.flatnonzero(chosen == number)
        weights = popularity[known] / popularity[known].sum()
        items[rows] = rng.choice(known, len(rows), p=weights)

    events = pd.DataFrame({"user_id": users, "item_id": items, "datetime": times})
    names = np.array(DEPARTMENTS)[departments]
    return events, pd.DataFrame({"item_id": np.arange(N_ITEMS), "department": names})


def count_shares(lists: pd.DataFrame, items: pd.DataFrame) -> pd.Series:
    """Return the share of each department in lists."""
    named = lists["item_id"].astype(int).map(items.set_index("item_id")["department"])
    return named.value_counts(normalize=True).reindex(DEPARTMENTS, fill_value=0.0)


def show(shares: pd.DataFrame, who: str) -> None:
    """Print the share of each peak in its month, elsewhere, and their ratio."""
    for name, month in PEAKS.items():
        rest = shares[name].drop(month).mean()
        peak = shares[name][month]
        print(f"{who}, {name}: {peak:.3f} in its month, {rest:.3f} else, {peak / rest:.2f}-fold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="month_of_year")
    parser.add_argument("--categories", action="store_true", help="items have their department")
    parser.add_argument("--split", default="none")
    parser.add_argument("--repeats", default="exclude")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    events, items = make_shop(options.seed)
    by_month = [count_shares(rows, items) for _, rows in events.groupby(events.datetime.dt.month)]
    show(pd.DataFrame(by_month, index=range(1, 13)), "events")
    features: dict = {"context": {"season": {"kind": options.kind, "column": "datetime"}}}
    if options.categories:
        features["item"] = {"department": "categorical"}
    recommender = bascule.fit(
        events,
        items=items if options.categories else None,
        features=features,
        split={"kind": options.split},
        repeats=options.repeats,
        seed=options.seed,
    )
    known = np.sort(events["user_id"].unique())[:N_ASKED].tolist()
    for who, users in (("nobody", [{}]), ("known", [{"user_id": user} for user in known])):
        by_month = []
        for month in range(1, 13):
            at = {"datetime": f"2025-{month:02d}-15T12:00:00Z"}
            lists = recommender.recommend([user | at for user in users], k=K).to_pandas()
            by_month.append(count_shares(lists, items))
        show(pd.DataFrame(by_month, index=range(1, 13)), who)


if __name__ == "__main__":
    main()
