"""Make complete bundles of 11 items in 7 dimensions, 2 of them popularity."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pipeline.golden import write_golden
from serve.bundle import ANSWERING, Bundle, Facts, compute_space_id, write_index, write_items
from serve.index import Neighbours, Query
from serve.kinds import Feature
from serve.recommendations import Recommendations
from serve.recommender import Recommend
from service.publish import Stage, publish
from tests.linear_bundle import SHOP
from tests.tiny_onnx import FLOAT, INT64, node, onnx_model, value

N, D, P, F = (
    11,
    7,
    2,
    3,
)  # items, dimensions, of them popularity, numbers that a tower reads

FACTS = Facts(
    similarity="dot",
    popularity_dims=P,
    counts={"items": N, "users": 5},
    libraries={"numpy": np.__version__},
    data_until=1_500_000_000,
    config={"seed": 3},
    neighbour_decay=0.0,
)
SCHEMA = replace(
    SHOP,
    user_features=(
        replace(SHOP.user_features[0], column="gender"),
        SHOP.user_features[1],
    ),
    item_features=(Feature("genres", "multi_categorical", "genres", ("a", "b", "c"), width=2),),
    ties="ordered",
    memory_length=4000,
)
METRICS = {"test": {"bascule": {"all": {"NDCG@10": 0.25, "NDCG@10_ci95": [0.2, 0.3]}}}}


def tiny_vectors(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, D), dtype=np.float32)


def item_ids() -> list[str]:
    return [f"item-{row:02d}" for row in range(N)]


def tiny_user_tower(space_id: str, seed: int, width: int = D) -> bytes:
    """user_vectors = table[codes] + numbers @ weights."""
    rng = np.random.default_rng(seed)
    return onnx_model(
        [
            node("Gather", ["table", "codes"], "rows"),
            node("MatMul", ["numbers", "weights"], "product"),
            node("Add", ["rows", "product"], "user_vectors"),
        ],
        [value("codes", INT64, ["batch"]), value("numbers", FLOAT, ["batch", F])],
        [value("user_vectors", FLOAT, ["batch", width])],
        {
            "table": rng.standard_normal((5, width)),
            "weights": rng.standard_normal((F, width)),
        },
        {"space_id": space_id},
    )


def tiny_item_tower(space_id: str, seed: int, width: int = D) -> bytes:
    """item_vectors = numbers @ weights."""
    weights = np.random.default_rng(seed).standard_normal((F, width))
    return onnx_model(
        [node("MatMul", ["numbers", "weights"], "item_vectors")],
        [value("numbers", FLOAT, ["batch", F])],
        [value("item_vectors", FLOAT, ["batch", width])],
        {"weights": weights},
        {"space_id": space_id},
    )


def tiny_neighbours(seed: int) -> Neighbours:
    """Give items 0 to 3 or fewer neighbours."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], rng.integers(0, 4, N).cumsum()])
    return Neighbours(
        offsets,
        rng.integers(0, N, offsets[-1]),
        rng.standard_normal(offsets[-1]).astype(np.float32),
    )


def write_stage(folder: Path, seed: int) -> None:
    """Write all files but the golden requests and the manifest."""
    vectors = tiny_vectors(seed)
    schema = SCHEMA.to_json().encode()
    space_id = compute_space_id(vectors, schema)
    (folder / "schema.json").write_bytes(schema)
    (folder / "user_tower.onnx").write_bytes(tiny_user_tower(space_id, seed))
    (folder / "item_tower.onnx").write_bytes(tiny_item_tower(space_id, seed))
    offsets, entries = tiny_neighbours(seed).to_bytes()
    (folder / "item_neighbour_offsets.npy").write_bytes(offsets)
    (folder / "item_neighbours.npy").write_bytes(entries)
    write_index(folder / "items.faiss", vectors)
    titles = [f"Title {seed} {row}" for row in range(N)]
    write_items(pa.table({"item_id": item_ids(), "title": titles}), folder / "items.parquet")


def answer_with(bundle: Bundle) -> Recommend:
    """Answer a raw request by the length of its history alone."""

    def answer(requests, k):
        lengths = np.array([len(request["history"]) for request in requests])
        numbers = np.stack([lengths, lengths % 3, np.ones(len(lengths))], axis=1).astype(np.float32)
        users = bundle.user_tower.run({"codes": lengths % 5, "numbers": numbers})["user_vectors"]
        scores, rows = bundle.index.search(Query(users), k)
        return Recommendations.from_lists(
            [None] * len(users),
            rows,
            scores,
            item_ids=np.array(item_ids(), np.object_),
            unknown_items=np.zeros(len(users), np.int64),
            user_id_type="string",
            reason=np.full(len(users), None),
            held_back=np.zeros(len(users), np.int64),
        )

    return answer


def complete_stage(stage: Stage, seed: int) -> None:
    write_stage(stage.path, seed)
    (stage.path / "MODEL_CARD.md").write_text(f"# Model card of seed {seed}\n")
    stage.seal(FACTS, {})
    requests = [{"history": ["item-01"] * length} for length in range(4)]
    write_golden(
        stage.path / "golden.json",
        requests,
        answer_with(Bundle.load(stage.path, required=ANSWERING)),
        k=3,
    )


def publish_tiny(directory: Path, seed: int, overwrite: bool = False) -> Bundle:
    with Stage.open(directory) as stage:
        complete_stage(stage, seed)
        return publish(stage.prepare(FACTS, METRICS), overwrite)
