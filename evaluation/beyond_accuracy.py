"""What lists do to a catalogue: how much of it they show, how new and how popular what they show is.

`event_count` (N,) is the number of training events of every item. Empty places (-1) are left out.
"""

from __future__ import annotations

import numpy as np

from evaluation.metrics import Floats
from evaluation.targets import Ints, Targets


def coverage(lists: Ints, n_items: int) -> float:
    """Share of the catalogue that stands in at least one list."""
    return len(np.unique(_shown(lists))) / n_items


def novelty(lists: Ints, event_count: Ints) -> float:
    """Mean of -log2 of the shown items' share of all events: bits of surprise.

    Every item is given one event more than it has, so that a new item's surprise is finite.
    """
    share = (event_count + 1) / (event_count.sum() + len(event_count))
    return _mean(-np.log2(share[_shown(lists)]))


def popularity_lift(lists: Ints, targets: Targets, event_count: Ints) -> float:
    """Mean popularity of the shown items over that of the targets; above 1, lists favour popular items.

    Popularity is events + 1, and 1 for a target outside the catalogue, so the ratio exists where all is new.
    There must be a target.
    """
    popularity = np.append(event_count, 0) + 1.0  # the last one answers -1
    return _mean(popularity[_shown(lists)]) / _mean(popularity[targets.items.item_row])


def exposure_gini(lists: Ints, n_items: int) -> float:
    """Gini index of how often each item is shown: 0 if all equally often, near 1 if a few have it all."""
    exposure = np.sort(np.bincount(_shown(lists), minlength=n_items)).astype(np.float64)
    if not exposure.any():
        return 0.0
    rank = np.arange(1, n_items + 1)
    return float(((2 * rank - n_items - 1) @ exposure) / (n_items * exposure.sum()))


def describe_lists(lists: Ints, targets: Targets, event_count: Ints, k: int) -> dict[str, float]:
    """Return the four figures for the first k places of the lists."""
    top = lists[:, :k]
    return {
        f"coverage@{k}": coverage(top, len(event_count)),
        f"novelty@{k}": novelty(top, event_count),
        f"popularity_lift@{k}": popularity_lift(top, targets, event_count),
        f"gini@{k}": exposure_gini(top, len(event_count)),
    }


def _shown(lists: Ints) -> Ints:
    return lists[lists >= 0]


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else 0.0
