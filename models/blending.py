"""Blend correlations of items into finished vectors: what goes together, beside what was learned.

A part of R entries joins the vectors of items, and a sum of it over her items that of a user: the product then says of
an item what the towers do and what `models.item_correlations` does, and each is wrong elsewhere. They are not trained
together: correlations know every pair that training would show them, and would be trusted too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory
from models.towers import Towers
from models.validation import score_ndcg

SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
DECAYS = (1 / 3, 1 / 10, 0.0)
RIDGES = (30.0, 1000.0)
"""Pairs of Amazon Beauty and Frappe ranked better by the first, groceries by the other, MovieLens alike by both."""
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
    """The blend that ranks best what users of the validation took next."""

    blend: Blend
    ndcg: float
    """NDCG@10 with it."""
    ndcg_alone: float
    """NDCG@10 of the towers alone."""


@dataclass(frozen=True)
class _Candidate:
    """Correlations that might be blended in; the share is 1."""

    blend: Blend
    factors: Tensor
    """(N, R)"""
    correlated: CorrelatedHistory
    unit: float
    """How much the towers' scores vary for one of how much these do."""

    def score(self, batch: RequestBatch) -> Tensor:
        return self.unit * _sum_items(self.correlated, self.factors, batch) @ self.factors.T  # (B, N)


def unjudged(is_ordered: bool) -> Blend:
    """Return how correlations count where there is no validation to choose by."""
    return Blend(0.1, _decays(is_ordered)[0], RIDGES[0])


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
    found = _make_candidate(towers, make_factors(blend.ridge), blend, requests)
    towers.item_tower.correlations = found.factors * (blend.share * found.unit) ** 0.5  # (N, R)
    towers.user_tower.correlated_history = found.correlated


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
        validation: with targets, all as of one moment.
    """
    candidates = [
        _make_candidate(towers, factors, Blend(1.0, decay, ridge), requests)
        for ridge, factors in ((ridge, make_factors(ridge)) for ridge in RIDGES)
        for decay in _decays(is_ordered)
    ]
    items = towers.item_vectors(validation[0].popularity)  # (N, W)
    values: dict[Blend, list[np.ndarray]] = {}
    for batch in validation:
        for blend, found in _judge(towers, items, candidates, batch):
            values.setdefault(blend, []).append(found)
    ndcg = {blend: float(np.concatenate(found).mean()) for blend, found in values.items()}
    alone, best = next(iter(ndcg)), max(ndcg, key=lambda blend: ndcg[blend])
    return Judged(best, ndcg[best], ndcg[alone])


def _judge(
    towers: Towers, items: Tensor, candidates: Sequence[_Candidate], batch: RequestBatch
) -> Iterator[tuple[Blend, np.ndarray]]:
    """Yield the NDCG of each request by the towers alone, and by each candidate with each share."""
    users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
    alone = users @ items.T  # (B, N)
    yield replace(candidates[0].blend, share=0.0), score_ndcg(alone, bonus, batch)["novel"]
    for candidate in candidates:
        correlated = candidate.score(batch)  # (B, N)
        for share in SHARES:
            yield replace(candidate.blend, share=share), score_ndcg(alone + share * correlated, bonus, batch)["novel"]


@torch.no_grad()
def _make_candidate(towers: Towers, factors: Tensor, blend: Blend, requests: Sequence[RequestBatch]) -> _Candidate:
    correlated = CorrelatedHistory(factors.shape[1], blend.decay)
    learned, other = [SHORTEST], [SHORTEST]
    for batch in requests:
        items = towers.item_vectors(batch.popularity)  # (N, W)
        users, _ = towers.request_vectors(batch, items)  # (B, W)
        learned.append((users @ items.T).var().item())
        other.append((_sum_items(correlated, factors, batch) @ factors.T).var().item())
    return _Candidate(blend, factors, correlated, (sum(learned) / sum(other)) ** 0.5)


def _sum_items(correlated: CorrelatedHistory, factors: Tensor, batch: RequestBatch) -> Tensor:
    summed: Tensor = correlated(factors[batch.history_rows], batch.arrays["history_lengths"])  # (B, R)
    return summed


def _decays(is_ordered: bool) -> tuple[float, ...]:
    return DECAYS if is_ordered else (0.0,)
