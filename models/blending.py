"""Blend correlations of items into finished vectors: what goes together, beside what was learned.

A part of R entries joins the vectors of items, and a sum of it over her items that of a user: the product then says of
an item what the towers do and what `models.item_correlations` does, and each is wrong elsewhere. They are not trained
together: correlations know every pair that training would show them, and would be trusted too much.

Where a memory scores owned items, correlations are for the others: see `CorrelatedOwned`. They lift the best of these,
and owned items get a lead by which lists hold as many of them as before (`models.lead`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory, CorrelatedOwned
from models.lead import Contest, find_lead
from models.towers import Towers
from models.validation import all_ndcg, novel_ndcg

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
DECAYS = (1 / 3, 1 / 10, 0.0)
RIDGES = (30.0, 1000.0)
"""Pairs of Amazon Beauty and Frappe ranked better by the first, groceries by the other, MovieLens alike by both."""
MOST_LEAD = 8.0
"""Times how much the towers' scores vary."""
MOST_CORRELATED_BESIDE_MEMORY = 4_000
"""Items whose correlations are computed there, the most popular ones; the others are placed by who has them. Novel
groceries ranked as well by 3,000, 6,000 and all of 12,526."""
MOST_JUDGES = 100
"""Batches of the validation."""
SHORTEST = 1e-9

MakeFactors = Callable[[float], Tensor]
"""Ridge -> (N, R) factors of the correlations of items."""


@dataclass(frozen=True)
class Blend:
    """How much correlations count."""

    share: float
    """How much their scores vary, as a share of how much those of the towers do; 0: they are left out."""
    decay: float
    """An event counts by exp(-decay * events after it)."""
    ridge: float
    """Of the correlations."""


@dataclass(frozen=True)
class Judged:
    """A blend, and how it ranks what users of the validation took next."""

    blend: Blend
    ndcg: float | None = None
    """NDCG@10 with it, with a memory the mean of all and novel items; None: nothing could be validated, the blend is
    the usual one."""
    ndcg_alone: float | None = None
    """NDCG@10 of the towers alone."""


ORDERED_UNJUDGED, SET_UNJUDGED = Judged(Blend(0.1, 0.1, 30.0)), Judged(Blend(0.3, 0.0, 30.0))
REPEATED_UNJUDGED = Judged(Blend(0.05, 0.0, 1000.0))


def unjudged(towers: Towers, is_ordered: bool) -> Judged:
    """Return what is usual: near what validations of MovieLens and groceries chose, between those of two sets."""
    if towers.user_tower.memory is not None:
        return REPEATED_UNJUDGED
    return ORDERED_UNJUDGED if is_ordered else SET_UNJUDGED


def blend_in(towers: Towers, make_factors: MakeFactors, blend: Blend, requests: Sequence[RequestBatch]) -> None:
    """Let the towers make vectors with correlations in them.

    Args:
        towers: trained, with nothing blended in.
        make_factors: of the catalogue.
        blend: how.
        requests: of some users, to see how much scores vary.
    """
    if not blend.share:
        return
    factors, side = make_factors(blend.ridge), _make_side(towers, blend.decay)
    learned = _learned_spread(towers, requests)
    weight = blend.share * learned / _correlated_spread(side, factors, requests)
    if isinstance(side, CorrelatedOwned):
        side.lead = _find_lead(towers, side, factors, weight, requests, learned)
    towers.item_tower.correlations = factors * weight**0.5  # (N, R)
    if isinstance(side, CorrelatedOwned):
        towers.user_tower.correlated_owned = side
    else:
        towers.user_tower.correlated_history = side


