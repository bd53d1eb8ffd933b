"""Blend correlations of items into what finished towers say: what goes together, beside what was learned.

Either a part of R entries joins the vectors of items, and a sum of it over her items that of a user: the product then
says of an item what the towers do and what `models.item_correlations` does, and each is wrong elsewhere. Or, in sets
whose items are trained or well known and in histories that have an order, each item of a history adds to the scores of
its neighbours (`serve.neighbours`): there the towers know what a low rank can say. They are not trained together:
correlations know every pair that training would show them, and would be trusted too much.

Where a memory scores owned items, correlations are for the others: see `CorrelatedOwned`. They lift the best of these,
and owned items get a lead by which lists hold as many of them as before (`models.lead`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory, CorrelatedOwned
from models.correlated_scores import ByNeighbours, ByVectors, CorrelatedScores
from models.item_correlations import Factors
from models.jury import NEARLY_ALL, Figures, Jury, find_judges
from models.pair_correlations import PairCorrelations
from models.towers import Towers
from models.trials import Blend, Trials
from models.yardstick import Measured, Yardstick

SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
MOST_CORRELATED_BESIDE_MEMORY = 4_000
"""Items whose correlations are computed there, the most popular ones; the others are placed by who has them, which at
the largest ridge leaves little of them. Novel groceries of the test ranked as well by 3,000, 6,000 and all 12,526."""

Correlate = Callable[[float, float], Factors | PairCorrelations]
"""Ridge and decay -> the correlations of items, as factors or pair by pair."""


@dataclass(frozen=True)
class Judged:
    """A blend, and how it ranks what users of the validation took next."""

    blend: Blend
    ndcg: float | None = None
    """NDCG@10 with it, with a memory the mean of all and novel items; None: nothing could be validated, the blend is
    the usual one."""
    ndcg_alone: float | None = None
    """NDCG@10 of the towers alone."""


@torch.no_grad()
def blend_in(towers: Towers, correlate: Correlate, blend: Blend, requests: Sequence[RequestBatch]) -> None:
    """Let the towers make vectors with correlations in them, or have neighbours beside their vectors.

    Args:
        towers: trained, with nothing blended in.
        correlate: the catalogue.
        blend: how.
        requests: of some users who have events, to see how much scores vary.
    """
    if not blend.share:
        return
    correlated = _score_by(towers, correlate(blend.ridge, blend.decay), blend)
    measured = Yardstick(towers, requests).measure(correlated)
    if not measured.unit:
        return
    if isinstance(correlated, ByNeighbours):
        towers.neighbours = correlated.neighbours.scaled(blend.share * measured.unit)
    else:
        add_vectors(towers, correlated, measured, blend.share)


def add_vectors(towers: Towers, correlated: ByVectors, measured: Measured, share: float) -> None:
    """Let vectors have these entries, behind those that were added before, to count by a share of a yardstick."""
    side, scale = correlated.side, (share * measured.unit) ** 0.5
    if isinstance(side, CorrelatedOwned):
        side.lead = scale * measured.find_lead(share)
    before = towers.item_tower.correlations  # (N, any)
    towers.item_tower.correlations = torch.cat([before, scale * correlated.vectors], dim=1)  # (N, any + R)
    towers.user_tower.correlate(side)


@torch.no_grad()
def choose_blend(
    towers: Towers,
    correlate: Correlate,
    trials: Trials,
    requests: Sequence[RequestBatch],
    validation: Sequence[RequestBatch],
) -> Judged:
    """Find the blend by how it ranks what users of the validation took next, and what is new of it not worse than none.

    Args:
        towers: trained, with nothing blended in.
        correlate: the catalogue.
        trials: of blends.
        requests: as of `blend_in`.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges = find_judges(validation)
    if not judges:
        return Judged(trials.usual)
    yardstick, jury = Yardstick(towers, requests), Jury(towers, judges)
    none = Blend(0.0, trials.decays[0], trials.ridges[0], trials.kinds[0])
    found = {none: jury.judge_alone()}

    def judge(tried: Trials, ridge: float, decay: float, counts: Sequence[int]) -> dict[Blend, Figures]:
        made = correlate(ridge, decay)  # may be large, and is gone after it
        judged: dict[Blend, Figures] = {}
        for kind, count in product(tried.kinds, counts):
            blend = Blend(1.0, decay, ridge, kind, count)
            figures = jury.judge({blend: yardstick.measure(_score_by(towers, made, blend))}, SHARES)
            judged |= {replace(blend, share=share): one for (_, share), one in figures.items()}
        return judged

    for tried, decay in [(part, decay) for part in trials.parts for decay in part.decays]:
        latest = -math.inf
        for ridge in tried.ridges:
            figures = judge(tried, ridge, decay, tried.counts[:1])
            found |= figures
            before, latest = latest, max(one.mean for one in figures.values())
            if latest < before and tried.until_worse:
                break
    if trials.counts[1:]:
        told = [blend for blend in found if blend.share and blend.kind in trials.kinds]
        best = max(told, key=lambda blend: found[blend].mean)
        found |= judge(trials, best.ridge, best.decay, trials.counts[1:])
    return pick(found, none)


def _score_by(towers: Towers, made: Factors | PairCorrelations, blend: Blend) -> CorrelatedScores:
    if isinstance(made, PairCorrelations):
        neighbours = made.find_neighbours(blend.n_neighbours)
        return ByNeighbours(replace(neighbours, decay=blend.decay))
    side = CorrelatedHistory() if towers.user_tower.memory is None else CorrelatedOwned()
    return ByVectors(side, made.of_covariances() if blend.kind == "covariances" else made.vectors)


def pick(found: Mapping[Blend, Figures], none: Blend) -> Judged:
    """Choose a blend by its mean among those that rank what is new no worse than `none` does.

    The best that tells what comes next, if any does, with the fewest neighbours, and of these at the smallest share, at
    which nearly all that is to be gained is: what gains little more does by chance, and where a last training follows
    it has more data, so that its towers know more themselves.
    """
    ndcg = {blend: figures.mean for blend, figures in found.items() if figures.novel >= found[none].novel}
    enough = ndcg[none] + NEARLY_ALL * (max(ndcg.values()) - ndcg[none])
    first = min(map(_preference, (blend for blend in ndcg if ndcg[blend] >= enough)))
    best = max((blend for blend in ndcg if _preference(blend) == first), key=lambda blend: ndcg[blend])
    return Judged(best, ndcg[best], ndcg[none])


def _preference(blend: Blend) -> tuple[bool, int, float]:
    """Return what is least of the blend that is preferred to others as good."""
    return not blend.decay, blend.n_neighbours, blend.share
