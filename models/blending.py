"""Blend correlations of items into finished vectors: what goes together, beside what was learned.

A part of R entries joins the vectors of items, and a sum of it over her items that of a user: the product then says of
an item what the towers do and what `models.item_correlations` does, and each is wrong elsewhere. They are not trained
together: correlations know every pair that training would show them, and would be trusted too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory
from models.towers import Towers
from models.validation import novel_ndcg

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
DECAYS = (1 / 3, 1 / 10, 0.0)
RIDGES = (30.0, 1000.0)
"""Pairs of Amazon Beauty and Frappe ranked better by the first, groceries by the other, MovieLens alike by both."""
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
    """NDCG@10 with it; None: nothing could be validated, the blend is the usual one."""
    ndcg_alone: float | None = None
    """NDCG@10 of the towers alone."""


ORDERED_UNJUDGED, SET_UNJUDGED = Judged(Blend(0.1, 0.1, 30.0)), Judged(Blend(0.3, 0.0, 30.0))


def unjudged(is_ordered: bool) -> Judged:
    """Return what is usual: near what validations of MovieLens chose, and between those of two sets."""
    return ORDERED_UNJUDGED if is_ordered else SET_UNJUDGED


def blend_in(towers: Towers, make_factors: MakeFactors, blend: Blend, requests: Sequence[RequestBatch]) -> None:
    """Let the towers make vectors with correlations in them.

    Args:
        towers: trained, without memory.
        make_factors: of the catalogue.
        blend: how.
        requests: of some users, to see how much scores vary.
    """
    if not blend.share:
        return
    factors, history = make_factors(blend.ridge), CorrelatedHistory(blend.decay)
    unit = _learned_spread(towers, requests) / _correlated_spread(history, factors, requests)
    towers.item_tower.correlations = factors * (blend.share * unit) ** 0.5  # (N, R)
    towers.user_tower.correlated_history = history


@torch.no_grad()
def choose_blend(
    towers: Towers,
    make_factors: MakeFactors,
    is_ordered: bool,
    requests: Sequence[RequestBatch],
    validation: Sequence[RequestBatch],
) -> Judged:
    """Find the blend that ranks best what users of the validation took next.

    Args:
        towers: trained, without memory, with nothing blended in.
        make_factors: of the catalogue.
        is_ordered: the last events may say more than those before.
        requests: as of `blend_in`.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges = [batch for batch in validation[:: math.ceil(len(validation) / MOST_JUDGES) or 1] if _has_novel(batch)]
    if not judges:
        return unjudged(is_ordered)
    learned = _learned_spread(towers, requests)
    items = towers.item_vectors(judges[0].popularity)  # (N, W)
    alone = [towers.request_vectors(batch, items)[0] for batch in judges]  # (B, W) each
    none = Blend(0.0, 0.0, RIDGES[0])
    ndcg = {none: _mean(novel_ndcg(users @ items.T, batch) for users, batch in zip(alone, judges, strict=True))}
    for ridge in RIDGES:
        factors = make_factors(ridge)  # (N, R)
        for decay in DECAYS if is_ordered else (0.0,):
            history = CorrelatedHistory(decay)
            unit = learned / _correlated_spread(history, factors, requests)
            found: dict[float, list[np.ndarray]] = {share: [] for share in SHARES}
            for users, batch in zip(alone, judges, strict=True):
                scores = users @ items.T  # (B, N)
                correlated = unit * _score(history, factors, batch)  # (B, N)
                for share, values in found.items():
                    values.append(novel_ndcg(scores + share * correlated, batch))
            ndcg |= {Blend(share, decay, ridge): _mean(values) for share, values in found.items()}
    best = max(ndcg, key=lambda blend: ndcg[blend])
    return Judged(best, ndcg[best], ndcg[none])


def _has_novel(batch: RequestBatch) -> bool:
    return bool((batch.target_owned < 0).any())


def _mean(values: Iterable[np.ndarray]) -> float:
    return float(np.concatenate(list(values)).mean())


@torch.no_grad()
def _learned_spread(towers: Towers, requests: Sequence[RequestBatch]) -> float:
    """Return the standard deviation of the towers' scores, (B, N) a batch, of users who have a history."""
    scores = []
    for batch in requests:
        items = towers.item_vectors(batch.popularity)  # (N, W)
        scores.append((towers.request_vectors(batch, items)[0] @ items.T)[batch.arrays["history_lengths"] > 0])
    return _spread(scores)


def _correlated_spread(history: CorrelatedHistory, factors: Tensor, requests: Sequence[RequestBatch]) -> float:
    """Do as `_learned_spread` with the scores of correlations: users without events have none."""
    return _spread([_score(history, factors, batch)[batch.arrays["history_lengths"] > 0] for batch in requests])


def _spread(scores: Sequence[Tensor]) -> float:
    variances = [part.var(correction=0).item() for part in scores if part.numel()]
    return max(math.sqrt(float(np.mean(variances or [0.0]))), SHORTEST)


def _score(history: CorrelatedHistory, factors: Tensor, batch: RequestBatch) -> Tensor:
    summed = history(factors[batch.history_rows], batch.arrays["history_lengths"])  # (B, R)
    return summed @ factors.T  # type: ignore[no-any-return]  # (B, N)
