"""NDCG@10 of validation requests: full ranking on torch vectors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from evaluation.metrics import ndcg

TOP = 10


def request_ndcg(
    users: Tensor, bonus: Tensor | None, items: Tensor, batch: RequestBatch
) -> dict[str, np.ndarray]:
    """Rank the whole catalogue (N, W) for the users (B, W) of requests; see `rank_views`."""
    with torch.autocast(
        users.device.type, enabled=False
    ):  # bfloat16 would tie many items
        scores = users.float() @ items.float().T  # (B, N)
    return rank_views(scores, bonus, batch)


def rank_views(
    scores: Tensor, bonus: Tensor | None, batch: RequestBatch
) -> dict[str, np.ndarray]:
    """Return NDCG@10 of each request that has a target in a view, by scores (B, N), which are overwritten.

    The views are `novel` (owned items excluded, novel targets only) and, with the scores `bonus` (E,) of owned items
    beyond these, `all` (nothing excluded).
    """
    views = {}
    owned = batch.owned_users, batch.owned_rows  # (E,) both
    if bonus is not None:
        scores.index_put_(owned, bonus.to(scores.dtype), accumulate=True)
        views["all"] = _ndcg(scores, batch.target_users, batch.target_rows)
    scores.index_put_(owned, scores.new_tensor(float("-inf")))
    is_novel = batch.target_owned < 0  # (M,)
    return views | {
        "novel": _ndcg(
            scores, batch.target_users[is_novel], batch.target_rows[is_novel]
        )
    }


def _ndcg(scores: Tensor, target_users: Tensor, target_rows: Tensor) -> np.ndarray:
    """Measure lists by scores (B, N) against distinct pairs of a user and a target, (M,) both."""
    n_users, n_items = scores.shape
    listed = scores.topk(min(TOP, n_items), dim=1).indices  # (B, K)
    starts = n_items * torch.arange(n_users, device=scores.device).unsqueeze(
        1
    )  # (B, 1)
    hits = (
        torch.isin(starts + listed, n_items * target_users + target_rows).cpu().numpy()
    )  # (B, K)
    n_targets = torch.bincount(target_users, minlength=n_users).cpu().numpy()  # (B,)
    has_target = n_targets > 0
    return np.asarray(ndcg(hits[has_target], n_targets[has_target], TOP))
