"""One finding of the leak check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LeakKind = Literal[
    "identifies the item",
    "fact of the item",
    "known after the choice",
    "made from the test",
    "test in training",
    "user in two parts",
]


@dataclass(frozen=True)
class Leak:
    """A column that seems to give the target away, or held-out events that training sees."""

    kind: LeakKind
    table: str
    """interactions, users or items."""
    column: str
    """As in the table; several, joined by commas, where events are compared by them."""
    power: float
    """0 (says nothing) to 1 (tells all), in the measure that `message` puts into words."""
    message: str
    """One line for a person: the figures, and what to do."""
