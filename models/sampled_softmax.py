"""The softmax over a sample of the catalogue: what training on many items costs less with.

Letters: B windows, L events, M targets, K negatives shared by all targets. Temperature comes before any correction:
logits are scores over the temperature already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def sampled_softmax_losses(positive: Tensor, negative: Tensor, log_expected: Tensor, is_barred: Tensor) -> Tensor:
    """Compute the cross entropy of each target against a sample, the logit of the positive as it is.

    exp(s_pos) + sum_k exp(s_k) / expected_k is unbiased for the sum over all items where draws of the positive are
    barred: the positive is there always, not by chance, and is not corrected (Khrylchenko et al. 2025,
    arXiv 2507.09331).

    Args:
        positive: (M,) logits.
        negative: (M, K) logits.
        log_expected: (K,) log of how often each negative is expected in the sample.
        is_barred: (M, K) bool: the target itself, or another item that is no negative of this target.

    Returns:
        (M,).
    """
    log_sums: Tensor = _LogSumExp.apply(positive, negative, log_expected, is_barred)  # type: ignore[no-untyped-call]
    return log_sums - positive  # (M,)


def log_q_losses(
    positive: Tensor, negative: Tensor, positive_expected: Tensor, log_expected: Tensor, is_barred: Tensor
) -> Tensor:
    """Compute the same with every logit corrected, the positive's too (Yi et al. 2019).

    Args:
        positive: (M,) logits.
        negative: (M, K) logits.
        positive_expected: (M,) as `log_expected`, of each target.
        log_expected: see `sampled_softmax_losses`.
        is_barred: see `sampled_softmax_losses`.

    Returns:
        (M,).
    """
    return sampled_softmax_losses(positive - positive_expected, negative, log_expected, is_barred)  # (M,)


def find_own(history_rows: Tensor, lengths: Tensor, negative_rows: Tensor, n_items: int) -> Tensor:
    """Mark the negatives that stand in a window: what its user has is no negative of hers, and no target either.

    Args:
        history_rows: (B, L) item rows.
        lengths: (B,) events of each window, the rest is padding.
        negative_rows: (K,).
        n_items: rows are below it.

    Returns:
        (B, K) bool.
    """
    positions = torch.arange(history_rows.shape[1], device=history_rows.device)  # (L,)
    rows = torch.where(positions < lengths.unsqueeze(1), history_rows, n_items)  # (B, L)
    is_own = torch.zeros(len(rows), n_items + 1, dtype=torch.bool, device=rows.device)  # (B, N + 1)
    return is_own.scatter_(1, rows, True)[:, negative_rows]  # (B, K)


class _LogSumExp(torch.autograd.Function):
    """The log of the sum over a positive and its corrected negatives, (M,), in few passes over the (M, K) of a step."""

    @staticmethod
    def forward(ctx: Any, positive: Tensor, negative: Tensor, log_expected: Tensor, is_barred: Tensor) -> Tensor:
        corrected = (negative - log_expected).masked_fill_(is_barred, float("-inf"))  # (M, K)
        largest = torch.maximum(corrected.amax(dim=1), positive)  # (M,)
        terms = corrected.sub_(largest.unsqueeze(1)).exp_()  # (M, K)
        own = (positive - largest).exp()  # (M,)
        sums = terms.sum(dim=1).add_(own)  # (M,)
        ctx.save_for_backward(own, terms, sums)
        return sums.log().add_(largest)  # (M,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        own, terms, sums = ctx.saved_tensors
        scale = grads[0] / sums  # (M,)
        return own * scale, terms * scale.unsqueeze(1), None, None  # (M,), (M, K)
