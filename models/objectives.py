"""What is minimised: next items of windows, or what follows a cut, by softmax over the catalogue."""

from __future__ import annotations

import torch
from torch import Tensor

from datamodules.batch import RequestBatch, WindowBatch
from models.config import Correction
from models.losses import Sparse, no_sparse, pair_logits, softmax_loss, target_logits
from models.rows import take_rows
from models.sampled_softmax import Barred, find_own, mark_owned, sampled_softmax_loss
from models.sampling import Negatives

NOVEL_WEIGHT = 0.5


def window_loss(users: Tensor, items: Tensor, batch: WindowBatch) -> Tensor:
    """Average the cross entropy of every target by its weight.

    Args:
        users: (M, W) of the targets, divided by the temperature.
        items: (N, W).
        batch: its windows.
    """
    targets = batch.targets
    rows, weights = batch.history_rows[targets], batch.target_weights[targets]  # (M,) both
    logits = pair_logits(users, take_rows(items, rows))  # (M,)
    places = torch.arange(len(users), device=users.device)  # (M,)
    return softmax_loss(users, items, no_sparse(users), logits, places, weights)


def sampled_window_loss(
    users: Tensor,
    items: Tensor,
    batch: WindowBatch,
    negatives: Negatives,
    positive_expected: Tensor,
    correction: Correction,
) -> Tensor:
    """Average the cross entropy of every target against the negatives of the step by its weight.

    Args:
        users: (M, W) of the targets, divided by the temperature.
        items: (n, W) of the items that the step needs; rows in `batch` and `negatives` are among these.
        batch: its windows.
        negatives: K items.
        positive_expected: (M,) log of how often each target is expected among them.
        correction: whose logits are corrected.
    """
    targets = batch.targets
    positive = pair_logits(users, take_rows(items, batch.history_rows[targets]))  # (M,)
    if correction == "every_logit":
        positive = positive - positive_expected  # (M,)
    is_own = find_own(batch.history_rows, batch.arrays["history_lengths"], negatives.rows, len(items))  # (B, K)
    barred, weights = Barred(is_own, targets[0]), batch.target_weights[targets]  # weights (M,)
    rows = torch.arange(len(users), device=users.device)  # (M,)
    vectors = take_rows(items, negatives.rows)  # (K, W)
    return sampled_softmax_loss(users, vectors, negatives.log_expected, barred, positive, rows, weights)


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


def sampled_novel_loss(
    users: Tensor,
    items: Tensor,
    batch: RequestBatch,
    negatives: Negatives,
    positive_expected: Tensor,
    correction: Correction,
) -> Tensor:
    """Rank the targets that are not owned among the negatives of the step that are neither owned nor targets.

    Args:
        users: (B, W) divided by the temperature.
        items: (n, W) of the items that the step needs; rows in `batch` and `negatives` are among these, those of owned
            items that it does not need are n.
        batch: its requests.
        negatives: K items.
        positive_expected: (M,) log of how often each target is expected among them.
        correction: whose logits are corrected.
    """
    is_novel = batch.target_owned < 0  # (M,)
    rows, targets = batch.target_users[is_novel], batch.target_rows[is_novel]  # (novel targets,) both
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    if correction == "every_logit":
        logits = logits - positive_expected[is_novel]  # (novel targets,)
    pairs = torch.cat([batch.owned_users, rows]), torch.cat([batch.owned_rows, targets])  # (E + novel targets,) both
    is_own = mark_owned(*pairs, len(users), negatives.rows, len(items))  # (B, K)
    barred = Barred(is_own, torch.arange(len(users), device=users.device))
    weights, vectors = batch.target_weights[is_novel], take_rows(items, negatives.rows)  # (novel targets,), (K, W)
    return sampled_softmax_loss(users, vectors, negatives.log_expected, barred, logits, rows, weights)
