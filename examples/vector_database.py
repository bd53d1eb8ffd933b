"""Vectors in a vector database, here Qdrant in memory, and what a search by vectors alone loses.

A score is the product of two vectors, plus what no vector holds: item-item weights, and the memory
of what is bought again. A database answers by the product alone. In PostgreSQL with pgvector:

    CREATE TABLE items (item_id bigint PRIMARY KEY, vector vector(64));
    CREATE INDEX ON items USING hnsw (vector vector_ip_ops);
    SELECT item_id FROM items WHERE item_id <> ALL($2) ORDER BY vector <#> $1 LIMIT 10;

where $1 is a user's vector, $2 are the items that they have, and <#> is the negative inner product.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from qdrant_client import QdrantClient, models

import bascule

N_PEOPLE, N_EVENTS, K = 300, 15, 10


def make_events() -> pd.DataFrame:
    """Draw people of six tastes; what is taken next often goes with what was taken last."""
    rng = np.random.default_rng(0)
    rows = []
    for person in range(N_PEOPLE):
        item = int(rng.integers(120))
        for day in range(N_EVENTS):
            rows.append((person, item, 1_700_000_000 + 86_400 * day))
            goes_with = item ^ 1  # pairs: 0 and 1, 2 and 3, ...
            of_taste = int(rng.integers(20)) * 6 + person % 6
            item = goes_with if rng.random() < 0.4 else of_taste
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])
    return events.drop_duplicates(["user_id", "item_id"])


def search(
    client: QdrantClient, vector: list[float], owned: list[int]
) -> list[int | str]:
    """Return the nearest items that a user does not have."""
    is_owned = models.HasIdCondition(has_id=list(owned))
    found = client.query_points(
        "items", vector, limit=K, query_filter=models.Filter(must_not=[is_owned])
    )
    return [point.id for point in found.points]  # type: ignore[misc]


def main() -> None:
    """Put the items into a database, ask it for everybody, and compare."""
    events = make_events()
    last = events.groupby("user_id")["item_id"].last()  # held out
    earlier = events[events.duplicated("user_id", keep="last")]
    recommender = bascule.fit(
        earlier, seed=1, epochs=5, quiet=True, baselines=["popularity"]
    )
    owned = earlier.groupby("user_id")["item_id"].agg(list)

    item_ids = sorted(earlier["item_id"].unique().tolist())
    vectors = recommender.encode_items(item_ids)
    client = QdrantClient(":memory:")
    size = vectors.shape[1]
    # the inner product, as the towers are trained: not the cosine
    params = models.VectorParams(size=size, distance=models.Distance.DOT)
    client.create_collection("items", vectors_config=params)
    points = [
        models.PointStruct(id=item_id, vector=vector.tolist())
        for item_id, vector in zip(item_ids, vectors, strict=True)
    ]
    client.upsert("items", points)

    people = owned.index.tolist()
    served = recommender.recommend(people, k=K).to_pandas()
    lists = served.groupby("user_id")["item_id"].agg(list)
    asked = recommender.encode_users(people)
    n_same = hits = hits_served = 0
    for person, vector in zip(people, asked, strict=True):
        found = search(client, vector.tolist(), owned[person])
        n_same += len({*found} & {*lists[person]})
        hits += last[person] in found
        hits_served += last[person] in lists[person]

    share = n_same / served.shape[0]
    print(f"without item-item weights {share:.1%} of what is served is found")
    print(f"HR@{K} as served       {hits_served / len(people):.3f}")
    print(f"HR@{K} by vectors alone {hits / len(people):.3f}")


if __name__ == "__main__":
    main()
