"""Item sets as plain lists."""

from __future__ import annotations

import numpy as np

from evaluation.metrics import ItemSets


def as_sets(lists: list[list[int]]) -> ItemSets:
    flat = np.array([item for items in lists for item in items], np.int64)
    return ItemSets(flat, np.cumsum([0, *map(len, lists)]))


def as_lists(sets: ItemSets) -> list[list[int]]:
    return [part.tolist() for part in np.split(sets.item_row, sets.offsets[1:-1])]
