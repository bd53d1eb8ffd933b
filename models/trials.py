"""Which blends of correlations the validation judges, and which one is usual where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from models.item_correlations import RIDGES
from models.pair_correlations import USUAL

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
    """An event counts by exp(-decay * events after it), where transitions are fitted and where they are added up; 0
    where items have no order."""
    ridge: float
    """Of the correlations."""
    kind: Kind
    """Of numbers."""
    n_neighbours: int = 0
    """Of an item, where items are told pair by pair."""


@dataclass(frozen=True)
class Trials:
    """All blends of a decay, a ridge and a kind, each with several shares."""

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
    also: Trials | None = None
    """Tried before, with its first count."""

    @property
    def parts(self) -> Sequence[Trials]:
        return [self] if self.also is None else [*self.also.parts, self]


SETS = Trials(Blend(0.3, 0.0, 30.0, "correlations"))
"""Between what validations of two sets chose."""
BESIDE_MEMORY = Trials(Blend(0.05, 0.0, 1000.0, "correlations"))
SHORT_IN_ORDER = Trials(
    Blend(0.05, 1 / 3, 100.0, "transitions"), ridges=(100.0,), kinds=("transitions",), decays=(1 / 3,)
)
"""The validation of Amazon Beauty, seed 0, found .0789 with these (.0733 without), .0780 with a ridge of 30, .0779 with
correlations that have no direction."""
LONG_IN_ORDER = replace(
    SHORT_IN_ORDER, usual=replace(SHORT_IN_ORDER.usual, decay=0.1), ridges=(100.0, 300.0), decays=(0.2, 0.1, 0.05)
)
"""Strict validations of MovieLens-100k (943 users; seeds 0 to 2) found .1351, .1296 and .1288 without, .1518, .1517
and .1467 with the best of these and 64 neighbours, and .1525, .1513 and .1463 with factors of correlations instead.
That of 3,640 users (MovieLens-100k, the small sets of 2016 and 2018, the first users of 1M and 25M; 3,506 films of 20
ratings or more; seed 0) found .1294, .1437, and .1403 with factors, its test .1197, .1307 and .1258. The usual one is
what that validation chose."""


WITHOUT_ORDER = replace(SETS, kinds=("regressions",), until_worse=True)
"""EASE's numbers, of which each event of a history adds its own alike: an order may say nothing. Of planted tastes in
no order (`tests/benchmarks/planted.py`, seeds 0 and 1) tests rank .357 and .356 in place of .325 and .328 (sessions),
.153 and .176 in place of .120 and .131. Beauty and MovieLens choose what they did."""
MOST_WITHOUT_ORDER = 5_000
"""Items that are correlated there, the most popular ones: of more, the ridges take long to invert."""


def neighbours_of_sets(most: int) -> Trials:
    """Try what is usual, and the most that an item may have."""
    counts = [most] if most <= USUAL else [USUAL, most]
    usual = replace(SETS.usual, kind="regressions", n_neighbours=counts[0])
    return replace(SETS, usual=usual, kinds=("regressions",), counts=counts, until_worse=True)


def neighbours_of_events(most: int, is_long: bool) -> Trials:
    """Try as many as an item may have; what happened long ago tells something where histories are long."""
    trials = LONG_IN_ORDER if is_long else SHORT_IN_ORDER
    also = replace(WITHOUT_ORDER, counts=[most])
    return replace(trials, usual=replace(trials.usual, n_neighbours=most), counts=[most], also=also)
