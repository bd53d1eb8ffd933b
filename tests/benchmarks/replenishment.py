"""Judge lists of what is due, and the days that they name, by what users took after the end of a training.

    python tests/benchmarks/replenishment.py --runs NAME=DIR ... [--k 10] [--json FILE]

DIR is the folder of a finished run whose test is split by time and whose data is where its
`config.yaml` says. Each user is asked at the beginning of the test, by the profile before it. A target is an item
that the user had taken on two days or more, and took again within the window. Precision: the share of a list that the
user took in the window, a mean over users with such items; recall: the share of the targets in the list, a mean over
users with targets. The error of a day is that of the first day on which the user took the item again, of all such
items until the data ends. Intervals: 1,000 bootstrap samples of users for days, Student's t for lists.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datamodules.clean import only_targets
from evaluation.metrics import summarise
from serve.clock import DAY
from serve.due import MIN_DAYS, find_due
from tests.benchmarks.measured import recall

WINDOWS = (7, 28)  # days
SEED = 20260101
NEAR = 3  # days within which a day is right
ALL = 100_000
PAIR = ["user_id", "item_id"]
HAZARD = (
    lambda pairs: pairs["mean"],
    lambda pairs: (1 - pairs["last"]) / (1 + pairs["mean"]),
)  # gap, overdue ratio


def describe_pairs(past: pd.DataFrame, at: int) -> pd.DataFrame:
    """Return a row per user and item: on how many days it was taken, since when, and its gaps, all in days."""
    days = (
        past.sort_values("datetime")
        .assign(day=past["datetime"] // DAY)
        .drop_duplicates([*PAIR, "day"], keep="last")
    )
    days["time"] = (days["datetime"] - at) / DAY
    days["gap"] = days.groupby(PAIR)["time"].diff()
    pairs = days.groupby(PAIR).agg(
        n_days=("day", "size"),
        first=("time", "min"),
        last=("time", "max"),
        mean=("gap", "mean"),
        median=("gap", "median"),
    )
    return pairs.reset_index()


def add_next(pairs: pd.DataFrame, future: pd.DataFrame, at: int) -> pd.DataFrame:
    """Add when each item was taken next, in days after the moment; NaN if it was not."""
    after = ((future.groupby(PAIR)["datetime"].min() - at) / DAY).rename("next").reset_index()
    return pairs.merge(after, how="left", on=PAIR)


def learn_hazard(earlier: pd.DataFrame, pairs: pd.DataFrame, window: int) -> pd.Series:
    """Return the chance of each pair: the share of those with such a gap and such a ratio at an earlier moment."""
    edges = [np.quantile(of(earlier), np.arange(1, 16) / 16) for of in HAZARD]
    cells = [
        [np.searchsorted(at, of(frame)) for of, at in zip(HAZARD, edges, strict=True)]
        for frame in (earlier, pairs)
    ]
    shares = (earlier["next"] <= window).groupby(cells[0][0] * 16 + cells[0][1]).mean()
    return pd.Series(cells[1][0] * 16 + cells[1][1], pairs.index).map(shares).fillna(0)


@dataclass
class World:
    """A run with its test."""

    name: str
    folder: Path

    def __post_init__(self) -> None:
        work, recommender = recall(self.folder)
        split = work.split
        if (at := split.test_at) is None:
            raise SystemExit(f"{self.name}: the test of the run is not split by time")
        past, self.future = only_targets(split.refit), only_targets(split.test)
        self.at, self.days = at, (self.future["datetime"].max() - at) / DAY
        self.owned = add_next(describe_pairs(past, at), self.future, at)
        before = at - max(WINDOWS) * DAY
        is_before = past["datetime"] < before
        self.earlier = add_next(describe_pairs(past[is_before], before), past[~is_before], before)
        self.earlier = self.earlier[self.earlier["n_days"] > 1]
        users = self.owned["user_id"][self.owned["n_days"] > 1].unique()
        users = [
            user for user in users.tolist() if recommender.profiles.get(user)
        ]  # nobody who was forgotten since
        self.owned = self.owned[self.owned["user_id"].isin(users)]
        requests = [
            {
                "user_id": user,
                "datetime": pd.Timestamp(at, unit="s", tz="UTC").to_pydatetime(),
            }
            for user in users
        ]
        due = [
            (
                one.user_id,
                item.item_id,
                np.nan if item.due is None else (item.due - at) / DAY,
                item.score,
            )
            for one in find_due(recommender, requests, ALL)
            for item in one.items
        ]
        found = pd.DataFrame(due, columns=[*PAIR, "due", "due_score"])
        owned = recommender.rank_owned(
            requests, int(self.owned.groupby("user_id").size().max())
        ).to_table()
        owned = owned.select([*PAIR, "score"]).to_pandas()
        self.owned = self.owned.merge(found, how="left", on=PAIR).merge(owned, how="left", on=PAIR)
        self.pairs = self.owned[self.owned["n_days"] > 1].reset_index(drop=True)
        if self.pairs["due_score"].isna().any() or len(found) != len(self.pairs):
            raise SystemExit(
                f"{self.name}: pandas counts other items that were taken again than `find_due` lists"
            )

    def rankings(self, window: int) -> Iterator[tuple[str, pd.DataFrame, pd.Series]]:
        """Name each ranking, with what it ranks and by which score."""
        pairs = self.pairs
        yield "due (days that fade, taken on two days or more)", pairs, pairs["due_score"]
        yield (
            "rank_owned, also what was taken on one day",
            self.owned,
            self.owned["score"],
        )
        yield "memory, taken on two days or more", pairs, pairs["score"]
        yield "personal frequency: days", pairs, pairs["n_days"] + pairs["last"] / 1e6
        yield (
            "chance in the window: empirical hazard",
            pairs,
            learn_hazard(self.earlier, pairs, window),
        )
        yield "last taken first", pairs, pairs["last"]
        yield "overdue ratio", pairs, -pairs["last"] / pairs["mean"]


def measure(listed: pd.DataFrame, pairs: pd.DataFrame, window: int) -> dict[str, pd.Series]:
    """Return precision by user with a list, and recall by user with targets."""
    targets = pairs[pairs["next"] <= window].groupby("user_id").size()
    is_hit, is_target = (
        listed["next"] <= window,
        (listed["next"] <= window) & (listed["n_days"] > 1),
    )
    found = is_target.groupby(listed["user_id"]).sum().reindex(targets.index, fill_value=0)
    return {
        "precision": is_hit.groupby(listed["user_id"]).mean(),
        "recall": found / targets,
    }


def judge_lists(world: World, window: int, k: int) -> list[dict[str, Any]]:
    rows, base = [], None
    for name, ranked, score in world.rankings(window):
        order = ranked.assign(by=score).sort_values(
            ["user_id", "by"], ascending=[True, False], kind="stable"
        )
        values = measure(order.groupby("user_id").head(k), world.pairs, window)
        base = base or values
        rows.append({"name": name, **describe(values)})
        rows[-1] |= {
            "due minus this": describe({each: base[each] - values[each] for each in values})
        }
        if base is values:
            listed = order.groupby("user_id").head(k)
            for said, part in (
                ("within", listed[listed["due"] <= window]),
                ("later", listed[listed["due"] > window]),
            ):
                rows.append(
                    {
                        "name": f"of these, due {said}",
                        **describe(measure(part, world.pairs, window)),
                    }
                )
    due = world.pairs[world.pairs["due"] <= window]
    rows.append(
        {
            "name": "all that are due within",
            "items": len(due),
            **describe(measure(due, world.pairs, window)),
        }
    )
    return rows


def describe(values: dict[str, pd.Series]) -> dict[str, Any]:
    return {
        key: one
        for name, each in values.items()
        for key, one in summarise({name: each.dropna().to_numpy()}).items()
    }


def judge_days(world: World, least: int) -> list[dict[str, Any]]:
    """Measure the error of the day for pairs with at least so many days, of those that were taken again."""
    again = world.pairs[world.pairs["next"].notna() & (world.pairs["n_days"] >= least)]
    mean = again["last"] + again["mean"]
    said = {
        "due": again["due"],
        "in six days": again["due"] * 0 + 6,
        "in ten days": again["due"] * 0 + 10,
        "personal mean gap": mean,
        "the same, not before the moment": mean.clip(lower=0),
    }
    _, user = np.unique(again["user_id"], return_inverse=True)
    rows = []
    for name, day in said.items():
        error = (day - again["next"]).abs().to_numpy()
        rows.append({"name": name, "items": len(again), **resample(error, user)})
    return rows


def resample(error: np.ndarray, user: np.ndarray) -> dict[str, Any]:
    """Return the median and the share within `NEAR` days, with intervals over users."""
    rng, order, n_users = np.random.default_rng(SEED), np.argsort(error), user.max() + 1
    error, user = error[order], user[order]
    drawn = []
    for sample in [
        np.ones(n_users),
        *(np.bincount(rng.integers(n_users, size=n_users), minlength=n_users) for _ in range(1000)),
    ]:
        weight = np.cumsum(sample[user])
        near = weight[np.searchsorted(error, NEAR, side="right") - 1] / weight[-1]
        drawn.append((error[np.searchsorted(weight, weight[-1] / 2)], near))
    low, high = np.quantile(drawn[1:], (0.025, 0.975), axis=0)
    named = zip(("median", "near"), drawn[0], low, high, strict=True)
    return {
        key: one
        for name, value, a, b in named
        for key, one in ((name, value), (f"{name}_ci95", [a, b]))
    }


def show(row: dict[str, Any], *names: str) -> str:
    """Write a row of a table."""
    cells = [
        f"{row[name]:.3f} ({row[f'{name}_ci95'][0]:.3f}, {row[f'{name}_ci95'][1]:.3f})"
        for name in names
    ]
    more = show(row["due minus this"] | {"name": ""}, *names) if "due minus this" in row else ""
    return " | ".join([row.get("name", ""), *cells]) + more


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=DIR")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures: dict[str, Any] = {}
    for name, folder in (word.split("=", 1) for word in args.runs):
        world = World(name, Path(folder))
        pairs, again = world.pairs, world.pairs["next"].notna()
        print(
            f"{name}: {pairs['user_id'].nunique():,} users, {len(pairs):,} items taken on two days or more, "
            f"{again.mean():.3f} of them again in the {world.days:.0f} days of the test"
        )
        figures[name] = {}
        for window in WINDOWS:
            rows = figures[name][f"{window} days"] = judge_lists(world, window, args.k)
            print(
                f"within {window} days: precision and recall of lists of {args.k}; of ours minus this one"
            )
            for row in rows:
                print(" ", show(row, "precision", "recall"))
        for least in (MIN_DAYS, 2 * MIN_DAYS):
            rows = figures[name][f"from {least} days"] = judge_days(world, least)
            print(
                f"taken on {least} days or more, {rows[0]['items']:,} items: median error in days, share within {NEAR}"
            )
            for row in rows:
                print(" ", show(row, "median", "near"))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
