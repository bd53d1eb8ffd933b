"""The long tail of a catalogue, and what recommended lists make of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.report.charts import Curve
from evaluation.targets import Ints

MARKS = (0.01, 0.1)
"""Shares of the catalogue, most popular items first, that are named."""
MOST_POINTS = 120


@dataclass(frozen=True)
class Exposure:
    """N items in the order of their popularity."""

    events: Ints
    """(N,) events of each item, falling."""
    shown: Ints
    """(N,) how many places of lists each of them has."""
    n_lists: int

    @classmethod
    def measure(cls, event_count: Ints, lists: Ints) -> Exposure:
        """Count the places in lists (B, K) of item rows, -1 for an empty one; ties go by item row."""
        order = np.argsort(-event_count, kind="stable")
        places = np.bincount(lists[lists >= 0], minlength=len(event_count))
        return cls(event_count[order], places[order], len(lists))

    def shares(self) -> list[tuple[int, float, float]]:
        """Return for each of `MARKS` how many items it is, and their share of events and of places.

        Marks that are as many items, as of a small catalogue, are one.
        """
        parts = dict.fromkeys(max(round(mark * len(self.events)), 1) for mark in MARKS)
        return [(n, _share(self.events, n), _share(self.shown, n)) for n in parts]

    def curves(self) -> list[Curve]:
        """Return the cumulative shares of events and of places over the share of the catalogue."""
        n_items = len(self.events)
        places = thin_out(n_items)
        return [
            Curve(label, [((place + 1) / n_items, _share(counts, place + 1)) for place in places], style)
            for label, counts, style in (("events", self.events, "theirs"), ("recommendations", self.shown, "ours"))
        ]

    def ranks(self) -> Curve:
        """Return events by rank, of items that have any."""
        n_items = int((self.events > 0).sum())
        return Curve("items", [(place + 1, int(self.events[place])) for place in thin_out(n_items)], "theirs")


def thin_out(n: int) -> list[int]:
    """Return at most `MOST_POINTS` places of 0 to n - 1 at about equal ratios, first and last among them."""
    if n < 1:
        return []
    places: list[int] = np.unique(np.geomspace(1, n, MOST_POINTS).round().astype(int) - 1).tolist()
    return places


def _share(counts: Ints, n: int) -> float:
    total = counts.sum()
    return float(counts[:n].sum() / total) if total else 0.0
