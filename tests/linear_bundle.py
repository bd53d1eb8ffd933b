"""Bundles whose towers are linear and read every input of the contract, so that loops can say their answers.

Two worlds of 23 items in 10 columns (7 of taste, 1 of affinity, 2 of popularity): SHOP with repeats, baskets,
texts as ids and a memory, and FILMS without repeats, ordered, with integers as ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pipeline.golden import draw_requests, write_golden
from serve.bundle import ANSWERING, Bundle, Facts, compute_space_id, write_index, write_items
from serve.events import statistic_names
from serve.index import Neighbours
from serve.kinds import Feature
from serve.recommender import Recommender
from serve.schema import Schema
from service.publish import Stage, publish
from tests.tiny_onnx import FLOAT, INT64, node, onnx_model, value

N, D, W, P = 23, 7, 10, 2
DAY = 86_400
UNTIL = 1_500_000_000
DEPARTMENTS, BRANDS = ("dairy", "meat", "fruit"), ("x", "y")
GENDERS, DEVICES = ("f", "m"), ("phone", "web")
REPEAT_RATES = np.linspace(-1, 1, N).astype(np.float32)

SHOP = Schema(
    user_features=(
        Feature("gender", "categorical", "sex", GENDERS),
        Feature("income", "numeric", "income", mean=3.0, scale=2.0),
    ),
    item_features=(
        Feature("department", "categorical", "department", DEPARTMENTS),
        Feature("price", "numeric", "price", mean=1.0, scale=4.0),
        Feature("brand", "categorical", "brand", BRANDS),
    ),
    context_features=(
        Feature("device", "categorical", "device", DEVICES),
        Feature("hour", "hour_of_day", "datetime", tuple(map(str, range(24)))),
    ),
    user_id_type="string",
    item_id_type="string",
    event_types=("view", "buy"),
    has_datetime=True,
    has_weight=True,
    weight_mean=0.8,
    weight_scale=0.5,
    timezone=None,
    ties="simultaneous",
    repeats="allow",
    history_length=5,
    memory_length=8,
    decay_days=(1.0, 3.0),
    popularity_days=(9.0, 28.0),
    data_until=UNTIL,
)


STATISTICS = statistic_names(SHOP.decay_days, SHOP.event_types)
FILMS = replace(
    SHOP,
    user_id_type="integer",
    item_id_type="integer",
    event_types=(),
    has_weight=False,
    ties="ordered",
    repeats="exclude",
    popularity_days=(),
)
WORLDS = {"shop": SHOP, "films": FILMS}
SEED = 3


def item_ids(schema: Schema) -> list:
    """Return ids that are not in the order of rows."""
    numbers = [(7 * row) % N + 100 for row in range(N)]
    return numbers if schema.item_id_type == "integer" else [f"i{number}" for number in numbers]


def item_values(row: int) -> dict:
    """Return the raw features of an item; some are missing."""
    return {
        "department": None if row % 5 == 4 else DEPARTMENTS[row % 3],
        "price": None if row % 7 == 6 else row / 3,
        "brand": BRANDS[row % 2],
    }


def vectors_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((N, W), dtype=np.float32)


def weights_of(seed: int) -> dict[str, np.ndarray]:
    """Draw what the towers multiply by."""
    rng = np.random.default_rng(seed + 1000)
    shapes = {
        "project": (D, W),
        "user_c": (1, W),
        "user_v": (2, W),
        "context_c": (2, W),
    }
    shapes |= {"item_c": (2, W), "item_v": (2, W), "item_k": (2, W), "item_p": (P, W)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def category_weights() -> np.ndarray:
    """Return the memory's weight of each of the 5 codes of departments and 4 of brands."""
    return np.linspace(0.1, 0.5, 5 + 4).astype(np.float32)


