"""Run the towers of a bundle in ONNX Runtime: named arrays in, named arrays out.

`Tower` is one graph, and `TowerPair` runs both on the arrays that `serve.inputs` makes.

Letters: T requests, E owned items, N items of the catalogue, W columns of a vector.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serve.arrays import Floats
from serve.encode import EncodedFeatures, category_rows
from serve.errors import BundleError
from serve.events import (
    HISTORY_INPUTS,
    OWNED_INPUTS,
    REQUEST_INPUTS,
    VECTOR_INPUTS,
    Arrays,
    TowerInputs,
)
from serve.schema import Schema

SPACE_ID = "space_id"  # key in a tower's metadata
ITEM_INPUTS = ("item_codes", "item_values", "categories")
USER_INPUTS = (*HISTORY_INPUTS, *REQUEST_INPUTS, *OWNED_INPUTS, *VECTOR_INPUTS)

_LOG_FATAL = 4  # other errors reach the caller as exceptions

# ONNX Runtime's own errors share no base but Exception.
_ORT_ERRORS = tuple(
    kind
    for kind in vars(ort_errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Tower:
    """One ONNX graph in a session of its own.

    Attributes:
        name: of its file.
        inputs: name -> type and shape.
        space_id: the space that the graph was exported for; None if it does not say.
        width: columns of its first output; None if the graph leaves them open.
    """

    def __init__(self, name: str, content: bytes, n_threads: int) -> None:
        """Start a session of the content of a file.

        Raises:
            BundleError: if it is no graph, or one that does not run here.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = _LOG_FATAL
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise BundleError(
                f"{name} is no ONNX graph that runs here: {error}"
            ) from error
        self.name = name
        self.inputs: dict[str, Any] = {}
        for entry in self._session.get_inputs():
            self.inputs[entry.name] = entry
        self._outputs = [output.name for output in self._session.get_outputs()]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.space_id: str | None = metadata.get(SPACE_ID)
        width = self._session.get_outputs()[0].shape[-1]
        self.width = width if isinstance(width, int) else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph.

        Args:
            inputs: an array for each name in `inputs`. No code or row is negative, since -1 would
                be read as the last one.

        Returns:
            The outputs by name.

        Raises:
            ValueError: if the graph refuses an input, or an output is not finite.
        """
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except _ORT_ERRORS as error:
            raise ValueError(f"{self.name} refuses its inputs: {error}") from error
        outputs = dict(zip(self._outputs, values, strict=True))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{self.name}: output '{name}' is not finite; "
                    "check the inputs' numbers"
                )
        return outputs


class TowerPair:
    """Both towers of a bundle behind arrays that this code makes."""

    def __init__(self, user: Tower, item: Tower, schema: Schema) -> None:
        """Check that the graphs read what is made here; a `BundleError` names an input."""
        for tower, made in ((user, USER_INPUTS), (item, ITEM_INPUTS)):
            for name in tower.inputs:
                if name not in made:
                    raise BundleError(
                        f"{tower.name} reads '{name}'; allowed: {', '.join(made)}: "
                        "export the bundle again"
                    )
        self._user = user
        self._item = item
        self._schema = schema
        width = None
        if "history_vectors" in user.inputs:
            width = user.inputs["history_vectors"].shape[-1]
        if type(width) is not int:  # a name stands for any size
            raise BundleError(
                f"{user.name} reads no history of a fixed width: "
                "export the bundle again"
            )
        # The first columns of the item vectors: histories hold them, and `similar` compares them.
        self.taste_dim: int = width

    def users(self, inputs: TowerInputs, vectors: Floats) -> tuple[Floats, Floats]:
        """Run the user tower.

        Args:
            inputs: the arrays of T requests, with rows of `vectors`.
            vectors: (N, W) item vectors.

        Returns:
            User vectors (T, W), and the memory's score of each owned item, (E,); no scores if the
            bundle has no memory.
        """
        tastes = vectors[:, : self.taste_dim]
        arrays = inputs.arrays | {
            "history_vectors": tastes[inputs.history_rows],
            "owned_vectors": vectors.take(inputs.owned_rows, axis=0),
        }
        outputs = self._user.run(_pick(arrays, self._user))
        no_memory = np.zeros(len(inputs.owned_rows), dtype=np.float32)
        return outputs["user_vectors"], outputs.get("memory", no_memory)

    def items(self, encoded: EncodedFeatures) -> Floats:
        """Return the vectors (n, W) of items that the catalogue does not have."""
        arrays: Arrays = {
            "item_codes": encoded.codes,
            "item_values": encoded.values,
            "categories": category_rows(self._schema.item_features, encoded.codes),
        }
        vectors: Floats = self._item.run(_pick(arrays, self._item))["item_vectors"]
        return vectors


def _pick(arrays: Arrays, tower: Tower) -> Arrays:
    """Leave out what the graph does not read, such as features of which there are none."""
    return {name: arrays[name] for name in tower.inputs if name in arrays}
