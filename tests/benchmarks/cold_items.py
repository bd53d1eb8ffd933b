"""Items that training never saw, placed by their content alone, against content-kNN and shuffled content.

    python tests/benchmarks/cold_items.py [--config configs/grocery.yaml] [--share 0.05] [--seed 0] [train.py options]

A share of the items, drawn once, leaves interactions and items table. After training they are encoded from
their features and ranked among themselves for every user who took one of them in the test period.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import train  # noqa: E402
from datamodules.tables import read_tables  # noqa: E402
from evaluation.metrics import measure_users  # noqa: E402
from evaluation.ranking import top_k  # noqa: E402
from evaluation.targets import ItemSets, Targets  # noqa: E402
from serve.recommender import Recommender  # noqa: E402

METRIC = "NDCG@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "grocery.yaml"))
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args, options = parser.parse_known_args()
    config, _ = train.parse(["--config", args.config, "--seed", str(args.seed), *options])
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for name, value in compare(replace(config, out=Path(folder) / "run"), args.share, rng).items():
            print(f"{name:20s} {METRIC} {value:.4f}")


def compare(config: train.Config, share: float, rng: np.random.Generator) -> dict[str, float]:
    tables, _ = read_tables(config.data)
    items = tables.items
    is_cold = items["item_id"].isin(rng.choice(items["item_id"], int(share * len(items)), replace=False))
    cold, warm = items[is_cold].reset_index(drop=True), items[~is_cold]
    events = tables.interactions
    is_cold_event = events["item_id"].isin(cold["item_id"])
    finished = train.run(config, (events[~is_cold_event], tables.users, warm))
    recommender = Recommender.load(finished.bundle)
    at = recommender.bundle.schema.data_until
    asked = events[is_cold_event & (events["datetime"] >= at)][["user_id", "item_id"]].drop_duplicates()
    users = np.unique(asked["user_id"])
    targets = make_targets(asked, users, cold["item_id"].to_numpy())
    moment = datetime.fromtimestamp(at, UTC)
    vectors = recommender.encode_users([{"user_id": user, "datetime": moment} for user in users.tolist()])
    columns = [feature.column for feature in recommender.bundle.schema.item_features]
    shuffled = cold[columns].iloc[rng.permutation(len(cold))]
    history = events[~is_cold_event & (events["datetime"] < at)]
    scores = {
        "bascule": vectors @ place(recommender, cold[columns]).T,
        "shuffled content": vectors @ place(recommender, shuffled).T,
        "content-kNN": score_by_content(history, users, warm, cold, columns),
        "random": rng.random((len(users), len(cold))).astype(np.float32),
    }
    return {name: float(measure_users(top_k(s, 20), targets)[METRIC].mean()) for name, s in scores.items()}


def place(recommender: Recommender, rows: pd.DataFrame) -> np.ndarray:
    return recommender.encode_items(rows.to_dict("records"))


def make_targets(asked: pd.DataFrame, users: np.ndarray, cold_ids: np.ndarray) -> Targets:
    request = np.searchsorted(users, asked["user_id"])
    rows = pd.Index(cold_ids).get_indexer(pd.Index(asked["item_id"]))
    return Targets(ItemSets.group(request, rows, len(users)), np.arange(len(users)))


def score_by_content(
    history: pd.DataFrame, users: np.ndarray, warm: pd.DataFrame, cold: pd.DataFrame, columns: list[str]
) -> np.ndarray:
    """Score by the cosine of one-hot features, weighted by inverse frequency, to the mean of the user's items."""
    both = pd.concat([warm, cold], ignore_index=True)
    onehot = pd.get_dummies(both[columns].astype("string"), dtype=np.float32).to_numpy()
    onehot *= np.log(len(both) / (onehot.sum(axis=0) + 1))
    onehot /= np.maximum(np.linalg.norm(onehot, axis=1, keepdims=True), 1e-9)
    rows = pd.Index(both["item_id"]).get_indexer(pd.Index(history["item_id"]))
    keep = (rows >= 0) & history["user_id"].isin(users).to_numpy()
    counts = np.zeros((len(users), len(both)), dtype=np.float32)
    np.add.at(counts, (np.searchsorted(users, history["user_id"].to_numpy()[keep]), rows[keep]), 1)
    return np.asarray(np.log1p(counts) @ onehot @ onehot[len(warm) :].T)


if __name__ == "__main__":
    main()