_FLOATED = (
    "history_groups",
    "history_events",
    "history_lengths",
    "user_codes",
    "context_codes",
)
_STATE = [
    node("CastLike", ["one", "history_lengths"], "axis"),
    *(node("CastLike", [name, "one"], f"{name}_f") for name in _FLOATED),
    node("Min", ["history_groups_f", "one"], "mask"),
    node("Unsqueeze", ["request_times", "axis"], "now"),
    node("Sub", ["now", "history_times"], "gaps"),
    node("CastLike", ["gaps", "one"], "gaps_f"),
    node("Mul", ["gaps_f", "per_gap"], "by_gap"),
    node("Mul", ["history_events_f", "per_event"], "by_event"),
    node("Mul", ["history_weights", "per_weight"], "by_weight"),
    node("Mul", ["history_groups_f", "per_group"], "by_group"),
    node("Sum", ["one", "by_gap", "by_event", "by_weight", "by_group"], "raw_attention"),
    node("Mul", ["raw_attention", "mask"], "attention"),
    node("Unsqueeze", ["attention", "axis"], "rows"),
    node("MatMul", ["rows", "history_vectors"], "summed_rows"),
    node("Squeeze", ["summed_rows", "axis"], "summed"),
    node("Max", ["history_lengths_f", "one"], "counts"),
    node("Unsqueeze", ["counts", "axis"], "divisors"),
    node("Div", ["summed", "divisors"], "state"),
    node("MatMul", ["state", "project"], "projected"),
    node("MatMul", ["user_codes_f", "user_c"], "by_codes"),
    node("MatMul", ["user_values", "user_v"], "by_values"),
    node("MatMul", ["context_codes_f", "context_c"], "by_context"),
    node("Sum", ["projected", "by_codes", "by_values", "by_context"], "user_vectors"),
]
_STATE_INPUTS = [
    value("history_vectors", FLOAT, ["B", "L", D]),
    *(
        value(name, INT64, ["B", "L"])
        for name in ("history_events", "history_times", "history_groups")
    ),
    value("history_weights", FLOAT, ["B", "L"]),
    *(value(name, INT64, ["B"]) for name in ("history_lengths", "request_times")),
    value("user_codes", INT64, ["B", 1]),
    value("context_codes", INT64, ["B", 2]),
    value("user_values", FLOAT, ["B", 2]),
]
_MEMORY = [
    node("Gather", ["user_vectors", "owned_users"], "of_users"),
    node("Mul", ["of_users", "owned_vectors"], "terms"),
    node("MatMul", ["terms", "per_product"], "by_product"),
    node("MatMul", ["owned_statistics", "per_statistic"], "by_statistic"),
    node("MatMul", ["user_statistics", "per_user"], "by_user"),
    node("MatMul", ["category_preferences", "per_category"], "by_category"),
    node("Sum", ["by_user", "by_category"], "per_request"),
    node("Gather", ["per_request", "owned_users"], "by_request"),
    node("Sum", ["by_product", "by_statistic", "by_request"], "column"),
    node("Squeeze", ["column", "axis"], "flat"),
    node("Mul", ["owned_preferences", "per_preference"], "by_preference"),
    node("Sum", ["flat", "by_preference"], "memory"),
]
_MEMORY_INPUTS = [
    value("owned_vectors", FLOAT, ["E", W]),
    value("owned_users", INT64, ["E"]),
    value("owned_statistics", FLOAT, ["E", len(STATISTICS)]),
    value("owned_preferences", FLOAT, ["E"]),
    value("user_statistics", FLOAT, ["B", 6]),
    value("category_preferences", FLOAT, ["B", 9]),
]


