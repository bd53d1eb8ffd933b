from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from models.blending import Blend, blend_in
from models.directions import normalise

from models.cold_items import ColdItems, ContentPlaces
from models.export import (
    check_parity,
    draw_events,
    draw_features,
    export_bundle,
    export_graph,
    item_case,
    item_graph,
    user_case,
    user_cases,
    user_graph,
    write_vectors,
)
from models.item_item import Factors
from models.memory import memory_inputs
from models.towers import Towers
from serve.bundle import (
    INDEX,
    ITEM_TOWER,
    ITEMS,
    NEIGHBOUR_OFFSETS,
    NEIGHBOURS,
    SCHEMA,
    USER_TOWER,
    VECTORS,
    compute_space_id,
)
from serve.errors import BundleError
from serve.index import ItemIndex
from serve.publish import Stage
from serve.schema import Schema
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import BASKETS, ORDERED, L, N, World, make_data, make_set_world, make_world

PARITY = 1e-5


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@dataclass(frozen=True)
class Shipped:
    """Towers and the folder they were exported to."""

    world: World
    towers: Towers
    newcomers: ColdItems
    popularity: np.ndarray
    folder: Path
    n_captures: int
    """How often torch followed the code of a graph."""

    @property
    def vectors(self) -> np.ndarray:
        return np.load(self.folder / "item_vectors.npy")

    @property
    def schema(self) -> Schema:
        return self.world.schema


def ship(stage: Stage, config, similarity: str, n_correlations: int) -> Shipped:
    world = make_set_world(length=L) if config is None else make_world(config)
    data = make_data(world)
    towers, popularity = make_towers(world, data, similarity, n_blocks=1), data.trends.popularity[-1]
    factors = torch.randn(N, n_correlations, generator=torch.Generator().manual_seed(2))  # (N, R)
    made, share = Factors(factors, torch.ones(len(factors))), 0.5 if n_correlations else 0.0
    blend_in(towers, lambda ridge, decay: made, Blend(share, 0.0, 30.0, "correlations"), list(data.final_requests()))
    items = pa.table({"item_id": pa.array(world.catalogue.item_ids)})
    newcomers = make_newcomers(towers, popularity.shape[1])
    with patch("torch.export.export", wraps=torch.export.export) as capture:
        export_bundle(towers, newcomers, world.schema, items, popularity, stage, seed=1)
    return Shipped(world, towers, newcomers, popularity, stage.path, capture.call_count)


def make_newcomers(towers: Towers, n_popularity: int) -> ColdItems:
    """Make what places new items by another content part than that of the item tower."""
    content = towers.item_tower.content.widen(towers.item_tower.history_dim)
    with torch.no_grad():
        content.table.weight.mul_(1.5)
        content.table.weight[:, towers.item_tower.dim :] = 0.25
    generator = torch.Generator().manual_seed(5)
    keys, means = (torch.randn(4, content.dim, generator=generator) for _ in range(2))  # (4, D + R) each
    places = ContentPlaces(towers.item_tower, content, normalise(keys), means, torch.arange(1.0, 5.0))
    return ColdItems(towers.item_tower, places, torch.linspace(0.5, 1.5, n_popularity)).eval()


