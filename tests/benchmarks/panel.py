"""Tables of many kinds, each trained by a configuration that names only the data, beside the run's own baselines.

    OMP_NUM_THREADS=1 python tests/benchmarks/panel.py [--data DATA] [--only tastes] [--seeds 0 1] [--out FOLDER]

Prints a row of a table per run: NDCG@10 of the items that users do not have (NDCG@20 where repeats are allowed), the
best baseline, and the difference with its interval. The planted tables have a known truth, those of `null_worlds.py`
nothing personal; those of DATA are real. FOLDER holds a JSON file a run: what this version has run is not run again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

from basket_worlds import PLANTED_BASKETS, REAL_BASKETS  # noqa: E402
from datamodules.config import (  # noqa: E402
    DataConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from null_worlds import NULL_WORLDS, World  # noqa: E402
from pipeline.config import Config  # noqa: E402
from pipeline.run import run  # noqa: E402
from serve.clock import DAY  # noqa: E402
from tests.benchmarks.boards.version import hash_sources  # noqa: E402

BEGIN = 1_700_006_400
"""A midnight."""
FASHION_DAYS, FASHION_TEST = 365, 351
N_USERS, N_ITEMS, N_TASTES = 600, 300, 6
Rng = np.random.Generator


@dataclass
class Planted:
    """Interactions with what is declared of them; users and items are their ids unless given."""

    events: pd.DataFrame
    data: DataConfig
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    held_out: pd.DataFrame | None = None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the real tables; default: planted ones alone",
    )
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="folder of the rows")
    args = parser.parse_args()
    tables = PLANTED | (
        {} if args.data is None else {name: partial(read, args.data) for name, read in REAL.items()}
    )
    for name in args.only or tables:
        for seed in args.seeds:
            for row in find_rows(name, tables[name], seed, args.out):
                print(show(row), flush=True)


def find_rows(
    name: str, draw: Callable[[Rng], Planted], seed: int, out: Path | None
) -> list[dict[str, Any]]:
    """Return the rows of a run, from its file if this version has run it."""
    if out is None:
        return compare(name, draw(np.random.default_rng(seed)), seed)
    version = hash_sources()
    path = out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}.json"
    if path.exists():
        saved = json.loads(path.read_bytes())
        if saved["version"] == version:
            return list(saved["rows"])
    rows = compare(name, draw(np.random.default_rng(seed)), seed)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": version, "rows": rows}, indent=1) + "\n")
    return rows


def show(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    low, high = row["interval"]
    return (
        f"| {row['table']} | {row['seed']} | {row['events']:,} | {row['bascule']:.4f} "
        f"| {row['best']} {row['figure']:.4f} | {row['difference']:+.4f} ({low:+.4f}, {high:+.4f}) "
        f"| {row['verdict']} |"
    )


def compare(name: str, table: Planted, seed: int) -> list[dict[str, Any]]:
    """Train, and return rows: how Bascule ranks the test, and how far it is ahead of the best baseline."""
    begun = time.process_time()
    users, items = (
        pd.DataFrame({key: table.events[key].unique()}) if given is None else given
        for key, given in (("user_id", table.users), ("item_id", table.items))
    )
    data, view, metric = table.data, "novel", "NDCG@10"
    if data.repeats == "allow":
        view, metric = "all", "NDCG@20"
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            data,
            trainer={"enable_progress_bar": False},
            out=Path(folder) / "run",
            seed=seed,
        )
        if table.held_out is None:
            metrics = run(config, (table.events, users, items)).metrics
        else:
            metrics = run_files(config, table, Path(folder))
    parts = [(name, metrics["test"], metrics["paired"])]
    if "with_context" in metrics and data.features.context:
        parts.append(
            (
                f"{name}, asked in it",
                metrics["with_context"],
                metrics["paired_with_context"],
            )
        )
    rows = []
    for label, test, paired in parts:
        figures = {model: views[view][metric] for model, views in test.items()}
        best = max(paired, key=lambda model: figures[model])
        lead = paired[best][view]
        low, high = lead[f"{metric}_ci95"]
        rows.append(
            {
                "table": label,
                "seed": seed,
                "events": len(table.events),
                "bascule": figures["bascule"],
                "best": best,
                "figure": figures[best],
                "difference": lead[metric],
                "interval": [low, high],
                "verdict": "behind" if high < 0 else "ahead" if low > 0 else "level",
                "figures": figures,
                "cpu_seconds": round(time.process_time() - begun, 1),
            }
        )
    return rows


def run_files(config: Any, table: Planted, folder: Path) -> dict[str, Any]:
    """Run on files, of which one is the test."""
    held_out = table.held_out
    assert held_out is not None
    table.events.to_csv(folder / "train.csv", index=False)
    held_out.to_csv(folder / "test.csv", index=False)
    split, rows = (
        SplitConfig("files", test=str(folder / "test.csv")),
        TableConfig(str(folder / "train.csv")),
    )
    data = DataConfig(**{**vars(config.data), "split": split, "interactions": rows})
    return run(Config(data, trainer=config.trainer, out=config.out, seed=config.seed)).metrics


def plant_null(world: Callable[[Rng], World], rng: Rng) -> Planted:
    """Nothing personal can be learned."""
    return Planted(*world(rng))


def plant_sessions(rng: Rng) -> Planted:
    """9,000 visitors of two to four events, each most often among the ten items of one of 200 tastes."""
    taste, popularity = rng.integers(0, 200, 2000), rng.permutation(fall(2000, 0.6))
    chances = [0.85 * share(popularity * (taste == one)) + 0.15 * popularity for one in range(200)]
    users = [(chances[rng.integers(200)], n) for n in rng.integers(2, 5, 9000)]
    return Planted(take_by_taste(users, rng), DataConfig())


def plant_tastes(rng: Rng, n_users: int = 150, n_items: int = 120) -> Planted:
    """Users of some twelve events, each by one of four popularities of the items."""
    chances = [rng.permutation(fall(n_items, 0.9)) for _ in range(4)]
    users = [(chances[rng.integers(4)], n) for n in rng.poisson(12, n_users).clip(3, 30)]
    return Planted(take_by_taste(users, rng), DataConfig())


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
    return Planted(make_frame(rows), DataConfig(split=SplitConfig("time", at=at)))


def plant_chains(rng: Rng, mean: int = 8) -> Planted:
    """Users who most often take one of three items that follow the last one, so that the order tells."""
    following, popularity = (
        rng.integers(0, N_ITEMS, (N_ITEMS, 3)),
        rng.permutation(fall(N_ITEMS, 0.8)),
    )
    rows = []
    for user, n in enumerate(rng.poisson(mean, N_USERS).clip(3, 4 * mean)):
        owned = [int(rng.choice(N_ITEMS, p=popularity))]
        for _ in range(n - 1):
            next_ones = [item for item in following[owned[-1]].tolist() if item not in owned]
            chances = popularity.copy()
            chances[owned] = 0
            is_next = next_ones and rng.random() < 0.7
            owned.append(
                int(rng.choice(next_ones) if is_next else rng.choice(N_ITEMS, p=share(chances)))
            )
        rows += [(user, item, BEGIN + 3600 * place) for place, item in enumerate(owned)]
    return Planted(make_frame(rows), DataConfig())


def plant_set(
    rng: Rng, n_users: int = N_USERS, n_items: int = N_ITEMS, power: float = 0.8
) -> Planted:
    """Pairs without an order, by six tastes."""
    chances, _ = draw_tastes(rng, n_items, power)
    users = [(chances[rng.integers(N_TASTES)], n) for n in rng.poisson(15, n_users).clip(4, 60)]
    return as_pairs(take_by_taste(users, rng))


def plant_shop(rng: Rng) -> Planted:
    """Views by taste, of which a few are bought; purchases are the targets, and nothing has an order."""
    planted = plant_set(rng, 900, 500)
    events = planted.events.assign(
        event=np.where(rng.random(len(planted.events)) < 0.25, "buy", "view")
    )
    targets = TargetsConfig(events=["buy"])
    return Planted(events, DataConfig(targets=targets, split=SplitConfig("pairs")))


def plant_ratings(rng: Rng) -> Planted:
    """Popular items are rated by all, and well by those of their taste alone; ratings of 4 and more are targets."""
    chances, taste_of = draw_tastes(rng, N_ITEMS, 0.8)
    rows = []
    for user in range(300):
        taste = int(rng.integers(N_TASTES))
        items = rng.choice(
            N_ITEMS,
            int(np.clip(rng.poisson(40), 10, 120)),
            replace=False,
            p=np.mean(chances, axis=0),
        )
        likes = np.where(taste_of[items] == taste, 4.2, 2.8)
        ratings = (likes + rng.normal(0, 0.8, len(items))).round().clip(1, 5)
        rows += [(user, int(item), rating) for item, rating in zip(items, ratings, strict=True)]
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "weight"])
    return Planted(
        events,
        DataConfig(targets=TargetsConfig(min_weight=4), split=SplitConfig("pairs")),
    )


def plant_baskets(rng: Rng) -> Planted:
    """Weekly baskets through a year, mostly of what the household bought before; the test is the last weeks."""
    chances, _ = draw_tastes(rng, N_ITEMS, 0.8)
    rows = []
    for user in range(300):
        usual = rng.choice(N_ITEMS, 12, replace=False, p=chances[int(rng.integers(N_TASTES))])
        for week in np.flatnonzero(rng.random(52) < 0.5):
            moment = BEGIN + int(week) * 7 * DAY + int(rng.integers(7)) * DAY
            basket = {
                *rng.choice(usual, 4).tolist(),
                int(rng.choice(N_ITEMS, p=np.mean(chances, axis=0))),
            }
            rows += [(user, item, moment) for item in basket]
    at = pd.Timestamp(BEGIN + 48 * 7 * DAY, unit="s").date().isoformat()
    return Planted(
        make_frame(rows),
        DataConfig(ties="simultaneous", repeats="allow", split=SplitConfig("time", at=at)),
    )


def plant_unused(rng: Rng) -> Planted:
    """Pairs beside 5,000 listed items with categories that nobody takes."""
    planted = plant_set(rng)
    category = rng.integers(0, 20, N_ITEMS + 5000)
    items = pd.DataFrame(
        {
            "item_id": np.arange(N_ITEMS + 5000),
            "category": [f"c{one}" for one in category],
        }
    )
    features = FeaturesConfig(item={"category": "categorical"})
    return Planted(
        planted.events,
        DataConfig(features=features, split=SplitConfig("pairs")),
        items=items,
    )


def plant_content(rng: Rng) -> Planted:
    """Some three events of a user among 2,000 items, whose category is the taste."""
    chances, taste_of = draw_tastes(rng, 2000, 0.3, n_tastes=40)
    users = [(chances[rng.integers(40)], n) for n in rng.integers(3, 6, 800)]
    items = pd.DataFrame({"item_id": np.arange(2000), "category": [f"c{one}" for one in taste_of]})
    features = FeaturesConfig(item={"category": "categorical"})
    return Planted(take_by_taste(users, rng), DataConfig(features=features), items=items)


def plant_people(rng: Rng) -> Planted:
    """Users of two or three events whose group says their taste."""
    chances, _ = draw_tastes(rng, N_ITEMS, 0.8)
    group = rng.integers(0, N_TASTES, 1500)
    events = take_by_taste(
        [(chances[one], int(n)) for one, n in zip(group, rng.integers(2, 4, 1500), strict=True)],
        rng,
    )
    users = pd.DataFrame({"user_id": np.arange(1500), "group": [f"g{one}" for one in group]})
    return Planted(
        events,
        DataConfig(features=FeaturesConfig(user={"group": "categorical"})),
        users=users,
    )


def plant_context(rng: Rng) -> Planted:
    """Pairs of which the taste is that of the place where they were taken."""
    chances, _ = draw_tastes(rng, N_ITEMS, 0.8)
    rows = []
    for user, n in enumerate(rng.poisson(12, N_USERS).clip(4, 30)):
        own = rng.choice(N_TASTES, 2, replace=False)
        for place in rng.integers(0, 2, n):
            rows.append(
                (
                    user,
                    int(rng.choice(N_ITEMS, p=chances[own[place]])),
                    f"p{own[place]}",
                )
            )
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "place"]).drop_duplicates(
        ["user_id", "item_id"]
    )
    features = FeaturesConfig(context={"place": "categorical"})
    return Planted(events, DataConfig(features=features, split=SplitConfig("pairs")))


def read_shop(data: Path, rng: Rng) -> Planted:
    events = pd.read_parquet(data / "retailrocket" / "train.parquet")
    held_out = pd.read_csv(data / "retailrocket" / "holdout.csv").assign(event="transaction")
    weights = {"view": 1.0, "addtocart": 3.0, "transaction": 5.0}
    return Planted(
        events,
        DataConfig(events=weights, targets=TargetsConfig(["transaction"])),
        held_out=held_out,
    )


def read_ratings(data: Path, rng: Rng, n_users: int, least: float | None, is_set: bool) -> Planted:
    names = ["user_id", "item_id", "weight", "datetime"]
    events = draw_users(
        pd.read_csv(data / "movielens-100k" / "u.data", sep="\t", names=names),
        n_users,
        rng,
    )
    split = SplitConfig("pairs") if is_set else SplitConfig("leave_one_out")
    events = events.drop(columns="datetime") if is_set else events
    return Planted(events, DataConfig(targets=TargetsConfig(min_weight=least), split=split))


def read_artists(data: Path, rng: Rng) -> Planted:
    rows, held_out = (
        pd.read_parquet(data / "lastfm" / f"{part}.parquet") for part in ("train", "test")
    )
    return Planted(rows, DataConfig(), held_out=held_out)


def read_reviews(data: Path, rng: Rng) -> Planted:
    names = {"user": "user_id", "item": "item_id", "timestamp": "datetime"}
    events = pd.read_csv(data / "amazon-beauty" / "beauty_with_time.csv").rename(columns=names)
    return Planted(
        draw_users(events[["user_id", "item_id", "datetime", "position"]], 3000, rng),
        DataConfig(),
    )


def read_apps(data: Path, rng: Rng) -> Planted:
    table = pd.read_csv(data / "frappe" / "frappe.csv", sep="\t")
    events = table.rename(columns={"user": "user_id", "item": "item_id"}).drop_duplicates(
        ["user_id", "item_id"]
    )
    context: Any = dict.fromkeys(
        ("daytime", "weekday", "homework", "weather", "country"), "categorical"
    )
    return Planted(
        events,
        DataConfig(features=FeaturesConfig(context=context), split=SplitConfig("pairs")),
    )


def draw_tastes(
    rng: Rng, n_items: int, power: float, n_tastes: int = N_TASTES
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the chances (N,) of each taste, and the taste of each item, (N,)."""
    taste_of, popularity = (
        rng.integers(0, n_tastes, n_items),
        rng.permutation(fall(n_items, power)),
    )
    chances = [
        0.8 * share(popularity * (taste_of == one)) + 0.2 * popularity for one in range(n_tastes)
    ]
    return chances, taste_of


