"""Who takes the places of lists."""

from __future__ import annotations

import torch
from torch import Tensor

PLACES = 10
"""Of a list."""


def count_places(challengers: Tensor, others: Tensor) -> int:
    """Count the places of B lists that challengers take.

    Args:
        challengers: (B, s) scores; -inf: one that is no candidate.
        others: (B, k) the best scores of all that stands against them, k: the places of a list.
    """
    n_places = others.shape[1]
    best = torch.cat([others, challengers], dim=1).topk(n_places, dim=1)  # (B, k)
    return int(((best.indices >= n_places) & best.values.isfinite()).sum())


def best_scores(scores: Tensor, is_candidate: Tensor) -> Tensor:
    """Return the best scores of a list's length, (B, k), of candidates (B, N); -inf where there are fewer."""
    return scores.masked_fill(~is_candidate, float("-inf")).topk(min(PLACES, scores.shape[1]), dim=1).values  # (B, k)
