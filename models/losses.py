"""The softmax over the whole catalogue, without ever holding all of its logits.

Of `logits = users @ items.T + sparse` only a chunk of rows exists at a time: the forward pass keeps the
log-sum-exp, the backward pass forms each chunk again. Exact in value and gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CHUNK_CELLS = 1 << 22  # logits held at once: 16 MB of float32


@dataclass(frozen=True)
class Sparse:
    """Values added to single logits, by ascending row. -inf takes an item out of that row's softmax."""

    rows: Tensor
    """(E,)"""
    columns: Tensor
    """(E,)"""
    values: Tensor
    """(E,)"""


def no_sparse(users: Tensor) -> Sparse:
    """Return a `Sparse` that changes nothing."""
    nothing = torch.zeros(0, dtype=torch.int64, device=users.device)
    return Sparse(nothing, nothing, users.new_zeros(0, dtype=torch.float32))


def log_sum_exp(users: Tensor, items: Tensor, sparse: Sparse) -> Tensor:
    """Compute log sum_i exp(users . items_i + sparse) for each user.

    Args:
        users: (B, W).
        items: (N, W).
        sparse: added to single cells.

    Returns:
        (B,), at least float32: autocast does not reach it.
    """
    users, items = _at_least_float32(users), _at_least_float32(items)
    values = sparse.values.to(users.dtype)
    result: Tensor = _ChunkedLogSumExp.apply(users, items, sparse.rows, sparse.columns, values)  # type: ignore[no-untyped-call]
    return result


def softmax_loss(log_sums: Tensor, logits: Tensor, target_rows: Tensor, weights: Tensor) -> Tensor:
    """Average log_sum - logit over targets by weight: the cross entropy of the softmax.

    Args:
        log_sums: (B,) from `log_sum_exp`.
        logits: (M,) of the targets, the same sums as in the softmax.
        target_rows: (M,) row of each target.
        weights: (M,).

    Returns:
        Scalar.
    """
    losses = (log_sums[target_rows] - logits) * weights  # (M,)
    return losses.sum() / weights.sum().clamp(min=1e-12)


def target_logits(users: Tensor, items: Tensor, target_rows: Tensor, target_items: Tensor) -> Tensor:
    """Compute users . items of single pairs in at least float32, (M,)."""
    users, items = _at_least_float32(users), _at_least_float32(items)
    return (users[target_rows] * items[target_items]).sum(dim=1)  # (M,)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


class _ChunkedLogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        parts = [
            logits.logsumexp(dim=1) for _, _, logits in _chunks(users, items, rows, columns, values)
        ]  # each (chunk,)
        log_sums = torch.cat(parts) if parts else users.new_zeros(0)  # (B,)
        finite = log_sums.clamp(min=torch.finfo(log_sums.dtype).min)  # (B,) no share in a row without an item
        ctx.save_for_backward(users, items, rows, columns, values, finite)
        return log_sums

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        users, items, rows, columns, values, log_sums = ctx.saved_tensors
        (grad,) = grads  # (B,)
        grad_users, grad_items = torch.empty_like(users), torch.zeros_like(items)  # (B, W), (N, W)
        grad_values = torch.empty_like(values)  # (E,)
        for span, cells, logits in _chunks(users, items, rows, columns, values):
            shares = logits.sub_(log_sums[span].unsqueeze(1)).exp_().mul_(grad[span].unsqueeze(1))  # (chunk, N)
            torch.mm(shares, items, out=grad_users[span])
            grad_items.addmm_(shares.T, users[span])
            grad_values[cells] = shares[rows[cells] - span.start, columns[cells]]
        return grad_users, grad_items, None, None, grad_values


def _chunks(
    users: Tensor, items: Tensor, rows: Tensor, columns: Tensor, values: Tensor
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield (rows of the chunk, its sparse cells, its logits (chunk, N))."""
    size = max(1, CHUNK_CELLS // max(len(items), 1))
    starts = list(range(0, len(users), size))
    bounds = torch.searchsorted(rows, torch.tensor([*starts, len(users)], device=rows.device)).tolist()
    with torch.autocast(users.device.type, enabled=False):
        for i, start in enumerate(starts):
            span, cells = slice(start, min(start + size, len(users))), slice(bounds[i], bounds[i + 1])
            logits = users[span] @ items.T  # (chunk, N)
            logits[rows[cells] - start, columns[cells]] += values[cells]
            yield span, cells, logits
