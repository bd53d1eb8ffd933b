"""Compute the softmax cross entropy over the whole catalogue without holding all logits at once.

Only a chunk of rows of `logits = users @ items.T + sparse` exists at a time. A loss is a weighted sum of log-sum-exps,
so that the forward pass knows the gradient of each but for one factor: it forms the gradients while it holds the
chunk, and the backward pass scales them. Exact in value and gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from datamodules.batch import RequestBatch, WindowBatch

CHUNK_CELLS = 1 << 22  # logits held at once
NOVEL_WEIGHT = (
    0.5  # weight of the loss among novel items beside the one among all items
)


@dataclass(frozen=True)
class Sparse:
    """Values added to single logits, by ascending row. -inf takes an item out of that row's softmax."""

    rows: Tensor  # (E,)
    columns: Tensor  # (E,)
    values: Tensor  # (E,)


def no_sparse(users: Tensor) -> Sparse:
    """Return a `Sparse` that changes nothing."""
    nothing = torch.zeros(0, dtype=torch.int64, device=users.device)
    return Sparse(nothing, nothing, users.new_zeros(0, dtype=torch.float32))


def window_loss(users: Tensor, items: Tensor, batch: WindowBatch) -> Tensor:
    """Average the cross entropy of the targets of windows, for users (M, W) over the temperature and items (N, W)."""
    targets = batch.targets
    rows = batch.history_rows[targets]  # (M,) both
    weights = batch.target_weights[targets]
    logits = pair_logits(users, embedding(rows, items))  # (M,)
    positions = torch.arange(len(users), device=users.device)  # (M,)
    return softmax_loss(users, items, no_sparse(users), logits, positions, weights)


def repeat_loss(
    users: Tensor, bonus: Tensor, items: Tensor, batch: RequestBatch
) -> Tensor:
    """Rank the targets among all items, with the memory's scores; half as much, the novel ones among novel items.

    Users (B, W) and the memory's scores (E,) are divided by the temperature.
    """
    memory = Sparse(batch.owned_users, batch.owned_rows, bonus.float())
    padded = torch.cat(
        [bonus.float(), bonus.new_zeros(1, dtype=torch.float32)]
    )  # (E + 1,); -1 reads the zero
    logits = (
        target_logits(users, items, batch.target_users, batch.target_rows)
        + padded[batch.target_owned]
    )  # (M,)
    every = softmax_loss(
        users, items, memory, logits, batch.target_users, batch.target_weights
    )
    return every + NOVEL_WEIGHT * novel_loss(users, items, batch)


def novel_loss(users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
    """Rank the targets that are not owned among the items (N, W) that are not owned, for users (B, W)."""
    masked = torch.full(
        (len(batch.owned_rows),), float("-inf"), device=users.device
    )  # (E,)
    is_novel = batch.target_owned < 0  # (M,)
    rows = batch.target_users[is_novel]
    targets = batch.target_rows[is_novel]
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    novel = Sparse(batch.owned_users, batch.owned_rows, masked)
    return softmax_loss(
        users, items, novel, logits, rows, batch.target_weights[is_novel]
    )


def softmax_loss(
    users: Tensor,
    items: Tensor,
    sparse: Sparse,
    logits: Tensor,
    target_rows: Tensor,
    weights: Tensor,
) -> Tensor:
    """Average the cross entropy of the softmax by weight, for users (B, W) and items (N, W).

    Targets have a row (M,), a constant weight (M,) and a logit (M,), the same sum as in the softmax.
    """
    weights = weights.detach().to(logits.dtype)  # (M,)
    shares = weights / weights.sum().clamp(min=1e-12)  # (M,)
    of_rows = shares.new_zeros(len(users)).index_add(0, target_rows, shares)  # (B,)
    return weighted_log_sum_exp(users, items, sparse, of_rows) - (shares * logits).sum()


def weighted_log_sum_exp(
    users: Tensor, items: Tensor, sparse: Sparse, weights: Tensor
) -> Tensor:
    """Sum weight * log sum_i exp(users . items_i + sparse) over users (B, W), in at least float32.

    Weights (B,) are constants; a row of weight 0 may have no item left.
    """
    users = at_least_float32(users)
    items = at_least_float32(items)
    values = sparse.values.to(users.dtype)
    weights = weights.to(users.dtype)
    result: Tensor = _ChunkedLogSumExp.apply(
        users, items, sparse.rows, sparse.columns, values, weights
    )  # type: ignore[no-untyped-call]
    return result


def target_logits(
    users: Tensor, items: Tensor, target_rows: Tensor, target_items: Tensor
) -> Tensor:
    """Compute users . items of single pairs in at least float32, (M,)."""
    return pair_logits(
        embedding(target_rows, users), embedding(target_items, items)
    )  # (M,)


def pair_logits(users: Tensor, items: Tensor) -> Tensor:
    """Compute users . items, both (M, W), row by row in at least float32, (M,)."""
    return (at_least_float32(users) * at_least_float32(items)).sum(dim=1)  # (M,)


def at_least_float32(values: Tensor) -> Tensor:
    """Promote halves: what is formed in the forward pass no loss scaling reaches."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _ChunkedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        rows: Tensor,
        columns: Tensor,
        values: Tensor,
        weights: Tensor,
    ) -> Tensor:
        total = users.new_zeros(())  # scalar
        grads = (
            torch.empty_like(users),
            torch.zeros_like(items),
            torch.empty_like(values),
        )  # (B, W), (N, W), (E,)
        grad_users, grad_items, grad_values = grads
        for span, cells, logits in _chunks(users, items, rows, columns, values):
            most = logits.amax(dim=1, keepdim=True).clamp(
                min=torch.finfo(logits.dtype).min
            )  # (chunk, 1)
            powers = logits.sub_(most).exp_()  # (chunk, N)
            sums = powers.sum(dim=1, keepdim=True)  # (chunk, 1)
            weight = weights[span].unsqueeze(1)  # (chunk, 1)
            total += torch.where(weight == 0, 0, weight * (most + sums.log())).sum()
            factor = torch.where(weight == 0, 0, weight / sums)  # (chunk, 1)
            torch.mm(powers, items, out=grad_users[span]).mul_(factor)
            grad_items.addmm_(powers.T, users[span] * factor)
            place = rows[cells] - span.start  # (cells of the chunk,)
            grad_values[cells] = powers[place, columns[cells]] * factor[place, 0]
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # scalar
        of_users, of_items, of_values = (
            grad * part for part in ctx.saved_tensors
        )  # (B, W), (N, W), (E,)
        return of_users, of_items, None, None, of_values, None


def _chunks(
    users: Tensor, items: Tensor, rows: Tensor, columns: Tensor, values: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows of the chunk, its sparse cells, its logits (chunk, N)); all chunks have one memory."""
    size = max(1, CHUNK_CELLS // max(len(items), 1))
    starts = list(range(0, len(users), size))
    bounds = torch.searchsorted(
        rows, torch.tensor([*starts, len(users)], device=rows.device)
    ).tolist()
    held = users.new_empty(min(size, len(users)), len(items))  # (chunk, N)
    with torch.autocast(users.device.type, enabled=False):
        for i, start in enumerate(starts):
            span = slice(start, min(start + size, len(users)))
            cells = slice(bounds[i], bounds[i + 1])
            logits = torch.mm(
                users[span], items.T, out=held[: span.stop - start]
            )  # (chunk, N)
            logits[rows[cells] - start, columns[cells]] += values[cells]
            yield span, cells, logits