@torch.no_grad()
def choose_blend(
    towers: Towers,
    make_factors: MakeFactors,
    is_ordered: bool,
    requests: Sequence[RequestBatch],
    validation: Sequence[RequestBatch],
) -> Judged:
    """Find the blend that ranks best what users of the validation took next, and what is new of it not worse than none.

    Args:
        towers: trained, with nothing blended in.
        make_factors: of the catalogue.
        is_ordered: the last events may say more than those before; read where there is no memory.
        requests: as of `blend_in`.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges = [batch for batch in validation[:: math.ceil(len(validation) / MOST_JUDGES) or 1] if _has_novel(batch)]
    if not judges:
        return unjudged(towers, is_ordered)
    learned, has_memory = _learned_spread(towers, requests), towers.user_tower.memory is not None
    items = towers.item_vectors(judges[0].popularity)  # (N, W)
    alone = [towers.request_vectors(batch, items) for batch in judges]  # (B, W) and (E,) each
    found: dict[Blend, list[tuple[np.ndarray, ...]]] = {}

    def note(blend: Blend, products: Tensor, bonus: Tensor, batch: RequestBatch) -> None:
        every = (all_ndcg(products, bonus, batch),) if has_memory else ()
        found.setdefault(blend, []).append((novel_ndcg(products, batch), *every))

    none = Blend(0.0, 0.0, RIDGES[0])
    for (users, bonus), batch in zip(alone, judges, strict=True):
        note(none, users @ items.T, bonus, batch)
    for ridge in RIDGES:
        factors = make_factors(ridge)  # (N, R)
        for decay in DECAYS if is_ordered and not has_memory else (0.0,):
            side = _make_side(towers, decay)
            unit = learned / _correlated_spread(side, factors, requests)
            leads = {share: 0.0 for share in SHARES}
            if isinstance(side, CorrelatedOwned):
                leads = {share: _find_lead(towers, side, factors, share * unit, requests, learned) for share in SHARES}
            for (users, bonus), batch in zip(alone, judges, strict=True):
                products = users @ items.T  # (B, N)
                correlated = unit * _score(side, factors, batch)  # (B, N)
                of_owned = correlated[batch.owned_users, batch.owned_rows]  # (E,)
                for share, lead in leads.items():
                    changed = bonus - share * of_owned + lead  # (E,)
                    note(Blend(share, decay, ridge), products + share * correlated, changed, batch)
    views = {blend: _average(measured) for blend, measured in found.items()}
    ndcg = {blend: fmean(figures) for blend, figures in views.items() if figures[0] >= views[none][0]}
    best = max(ndcg, key=lambda blend: ndcg[blend])
    return Judged(best, ndcg[best], ndcg[none])


def _make_side(towers: Towers, decay: float) -> CorrelatedHistory | CorrelatedOwned:
    return CorrelatedHistory(decay) if towers.user_tower.memory is None else CorrelatedOwned()


@torch.no_grad()
def _find_lead(
    towers: Towers,
    side: CorrelatedOwned,
    factors: Tensor,
    weight: float,
    requests: Sequence[RequestBatch],
    learned: float,
) -> float:
    """Find what owned items need to keep their places beside others that correlations lift by `weight`."""
    before, after = [], []
    for batch in requests:
        items = towers.item_vectors(batch.popularity)  # (N, W)
        users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
        products = users @ items.T  # (B, N)
        before.append(Contest.hold(products, bonus, batch))
        after.append(before[-1].against(products + weight * _score(side, factors, batch), batch))
    return find_lead(before, after, MOST_LEAD * learned)


def _has_novel(batch: RequestBatch) -> bool:
    return bool((batch.target_owned < 0).any())


def _average(batches: Iterable[tuple[np.ndarray, ...]]) -> list[float]:
    """Average each view over all batches, of each of which there is a figure for at most B users."""
    return [float(np.concatenate(view).mean()) for view in zip(*batches, strict=True)]


@torch.no_grad()
def _learned_spread(towers: Towers, requests: Sequence[RequestBatch]) -> float:
    """Return the standard deviation of the towers' products, (B, N) a batch, of users who have a history."""
    scores = []
    for batch in requests:
        items = towers.item_vectors(batch.popularity)  # (N, W)
        scores.append((towers.request_vectors(batch, items)[0] @ items.T)[batch.arrays["history_lengths"] > 0])
    return _spread(scores)


def _correlated_spread(
    side: CorrelatedHistory | CorrelatedOwned, factors: Tensor, requests: Sequence[RequestBatch]
) -> float:
    """Do as `_learned_spread` with the scores of correlations: users without events have none."""
    return _spread([_score(side, factors, batch)[batch.arrays["history_lengths"] > 0] for batch in requests])


def _spread(scores: Sequence[Tensor]) -> float:
    variances = [part.var(correction=0).item() for part in scores if part.numel()]
    return max(math.sqrt(float(np.mean(variances or [0.0]))), SHORTEST)


def _score(side: CorrelatedHistory | CorrelatedOwned, factors: Tensor, batch: RequestBatch) -> Tensor:
    return side.sum_batch(factors, batch) @ factors.T  # (B, N)
