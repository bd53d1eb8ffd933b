"""From an item's id to its row, for many ids at once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.errors import SchemaError
from serve.request_values import Id, parse_id, show
from serve.schema import IdType
from serve.top_k import Ints

UNKNOWN_ROW = -1
"""Never an array index: numpy and ONNX would read it as the last row."""


class ItemIds:
    """The ids of N items by item row, and the way back."""

    def __init__(self, ids: NDArray[np.generic]) -> None:
        """Prepare the look-up.

        Args:
            ids: (N,), distinct: int64, or object with texts.
        """
        self.ids = ids.view()
        self.ids.flags.writeable = False  # answers hold it
        self.id_type: IdType = "string" if ids.dtype == np.object_ else "integer"
        # a dict of texts; integers are found by bisection, which takes a whole array
        self._rows = {text: row for row, text in enumerate(ids.tolist())} if ids.dtype == np.object_ else {}
        self._order = np.argsort(ids) if ids.dtype != np.object_ else np.empty(0, dtype=np.int64)
        self._sorted: NDArray[Any] = ids[self._order]

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, more: Sequence[Id]) -> ItemIds:
        """Return these ids and, behind them, others that are not among them."""
        added = np.array(more, dtype=self.ids.dtype)
        rows = np.arange(len(self), len(self) + len(added))
        extended = copy(self)
        extended.ids = np.concatenate([self.ids, added])
        extended.ids.flags.writeable = False
        if self.id_type == "string":
            extended._rows = self._rows | dict(zip(more, rows.tolist(), strict=True))
            return extended
        order = np.argsort(added)
        places = self._sorted.searchsorted(added[order])
        extended._sorted = np.insert(self._sorted, places, added[order])
        extended._order = np.insert(self._order, places, rows[order])
        return extended

    def find(self, ids: Sequence[Id] | NDArray[np.generic]) -> Ints:
        """Return the row of each id, `UNKNOWN_ROW` where there is no such item."""
        if self.id_type == "string":
            texts = ids.tolist() if isinstance(ids, np.ndarray) else ids
            return np.array([self._rows.get(text, UNKNOWN_ROW) for text in texts], dtype=np.int64)
        numbers = np.asarray(ids, dtype=np.int64)
        place = self._sorted.searchsorted(numbers)  # N for a number above all: the last one is looked at then
        is_known = self._sorted.take(place, mode="clip") == numbers
        return np.where(is_known, self._order.take(place, mode="clip"), UNKNOWN_ROW)

    def require(self, ids: Sequence[Any]) -> Ints:
        """Return the row of each id as a caller wrote it.

        Raises:
            SchemaError: no id, or an item that the catalogue does not have.
        """
        checked = [parse_id(item_id, self.id_type, "item_id") for item_id in ids]
        rows = self.find(checked)
        for item_id, row in zip(checked, rows, strict=True):
            if row == UNKNOWN_ROW:
                raise SchemaError(f"item_id {show(item_id)} is unknown; allowed: the {len(self)} ids of the catalogue")
        return rows
