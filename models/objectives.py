"""What is minimised: next items of windows, or what follows a cut, by softmax over the catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.batch import RequestBatch, WindowBatch
from models.config import Correction
from models.losses import Sparse, no_sparse, softmax_loss, target_logits
from models.sampled_softmax import find_own, log_q_losses, sampled_softmax_losses
from models.sampling import Negatives

NOVEL_WEIGHT = 0.5


def window_loss(users: Tensor, items: Tensor, batch: WindowBatch) -> Tensor:
    """Average the cross entropy of every target position by its weight.

    Args:
        users: (B, L, W) divided by the temperature.
        items: (N, W).
        batch: its windows.
    """
    is_target = batch.is_target  # (B, L)
    chosen, rows, weights = users[is_target], batch.history_rows[is_target], batch.target_weights[is_target]
    positions = torch.arange(len(rows), device=rows.device)  # (M,)
    logits = target_logits(chosen, items, positions, rows)  # (M,)
    return softmax_loss(chosen, items, no_sparse(chosen), logits, positions, weights)


def sampled_window_loss(
    users: Tensor,
    items: Tensor,
    batch: WindowBatch,
    negatives: Negatives,
    positive_expected: Tensor,
    correction: Correction,
) -> Tensor:
    """Average the cross entropy of every target position against the negatives of the step by its weight.

    Args:
        users: (B, L, W) divided by the temperature.
        items: (n, W) of the items that the step needs; rows in `batch` and `negatives` are among these.
        batch: its windows.
        negatives: K items.
        positive_expected: (M,) log of how often each target is expected among them.
        correction: whose logits are corrected.
    """
    is_target = batch.is_target  # (B, L)
    chosen, rows, weights = users[is_target], batch.history_rows[is_target], batch.target_weights[is_target]
    positions = torch.arange(len(rows), device=rows.device)  # (M,)
    positive = target_logits(chosen, items, positions, rows)  # (M,)
    negative = (chosen @ items[negatives.rows].T).to(positive.dtype)  # (M, K)
    is_own = find_own(batch.history_rows, batch.arrays["history_lengths"], negatives.rows, len(items))  # (B, K)
    is_barred = is_own[is_target.nonzero()[:, 0]]  # (M, K) with the target itself
    if correction == "every_logit":
        losses = log_q_losses(positive, negative, positive_expected, negatives.log_expected, is_barred)  # (M,)
    else:
        losses = sampled_softmax_losses(positive, negative, negatives.log_expected, is_barred)  # (M,)
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)


def repeat_loss(users: Tensor, bonus: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
    """Rank the targets among all items, with the memory's scores; half as much, the novel ones among novel items.

    Args:
        users: (B, W) divided by the temperature.
        bonus: (E,) the memory's scores divided by the temperature.
        items: (N, W).
        batch: its requests.
    """
    memory = Sparse(batch.owned_users, batch.owned_rows, bonus.float())
    padded = torch.cat([bonus.float(), bonus.new_zeros(1, dtype=torch.float32)])  # (E + 1,); -1 reads the zero
    logits = target_logits(users, items, batch.target_users, batch.target_rows) + padded[batch.target_owned]  # (M,)
    every = softmax_loss(users, items, memory, logits, batch.target_users, batch.target_weights)
    return every + NOVEL_WEIGHT * novel_loss(users, items, batch)


def novel_loss(users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
    """Rank the targets that are not owned among the items that are not owned.

    Args:
        users: (B, W) divided by the temperature.
        items: (N, W).
        batch: its requests.
    """
    barred = torch.full((len(batch.owned_rows),), float("-inf"), device=users.device)  # (E,)
    is_novel = batch.target_owned < 0  # (M,)
    rows, targets = batch.target_users[is_novel], batch.target_rows[is_novel]
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    novel = Sparse(batch.owned_users, batch.owned_rows, barred)
    return softmax_loss(users, items, novel, logits, rows, batch.target_weights[is_novel])
