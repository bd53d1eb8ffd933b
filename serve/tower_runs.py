"""Run a bundle's towers on encoded rows: complete the arrays with item vectors, pass what the graph reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from serve.bundle import Bundle
from serve.categories import category_rows
from serve.encoding import EncodedFeatures
from serve.errors import BundleError
from serve.layout import USER_TOWER
from serve.top_k import Floats
from serve.tower import Tower
from serve.tower_inputs import HISTORY_INPUTS, OWNED_INPUTS, REQUEST_INPUTS, VECTOR_INPUTS, TowerInputs

ITEM_INPUTS = ("item_codes", "item_values", "categories")


class TowerRuns:
    """Both towers of a bundle behind arrays that this code makes."""

    def __init__(self, bundle: Bundle) -> None:
        """Check what the graphs read.

        Raises:
            BundleError: a graph reads an input that nothing here makes.
        """
        _check_inputs(bundle.user_tower, (*HISTORY_INPUTS, *REQUEST_INPUTS, *OWNED_INPUTS, *VECTOR_INPUTS))
        _check_inputs(bundle.item_tower, ITEM_INPUTS)
        self.bundle = bundle
        self.taste_dim = _read_taste_dim(bundle)
        """D + R, the first columns of the item vectors: what histories hold and what likeness is measured by."""

    def users(self, inputs: TowerInputs, vectors: Floats) -> tuple[Floats, Floats]:
        """Return user vectors (B, W) and the memory's score of each owned item (E,), 0 without a memory.

        Args:
            inputs: encoded requests.
            vectors: (N, W) of the catalogue whose rows the inputs hold.
        """
        arrays = inputs.arrays | {
            "history_vectors": vectors[:, : self.taste_dim][inputs.history_rows],
            "owned_vectors": vectors.take(inputs.owned_rows, axis=0),
        }
        outputs = self.bundle.run_user_tower(_pick(arrays, self.bundle.user_tower))
        no_memory = np.zeros(len(inputs.owned_rows), dtype=np.float32)
        return outputs["user_vectors"], outputs.get("memory", no_memory)

    def items(self, encoded: EncodedFeatures) -> Floats:
        """Return the vectors (n, W) of items that the catalogue does not have."""
        arrays: dict[str, np.ndarray] = {
            "item_codes": encoded.codes,
            "item_values": encoded.values,
            "categories": category_rows(self.bundle.schema.item_features, encoded.codes),
        }
        vectors: Floats = self.bundle.run_item_tower(_pick(arrays, self.bundle.item_tower))["item_vectors"]
        return vectors


def _pick(arrays: Mapping[str, np.ndarray], tower: Tower) -> dict[str, np.ndarray]:
    """Leave out what the graph does not read, such as features of which there are none."""
    return {name: arrays[name] for name in tower.inputs if name in arrays}


def _check_inputs(tower: Tower, made: tuple[str, ...]) -> None:
    for name in tower.inputs:
        if name not in made:
            raise BundleError(f"{tower.name} reads '{name}'; allowed: {', '.join(made)}: export the bundle again")


def _read_taste_dim(bundle: Bundle) -> int:
    entry = bundle.user_tower.inputs.get("history_vectors")
    width = None if entry is None else entry.shape[-1]
    if not isinstance(width, int) or not 1 <= width <= bundle.vectors.shape[1]:
        allowed = f"1 to {bundle.vectors.shape[1]}"
        raise BundleError(f"{USER_TOWER}: history_vectors has width {width}; allowed: {allowed}: export again")
    return width
