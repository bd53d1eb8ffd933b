"""From the inputs of RecTools and implicit; neither needs to be installed.

RecTools                                      Bascule
Dataset.construct(interactions_df=...)        events: user_id, item_id, weight, datetime
user_features_df, item_features_df            users, items: a column per feature, no row per value
Columns.Score, Columns.Rank                   score, rank of `to_pandas()`
model.recommend(users, dataset, k, True)      recommend(users, k, repeats="exclude")
model.recommend_to_items(items, dataset, k)   similar_items(items, k)

implicit                                      Bascule
csr_matrix (users, items), values             events: a row per value; without datetime a set
model.recommend(rows, matrix[rows], N)        recommend(rows, N): ids are the row and column numbers
model.similar_items(column, N)                similar_items(column, N), without the item itself
model.similar_users(row, N)                   similar_users(row, N), without the user themselves
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

import bascule


def make_interactions() -> pd.DataFrame:
    """Draw what RecTools calls `Interactions.df`."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(80), 10),
            "item_id": rng.permuted([*range(20)] * 40),
        }
    )
    frame["item_id"] = (
        frame["item_id"] // 2 * 2 + frame["user_id"] % 2
    )  # each user keeps to odd or to even items
    frame["weight"] = 1.0
    frame["datetime"] = np.datetime64("2025-01-01", "s") + rng.integers(
        1_000_000, size=800
    )
    return frame


def widen(features: pd.DataFrame) -> pd.DataFrame:
    """Turn rows of `id, feature, value` into a column per feature; | joins several values."""
    joined = (
        features.astype({"value": str})
        .groupby(["id", "feature"])["value"]
        .agg("|".join)
    )
    return (
        joined.unstack("feature")
        .rename_axis(index="item_id", columns=None)
        .reset_index()
    )


def to_events(matrix: sparse.csr_matrix) -> pd.DataFrame:
    """Turn the matrix that implicit fits on, (users, items), into events."""
    stored = matrix.tocoo()
    return pd.DataFrame(
        {
            "user_id": stored.row,
            "item_id": stored.col,
            "weight": stored.data.astype(float),
        }
    )


def main() -> None:
    """Fit on both."""
    interactions = make_interactions()
    features = pd.DataFrame(
        {"id": np.arange(20), "feature": "parity", "value": ["even", "odd"] * 10}
    )
    kinds = {"item": {"parity": "multi_categorical"}}
    ordered = bascule.fit(
        interactions,
        items=widen(features),
        features=kinds,
        epochs=3,
        baselines=[],
        quiet=True,
    )
    print(ordered.recommend([0, 1], k=3, repeats="exclude"))

    ones = np.ones(len(interactions), np.float32)
    matrix = sparse.csr_matrix(
        (ones, (interactions["user_id"], interactions["item_id"]))
    )
    sets = bascule.fit(to_events(matrix), epochs=3, baselines=[], quiet=True)
    print(sets.recommend([0, 1], k=3))
    print(sets.similar_items([4], k=3), sets.similar_users([4], k=3), sep="\n")


if __name__ == "__main__":
    main()