def user_tower(schema: Schema, space_id: str, seed: int) -> bytes:
    """attention = 1 + .1 event + .2 weight + 1e-6 gap + .05 group; user = mean(attention x vector) + ..."""
    weights = {
        name: array for name, array in weights_of(seed).items() if not name.startswith("item")
    }
    weights |= {
        "one": np.ones(1),
        "per_event": np.array([0.1]),
        "per_weight": np.array([0.2]),
    }
    weights |= {"per_gap": np.array([1e-6]), "per_group": np.array([0.05])}
    vectors, metadata = value("user_vectors", FLOAT, ["B", W]), {"space_id": space_id}
    if schema.repeats == "exclude":
        return onnx_model(_STATE, _STATE_INPUTS, [vectors], weights, metadata)
    weighed = {"count": 0.2, "repeat_rate": 0.1, "event_buy": 0.15}
    weights |= {
        "per_statistic": np.array([weighed.get(name, 0.0) for name in STATISTICS])[:, None],
        "per_user": np.array([0, 0, 0.05, 0, 0, 0])[:, None],
        "per_category": category_weights()[:, None],
        "per_preference": np.array([0.5]),
        "per_product": np.full((W, 1), 0.3),
    }
    outputs = [vectors, value("memory", FLOAT, ["E"])]
    return onnx_model(_STATE + _MEMORY, _STATE_INPUTS + _MEMORY_INPUTS, outputs, weights, metadata)


def item_tower(space_id: str, seed: int) -> bytes:
    nodes = [
        node("CastLike", ["item_codes", "one"], "codes"),
        node("CastLike", ["categories", "one"], "cats"),
        node("MatMul", ["codes", "item_c"], "by_codes"),
        node("MatMul", ["item_values", "item_v"], "by_values"),
        node("MatMul", ["cats", "item_k"], "by_categories"),
        node(
            "Sum",
            ["by_codes", "by_values", "by_categories", "by_popularity"],
            "item_vectors",
        ),
    ]
    inputs = [
        *(value(name, INT64, ["N", 2]) for name in ("item_codes", "categories")),
        value("item_values", FLOAT, ["N", 2]),
    ]
    weights = {name: array for name, array in weights_of(seed).items() if name.startswith("item")}
    weights["by_popularity"] = vectors_of(seed)[:, W - P :].min(
        axis=0, keepdims=True
    ) @ weights.pop("item_p")
    weights["one"] = np.ones(1)
    outputs = [value("item_vectors", FLOAT, ["N", W])]
    return onnx_model(nodes, inputs, outputs, weights, {"space_id": space_id})


def write_linear(stage: Stage, schema: Schema, seed: int) -> Facts:
    """Write all files of a bundle with golden answers into a stage."""
    vectors, neighbours = vectors_of(seed), Neighbours.none(N)
    text = schema.to_json().encode()
    space_id = compute_space_id(vectors, text)
    items = {"item_id": item_ids(schema), "title": [f"Title {row}" for row in range(N)]}
    items |= {
        name: [item_values(row)[name] for row in range(N)]
        for name in ("department", "price", "brand")
    }
    if schema.repeats == "allow":
        items["repeat_rate"] = REPEAT_RATES
    libraries = {"numpy": np.__version__}
    facts = Facts("dot", P, {"items": N}, libraries, UNTIL, {"seed": seed}, neighbours.decay)
    (stage.path / "schema.json").write_bytes(text)
    (stage.path / "user_tower.onnx").write_bytes(user_tower(schema, space_id, seed))
    (stage.path / "item_tower.onnx").write_bytes(item_tower(space_id, seed))
    offsets, entries = neighbours.to_bytes()
    (stage.path / "item_neighbour_offsets.npy").write_bytes(offsets)
    (stage.path / "item_neighbours.npy").write_bytes(entries)
    write_index(stage.path / "items.faiss", vectors)
    write_items(pa.table(items), stage.path / "items.parquet")
    (stage.path / "MODEL_CARD.md").write_text("# Model card\n")
    stage.seal(facts, {})
    requests = draw_requests(schema, item_ids(schema), 8, np.random.default_rng(seed))
    answer = Recommender(Bundle.load(stage.path, required=ANSWERING)).recommend
    write_golden(stage.path / "golden.json", requests, answer, k=4)
    return facts


def publish_linear(directory: Path, schema: Schema, seed: int) -> Path:
    """Publish a bundle with golden answers and return its folder."""
    with Stage.open(directory) as stage:
        facts = write_linear(stage, schema, seed)
        return publish(stage.prepare(facts, {})).path
