"""Softmax cross entropy over the whole catalogue, without holding all logits at once.

Only a chunk of rows of `logits = users @ items.T + sparse` exists at a time. A loss is a weighted
sum of log-sum-exps, so that the forward pass knows its gradients but for one factor: it forms them
while it holds a chunk, and the backward pass scales them. Value and gradients are exact.

Letters: B users, W entries of a vector, N items, M targets, E entries of `sparse`.
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
from models.devices import mean_over_processes

CHUNK_CELLS = 1 << 22  # logits held at once
NOVEL_WEIGHT = 0.5  # of the loss among novel items beside the one among all items


@dataclass(frozen=True)
class Sparse:
    """Values added to single logits, by ascending row; -inf takes an item out of the softmax."""

    rows: Tensor  # (E,)
    columns: Tensor  # (E,)
    values: Tensor  # (E,)


def no_sparse(users: Tensor) -> Sparse:
    """Return a `Sparse` that changes nothing."""
    nothing = torch.zeros(0, dtype=torch.int64, device=users.device)  # (0,)
    return Sparse(nothing, nothing, users.new_zeros(0, dtype=torch.float32))


def window_loss(users: Tensor, items: Tensor, batch: WindowBatch) -> Tensor:
    """Average the cross entropy of the targets of windows.

    Args:
        users: (M, W) user vectors before each target, divided by the temperature.
        items: (N, W) item vectors.
        batch: the windows, with M targets.

    Returns:
        The loss, a scalar.
    """
    rows = batch.history_rows[batch.targets]  # (M,)
    weights = batch.target_weights[batch.targets]  # (M,)
    logits = pair_logits(users, embedding(rows, items))  # (M,)
    positions = torch.arange(len(users), device=users.device)  # (M,)
    return softmax_loss(users, items, no_sparse(users), logits, positions, weights)


def repeat_loss(
    users: Tensor, bonus: Tensor, items: Tensor, batch: RequestBatch
) -> Tensor:
    """Rank the targets among all items and, half as much, the novel targets among novel items.

    Args:
        users: (B, W) user vectors, divided by the temperature.
        bonus: (E,) the memory's scores of owned items, divided by the temperature.
        items: (N, W) item vectors.
        batch: the requests, with E owned items and M targets.

    Returns:
        The loss, a scalar.
    """
    bonus = bonus.float()  # (E,)
    memory = Sparse(batch.owned_users, batch.owned_rows, bonus)
    padded = torch.cat([bonus, bonus.new_zeros(1)])  # (E + 1,), row -1 reads the zero
    logits = target_logits(users, items, batch.target_users, batch.target_rows)  # (M,)
    logits = logits + padded[batch.target_owned]  # (M,)
    among_all = softmax_loss(
        users, items, memory, logits, batch.target_users, batch.target_weights
    )

    return among_all + NOVEL_WEIGHT * novel_loss(users, items, batch)  # scalar


def novel_loss(users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
    """Rank the novel targets among the items (N, W) that are not owned, for users (B, W)."""
    barred = torch.full(batch.owned_rows.shape, -torch.inf, device=users.device)  # (E,)
    rows, targets, weights = novel_targets(batch)  # (novel targets,) each
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    owned = Sparse(batch.owned_users, batch.owned_rows, barred)
    return softmax_loss(users, items, owned, logits, rows, weights)


def novel_targets(batch: RequestBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return request, item and weight of the targets that are not owned."""
    is_novel = batch.target_owned < 0  # (M,)
    rows = batch.target_users[is_novel]
    return rows, batch.target_rows[is_novel], batch.target_weights[is_novel]


def softmax_loss(
    users: Tensor,
    items: Tensor,
    sparse: Sparse,
    logits: Tensor,
    target_rows: Tensor,
    weights: Tensor,
) -> Tensor:
    """Average the cross entropy of the softmax by weight; 0 where nothing has a weight.

    Args:
        users: (B, W) user vectors, divided by the temperature.
        items: (N, W) item vectors.
        sparse: values added to single logits.
        logits: (M,) logits of the targets, the same sums as in the softmax.
        target_rows: (M,) user of each target.
        weights: (M,) weight of each target, a constant.

    Returns:
        The loss, a scalar.
    """
    shares = to_shares(weights, logits)  # (M,)
    of_rows = shares.new_zeros(len(users)).index_add(0, target_rows, shares)  # (B,)
    log_sums = weighted_log_sum_exp(users, items, sparse, of_rows)  # scalar
    return log_sums - (shares * logits).sum()  # scalar


