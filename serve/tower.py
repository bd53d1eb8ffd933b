"""Run the towers of a bundle in ONNX Runtime: named arrays in, named arrays out, checked at the edge."""

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

_ORT_ERRORS = tuple(
    kind
    for kind in vars(ort_errors).values()
    if isinstance(kind, type) and issubclass(kind, Exception)
)  # ONNX Runtime's own errors; they share no base but Exception


def count_cores() -> int:
    """Return how many cores this process may use."""
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


class Tower:
    """One ONNX graph in a session of its own."""

    def __init__(self, name: str, content: bytes, n_threads: int) -> None:
        """Start a session of the verified content of a file; a `BundleError` names one that does not run here."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = (
            4  # fatal ones only: errors reach the caller as exceptions
        )
        try:
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
        except _ORT_ERRORS as error:
            raise BundleError(
                f"{name} is no ONNX graph that runs here: {error}"
            ) from error
        self.name = name
        self.inputs: dict[str, Any] = {
            entry.name: entry for entry in self._session.get_inputs()
        }
        self._outputs = self._session.get_outputs()
        # the space that the graph was exported for, None if it does not say
        self.space_id: str | None = (
            self._session.get_modelmeta().custom_metadata_map.get(SPACE_ID)
        )
        last = self._outputs[0].shape[-1]
        self.width = (
            last if isinstance(last, int) else None
        )  # columns of the first output, None if left open

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph on an array for each of its inputs; no code or row is negative: -1 is the last one to it."""
        try:
            values = self._session.run(None, dict(inputs))
        except _ORT_ERRORS as error:
            raise ValueError(f"{self.name} refuses its inputs: {error}") from error
        outputs = {
            output.name: value
            for output, value in zip(self._outputs, values, strict=True)
        }
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(
                    f"{self.name}: output '{name}' is not finite; check the inputs' numbers"
                )
        return outputs


class TowerPair:
    """Both towers of a bundle behind arrays that this code makes."""

    def __init__(self, user: Tower, item: Tower, schema: Schema) -> None:
        """Check the inputs of the graphs."""
        _check_inputs(
            user, (*HISTORY_INPUTS, *REQUEST_INPUTS, *OWNED_INPUTS, *VECTOR_INPUTS)
        )
        _check_inputs(item, ITEM_INPUTS)
        self._user = user
        self._item = item
        self._schema = schema
        # D + R, the first columns of the item vectors: histories hold them, and likeness is measured by them
        self.taste_dim: int = (
            user.inputs["history_vectors"].shape[-1]
            if "history_vectors" in user.inputs
            else 0
        )
        if (
            type(self.taste_dim) is not int or self.taste_dim < 1
        ):  # a name stands for any size
            raise BundleError(
                f"{user.name} reads no history of a fixed width: export the bundle again"
            )

    def users(self, inputs: TowerInputs, vectors: Floats) -> tuple[Floats, Floats]:
        """Return user vectors (B, W) and the memory's score of each owned item (E,); inputs hold rows of `vectors`."""
        arrays = inputs.arrays | {
            "history_vectors": vectors[:, : self.taste_dim][inputs.history_rows],
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


def _pick(arrays: Mapping[str, np.ndarray], tower: Tower) -> Arrays:
    """Leave out what the graph does not read, such as features of which there are none."""
    return {name: arrays[name] for name in tower.inputs if name in arrays}


def _check_inputs(tower: Tower, made: tuple[str, ...]) -> None:
    for name in tower.inputs:
        if name not in made:
            raise BundleError(
                f"{tower.name} reads '{name}'; allowed: {', '.join(made)}: export the bundle again"
            )
