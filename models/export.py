"""Write trained towers as the files of a bundle, and refuse an export that computes anything else than torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch
from torch import Tensor, nn

from datamodules.batch import Tensors
from models.cold_items import ColdItems
from models.memory import memory_inputs
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
from serve.encode import EncodedFeatures, code_slices, count_categories, value_slices
from serve.errors import BundleError
from serve.events import (
    DAY,
    Arrays,
    Events,
    history_arrays,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from serve.files import write_file
from serve.schema import FIRST_CODE, PADDING, UNKNOWN, Feature, Schema
from serve.tower import SPACE_ID, Tower
from service.publish import Stage

PARITY = 1e-5  # largest difference of a vector's entry between torch and ONNX on the exporting machine
BATCHES = (1, 7, 256)  # rows of the compared inputs
AXIS_NAMES = {"B": "requests", "L": "history", "E": "owned", "N": "items"}
USER_AXES = {
    **dict.fromkeys(
        [
            f"history_{name}"
            for name in ("vectors", "events", "weights", "times", "groups")
        ],
        "BL",
    ),
    **dict.fromkeys(
        ("history_lengths", "request_times", "user_codes", "user_values"), "B"
    ),
    **dict.fromkeys(("context_codes", "context_values"), "B"),
}
MEMORY_AXES = {
    **dict.fromkeys(
        [f"owned_{name}" for name in ("vectors", "users", "statistics", "preferences")],
        "E",
    ),
    **dict.fromkeys(("user_statistics", "category_preferences"), "B"),
}
ITEM_AXES = dict.fromkeys(("item_codes", "item_values", "categories"), "N")


def export_bundle(
    towers: Towers,
    cold_items: ColdItems,
    schema: Schema,
    items: pa.Table,
    popularity: Floats,
    stage: Stage,
    seed: int,
) -> None:
    """Write towers, index, item-item weights, items and schema into a stage; refuse ONNX that differs from torch."""
    vectors = catalogue_vectors(towers, popularity)
    schema_bytes = schema.to_json().encode()
    write_file(stage.path / SCHEMA, schema_bytes)
    for name, content in zip(
        (NEIGHBOUR_OFFSETS, NEIGHBOURS), towers.neighbours.to_bytes(), strict=True
    ):
        write_file(stage.path / name, content)
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
    item = item_graph(cold_items)
    export_graph(
        user,
        cases.of_user([2, min(5, schema.history_length), 3]),
        stage.path / USER_TOWER,
        space_id,
    )
    check_parity(user, stage.path / USER_TOWER, cases.of_users())
    export_graph(item, cases.of_item(3), stage.path / ITEM_TOWER, space_id)
    check_parity(
        item, stage.path / ITEM_TOWER, {f"{n} items": cases.of_item(n) for n in BATCHES}
    )


@torch.no_grad()
def catalogue_vectors(towers: Towers, popularity: Floats) -> Floats:
    """Make the vectors of the catalogue, (N, W) float32."""
    vectors = towers.eval().item_vectors(torch.from_numpy(popularity))  # (N, W)
    result: Floats = np.ascontiguousarray(vectors.numpy())
    return result


class Exported(nn.Module):
    """A part of the towers, run on named arrays."""

    def __init__(self, part: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.part = part
        self.run = run

    def forward(self, arrays: Tensors) -> Any:
        return self.run(self.part, arrays)


def run_user_tower(tower: UserTower, arrays: Tensors) -> Tensor | tuple[Tensor, Tensor]:
    """Return the user vectors (B, W) and, with a memory, the scores (E,) of owned items beyond the product."""
    fused = tower.request_state(arrays["history_vectors"], arrays)  # (B, D)
    if tower.memory is None:
        return tower.finish(fused)  # (B, W)
    return tower.remember(
        fused, memory_inputs(arrays, arrays["owned_vectors"])
    )  # (B, W), (E,)


@dataclass(frozen=True)
class Graph:
    """A module to export, with the names of its inputs' dynamic axes and of its outputs."""

    module: nn.Module
    axes: dict[
        str, str
    ]  # input -> the letters of its dynamic axes, in the order in which torch flattens the inputs
    outputs: tuple[str, ...]

    def run(self, arrays: Arrays) -> Arrays:
        """Run the module on named arrays."""
        with torch.no_grad():
            outputs = self.module.eval()(
                {name: torch.from_numpy(arrays[name]) for name in self.axes}
            )
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        return {
            name: output.numpy()
            for name, output in zip(self.outputs, outputs, strict=True)
        }


def user_graph(tower: UserTower) -> Graph:
    module = Exported(tower, run_user_tower)
    if tower.memory is None:
        return Graph(module, USER_AXES, ("user_vectors",))
    return Graph(module, USER_AXES | MEMORY_AXES, ("user_vectors", "memory"))


def item_graph(cold_items: ColdItems) -> Graph:
    run = Exported(
        cold_items, lambda part, arrays: part(*(arrays[name] for name in ITEM_AXES))
    )  # (N, W)
    return Graph(run, ITEM_AXES, ("item_vectors",))


