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
        scores = users.float() @ items.float().T  # (B, N)
    return {"all": all_ndcg(scores, bonus, batch), "novel": novel_ndcg(scores, batch)}


def all_ndcg(scores: Tensor, bonus: Tensor, batch: RequestBatch) -> np.ndarray:
    """Return what `request_ndcg` calls `all`, of products (B, N) and what owned items have beyond them (E,)."""
    remembered = scores.index_put((batch.owned_users, batch.owned_rows), bonus.float(), accumulate=True)  # (B, N)
    return _ndcg(remembered, _wanted(batch, scores))


def novel_ndcg(scores: Tensor, batch: RequestBatch) -> np.ndarray:
    """Return what `request_ndcg` calls `novel`, of products (B, N)."""
    is_owned = batch.mark_owned(scores.shape[1])  # (B, N)
    return _ndcg(scores.masked_fill(is_owned, float("-inf")), _wanted(batch, scores) & ~is_owned)


def _wanted(batch: RequestBatch, scores: Tensor) -> Tensor:
    wanted = torch.zeros_like(scores, dtype=torch.bool)  # (B, N)
    wanted[batch.target_users, batch.target_rows] = True
    return wanted


def _ndcg(scores: Tensor, wanted: Tensor) -> np.ndarray:
    top = scores.topk(min(TOP, scores.shape[1]), dim=1).indices  # (B, K)
    hits = wanted.gather(1, top).cpu().numpy()  # (B, K)
    n_targets = wanted.sum(dim=1).cpu().numpy()  # (B,)
    has_target = n_targets > 0
    return np.asarray(ndcg(hits[has_target], n_targets[has_target], TOP))
