"""Draw negatives shared by all targets of a step, and compute the losses of steps that see only these.

Letters beside those of the package: R rows of users, K negatives, n items that a step needs, P places of the pool.
Users are divided by the temperature before any correction.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from datamodules.batch import RequestBatch, WindowBatch
from models.losses import at_least_float32, pair_logits, target_logits

CHUNK_CELLS = 1 << 19  # logits held at once


@dataclass(frozen=True)
class Negatives:
    """Hold items that all targets of a step are compared with."""

    rows: Tensor  # (K,) item rows; one may occur more than once
    log_expected: Tensor  # (K,) log of how often that item is expected among the K


@dataclass(frozen=True)
class NegativeSampler:
    """Draw negatives with replacement from a pool.

    The pool holds each item once, unless most items are no target: then those that are fill about half of it. A table
    of items may list twenty times as many as have events, and the others are soon told from any target.
    """

    n_negatives: int
    pool: Tensor  # (P,) item rows
    log_expected: Tensor  # (N,) log of how often each item is expected in a draw

    @classmethod
    def make(cls, n_negatives: int, target_counts: Tensor) -> NegativeSampler | None:
        """Make the sampler of K negatives from how often each item (N,) is a target; 0: none, for the full softmax."""
        if not n_negatives:
            return None
        is_target = target_counts > 0  # (N,)
        n_items = len(target_counts)
        n_targets = int(is_target.sum())
        copies = torch.where(
            is_target, max(1, round((n_items - n_targets) / max(n_targets, 1))), 1
        )  # (N,)
        pool = torch.arange(n_items).repeat_interleave(copies)  # (P,)
        return cls(
            n_negatives, pool, (n_negatives * copies.double() / len(pool)).log().float()
        )

    def to(self, device: torch.device) -> NegativeSampler:
        """Draw on a device."""
        return replace(
            self, pool=self.pool.to(device), log_expected=self.log_expected.to(device)
        )

    def draw(self) -> Negatives:
        """Draw the negatives of a step."""
        places = torch.randint(
            len(self.pool), (self.n_negatives,), device=self.pool.device
        )  # (K,)
        rows = self.pool[places]  # (K,)
        return Negatives(rows, self.log_expected[rows])


@dataclass(frozen=True)
class Masked:
    """Hold items that are no negatives of a row: those of its window or request."""

    is_own: Tensor  # (B, K) bool: of each window or request
    of_row: Tensor  # (R,) window or request of each row


def sampled_window_loss(
    users: Tensor, items: Tensor, batch: WindowBatch, negatives: Negatives
) -> Tensor:
    """Average the cross entropy of targets against the negatives of the step, for users (M, W) over the temperature.

    Rows in `batch` and `negatives` are among the items (n, W) that the step needs.
    """
    targets = batch.targets
    positive = pair_logits(users, embedding(batch.history_rows[targets], items))  # (M,)
    is_own = find_own(
        batch.history_rows, batch.arrays["history_lengths"], negatives.rows, len(items)
    )  # (B, K)
    rows = torch.arange(len(users), device=users.device)  # (M,) both
    weights = batch.target_weights[targets]
    vectors = embedding(negatives.rows, items)  # (K, W)
    masked = Masked(is_own, targets[0])
    return sampled_softmax_loss(
        users, vectors, negatives.log_expected, masked, positive, rows, weights
    )


def sampled_novel_loss(
    users: Tensor, items: Tensor, batch: RequestBatch, negatives: Negatives
) -> Tensor:
    """Rank the targets that are not owned among the negatives that are neither owned nor targets, for users (B, W).

    Rows in `batch` and `negatives` are among the items (n, W) that the step needs; owned items that it does not need
    have row n.
    """
    is_novel = batch.target_owned < 0  # (M,)
    rows = batch.target_users[is_novel]  # (novel targets,) both
    targets = batch.target_rows[is_novel]
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    pairs = (
        torch.cat([batch.owned_users, rows]),
        torch.cat([batch.owned_rows, targets]),
    )  # (E + novel targets,) both
    is_own = mark_owned(*pairs, len(users), negatives.rows, len(items))  # (B, K)
    masked = Masked(is_own, torch.arange(len(users), device=users.device))
    weights = batch.target_weights[is_novel]  # (novel targets,), (K, W)
    vectors = embedding(negatives.rows, items)
    return sampled_softmax_loss(
        users, vectors, negatives.log_expected, masked, logits, rows, weights
    )


def sampled_softmax_loss(
    users: Tensor,
    negatives: Tensor,
    log_expected: Tensor,
    masked: Masked,
    logits: Tensor,
    target_rows: Tensor,
    weights: Tensor,
) -> Tensor:
    """Average the cross entropy of targets against a sample by weight; 0 where nothing has a weight.

    exp(s_pos) + sum_k exp(s_k) / expected_k is unbiased for the sum over all items where draws of the positive are
    masked: it is there always, not by chance, and is not corrected (Khrylchenko et al. 2025, arXiv 2507.09331).

    Users are (R, W), negatives (K, W); targets have a row (M,), ascending, a constant weight (M,) and a logit (M,).
    """
    weights = weights.detach().to(logits.dtype)  # (M,)
    shares = weights / weights.sum().clamp(min=1e-12)  # (M,)
    shifts = torch.where(masked.is_own, float("-inf"), -log_expected).to(
        logits.dtype
    )  # (B, K)
    arguments = (
        *map(at_least_float32, (users, negatives)),
        shifts,
        masked.of_row,
        logits,
        target_rows,
        shares,
    )
    with torch.autocast(users.device.type, enabled=False):
        log_sums: Tensor = _WeightedLogSumExp.apply(*arguments)  # type: ignore[no-untyped-call]  # scalar
    return log_sums - (shares * logits).sum()  # scalar


def find_own(
    history_rows: Tensor, lengths: Tensor, negative_rows: Tensor, n_items: int
) -> Tensor:
    """Mark the negatives (K,) that occur in windows (B, L) of so many events (B,): they are owned, (B, K) bool."""
    positions = torch.arange(history_rows.shape[1], device=history_rows.device)  # (L,)
    rows = torch.where(
        positions < lengths.unsqueeze(1), history_rows, n_items
    )  # (B, L)
    is_own = torch.zeros(
        len(rows), n_items + 1, dtype=torch.bool, device=rows.device
    )  # (B, N + 1)
    return is_own.scatter_(1, rows, True).gather(
        1, negative_rows.expand(len(rows), -1)
    )  # (B, K)


def mark_owned(
    owned_users: Tensor,
    owned_rows: Tensor,
    n_users: int,
    negative_rows: Tensor,
    n_items: int,
) -> Tensor:
    """Do as `find_own` for pairs of a user and an item, (E,) both, row `n_items` being no item: (B, K)."""
    is_own = torch.zeros(
        n_users, n_items + 1, dtype=torch.bool, device=owned_rows.device
    )  # (B, N + 1)
    is_own[owned_users, owned_rows] = True
    return is_own.gather(1, negative_rows.expand(n_users, -1))  # (B, K)


def find_positions(needed: Tensor, rows: Tensor) -> Tensor:
    """Return where each of the rows (E,) stands among ascending ones (n,), n where it does not: (E,)."""
    positions = torch.searchsorted(needed, rows)  # (E,)
    is_there = needed[positions.clamp(max=len(needed) - 1)] == rows  # (E,)
    return torch.where(is_there, positions, len(needed))  # (E,)


class _WeightedLogSumExp(torch.autograd.Function):
    """Sum weight * log of the sum over a target and the negatives of its row; gradients as in `models.losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        negatives: Tensor,
        shifts: Tensor,
        of_row: Tensor,
        positive: Tensor,
        target_rows: Tensor,
        shares: Tensor,
    ) -> Tensor:
        total = positive.new_zeros(())  # scalar
        grads = (
            torch.empty_like(users),
            torch.zeros_like(negatives),
            torch.empty_like(positive),
        )  # (R, W), (K, W), (M,)
        grad_users, grad_negatives, grad_positive = grads
        size = max(1, CHUNK_CELLS // max(len(negatives), 1))
        starts = list(range(0, len(users), size))
        room = users.new_empty(
            min(size, len(users)), len(negatives)
        )  # (chunk, K) of every chunk
        bounds = torch.searchsorted(
            target_rows, torch.tensor([*starts, len(users)], device=users.device)
        ).tolist()
        for i, start in enumerate(starts):
            span = slice(start, start + size)
            targets = slice(bounds[i], bounds[i + 1])
            rows = of_row[span]  # (chunk,)
            logits = torch.index_select(
                shifts, 0, rows, out=room[: len(rows)]
            )  # (chunk, K)
            logits.addmm_(users[span], negatives.T)  # (chunk, K)
            most = logits.amax(dim=1, keepdim=True).clamp(
                min=torch.finfo(logits.dtype).min
            )  # (chunk, 1)
            powers = logits.sub_(most).exp_()  # (chunk, K)
            sums = powers.sum(dim=1)  # (chunk,)
            place = target_rows[targets] - start  # (targets of the chunk,)
            rest = (sums.log() + most.squeeze(1))[place]  # (targets of the chunk,)
            log_sums = torch.logaddexp(
                positive[targets], rest
            )  # (targets of the chunk,)
            total += (shares[targets] * log_sums).sum()  # scalar
            grad_positive[targets] = (
                shares[targets] * (positive[targets] - log_sums).exp()
            )  # (targets of the chunk,)
            others = (
                shares[targets] * (rest - log_sums).exp()
            )  # (targets of the chunk,)
            weight = torch.zeros_like(sums).index_add_(0, place, others)  # (chunk,)
            factor = (weight / sums.clamp(min=torch.finfo(sums.dtype).tiny)).unsqueeze(
                1
            )  # (chunk, 1)
            torch.mm(powers, negatives, out=grad_users[span]).mul_(factor)  # (chunk, W)
            grad_negatives += powers.T @ (users[span] * factor)  # (K, W)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # scalar
        of_users, of_negatives, of_positive = (
            grad * part for part in ctx.saved_tensors
        )  # (R, W), (K, W), (M,)
        return of_users, of_negatives, None, None, of_positive, None, None
