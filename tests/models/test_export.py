from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from models.cold_items import ColdItems, fit_cold_items
from models.export import (
    BATCHES,
    ITEM_AXES,
    Cases,
    catalogue_vectors,
    check_parity,
    export_bundle,
    export_graph,
    item_graph,
    user_graph,
)
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
)
from serve.errors import BundleError
from serve.schema import Schema
from service.publish import Stage
from tests.models.tiny_towers import make_towers
from tests.tiny_data import (
    BASKETS,
    ORDERED,
    L,
    N,
    World,
    make_data,
    make_set_world,
    make_world,
)

PARITY = 1e-5


@dataclass(frozen=True)
class Shipped:
    """Towers and the folder they were exported to."""

    world: World
    towers: Towers
    cold_items: ColdItems
    vectors: np.ndarray
    folder: Path

    @property
    def schema(self) -> Schema:
        return self.world.schema

    def cases(self, seed: int = 9) -> Cases:
        categories = self.world.catalogue.categories
        return Cases(
            self.schema,
            self.vectors,
            self.towers.item_tower.dim,
            categories,
            np.random.default_rng(seed),
        )


def ship(stage: Stage, config, similarity: str) -> Shipped:
    world = make_set_world(length=L) if config is None else make_world(config)
    data = make_data(world)
    towers, popularity = (
        make_towers(world, data, similarity, n_blocks=1),
        data.trends.popularity[-1],
    )
    items = pa.table({"item_id": pa.array(world.catalogue.item_ids)})
    is_taken = torch.ones(N, dtype=torch.bool)
    cold = fit_cold_items(towers, torch.from_numpy(popularity), is_taken, data.drawn_requests(9), 1)
    export_bundle(towers, cold, world.schema, items, popularity, stage, seed=1)
    return Shipped(world, towers, cold, catalogue_vectors(towers, popularity), stage.path)


FAMILIES = {
    "ordered": (ORDERED, "dot"),
    "baskets": (BASKETS, "cosine"),
    "a set": (None, "cosine"),
}


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES)
def shipped(request, tmp_path_factory) -> Iterator[Shipped]:
    with Stage.open(tmp_path_factory.mktemp("shipped")) as stage:
        yield ship(stage, *request.param)


def run_onnx(path: Path, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {entry.name: arrays[entry.name] for entry in session.get_inputs()})


@torch.no_grad()
def run_towers(towers: Towers, arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run the user tower without the graphs that are exported."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    tower = towers.user_tower
    fused = tower.request_state(tensors["history_vectors"], tensors)
    if tower.memory is None:
        return [tower.finish(fused).numpy()]
    return [output.numpy() for output in tower.remember(fused, tensors)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("length", [0, 1, L])
def test_user_tower_answers_as_torch(shipped, batch, length):
    arrays = shipped.cases().of_user([length] * batch)
    found, expected = (
        run_onnx(shipped.folder / USER_TOWER, arrays),
        run_towers(shipped.towers, arrays),
    )
    assert len(found) == len(expected)
    assert found[0].shape[0] == batch
    for got, value in zip(found, expected, strict=True):
        assert got.shape == value.shape
        assert np.isfinite(got).all()
        assert (np.abs(got - value) <= PARITY * np.maximum(1, np.abs(value))).all()


@pytest.mark.parametrize("batch", BATCHES)
def test_item_tower_places_items_by_content_as_torch(shipped, batch):
    arrays = shipped.cases(batch).of_item(batch)
    (found,) = run_onnx(shipped.folder / ITEM_TOWER, arrays)
    with torch.no_grad():
        expected = shipped.cold_items(*(torch.from_numpy(arrays[name]) for name in ITEM_AXES))
    assert np.abs(found - expected.numpy()).max() <= PARITY


def test_no_tower_names_the_files_it_was_made_by_and_exported_again_it_has_the_same_bytes(
    shipped, tmp_path
):
    for name in (USER_TOWER, ITEM_TOWER):
        for sign in (b'File "', b".py", str(Path.cwd()).encode(), b"eval_with_key"):
            assert sign not in (shipped.folder / name).read_bytes()
    schema = (shipped.folder / SCHEMA).read_bytes()
    export_graph(
        item_graph(shipped.cold_items),
        shipped.cases().of_item(3),  # other values than before
        tmp_path / "again",
        compute_space_id(shipped.vectors, schema),
    )
    assert (tmp_path / "again").read_bytes() == (shipped.folder / ITEM_TOWER).read_bytes()


def test_every_file_is_written_alone_and_names_its_space(shipped):
    names = {path.name for path in shipped.folder.iterdir()}
    assert names == {
        SCHEMA,
        NEIGHBOUR_OFFSETS,
        NEIGHBOURS,
        INDEX,
        ITEMS,
        USER_TOWER,
        ITEM_TOWER,
    }
    schema = (shipped.folder / SCHEMA).read_bytes()
    assert Schema.from_json(schema.decode()) == shipped.schema
    for name in (USER_TOWER, ITEM_TOWER):
        model = onnx.load(shipped.folder / name, load_external_data=False)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        space_id = {entry.key: entry.value for entry in model.metadata_props}["space_id"]
        assert space_id == compute_space_id(shipped.vectors, schema)


def test_the_user_tower_holds_no_table_of_the_catalogue_and_no_graph_scatters(shipped):
    """A node that scatters is slow, or wrong with several threads."""
    assert all(
        N not in tensor.dims for tensor in onnx.load(shipped.folder / USER_TOWER).graph.initializer
    )
    for name in (USER_TOWER, ITEM_TOWER):
        assert not any(
            node.op_type.startswith("Scatter")
            for node in onnx.load(shipped.folder / name).graph.node
        )


def test_a_graph_that_computes_something_else_is_refused(shipped):
    tower, cases = shipped.towers.user_tower, shipped.cases(3)
    weights = [
        (user_graph(tower), USER_TOWER, tower.blocks.blocks[0].gap_bias.weight),
        (user_graph(tower), USER_TOWER, tower.head[0].weight),
        (
            item_graph(shipped.cold_items),
            ITEM_TOWER,
            shipped.cold_items.places.content.table.weight,
        ),
    ]
    if tower.memory is not None:
        weights.append((user_graph(tower), USER_TOWER, tower.memory.item_score[0].weight))
    asked = {
        USER_TOWER: [cases.of_user([L] * 7)],
        ITEM_TOWER: [cases.of_item(7)],
    }
    for graph, name, weight in weights:
        check_parity(graph, shipped.folder / name, asked[name])
        with torch.no_grad():
            weight.add_(0.01)
            try:
                with pytest.raises(
                    BundleError,
                    match=rf"{name}: .*differs from torch.*Nothing is published",
                ):
                    check_parity(graph, shipped.folder / name, asked[name])
            finally:
                weight.sub_(0.01)
