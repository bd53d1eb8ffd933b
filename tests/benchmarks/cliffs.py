"""Rank planted worlds on either side of the limits of size: nothing may jump there.

python tests/benchmarks/cliffs.py N_ITEMS [SEED] [--epochs 4] [--batch 512] [--events 4] [--out DIR]

A world has clusters of 50 items with a Zipf law inside each; a user likes two of them. Of each next
event a share is one of three fixed successors of the last item (item-to-item affinity), a share an
item of the user's clusters, and the rest an item that everybody buys. The last event of a user is
the test, the one before it the validation. The same 2,000 users are ranked by the whole score of
the bundle, by its towers alone, by ItemKNN (100 neighbours) and by iALS (32 factors, 6 rounds).
One line of JSON: NDCG@10 and Recall@20 with standard errors, seconds of the stages, peak memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datamodules.config import DataConfig, SplitConfig  # noqa: E402
from evaluation.baselines import as_binary, fit_itemknn  # noqa: E402
from evaluation.holdout import Events  # noqa: E402
from models.config import ModelConfig  # noqa: E402
from pipeline.config import Config, EvaluationConfig  # noqa: E402
from serve.index import Neighbours  # noqa: E402
from serve.recommender import Recommender  # noqa: E402

CLUSTER = 50
PER_USER = 9
SUCCESSORS = 3
FOLLOWS, LIKES = 0.4, 0.5
TESTED = 2_000
START = 1_600_000_000


def draw_world(n_items: int, events_per_item: float, seed: int) -> pd.DataFrame:
    """Draw the events of a world, each pair of a user and an item once."""
    rng = np.random.default_rng(seed)
    n_users = int(n_items * events_per_item / PER_USER)
    n_clusters = max(2, n_items // CLUSTER)
    member = rng.permutation(n_clusters * CLUSTER).reshape(n_clusters, CLUSTER) % n_items
    zipf = 1 / np.arange(1, CLUSTER + 1)
    zipf = np.cumsum(zipf / zipf.sum())
    cluster_of = np.zeros(n_items, np.int64)
    cluster_of[member.ravel()] = np.repeat(np.arange(n_clusters), CLUSTER)
    successors = rng.integers(n_items, size=(n_items, SUCCESSORS))
    own = member[cluster_of[:, None], rng.integers(CLUSTER, size=(n_items, SUCCESSORS))]
    successors = np.where(rng.random(successors.shape) < 0.5, own, successors)

    def like(clusters: np.ndarray) -> np.ndarray:
        return member[clusters, np.searchsorted(zipf, rng.random(len(clusters)))]

    # some clusters are liked by more people
    weight = rng.pareto(2.0, n_clusters) + 0.2
    liked = rng.choice(n_clusters, (n_users, 2), p=weight / weight.sum())
    last = like(liked[:, 0])
    columns = [last]
    for _ in range(PER_USER):
        lot = rng.random(n_users)
        chosen = liked[np.arange(n_users), rng.integers(2, size=n_users)]
        follower = successors[last, rng.integers(SUCCESSORS, size=n_users)]
        popular = (rng.pareto(0.6, n_users) * 10).astype(np.int64) % n_items
        last = np.where(
            lot < FOLLOWS, follower, np.where(lot < FOLLOWS + LIKES, like(chosen), popular)
        )
        columns.append(last)
    items = np.stack(columns, axis=1)
    # every item has an event: else worlds would be smaller than they say
    unseen = np.setdiff1d(np.arange(n_items), items[:, 0])
    buyers = rng.integers(n_users, size=len(unseen))
    items[buyers, 1 + np.arange(len(unseen)) % (PER_USER - 3)] = unseen
    times = START + np.cumsum(rng.integers(3600, 86_400, items.shape), axis=1)
    world = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(n_users), items.shape[1]),
            "item_id": items.ravel(),
            "datetime": pd.to_datetime(times.ravel(), unit="s"),
        }
    )
    return world.drop_duplicates(["user_id", "item_id"]).reset_index(drop=True)


def fit_ials(matrix: sp.csr_array, dim: int = 32, rounds: int = 6, alpha: float = 10.0) -> tuple:
    """Fit implicit alternating least squares (Hu, Koren and Volinsky, ICDM 2008)."""
    rng = np.random.default_rng(0)
    items = rng.normal(0, 0.1, (matrix.shape[1], dim)).astype(np.float32)
    by_item = matrix.T.tocsr()
    for _ in range(rounds):
        users = _solve_rows(matrix, items, alpha)
        items = _solve_rows(by_item, users, alpha)
    return users, items


def _solve_rows(matrix: sp.csr_array, other: np.ndarray, alpha: float) -> np.ndarray:
    gram = other.T @ other + 1.0 * np.eye(other.shape[1], dtype=np.float32)
    solved = np.zeros((matrix.shape[0], other.shape[1]), np.float32)
    for start in range(0, len(solved), 4096):
        part = matrix[start : start + 4096]
        rows = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        vectors = other[part.indices]
        products = (vectors[:, :, None] * vectors[:, None, :]).reshape(len(vectors), -1)
        pick = sp.csr_array(
            (np.full(len(rows), alpha, np.float32), np.arange(len(rows)), part.indptr),
            (part.shape[0], len(rows)),
        )
        systems = (pick @ products).reshape(-1, *gram.shape) + gram
        wanted = (pick @ vectors) * ((1 + alpha) / alpha)
        solved[start : start + 4096] = np.linalg.solve(systems, wanted[:, :, None])[:, :, 0]
    return solved


def measure(lists: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    """Return mean and standard error of NDCG@10 and Recall@20 of one target a user."""
    hits = lists == targets[:, None]
    ndcg = (hits[:, :10] / np.log2(np.arange(10) + 2)).sum(axis=1)
    recall = hits[:, :20].any(axis=1).astype(float)
    return {
        name: [round(float(values.mean()), 5), round(float(values.std() / len(values) ** 0.5), 5)]
        for name, values in (("ndcg@10", ndcg), ("recall@20", recall))
    }


def rank(score, own: sp.csr_array) -> np.ndarray:
    """Rank 20 items of each user without their own, a few users at a time."""
    lists = []
    for start in range(0, own.shape[0], 16):
        rows = np.arange(start, min(start + 16, own.shape[0]))
        scores = np.array(score(rows))
        part = own[rows].tocoo()
        scores[part.row, part.col] = -np.inf
        best = np.argpartition(-scores, 19, axis=1)[:, :20]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        lists.append(np.take_along_axis(best, order, 1))
    return np.concatenate(lists)


def ask(recommender: Recommender, users: np.ndarray) -> np.ndarray:
    """Return the item ids of the lists of users, (B, 20); -1 fills a short list."""
    requests = [{"user_id": int(user)} for user in users]
    slots = recommender.recommend(requests, 20).to_table().to_pandas()
    lists = np.full((len(users), 20), -1)
    position = {int(user): row for row, user in enumerate(users)}
    rows = slots["user_id"].map(position).to_numpy()
    lists[rows, slots["rank"].to_numpy() - 1] = slots["item_id"].to_numpy()
    return lists


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n_items", type=int)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--events", type=float, default=4.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--no-ials", action="store_true")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    world = draw_world(options.n_items, options.events, options.seed)
    begun = time.monotonic()
    from pipeline.run import run

    data = DataConfig(split=SplitConfig(strict=True))
    model = ModelConfig(dim=64, max_epochs=options.epochs, batch_size=options.batch)
    config = Config(
        data,
        model,
        {"enable_progress_bar": False},
        out / "run",
        evaluation=EvaluationConfig(baselines=[]),
        quick=options.quick,
    )
    run(config, (world, None, None))
    seconds = {"run": round(time.monotonic() - begun, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report = json.loads((out / "run" / "metrics.json").read_text())

    last = world.groupby("user_id").tail(1)
    drawn = np.random.default_rng(1).permutation(len(last))[:TESTED]
    test = last.iloc[np.sort(drawn)]
    test = test[test["item_id"].isin(world.drop(last.index)["item_id"])]
    past = world.drop(last.index)
    users, targets = test["user_id"].to_numpy(), test["item_id"].to_numpy()

    whole = Recommender.load(out / "run" / "bundle")
    bundle = whole.bundle
    towers = Recommender(
        replace(bundle, neighbours=Neighbours.none(len(bundle.items))), whole.profiles
    )
    figures = {}
    for name, recommender in (("whole", whole), ("towers", towers)):
        figures[name] = measure(ask(recommender, users), targets)

    n_users = int(world["user_id"].max()) + 1
    events = Events(
        past["user_id"].to_numpy(), past["item_id"].to_numpy(), None, n_users, options.n_items
    )
    matrix = events.matrix(as_binary).astype(np.float32)
    own = matrix[users]
    begun = time.monotonic()
    (score,) = fit_itemknn(events, [100], as_binary)
    figures["itemknn"] = measure(rank(lambda rows: score(users[rows]), own), targets)
    seconds["itemknn"] = round(time.monotonic() - begun, 1)
    if not options.no_ials:
        begun = time.monotonic()
        of_users, of_items = fit_ials(matrix)
        figures["ials"] = measure(
            rank(lambda rows: of_users[users[rows]] @ of_items.T, own), targets
        )
        seconds["ials"] = round(time.monotonic() - begun, 1)

    print(
        json.dumps(
            {
                "items": options.n_items,
                "seed": options.seed,
                "events": len(world),
                "users": n_users,
                "tested": len(targets),
                **figures,
                "seconds": seconds | report["timing"],
                "peak_gib_of_run": round(peak, 2),
                "refinement": report["training"]["refinement"]["alphas"],
            }
        )
    )


if __name__ == "__main__":
    main()