def export_graph(graph: Graph, example: Arrays, path: Path, space_id: str) -> None:
    """Write the graph as one ONNX file that names its space; no dynamic axis of the example has length 0 or 1.

    An exported forward asks a tensor for `shape[0]`: `len` makes it a constant in torch's first, faster way of tracing.
    """
    shapes = {
        name: {i: AXIS_NAMES[axis] for i, axis in enumerate(axes)}
        for name, axes in graph.axes.items()
    }
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(
        logging.ERROR
    )  # on torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph.module.eval(),
            (),
            kwargs={
                "arrays": {name: torch.from_numpy(example[name]) for name in graph.axes}
            },
            dynamo=True,
            dynamic_shapes={"arrays": shapes},
            input_names=list(graph.axes),
            output_names=list(graph.outputs),
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise BundleError(f"{path.name}: torch exported nothing")
    model = program.model_proto
    whole = model.graph
    for part in (
        *whole.node,
        *whole.value_info,
        *whole.initializer,
        *whole.input,
        *whole.output,
    ):
        part.ClearField(
            "metadata_props"
        )  # source lines: paths of this machine, and names that differ each time
    onnx.helper.set_model_props(model, {SPACE_ID: space_id})
    write_file(path, model.SerializeToString())


def check_parity(graph: Graph, path: Path, cases: dict[str, Arrays]) -> None:
    """Refuse a file whose outputs differ from torch by more than `PARITY`, times their largest entry if above 1."""
    tower = Tower(path.name, path.read_bytes(), n_threads=1)
    for case, arrays in cases.items():
        got = tower.run({name: arrays[name] for name in tower.inputs})
        for name, expected in graph.run(arrays).items():
            difference = np.abs(got[name] - expected) / max(
                1.0, float(np.abs(expected).max(initial=0))
            )
            if difference.size and not difference.max() <= PARITY:
                raise BundleError(
                    f"{path.name}, {case}: output '{name}' differs from torch by {difference.max():.2e}; "
                    f"allowed: {PARITY:.0e}. Nothing is published"
                )


@dataclass(frozen=True)
class Cases:
    """Draws inputs of the towers, over the shapes that serving meets."""

    schema: Schema
    vectors: Floats  # (N, W) of the items
    dim: int  # D, the part that histories are read by
    categories: Ints  # (N, F) category rows of the items
    rng: np.random.Generator

    def of_users(self) -> dict[str, Arrays]:
        """Make the user tower's inputs for each batch size, for histories of 0, 1, any and the most events."""
        longest = self.schema.history_length
        cases: dict[str, Arrays] = {}
        for batch in BATCHES:
            drawn = self.rng.integers(0, longest, batch).tolist()
            lengths = {
                "0": [0] * batch,
                "1": [1] * batch,
                "max": [longest] * batch,
                "any": drawn,
            }
            cases |= {
                f"batch {batch}, history {name}": self.of_user(counts)
                for name, counts in lengths.items()
            }
        return cases

    def of_user(self, counts: list[int]) -> Arrays:
        """Make the user tower's inputs for histories of these lengths, with drawn features."""
        schema = self.schema
        events = self.draw_events(counts)
        moment = np.full(len(events), schema.data_until, dtype=np.int64)
        arrays, rows = history_arrays(events, schema)
        arrays["history_vectors"] = self.vectors[rows][..., : self.dim]
        user, context = (
            draw_features(schema.features(side), len(events), self.rng)
            for side in ("user", "context")
        )
        arrays |= request_arrays(moment, user, context, schema)
        if schema.repeats == "allow":
            rates = self.rng.normal(size=len(self.vectors)).astype(np.float32)
            owned = summarise_owned(
                events, moment, schema.decay_days, len(schema.event_types), rates
            )
            arrays |= owned_arrays(
                owned, self.categories, count_categories(schema.item_features)
            )
            arrays["owned_vectors"] = self.vectors[owned.item_row]
        return arrays

    def draw_events(self, counts: list[int]) -> Events:
        """Draw histories of these lengths from few items, so that some occur again."""
        schema = self.schema
        rng = self.rng
        total = sum(counts)
        segment = np.repeat(np.arange(len(counts)), counts)
        times = schema.data_until - (rng.integers(0, 300, total) * DAY).astype(np.int64)
        return Events(
            item_row=rng.integers(0, max(1, len(self.vectors) // 3), total),
            time=times[np.lexsort((times, segment))]
            if schema.has_datetime
            else np.zeros(total, dtype=np.int64),
            event=rng.integers(1, FIRST_CODE + len(schema.event_types), total),
            weight=rng.integers(1, 5, total).astype(np.float32),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        )

    def of_item(self, n: int) -> Arrays:
        """Make the item tower's inputs for n drawn items."""
        item_features = self.schema.item_features
        features = draw_features(item_features, n, self.rng)
        width = sum(feature.kind == "categorical" for feature in item_features)
        categories = self.rng.integers(
            0, max(1, count_categories(item_features)), (n, width)
        )
        return {
            "item_codes": features.codes,
            "item_values": features.values,
            "categories": categories,
        }


def draw_features(
    features: tuple[Feature, ...], n: int, rng: np.random.Generator
) -> EncodedFeatures:
    """Draw codes (one at least, then padding) with unknown ones, and numbers and vectors with some missing."""
    codes = [np.zeros((n, 0), dtype=np.int64)]
    values = [np.zeros((n, 0))]
    for feature, _ in code_slices(features):
        drawn = rng.integers(UNKNOWN, feature.n_codes, (n, feature.width))
        counts = rng.integers(1, feature.width + 1, (n, 1))
        codes.append(np.where(np.arange(feature.width) < counts, drawn, PADDING))
    for feature, _ in value_slices(features):
        is_missing = rng.random((n, 1)) < 0.2
        drawn = rng.normal(size=(n, feature.width)) / feature.width**0.5
        values += [np.where(is_missing, 0.0, drawn), is_missing.astype(np.float64)]
    return EncodedFeatures(
        np.concatenate(codes, axis=1), np.concatenate(values, axis=1).astype(np.float32)
    )
