"""Find where a count that rises reaches a number."""

from __future__ import annotations

from collections.abc import Callable

HALVINGS = 20


def halve(count: Callable[[float], int], wanted: float, low: float, high: float) -> float:
    """Find where a count that rises reaches what is wanted, `high` if it does not."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if count(middle) < wanted:
            low = middle
        else:
            high = middle
    return high