def to_shares(weights: Tensor, logits: Tensor) -> Tensor:
    """Return constant weights (M,) as shares of their sum, in the type of the logits.

    Several processes divide by the mean of their sums: the mean of their losses, and of their
    gradients, is that of the whole batch.
    """
    weights = weights.detach().to(logits.dtype)  # (M,)
    total = mean_over_processes(weights.sum())  # scalar
    return weights / total.clamp(min=1e-12)  # (M,)


def weighted_log_sum_exp(
    users: Tensor, items: Tensor, sparse: Sparse, weights: Tensor
) -> Tensor:
    """Sum weight * log sum_i exp(users . items_i + sparse) over users, in at least float32.

    Args:
        users: (B, W).
        items: (N, W).
        sparse: values added to single logits.
        weights: (B,) constants; a row of weight 0 may have no item left.

    Returns:
        The sum, a scalar.
    """
    users = at_least_float32(users)
    items = at_least_float32(items)
    values = sparse.values.to(users.dtype)  # (E,)
    weights = weights.to(users.dtype)  # (B,)

    total = users.new_zeros(())  # scalar
    by_users = torch.empty_like(users)  # (B, W)
    by_items = torch.zeros_like(items)  # (N, W)
    by_values = torch.empty_like(values)  # (E,)

    with torch.no_grad(), torch.autocast(users.device.type, enabled=False):
        for span, cells, room in chunks(users, len(items), sparse.rows, CHUNK_CELLS):
            rows = sparse.rows[cells] - span.start  # (cells of the chunk,)
            columns = sparse.columns[cells]  # (cells of the chunk,)
            logits = torch.mm(users[span], items.T, out=room)  # (chunk, N)
            logits[rows, columns] += values[cells]  # (cells of the chunk,)
            highest, powers = to_powers(logits)  # (chunk, 1), (chunk, N)

            sums = powers.sum(dim=1, keepdim=True)  # (chunk, 1)
            weight = weights[span].unsqueeze(1)  # (chunk, 1)
            log_sums = weight * (highest + sums.log())  # (chunk, 1)
            total += torch.where(weight == 0, 0, log_sums).sum()  # scalar

            factor = torch.where(weight == 0, 0, weight / sums)  # (chunk, 1)
            torch.mm(powers, items, out=by_users[span]).mul_(factor)  # (chunk, W)
            by_items.addmm_(powers.T, users[span] * factor)  # (N, W)

            of_cells = powers[rows, columns]  # (cells of the chunk,)
            by_values[cells] = of_cells * factor[rows, 0]  # (cells of the chunk,)

    return with_gradients(
        total, (by_users, by_items, by_values), (users, items, values)
    )  # scalar


def chunks(
    users: Tensor, n_columns: int, entry_rows: Tensor, cells: int
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield the chunks of rows whose logits have at most so many cells.

    Args:
        users: (B, W) rows of the logits.
        n_columns: columns of the logits.
        entry_rows: (E,) ascending rows of entries.
        cells: cells of a chunk, which has one row at least.

    Yields:
        Rows of the chunk, its entries, and memory for its logits (chunk, n_columns), which all
        chunks share.
    """
    n_rows = len(users)
    size = max(1, cells // max(n_columns, 1))
    starts = range(0, n_rows, size)
    edges = torch.tensor([*starts, n_rows], device=entry_rows.device)  # (chunks + 1,)
    bounds = torch.searchsorted(entry_rows, edges).tolist()
    room = users.new_empty(min(size, n_rows), n_columns)  # (chunk, n_columns)

    for i, start in enumerate(starts):
        stop = min(start + size, n_rows)
        yield slice(start, stop), slice(bounds[i], bounds[i + 1]), room[: stop - start]


def to_powers(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the highest logit of each row (c, 1) and, in place, exp(logits - highest) (c, N)."""
    lowest = torch.finfo(logits.dtype).min
    highest = logits.amax(dim=1, keepdim=True).clamp(min=lowest)  # (c, 1)
    return highest, logits.sub_(highest).exp_()  # (c, 1), (c, N)


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
    """Promote halves: no loss scaling reaches what the forward pass forms."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def with_gradients(
    value: Tensor, gradients: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
) -> Tensor:
    """Return a scalar that has these gradients by these inputs, of the same shapes."""
    result: Tensor = _KnownGradients.apply(value, gradients, *inputs)  # type: ignore[no-untyped-call]
    return result


class _KnownGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (grads[0] * gradient for gradient in ctx.saved_tensors)
        return None, None, *scaled
