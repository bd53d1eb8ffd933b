"""A second stage: Bascule finds 15 candidates, and LightGBM puts them into a better order.

Whether somebody buys depends here on the price and on what they can spend today, which the ranker
is told and Bascule is not. The ranker learns from one half of the people and is judged by the
other: people whose choices it has seen would flatter it.
"""

from __future__ import annotations

import lightgbm
import numpy as np
import pandas as pd

import bascule

N_PEOPLE, N_ITEMS, N_EVENTS, K = 600, 90, 12, 15
FEATURES = ["score", "rank", "price", "budget", "popularity"]


def make_tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw people who keep to one of three shelves, and buy what they can pay."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS)})
    items["price"] = rng.uniform(1, 100, N_ITEMS).round(2)
    people = pd.DataFrame({"user_id": np.arange(N_PEOPLE)})
    people["budget"] = rng.uniform(20, 100, N_PEOPLE).round(2)  # of the last purchase

    rows = []
    for person, budget in enumerate(people["budget"]):
        shelf = np.arange(person % 3, N_ITEMS, 3)
        owned = rng.choice(shelf, N_EVENTS, replace=False)
        left = np.setdiff1d(shelf, owned)
        affordable = left[items["price"].to_numpy()[left] <= budget]
        last = rng.choice(affordable if len(affordable) else left)
        rows += [(person, item) for item in [*owned, last]]

    events = pd.DataFrame(rows, columns=["user_id", "item_id"])
    day = np.tile(np.arange(N_EVENTS + 1), N_PEOPLE)
    events["datetime"] = 1_700_000_000 + 86_400 * day
    return events, items, people


def list_candidates(
    recommender: bascule.Recommender, items: pd.DataFrame, people: pd.DataFrame
) -> pd.DataFrame:
    """Return a row per candidate with its features, in the order of the people."""
    answers = recommender.recommend(people["user_id"].tolist(), k=K)
    table: pd.DataFrame = answers.to_pandas()
    table = table[["user_id", "item_id", "rank", "score"]]
    return table.merge(items, on="item_id").merge(people, on="user_id")


def measure(candidates: pd.DataFrame, order: str) -> float:
    """Return NDCG@10 of the candidates by falling `order`; one item of each person is right."""
    place = candidates.groupby("user_id")[order].rank(ascending=False, method="first")
    is_found = candidates["is_bought"] & (place <= 10)
    gain = (1 / np.log2(place + 1)).where(is_found, 0.0)
    return float(gain.sum() / candidates["user_id"].nunique())


def main() -> None:
    """Write candidates, learn to rank half of them, and judge by the other half."""
    events, items, people = make_tables()
    # Published profiles hold all events of a fit: what is to be found stays out of it.
    last = events.groupby("user_id", as_index=False).last()
    earlier = events[events.duplicated("user_id", keep="last")]
    recommender = bascule.fit(
        earlier, seed=1, epochs=5, quiet=True, baselines=["popularity"]
    )
    counts = earlier["item_id"].value_counts()
    items["popularity"] = items["item_id"].map(counts).fillna(0)

    candidates = list_candidates(recommender, items, people)
    bought = last.rename(columns={"item_id": "bought"})[["user_id", "bought"]]
    candidates = candidates.merge(bought, on="user_id")
    candidates["is_bought"] = candidates["item_id"] == candidates.pop("bought")
    candidates.to_parquet("candidates.parquet")

    is_learned = candidates["user_id"] % 2 == 0
    learned = candidates[is_learned].sort_values(["user_id", "rank"])
    judged = candidates[~is_learned].sort_values(["user_id", "rank"])
    group = learned.groupby("user_id").size().to_numpy()
    labels = learned["is_bought"].astype(int)
    examples = lightgbm.Dataset(learned[FEATURES], labels, group=group)
    options = {"objective": "lambdarank", "num_leaves": 8, "seed": 0}
    options |= {"num_threads": 1, "verbose": -1}
    ranker = lightgbm.train(options, examples, num_boost_round=60)
    judged = judged.assign(again=np.asarray(ranker.predict(judged[FEATURES])))

    recall = judged["is_bought"].sum() / judged["user_id"].nunique()
    print(f"recall of {K} candidates {recall:.3f}")
    print(f"NDCG@10, first stage  {measure(judged, 'score'):.4f}")
    print(f"NDCG@10, second stage {measure(judged, 'again'):.4f}")


if __name__ == "__main__":
    main()
