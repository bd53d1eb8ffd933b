"""From trained towers to the files of a bundle. Torch ends here."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from models.export import Graph, check_parity, export_graph, item_graph, user_graph
from models.newcomers import Newcomers
from models.parity_cases import draw_events, item_case, user_case, user_cases
from models.towers import Towers
from serve.bundle import (
    INDEX,
    ITEM_TOWER,
    ITEMS,
    NEIGHBOUR_OFFSETS,
    NEIGHBOURS,
    SCHEMA,
    USER_TOWER,
    compute_space_id,
    write_items,
)
from serve.durable import write_file
from serve.events import Floats
from serve.index import write_index
from serve.schema import Schema
from serve.staging import Stage


def export_bundle(
    towers: Towers,
    newcomers: Newcomers,
    schema: Schema,
    items: pa.Table,
    popularity: Floats,
    stage: Stage,
    seed: int,
) -> None:
    """Write towers, vectors, index, items and schema into a stage; refuse if ONNX and torch differ.

    Args:
        towers: trained, on the CPU.
        newcomers: place items that the catalogue does not have.
        schema: of the data.
        items: `item_id` and columns to show and filter by, by item_row.
        popularity: (N, P) as of `schema.data_until`.
        stage: open.
        seed: of the inputs that the export is compared on.

    Raises:
        BundleError: an output of ONNX differs from torch.
    """
    towers = towers.eval()
    vectors = catalogue_vectors(towers, popularity)
    schema_bytes = schema.to_json().encode()
    write_file(stage.path / SCHEMA, schema_bytes)
    for name, content in zip((NEIGHBOUR_OFFSETS, NEIGHBOURS), towers.neighbours.to_bytes(), strict=True):
        write_file(stage.path / name, content)
    write_index(stage.path / INDEX, vectors)
    write_items(items, stage.path / ITEMS)
    space_id = compute_space_id(vectors, schema_bytes)
    _export_user_tower(towers, schema, vectors, stage, space_id, seed)
    _export_item_tower(item_graph(newcomers), schema, stage, space_id, seed)


def catalogue_vectors(towers: Towers, popularity: Floats) -> Floats:
    """Make the vectors of the catalogue, (N, W) float32."""
    with torch.no_grad():
        vectors = towers.eval().item_vectors(torch.from_numpy(popularity))  # (N, W)
    result: Floats = np.ascontiguousarray(vectors.numpy())
    return result


def _export_user_tower(towers: Towers, schema: Schema, vectors: Floats, stage: Stage, space_id: str, seed: int) -> None:
    graph, path = user_graph(towers.user_tower), stage.path / USER_TOWER
    dim, categories = towers.item_tower.history_dim, towers.categories.numpy()
    rng = np.random.default_rng(seed)
    events = draw_events(np.array([2, min(5, schema.history_length), 3]), schema, len(vectors), rng)
    export_graph(graph, user_case(events, schema, vectors, dim, categories, rng), path, space_id)
    check_parity(graph, path, user_cases(schema, vectors, dim, categories, seed))


def _export_item_tower(graph: Graph, schema: Schema, stage: Stage, space_id: str, seed: int) -> None:
    path, rng = stage.path / ITEM_TOWER, np.random.default_rng(seed)
    export_graph(graph, item_case(schema, 3, rng), path, space_id)
    check_parity(graph, path, {f"{n} items": item_case(schema, n, rng) for n in (1, 7, 256)})
