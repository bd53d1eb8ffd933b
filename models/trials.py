"""Which blends of correlations the validation judges, and which one is usual where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.item_correlations import RIDGES
from models.pair_correlations import USUAL
from models.transitions import DECAY, RIDGE

DECAYS = (1 / 3, 1 / 10, 0.0)
POWERS = (0.0, 1.0)
"""Correlations, and covariances: these ranked pairs of Amazon Beauty 2 to 3 % better, groceries no better."""


@dataclass(frozen=True)
class Blend:
    """How much correlations count."""

    share: float
    """How much their scores vary, as a share of how much those of the towers do; 0: they are left out."""
    decay: float
    """An event counts by exp(-decay * events after it); 0 with a memory, where owned items count alike."""
    ridge: float
    """Of the correlations."""
    power: float
    """0 correlations, 1 covariances: see `Factors`."""
    n_neighbours: int = 0
    """Of an item, where items are told pair by pair."""


@dataclass(frozen=True)
class Trials:
    """All blends of a ridge, a power and a decay, each with several shares."""

    usual: Blend
    """Where nothing can be validated: near what validations chose."""
    ridges: Sequence[float] = RIDGES
    powers: Sequence[float] = POWERS
    decays: Sequence[float] = (0.0,)
    counts: Sequence[int] = (0,)
    """Of neighbours: the first with every ridge, the others with the best; factors have one, which says nothing."""


EVENTS = Trials(Blend(0.1, 0.1, 30.0, 0.0), decays=DECAYS)
SETS = Trials(Blend(0.3, 0.0, 30.0, 0.0))
"""Between what validations of two sets chose."""
BESIDE_MEMORY = Trials(Blend(0.05, 0.0, 1000.0, 0.0))
TRANSITIONS = Trials(Blend(0.05, DECAY, RIDGE, 0.0), ridges=(RIDGE,), powers=(0.0,), decays=(DECAY,))


def neighbours_of_sets(most: int) -> Trials:
    """Try what is usual, and the most that an item may have."""
    counts = [most] if most <= USUAL else [USUAL, most]
    return replace(SETS, usual=replace(SETS.usual, n_neighbours=counts[0]), counts=counts)


def neighbours_of_events(most: int) -> Trials:
    """Try as many as an item may have."""
    return replace(TRANSITIONS, usual=replace(TRANSITIONS.usual, n_neighbours=most), counts=[most])
