"""Export trained towers as the files of a bundle; an export that computes other values is refused.

Letters: B requests, L history positions, E owned items, N items, D entries of taste, W columns of a
vector.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch
from torch import Tensor, nn

from datamodules.batch import Tensors
from models.cold_items import ColdItems
from models.towers import Towers
from models.user_tower import UserTower
from serve.arrays import Floats, Ints
from serve.bundle import (
    INDEX,
    ITEM_TOWER,
    ITEMS,
    NEIGHBOUR_OFFSETS,
    NEIGHBOURS,
    SCHEMA,
    USER_TOWER,
    compute_space_id,
    write_index,
    write_items,
)
from serve.clock import DAY
from serve.encode import EncodedFeatures, count_categories
from serve.errors import BundleError
from serve.events import (
    Arrays,
    Events,
    history_arrays,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.files import write_file
from serve.kinds import FIRST_CODE, PADDING, UNKNOWN, Feature
from serve.schema import Schema
from serve.tower import SPACE_ID, Tower
from service.publish import Stage

PARITY = 1e-5  # largest difference of an entry between torch and ONNX on one machine
BATCHES = (1, 7, 256)  # rows of the compared inputs
AXIS_NAMES = {"B": "requests", "L": "history", "E": "owned", "N": "items"}

# input -> the letters of its dynamic axes, in the order in which torch flattens the inputs
USER_AXES = {
    "history_vectors": "BL",
    "history_events": "BL",
    "history_weights": "BL",
    "history_times": "BL",
    "history_groups": "BL",
    "history_lengths": "B",
    "request_times": "B",
    "user_codes": "B",
    "user_values": "B",
    "context_codes": "B",
    "context_values": "B",
}
MEMORY_AXES = {
    "owned_vectors": "E",
    "owned_users": "E",
    "owned_statistics": "E",
    "owned_preferences": "E",
    "user_statistics": "B",
    "category_preferences": "B",
}
ITEM_AXES = {"item_codes": "N", "item_values": "N", "categories": "N"}


def export_bundle(
    towers: Towers,
    cold_items: ColdItems,
    schema: Schema,
    items: pa.Table,
    popularity: Floats,
    stage: Stage,
    seed: int,
    is_traced: bool = False,
) -> None:
    """Write towers, index, item-item weights, items and schema into a stage.

    Args:
        towers: the trained towers.
        cold_items: the part of the item tower that places items by content.
        schema: how features are encoded.
        items: N rows, `item_id` and the columns to show and filter by.
        popularity: (N,) standardised popularity of the items.
        stage: where the files go.
        seed: decides the inputs by which ONNX and torch are compared.
        is_traced: see `export_graph`.

    Raises:
        BundleError: an ONNX file computes other values than torch.
    """
    vectors = catalogue_vectors(towers, popularity)
    schema_bytes = schema.to_json().encode()
    offsets, weights = towers.neighbours.to_bytes()
    write_file(stage.path / SCHEMA, schema_bytes)
    write_file(stage.path / NEIGHBOUR_OFFSETS, offsets)
    write_file(stage.path / NEIGHBOURS, weights)
    write_index(stage.path / INDEX, vectors)
    write_items(items, stage.path / ITEMS)

    space_id = compute_space_id(vectors, schema_bytes)
    cases = Cases(
        schema,
        vectors,
        towers.item_tower.dim,
        towers.categories.numpy(),
        np.random.default_rng(seed),
    )
    user = user_graph(towers.user_tower)
    path = stage.path / USER_TOWER
    lengths = [2, min(5, schema.history_length), 3]
    export_graph(user, cases.of_user(lengths), path, space_id, is_traced)
    check_parity(user, path, cases.of_users())

    item = item_graph(cold_items)
    path = stage.path / ITEM_TOWER
    export_graph(item, cases.of_item(3), path, space_id, is_traced)
    check_parity(item, path, map(cases.of_item, BATCHES))


@torch.no_grad()
def catalogue_vectors(towers: Towers, popularity: Floats) -> Floats:
    """Return the vectors (N, W) of the catalogue, whose popularity is (N,)."""
    vectors = towers.eval().item_vectors(torch.from_numpy(popularity))  # (N, W)
    return np.ascontiguousarray(vectors.numpy(), np.float32)


class Graph(nn.Module):
    """A part of the towers, run on named arrays.

    Attributes:
        part: the part.
        run: its outputs, given the part and the arrays.
        axes: input -> the letters of its dynamic axes.
        outputs: names of the outputs.
    """

    def __init__(
        self,
        part: nn.Module,
        run: Callable[..., tuple[Tensor, ...]],
        axes: dict[str, str],
        outputs: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.part = part
        self.run = run
        self.axes = axes
        self.outputs = outputs

    def forward(self, arrays: Tensors) -> tuple[Tensor, ...]:
        return self.run(self.part, arrays)

    def to_tensors(self, arrays: Arrays) -> Tensors:
        """Return the inputs as tensors, in their order."""
        return {name: torch.from_numpy(arrays[name]) for name in self.axes}


def user_graph(tower: UserTower) -> Graph:
    if tower.memory is None:
        return Graph(tower, _run_user_tower, USER_AXES, ("user_vectors",))
    outputs = ("user_vectors", "memory")
    return Graph(tower, _run_user_tower, USER_AXES | MEMORY_AXES, outputs)


def _run_user_tower(tower: UserTower, arrays: Tensors) -> tuple[Tensor, ...]:
    """Return the user vectors (B, W) and, with a memory, its terms (E,) for owned items."""
    fused = tower.request_state(arrays["history_vectors"], arrays)  # (B, D)
    if tower.memory is None:
        return (tower.finish(fused),)  # (B, W)
    return tower.remember(fused, arrays)  # (B, W), (E,)


def item_graph(cold_items: ColdItems) -> Graph:
    """Return the graph of the vectors (N, W) of items by their content."""
    return Graph(
        cold_items,
        lambda part, arrays: (part(*arrays.values()),),
        ITEM_AXES,
        ("item_vectors",),
    )


def export_graph(
    graph: Graph, example: Arrays, path: Path, space_id: str, is_traced: bool = False
) -> None:
    """Write a graph as one ONNX file that names its space.

    An exported forward asks a tensor for `shape[0]`: `len` makes it a constant in tracing.

    Args:
        graph: what to export.
        example: inputs, none of whose dynamic axes has the length 0 or 1.
        path: the file.
        space_id: the space of the item vectors.
        is_traced: run the graph once, in a twentieth of the time, instead of compiling it.
    """
    shapes = {}
    for name, axes in graph.axes.items():
        shapes[name] = {place: AXIS_NAMES[axis] for place, axis in enumerate(axes)}
    # it would warn of torchvision
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel("ERROR")
    inputs = {"arrays": graph.eval().to_tensors(example)}
    options: dict[str, Any] = {"dynamic_shapes": {"arrays": shapes}}
    if is_traced:
        options = {"dynamic_axes": shapes, "dynamo": False}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            graph,
            (),
            path,
            kwargs=inputs,
            input_names=list(graph.axes),
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
            **options,
        )

    model = onnx.load(path)
    whole = model.graph
    parts = (whole.node, whole.value_info, whole.initializer, whole.input, whole.output)

    for part in chain.from_iterable(parts):
        # source lines: paths of this machine, and names that differ each time
        part.ClearField("metadata_props")

    onnx.helper.set_model_props(model, {SPACE_ID: space_id})
    write_file(path, model.SerializeToString())


def check_parity(graph: Graph, path: Path, cases: Iterable[Arrays]) -> None:
    """Compare the outputs of a file with those of torch.

    Args:
        graph: what was exported.
        path: the ONNX file.
        cases: inputs of the graph.

    Raises:
        BundleError: an output differs by more than `PARITY`, times its largest entry if above 1.
    """
    tower = Tower(path.name, path.read_bytes(), n_threads=1)
    for arrays in cases:
        outputs = tower.run({name: arrays[name] for name in tower.inputs})
        with torch.no_grad():
            results = graph.eval()(graph.to_tensors(arrays))
        for name, result in zip(graph.outputs, results, strict=True):
            expected = result.numpy()
            scale = max(1.0, float(np.abs(expected).max(initial=0)))
            difference = np.abs(outputs[name] - expected) / scale
            if not difference.max(initial=0) <= PARITY:
                raise BundleError(
                    f"{path.name}: output '{name}' differs from torch by "
                    f"{difference.max():.2e}; allowed: {PARITY:.0e}. Nothing is published"
                )


@dataclass(frozen=True)
class Cases:
    """Draws inputs of the towers, over the shapes that serving meets.

    Attributes:
        vectors: (N, W) of the items.
        dim: D, the part that histories are read by.
        categories: (N, F) category rows of the items.
    """

    schema: Schema
    vectors: Floats
    dim: int
    categories: Ints
    rng: np.random.Generator

    def of_users(self) -> Iterator[Arrays]:
        """Make inputs of the user tower for each batch size and length of histories."""
        longest = self.schema.history_length
        for batch in BATCHES:
            yield self.of_user([0] * batch)
            yield self.of_user([1] * batch)
            yield self.of_user([longest] * batch)
            yield self.of_user(self.rng.integers(0, longest, batch).tolist())

    def of_user(self, lengths: list[int]) -> Arrays:
        """Make inputs of the user tower for histories of these lengths."""
        schema = self.schema
        events = self.draw_events(lengths)
        n_requests = len(lengths)
        moment = np.full(n_requests, schema.data_until)

        arrays, rows = history_arrays(events, schema)
        arrays["history_vectors"] = self.vectors[rows][..., : self.dim]

        user = draw_features(schema.features("user"), n_requests, self.rng)
        context = draw_features(schema.features("context"), n_requests, self.rng)
        arrays |= request_arrays(moment, user, context, schema)

        if schema.repeats == "allow":
            rates = self.rng.normal(size=len(self.vectors)).astype(np.float32)
            n_types = len(schema.event_types)
            owned = summarise_owned(events, moment, schema.decay_days, n_types, rates)
            n_categories = count_categories(schema.item_features)
            arrays |= owned_arrays(owned, self.categories, n_categories)
            arrays["owned_vectors"] = self.vectors[owned.item_row]

        return arrays

    def draw_events(self, lengths: list[int]) -> Events:
        """Draw histories of these lengths from few items, so that some occur again."""
        schema = self.schema
        rng = self.rng
        n_events = sum(lengths)
        owners = np.repeat(np.arange(len(lengths)), lengths)
        times = schema.data_until - DAY * rng.integers(0, 300, n_events)
        times = times[np.lexsort((times, owners))]

        if not schema.has_datetime:
            times = np.zeros_like(times)

        n_items = max(1, len(self.vectors) // 3)
        item_row = rng.integers(0, n_items, n_events)
        event = rng.integers(1, FIRST_CODE + len(schema.event_types), n_events)
        weight = rng.integers(1, 5, n_events).astype(np.float32)
        return Events(item_row, times, event, weight, np.cumsum([0, *lengths]))

    def of_item(self, n: int) -> Arrays:
        """Make inputs of the item tower for n drawn items."""
        item_features = self.schema.item_features
        features = draw_features(item_features, n, self.rng)
        width = sum(feature.is_categorical for feature in item_features)
        n_categories = max(1, count_categories(item_features))
        return {
            "item_codes": features.codes,
            "item_values": features.values,
            "categories": self.rng.integers(0, n_categories, (n, width)),
        }


def draw_features(
    features: tuple[Feature, ...], n: int, rng: np.random.Generator
) -> EncodedFeatures:
    """Draw codes, unknown ones among them, and numbers and vectors, some of them missing."""
    codes = [np.zeros((n, 0), dtype=np.int64)]
    values = [np.zeros((n, 0))]
    for feature in features:
        shape = (n, feature.width)
        if feature.has_values:
            is_missing = rng.random((n, 1)) < 0.2
            drawn = rng.normal(size=shape) / feature.width**0.5
            values += [np.where(is_missing, 0.0, drawn), is_missing.astype(np.float64)]
        else:
            counts = rng.integers(1, feature.width + 1, (n, 1))
            is_code = np.arange(feature.width) < counts
            drawn_codes = rng.integers(UNKNOWN, feature.n_codes, shape)
            codes.append(np.where(is_code, drawn_codes, PADDING))

    matrix = np.concatenate(values, axis=1).astype(np.float32)
    return EncodedFeatures(np.concatenate(codes, axis=1), matrix)
