"""Item sets as plain lists, and metrics counted place by place."""

import math

import numpy as np
from evaluation.metrics import ItemSets


def as_sets(lists: list[list[int]]) -> ItemSets:
    flat = np.array([item for items in lists for item in items], np.int64)
    return ItemSets(flat, np.cumsum([0, *map(len, lists)]))


def as_lists(sets: ItemSets) -> list[list[int]]:
    return [part.tolist() for part in np.split(sets.item_row, sets.offsets[1:-1])]


def measure_naively(ranked, wanted, k: int) -> dict[str, float]:
    """Count place by place; -1 among `wanted` is a target that cannot be found."""
    gain, precision, first, found = 0.0, 0.0, 0, 0
    for place, item in enumerate(ranked[:k], start=1):
        if item == -1 or item not in wanted:
            continue
        found += 1
        gain += 1 / math.log2(place + 1)
        precision += found / place
        first = first or place
    reachable = min(k, len(wanted))
    return {
        f"HR@{k}": 1.0 if found else 0.0,
        f"Recall@{k}": found / len(wanted),
        f"NDCG@{k}": gain / sum(1 / math.log2(place + 1) for place in range(1, reachable + 1)),
        f"MRR@{k}": 1 / first if first else 0.0,
        f"MAP@{k}": precision / reachable,
    }
