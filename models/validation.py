"""NDCG of validation requests by full ranking on torch vectors, in one pass without per-row Python."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from evaluation.metrics import ndcg

TOP = 10


def request_ndcg(users: Tensor, bonus: Tensor, items: Tensor, batch: RequestBatch) -> dict[str, np.ndarray]:
    """Rank the whole catalogue for each request.

    Args:
        users: (B, W).
        bonus: (E,) scores of owned items beyond the product.
        items: (N, W).
        batch: its requests.

    Returns:
        `all` (nothing excluded) and `novel` (owned items excluded, novel targets only): NDCG@10 of each request
        that has a target in the view, (at most B,).
    """
    with torch.autocast(users.device.type, enabled=False):  # bfloat16 would tie many items
        return score_ndcg(users.float() @ items.float().T, bonus, batch)


def score_ndcg(scores: Tensor, bonus: Tensor, batch: RequestBatch) -> dict[str, np.ndarray]:
    """Do as `request_ndcg` with scores (B, N)."""
    owned = (batch.owned_users, batch.owned_rows)
    wanted = torch.zeros_like(scores, dtype=torch.bool)  # (B, N)
    wanted[batch.target_users, batch.target_rows] = True
    everything = _ndcg(scores.index_put(owned, bonus.float(), accumulate=True), wanted)
    is_owned = torch.zeros_like(wanted)  # (B, N)
    is_owned[owned] = True
    novel = _ndcg(scores.masked_fill(is_owned, float("-inf")), wanted & ~is_owned)
    return {"all": everything, "novel": novel}


def _ndcg(scores: Tensor, wanted: Tensor) -> np.ndarray:
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices  # (B, K)
    hits = wanted.gather(1, top).cpu().numpy()  # (B, K)
    n_targets = wanted.sum(dim=1).cpu().numpy()  # (B,)
    has_target = n_targets > 0
    return np.asarray(ndcg(hits[has_target], n_targets[has_target], TOP))
