"""NDCG@10 of validation requests: full ranking on torch vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from evaluation.metrics import ndcg

TOP = 10
BLOCK = 16
"""Items of a block; on a CPU `torch.topk` of whole rows takes 1.2 to 3.6 times as long."""


def request_ndcg(users: Tensor, bonus: Tensor | None, items: Tensor, batch: RequestBatch) -> dict[str, np.ndarray]:
    """Rank the whole catalogue for each request.

    Args:
        users: (B, W).
        bonus: as of `rank_views`.
        items: (N, W).
        batch: its requests.

    Returns:
        As `rank_views`.
    """
    with torch.autocast(users.device.type, enabled=False):  # bfloat16 would tie many items
        scores = users.float() @ items.float().T  # (B, N)
    return rank_views(scores, bonus, batch)


def rank_views(scores: Tensor, bonus: Tensor | None, batch: RequestBatch) -> dict[str, np.ndarray]:
    """Rank the catalogue by scores, which are overwritten.

    Args:
        scores: (B, N).
        bonus: (E,) scores of owned items beyond these; None where owned items are not recommended.
        batch: its requests.

    Returns:
        `novel` (owned items excluded, novel targets only) and, with `bonus`, `all` (nothing excluded): NDCG@10 of each
        request that has a target in the view, (at most B,).
    """
    views = {}
    owned = batch.owned_users, batch.owned_rows  # (E,) both
    if bonus is not None:
        scores.index_put_(owned, bonus.to(scores.dtype), accumulate=True)
        views["all"] = _ndcg(scores, batch.target_users, batch.target_rows)
    scores.index_put_(owned, scores.new_tensor(float("-inf")))
    is_novel = batch.target_owned < 0  # (M,)
    return views | {"novel": _ndcg(scores, batch.target_users[is_novel], batch.target_rows[is_novel])}


def _ndcg(scores: Tensor, target_users: Tensor, target_rows: Tensor) -> np.ndarray:
    """Measure lists by scores (B, N) against distinct pairs of a user and a target, (M,) both."""
    n_users, n_items = scores.shape
    listed = find_best_items(scores, min(TOP, n_items))  # (B, K)
    starts = n_items * torch.arange(n_users, device=scores.device).unsqueeze(1)  # (B, 1)
    hits = torch.isin(starts + listed, n_items * target_users + target_rows).cpu().numpy()  # (B, K)
    n_targets = torch.bincount(target_users, minlength=n_users).cpu().numpy()  # (B,)
    has_target = n_targets > 0
    return np.asarray(ndcg(hits[has_target], n_targets[has_target], TOP))


def find_best_items(scores: Tensor, k: int) -> Tensor:
    """Find the columns of the k best scores (B, N) of each row, best first: (B, k).

    Columns are dealt into blocks. The k best stand in the k blocks with the best maxima: whatever is in another one has
    k others, the maxima of these, that are no worse.
    """
    n_users, n_items = scores.shape
    n_blocks = n_items // BLOCK
    if n_blocks <= k:
        return scores.topk(k, dim=1).indices  # (B, k)
    n_dealt = n_blocks * BLOCK
    maxima = scores[:, :n_dealt].view(n_users, BLOCK, n_blocks).amax(dim=1)  # (B, blocks)
    blocks = maxima.topk(k, dim=1, sorted=False).indices  # (B, k)
    places = n_blocks * torch.arange(BLOCK, device=scores.device)  # (block,)
    dealt = (blocks.unsqueeze(2) + places).flatten(1)  # (B, k * block)
    left = torch.arange(n_dealt, n_items, device=scores.device).expand(n_users, -1)  # (B, left)
    columns = torch.cat([dealt, left], dim=1)  # (B, k * block + left)
    return columns.gather(1, scores.gather(1, columns).topk(k, dim=1).indices)  # (B, k)