FAMILIES = {
    "ordered": (ORDERED, "dot", 0),
    "baskets": (BASKETS, "cosine", 0),
    "a set": (None, "cosine", 0),
    "a set, correlated": (None, "dot", 5),
    "baskets, correlated": (BASKETS, "dot", 5),
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
    if tower.memory is None:
        return [tower.request_vectors(tensors["history_vectors"], tensors).numpy()]
    fused = tower.request_state(tensors["history_vectors"][..., : tower.dim], tensors)
    return [output.numpy() for output in tower.complete(fused, memory_inputs(tensors, tensors["owned_vectors"]))]


def make_case(shipped: Shipped, batch: int, length: int, seed: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    events = draw_events(np.full(batch, length), shipped.schema, N, rng)
    categories = shipped.world.catalogue.categories
    dim = shipped.towers.item_tower.history_dim
    return user_case(events, shipped.schema, shipped.vectors, dim, categories, rng)


def test_each_graph_is_captured_at_the_first_try(shipped):
    assert shipped.n_captures == 2


@pytest.mark.parametrize("batch", [1, 7, 256])
@pytest.mark.parametrize("length", [0, 1, L])
def test_user_tower_answers_as_torch(shipped, batch, length):
    arrays = make_case(shipped, batch, length)
    found, expected = run_onnx(shipped.folder / USER_TOWER, arrays), run_towers(shipped.towers, arrays)
    assert len(found) == len(expected)
    assert found[0].shape[0] == batch
    assert np.abs(found[0] - expected[0]).max() <= PARITY
    for got, value in zip(found, expected, strict=True):
        assert got.shape == value.shape
        assert np.isfinite(got).all()
        assert (np.abs(got - value) <= PARITY * np.maximum(1, np.abs(value))).all()  # scores may be large


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_item_tower_places_items_by_content_as_torch(shipped, batch):
    arrays = item_case(shipped.schema, batch, np.random.default_rng(batch))
    (found,) = run_onnx(shipped.folder / ITEM_TOWER, arrays)
    names = ("item_codes", "item_values", "categories")
    with torch.no_grad():
        expected = shipped.newcomers(*(torch.from_numpy(arrays[name]) for name in names))
    assert np.abs(found - expected.numpy()).max() <= PARITY


def test_no_tower_names_the_files_it_was_made_by_and_exported_again_it_has_the_same_bytes(shipped, tmp_path):
    for name in (USER_TOWER, ITEM_TOWER):
        for sign in (b'File "', b".py", str(Path.cwd()).encode(), b"eval_with_key"):
            assert sign not in (shipped.folder / name).read_bytes()
    arrays = item_case(shipped.schema, 3, np.random.default_rng(3))
    for name in ("once", "again"):
        export_graph(item_graph(shipped.newcomers), arrays, tmp_path / name, "a space")
    assert (tmp_path / "once").read_bytes() == (tmp_path / "again").read_bytes()


def test_every_file_is_written_alone_and_names_its_space(shipped):
    names = {path.name for path in shipped.folder.iterdir()}
    assert names == {SCHEMA, VECTORS, NEIGHBOUR_OFFSETS, NEIGHBOURS, INDEX, ITEMS, USER_TOWER, ITEM_TOWER}
    for name in (USER_TOWER, ITEM_TOWER):
        model = onnx.load(shipped.folder / name, load_external_data=False)
        assert not any(tensor.external_data for tensor in model.graph.initializer)
        space_id = {entry.key: entry.value for entry in model.metadata_props}["space_id"]
        schema = (shipped.folder / SCHEMA).read_bytes()
        assert space_id == compute_space_id(np.load(shipped.folder / VECTORS), schema)


def test_vectors_and_index_are_those_of_the_item_tower(shipped):
    with torch.no_grad():
        expected = shipped.towers.item_vectors(torch.from_numpy(shipped.popularity)).numpy()
    vectors = np.load(shipped.folder / VECTORS)
    assert np.array_equal(vectors, expected)
    schema = (shipped.folder / SCHEMA).read_bytes()
    assert Schema.from_json(schema.decode()) == shipped.schema
    users = expected[:3]
    scores, rows = ItemIndex.load(shipped.folder / INDEX, vectors).search(users, 5)
    order = np.argsort(-(users @ expected.T), axis=1)[:, :5]
    assert np.array_equal(rows, order)
    assert np.abs(scores - np.take_along_axis(users @ expected.T, order, axis=1)).max() <= 1e-5


def test_the_user_tower_holds_no_table_of_the_catalogue(shipped):
    model = onnx.load(shipped.folder / USER_TOWER)
    assert all(N not in tensor.dims for tensor in model.graph.initializer)


def test_no_graph_scatters_which_is_slow_or_wrong_with_several_threads(shipped):
    for name in (USER_TOWER, ITEM_TOWER):
        model = onnx.load(shipped.folder / name)
        assert not any(node.op_type.startswith("Scatter") for node in model.graph.node)


def test_an_item_vector_changed_after_the_export_is_noticed(shipped):
    arrays = make_case(shipped, 7, L)
    before = run_onnx(shipped.folder / USER_TOWER, arrays)[0]
    changed = arrays | {"history_vectors": arrays["history_vectors"] + 0.1}
    assert np.abs(run_onnx(shipped.folder / USER_TOWER, changed)[0] - before).max() > 1e-3


def weights_of(shipped: Shipped) -> list[tuple]:
    towers = shipped.towers
    user, item = user_graph(towers.user_tower), item_graph(shipped.newcomers)
    weights = [
        (user, USER_TOWER, towers.user_tower.blocks.blocks[0].gap_bias.weight),
        (user, USER_TOWER, towers.user_tower.head[0].weight),
        (item, ITEM_TOWER, shipped.newcomers.places.content.table.weight),
        (item, ITEM_TOWER, shipped.newcomers.places.means),
    ]
    memory = towers.user_tower.memory
    return weights if memory is None else [*weights, (user, USER_TOWER, memory.item_score[0].weight)]


def test_a_graph_that_computes_something_else_is_refused(shipped):
    cases = {
        USER_TOWER: {"7 requests": make_case(shipped, 7, L)},
        ITEM_TOWER: {"7 items": item_case(shipped.schema, 7, np.random.default_rng(3))},
    }
    for graph, name, weight in weights_of(shipped):
        check_parity(graph, shipped.folder / name, cases[name])
        with torch.no_grad():
            weight.add_(0.01)
            try:
                with pytest.raises(BundleError, match=rf"{name}, .*differs from torch.*Nothing is published"):
                    check_parity(graph, shipped.folder / name, cases[name])
            finally:
                weight.sub_(0.01)


def test_cases_cover_the_shapes_that_serving_meets(shipped):
    vectors, categories = shipped.vectors, shipped.world.catalogue.categories
    cases = user_cases(shipped.schema, vectors, shipped.towers.item_tower.history_dim, categories, seed=2)
    shapes = {
        (len(case["history_lengths"]), tuple(sorted(set(case["history_lengths"].tolist())))) for case in cases.values()
    }
    for batch in (1, 7, 256):
        assert {(batch, (0,)), (batch, (1,))} <= shapes
        assert (batch, (L,)) in shapes or shipped.schema.is_set  # of a set an item that comes again is one
    features = shipped.schema.user_features
    drawn = draw_features(features, 99, np.random.default_rng(4))
    assert drawn.codes.min() == 1
    assert drawn.codes.max() == features[0].n_codes - 1
    assert set(drawn.values[:, 1]) == {0.0, 1.0}


def test_vectors_are_written_as_numpy_does(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((11, 7), dtype=np.float32)
    np.save(tmp_path / "expected.npy", vectors)
    write_vectors(vectors, tmp_path / "vectors.npy")
    assert (tmp_path / "vectors.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_vectors(np.ones((11, 7), np.float32), Path("/dev/full"))