def as_pairs(events: pd.DataFrame) -> Planted:
    return Planted(events[["user_id", "item_id"]], DataConfig(split=SplitConfig("pairs")))


def draw_users(events: pd.DataFrame, n_users: int, rng: Rng) -> pd.DataFrame:
    return events[
        events["user_id"].isin(rng.choice(events["user_id"].unique(), n_users, replace=False))
    ]


def take_by_taste(users: Sequence[tuple[np.ndarray, int]], rng: Rng) -> pd.DataFrame:
    """Let each user take some items by the chances (N,) that they have, in no order, a minute apart."""
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


PLANTED: dict[str, Callable[[Rng], Planted]] = {
    "short histories, no order (9,000 visitors)": plant_sessions,
    "tastes in no order, 150 users": plant_tastes,
    "tastes in no order, 1,000 users": partial(plant_tastes, n_users=1000, n_items=400),
    "fashions": plant_fashion,
    "short chains": plant_chains,
    "long chains": partial(plant_chains, mean=45),
    "a set": plant_set,
    "a set, 300 users": partial(plant_set, n_users=300),
    "a set of few items": partial(plant_set, n_items=60),
    "a set, heavy popularity": partial(plant_set, power=1.4),
    "views and purchases": plant_shop,
    "ratings with a threshold": plant_ratings,
    "baskets with repeats": plant_baskets,
    "listed items that nobody takes": plant_unused,
    "content tells": plant_content,
    "demographics tell": plant_people,
    "context tells": plant_context,
    **{name: partial(plant_null, world) for name, world in NULL_WORLDS.items()},
}
REAL: dict[str, Callable[[Path, Rng], Planted]] = {
    "retailrocket": read_shop,
    "MovieLens, 300 users, pairs of 4 and more": partial(
        read_ratings, n_users=300, least=4, is_set=True
    ),
    "MovieLens, 300 users, last rating of 4 and more": partial(
        read_ratings, n_users=300, least=4, is_set=False
    ),
    "MovieLens, 300 users, last rating": partial(
        read_ratings, n_users=300, least=None, is_set=False
    ),
    "LastFM": read_artists,
    "Beauty, 3,000 users": read_reviews,
    "Frappe in context": read_apps,
}


def take_baskets(world: Callable[..., tuple[pd.DataFrame, DataConfig]], *args: Any) -> Planted:
    return Planted(*world(*args))


PLANTED |= {name: partial(take_baskets, world) for name, world in PLANTED_BASKETS.items()}
REAL |= {name: partial(take_baskets, world) for name, world in REAL_BASKETS.items()}

if __name__ == "__main__":
    main()
