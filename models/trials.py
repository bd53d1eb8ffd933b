"""Which blends of correlations the validation judges, and which one is usual where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.item_correlations import RIDGES
from models.pair_correlations import USUAL
from models.transitions import DECAY, RIDGE

DECAYS = (1 / 3, 1 / 10, 0.0)
Kind = Literal["correlations", "covariances", "regressions", "transitions"]
"""Of numbers: the partial correlations C_ij of `models.item_correlations`, -P_ij / (P_ii P_jj), EASE's -P_ij / P_jj,
and those of `models.transitions`. Vectors hold one of the first two, which are symmetric, neighbours the others."""
KINDS: tuple[Kind, ...] = ("correlations", "covariances")
"""Covariances ranked pairs of Amazon Beauty 2 to 3 % better, groceries no better. When neighbours could hold these as
well, the validations of Beauty (seeds 0, 1), Toys, citeulike and Gowalla all chose regressions."""


@dataclass(frozen=True)
class Blend:
    """How much correlations count."""

    share: float
    """How much their scores vary, as a share of how much those of the towers do; 0: they are left out."""
    decay: float
    """An event counts by exp(-decay * events after it); 0 with a memory, where owned items count alike."""
    ridge: float
    """Of the correlations."""
    kind: Kind
    """Of numbers."""
    n_neighbours: int = 0
    """Of an item, where items are told pair by pair."""


@dataclass(frozen=True)
class Trials:
    """All blends of a ridge, a kind and a decay, each with several shares."""

    usual: Blend
    """Where nothing can be validated: near what validations chose."""
    ridges: Sequence[float] = RIDGES
    kinds: Sequence[Kind] = KINDS
    decays: Sequence[float] = (0.0,)
    counts: Sequence[int] = (0,)
    """Of neighbours: the first with each ridge, the others with the best; factors have one, which says nothing."""
    until_worse: bool = False
    """No larger ridge is tried once one is worse than the one before. Of EASE's numbers figures rise up to a ridge and
    fall behind it (Beauty, citeulike, Gowalla); beside a memory they differ by chance, and all are tried."""


EVENTS = Trials(Blend(0.1, 0.1, 30.0, "correlations"), decays=DECAYS)
SETS = Trials(Blend(0.3, 0.0, 30.0, "correlations"))
"""Between what validations of two sets chose."""
BESIDE_MEMORY = Trials(Blend(0.05, 0.0, 1000.0, "correlations"))
TRANSITIONS = Trials(Blend(0.05, DECAY, RIDGE, "transitions"), ridges=(RIDGE,), kinds=("transitions",), decays=(DECAY,))


def neighbours_of_sets(most: int) -> Trials:
    """Try what is usual, and the most that an item may have."""
    counts = [most] if most <= USUAL else [USUAL, most]
    usual = replace(SETS.usual, kind="regressions", n_neighbours=counts[0])
    return replace(SETS, usual=usual, kinds=("regressions",), counts=counts, until_worse=True)


def neighbours_of_events(most: int) -> Trials:
    """Try as many as an item may have."""
    return replace(TRANSITIONS, usual=replace(TRANSITIONS.usual, n_neighbours=most), counts=[most])
