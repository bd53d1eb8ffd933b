"""Export the towers to ONNX and refuse an export that computes anything else than torch."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from datamodules.batch import Tensors
from models.memory import memory_inputs
from models.newcomers import Newcomers
from models.user_tower import UserTower
from serve.durable import write_file
from serve.errors import BundleError
from serve.tower import SPACE_ID, Arrays, Tower

PARITY = 1e-5
"""Largest difference of a vector's entry between torch and ONNX on the exporting machine."""
FULL_NAMES = {"B": "requests", "L": "history", "E": "owned", "N": "items"}

_USER_AXES = {
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
_MEMORY_AXES = {
    "owned_vectors": "E",
    "owned_users": "E",
    "owned_statistics": "E",
    "owned_preferences": "E",
    "user_statistics": "B",
    "category_preferences": "B",
}
_ITEM_AXES = {"item_codes": "N", "item_values": "N", "categories": "N"}


class UserGraph(nn.Module):
    """The user tower of requests, without memory."""

    def __init__(self, tower: UserTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, arrays: Tensors) -> Tensor:
        """Return the user vectors (B, W)."""
        return self.tower.request_vectors(arrays["history_vectors"], arrays)  # (B, W)


class RepeatUserGraph(nn.Module):
    """The user tower of requests, with memory."""

    def __init__(self, tower: UserTower) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Return the user vectors (B, W) and the scores (E,) of owned items beyond the product."""
        fused = self.tower.request_state(arrays["history_vectors"][..., : self.tower.dim], arrays)  # (B, D)
        return self.tower.complete(fused, memory_inputs(arrays, arrays["owned_vectors"]))  # (B, W), (E,)


class ItemGraph(nn.Module):
    """The item tower of new items."""

    def __init__(self, newcomers: Newcomers) -> None:
        super().__init__()
        self.newcomers = newcomers

    def forward(self, arrays: Tensors) -> Tensor:
        """Return the item vectors (N, W)."""
        vectors: Tensor = self.newcomers(*(arrays[name] for name in _ITEM_AXES))  # (N, W)
        return vectors


@dataclass(frozen=True)
class Graph:
    """A module to export, with the names of its inputs' dynamic axes and of its outputs."""

    module: nn.Module
    axes: dict[str, str]
    """Input -> the letters of its dynamic axes, in the order in which torch flattens the inputs."""
    outputs: tuple[str, ...]


def user_graph(tower: UserTower) -> Graph:
    if tower.memory is None:
        return Graph(UserGraph(tower), _USER_AXES, ("user_vectors",))
    return Graph(RepeatUserGraph(tower), _USER_AXES | _MEMORY_AXES, ("user_vectors", "memory"))


def item_graph(newcomers: Newcomers) -> Graph:
    return Graph(ItemGraph(newcomers), _ITEM_AXES, ("item_vectors",))


def export_graph(graph: Graph, example: Arrays, path: Path, space_id: str) -> None:
    """Write the graph as a single ONNX file.

    What is exported asks a tensor for `shape[0]`: `len` makes the number of requests a constant where torch follows the
    code as it runs, so that it starts again in another, slower way.

    Args:
        graph: in evaluation mode, on the CPU.
        example: an array for each input, with no axis of length 0 or 1 that is dynamic.
        path: of the file.
        space_id: written into the file's metadata, so that it is served with no other bundle's parts.
    """
    inputs = {name: torch.from_numpy(example[name]) for name in graph.axes}
    shapes = {
        name: {position: FULL_NAMES[letter] for position, letter in enumerate(axes)}
        for name, axes in graph.axes.items()
    }
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # on torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            graph.module.eval(),
            (),
            kwargs={"arrays": inputs},
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
    _forget_origin(model.graph)
    onnx.helper.set_model_props(model, {SPACE_ID: space_id})
    write_file(path, model.SerializeToString())


def _forget_origin(graph: onnx.GraphProto) -> None:
    """Take out by which lines of which files each part was made.

    These are paths of this machine and names numbered since the process began: no two exports would be alike.
    """
    for part in (*graph.node, *graph.value_info, *graph.initializer, *graph.input, *graph.output):
        part.ClearField("metadata_props")


def check_parity(graph: Graph, path: Path, cases: dict[str, Arrays]) -> None:
    """Compare the file, run by ONNX Runtime, with torch.

    Args:
        graph: what was exported.
        path: the file.
        cases: name of a case -> an array for each input.

    Raises:
        BundleError: an output differs by more than `PARITY`, times its largest entry where that is above 1: an entry
            is a sum of terms of that size, and so is its rounding.
    """
    tower = Tower(path.name, path.read_bytes(), n_threads=1)
    for case, arrays in cases.items():
        got = tower.run({name: arrays[name] for name in tower.inputs})
        for name, expected in run_torch(graph, arrays).items():
            difference = np.abs(got[name] - expected) / max(1.0, float(np.abs(expected).max(initial=0)))
            if difference.size and not difference.max() <= PARITY:
                raise BundleError(
                    f"{path.name}, {case}: output '{name}' differs from torch by {difference.max():.2e}; "
                    f"allowed: {PARITY:.0e}. Nothing is published"
                )


def run_torch(graph: Graph, arrays: Arrays) -> Arrays:
    """Run the module on named arrays."""
    with torch.no_grad():
        outputs = graph.module.eval()({name: torch.from_numpy(arrays[name]) for name in graph.axes})
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {name: output.numpy() for name, output in zip(graph.outputs, outputs, strict=True)}
