"""Draw negatives that all targets of a step share, and the losses of steps that see only these.

Letters beside those of the package: R rows of users, K negatives, n items that a step needs, P
entries of the pool. Users are divided by the temperature before any correction.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding

from datamodules.batch import RequestBatch, WindowBatch
from models.losses import (
    at_least_float32,
    chunks,
    novel_targets,
    pair_logits,
    target_logits,
    to_powers,
    to_shares,
    with_gradients,
)

CHUNK_CELLS = 1 << 19  # logits held at once


@dataclass(frozen=True)
class Negatives:
    """Items that all targets of a step are compared with."""

    rows: Tensor  # (K,) item rows; one may occur more than once
    log_expected: Tensor  # (K,) log of how often that item is expected among the K

    def correct(self, is_own: Tensor) -> Tensor:
        """Return what is added to their logits in windows or requests, which bar some: (B, K)."""
        return torch.where(is_own, -torch.inf, -self.log_expected)  # (B, K)


@dataclass(frozen=True)
class NegativeSampler:
    """Draw negatives with replacement from a pool.

    The pool holds each item once. If most items are no target, targets are repeated until they fill
    about half of it: a table of items may list twenty times as many as have events, and a model
    soon tells the others from any target.
    """

    n_negatives: int
    pool: Tensor  # (P,) item rows
    log_expected: Tensor  # (N,) log of how often each item is expected in a draw
    generator: torch.Generator | None = None  # default: the one of all that is random

    @classmethod
    def make(cls, n_negatives: int, target_counts: Tensor) -> NegativeSampler | None:
        """Make a sampler.

        Args:
            n_negatives: K; 0 for the softmax over the whole catalogue.
            target_counts: (N,) how often each item is a target.

        Returns:
            The sampler, or None for 0 negatives.
        """
        if not n_negatives:
            return None

        is_target = target_counts > 0  # (N,)
        n_items = len(target_counts)
        n_targets = int(is_target.sum())
        n_copies = max(1, round((n_items - n_targets) / max(n_targets, 1)))
        copies = torch.where(is_target, n_copies, 1)  # (N,)
        pool = torch.arange(n_items).repeat_interleave(copies)  # (P,)
        expected = n_negatives * copies.double() / len(pool)  # (N,)

        return cls(n_negatives, pool, expected.log().float())

    def to(self, device: torch.device) -> NegativeSampler:
        """Draw on a device."""
        return NegativeSampler(
            self.n_negatives, self.pool.to(device), self.log_expected.to(device)
        )

    def draw(self) -> Negatives:
        """Draw the negatives of a step."""
        n = len(self.pool)
        size = (self.n_negatives,)
        drawn = torch.randint(  # (K,)
            n, size, generator=self.generator, device=self.pool.device
        )
        rows = self.pool[drawn]  # (K,)
        return Negatives(rows, self.log_expected[rows])


def sampled_window_loss(
    users: Tensor, items: Tensor, batch: WindowBatch, negatives: Negatives
) -> Tensor:
    """Average the cross entropy of the targets of windows against the negatives of the step.

    Args:
        users: (M, W) user vectors before each target, divided by the temperature.
        items: (n, W) vectors of the items that the step needs.
        batch: the windows; their item rows count among these n.
        negatives: the negatives; their rows count among these n.

    Returns:
        The loss, a scalar.
    """
    histories = batch.history_rows  # (B, L)
    weights = batch.target_weights[batch.targets]  # (M,)
    logits = pair_logits(users, embedding(histories[batch.targets], items))  # (M,)
    is_own = find_own(
        histories, batch.arrays["history_lengths"], negatives.rows, len(items)
    )  # (B, K)
    shifts = negatives.correct(is_own)  # (B, K)
    rows = torch.arange(len(users), device=users.device)  # (M,)
    vectors = embedding(negatives.rows, items)  # (K, W)

    return sampled_softmax_loss(
        users, vectors, shifts, batch.targets[0], logits, rows, weights
    )


def sampled_novel_loss(
    users: Tensor, items: Tensor, batch: RequestBatch, negatives: Negatives
) -> Tensor:
    """Rank the novel targets of requests among the negatives that are neither owned nor targets.

    Args:
        users: (B, W) user vectors, divided by the temperature.
        items: (n, W) vectors of the items that the step needs.
        batch: the requests; their item rows count among these n, and are n elsewhere.
        negatives: the negatives; their rows count among these n.

    Returns:
        The loss, a scalar.
    """
    rows, targets, weights = novel_targets(batch)  # (novel targets,) each
    logits = target_logits(users, items, rows, targets)  # (novel targets,)
    own_users = torch.cat([batch.owned_users, rows])  # (E + novel targets,)
    own_items = torch.cat([batch.owned_rows, targets])  # (E + novel targets,)
    is_own = mark_owned(
        own_users, own_items, len(users), negatives.rows, len(items)
    )  # (B, K)
    shifts = negatives.correct(is_own)  # (B, K)
    requests = torch.arange(len(users), device=users.device)  # (B,)
    vectors = embedding(negatives.rows, items)  # (K, W)

    return sampled_softmax_loss(users, vectors, shifts, requests, logits, rows, weights)


def sampled_softmax_loss(
    users: Tensor,
    negatives: Tensor,
    shifts: Tensor,
    of_row: Tensor,
    logits: Tensor,
    target_rows: Tensor,
    weights: Tensor,
) -> Tensor:
    """Average the cross entropy of targets against a sample by weight; 0 without any weight.

    exp(s_pos) + sum_k exp(s_k) / expected_k is unbiased for the sum over all items if draws of the
    positive are masked: the positive is always there, not by chance, and is not corrected.

    Args:
        users: (R, W) user vectors, divided by the temperature.
        negatives: (K, W) vectors of the negatives.
        shifts: (B, K) of windows or requests, as `Negatives.correct` returns them.
        of_row: (R,) window or request of each row.
        logits: (M,) logits of the targets.
        target_rows: (M,) row of each target, ascending.
        weights: (M,) weight of each target, a constant.

    Returns:
        The loss, a scalar.

    Source: Khrylchenko et al., 2025, arXiv 2507.09331.
    """
    shares = to_shares(weights, logits)  # (M,)
    shifts = shifts.to(logits.dtype)  # (B, K)
    users = at_least_float32(users)  # (R, W)
    negatives = at_least_float32(negatives)  # (K, W)

    total = logits.new_zeros(())  # scalar
    by_users = torch.empty_like(users)  # (R, W)
    by_negatives = torch.zeros_like(negatives)  # (K, W)
    by_logits = torch.empty_like(logits)  # (M,)

    with torch.no_grad(), torch.autocast(users.device.type, enabled=False):
        for span, targets, room in chunks(
            users, len(negatives), target_rows, CHUNK_CELLS
        ):
            others = torch.index_select(shifts, 0, of_row[span], out=room)  # (chunk, K)
            others.addmm_(users[span], negatives.T)  # (chunk, K)
            highest, powers = to_powers(others)  # (chunk, 1), (chunk, K)
            sums = powers.sum(dim=1)  # (chunk,)

            row = target_rows[targets] - span.start  # (targets of the chunk,)
            share = shares[targets]  # (targets of the chunk,)
            own = logits[targets]  # (targets of the chunk,)
            rest = (sums.log() + highest.squeeze(1))[row]  # (targets of the chunk,)
            log_sums = torch.logaddexp(own, rest)  # (targets of the chunk,)
            total += (share * log_sums).sum()  # scalar

            by_logits[targets] = share * (own - log_sums).exp()
            of_rest = share * (rest - log_sums).exp()  # (targets of the chunk,)
            weight = torch.zeros_like(sums).index_add_(0, row, of_rest)  # (chunk,)
            factor = weight / sums.clamp(min=torch.finfo(sums.dtype).tiny)  # (chunk,)
            factor = factor.unsqueeze(1)  # (chunk, 1)

            torch.mm(powers, negatives, out=by_users[span]).mul_(factor)  # (chunk, W)
            by_negatives += powers.T @ (users[span] * factor)  # (K, W)

    expected = with_gradients(
        total, (by_users, by_negatives, by_logits), (users, negatives, logits)
    )  # scalar
    return expected - (shares * logits).sum()  # scalar


def find_own(
    history_rows: Tensor, lengths: Tensor, negative_rows: Tensor, n_items: int
) -> Tensor:
    """Mark the negatives (K,) in windows (B, L) of so many events (B,): they are owned, (B, K)."""
    positions = torch.arange(history_rows.shape[1], device=history_rows.device)  # (L,)
    is_event = positions < lengths.unsqueeze(1)  # (B, L)
    rows = torch.where(is_event, history_rows, n_items)  # (B, L)
    windows = torch.arange(len(rows), device=rows.device).unsqueeze(1)  # (B, 1)
    return mark_owned(windows, rows, len(rows), negative_rows, n_items)  # (B, K)


def mark_owned(
    users: Tensor, items: Tensor, n_users: int, negative_rows: Tensor, n_items: int
) -> Tensor:
    """Mark the negatives (K,) that occur in pairs of a user and an item, (B, K).

    Args:
        users: (E,) rows of users.
        items: (E,) rows of items; `n_items` is no item.
        n_users: B.
        negative_rows: (K,) rows of items.
        n_items: n.
    """
    shape = (n_users, n_items + 1)
    is_owned = torch.zeros(shape, dtype=torch.bool, device=items.device)  # (B, n + 1)
    is_owned[users, items] = True
    return is_owned.gather(1, negative_rows.expand(n_users, -1))  # (B, K)


def find_positions(needed: Tensor, rows: Tensor) -> Tensor:
    """Return where each of the rows (E,) stands among ascending ones (n,), n if nowhere: (E,)."""
    n = len(needed)
    positions = torch.searchsorted(needed, rows)  # (E,)
    is_needed = needed[positions.clamp(max=n - 1)] == rows  # (E,)
    return torch.where(is_needed, positions, n)  # (E,)
