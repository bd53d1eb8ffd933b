"""From a DataFrame to recommendations, and to a folder that answers elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd

import bascule


def make_tables() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw 100 people who each keep to one of three kinds of tea, and the teas."""
    rng = np.random.default_rng(0)
    items = pd.DataFrame(
        {
            "item_id": [f"t{i:02d}" for i in range(30)],
            "kind": ["green", "black", "herbal"] * 10,
        }
    )
    items["title"] = [f"{kind} tea no. {i}" for i, kind in enumerate(items["kind"])]
    events = pd.DataFrame({"user_id": np.repeat(np.arange(100), 12)})
    events["item_id"] = items["item_id"].to_numpy()[
        rng.integers(10, size=1200) * 3 + events["user_id"] % 3
    ]
    events["datetime"] = 1_700_000_000 + np.sort(rng.integers(10_000_000, size=1200))
    return events, items


def main() -> None:
    """Fit, ask, save and load."""
    events, items = make_tables()
    kinds = {"item": {"kind": "categorical", "title": "text"}}
    recommender = bascule.fit(
        events, items=items, features=kinds, seed=1, epochs=5, quiet=True
    )
    print(recommender)
    print(
        recommender.metrics["test"]["bascule"]["novel"]["NDCG@10"]
    )  # of what was held out; "popularity": the same

    answers = recommender.recommend([7, 8], k=3)  # users by id
    frame: pd.DataFrame = answers.to_pandas()
    print(frame)
    print(
        recommender.recommend([["t01", "t04"]], k=3, diversity=0.3)
    )  # somebody new, by what they had
    print(
        recommender.recommend(
            {"user_id": 7, "filters": {"where": "kind = 'black'"}}, k=3
        )
    )
    print(recommender.explain(7, k=2))
    print(recommender.segments())
    print(recommender.similar_users(7, k=3))
    print(
        recommender.similar_items(
            [{"kind": "herbal", "title": "a new herbal tea"}], k=3
        )
    )
    print(recommender.score(7, ["t01", "t02"]), recommender.encode_users([7]).shape)

    folder = recommender.save("tea")
    again = bascule.load(folder)  # needs neither torch nor pandas
    assert again.recommend([7, 8], k=3)[0] == answers[0]


if __name__ == "__main__":
    main()
