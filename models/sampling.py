"""Negatives of a step, shared by all its targets: uniform over the catalogue, the step's own targets, or both.

Letters: M targets, K negatives, N items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Negatives:
    """Items that all targets of a step are told from."""

    rows: Tensor
    """(K,) item rows; one may be there more than once."""
    log_expected: Tensor
    """(K,) log of how often that item is expected among the K."""


@dataclass(frozen=True)
class NegativeSampler:
    """Draws the negatives of a step; where both sources are used, an item counts by both (Yang et al. 2020).

    "Expected" is one number for an item whichever source it was drawn from: `uniform / N + in_batch * share`.
    """

    uniform: int
    """Draws from the whole catalogue, with replacement."""
    in_batch: int
    """Draws from the targets of the step, with replacement."""
    shares: Tensor
    """(N,) each item's share of all training targets."""

    @classmethod
    def make(cls, uniform: int, in_batch: int, target_counts: Tensor) -> NegativeSampler | None:
        """Make the sampler, or none if nothing is to be drawn: then the whole catalogue is looked at.

        Args:
            uniform: draws from the catalogue.
            in_batch: draws from the step's targets.
            target_counts: (N,) how often each item is a target of an epoch.
        """
        return cls(uniform, in_batch, target_counts / target_counts.sum().clamp(min=1)) if uniform else None

    def draw(self, target_rows: Tensor) -> Negatives:
        """Draw for a step with these targets (M,)."""
        device, n_items = target_rows.device, len(self.shares)
        anywhere = torch.randint(n_items, (self.uniform,), device=device)  # (uniform,)
        picked = torch.randint(max(len(target_rows), 1), (self.in_batch if len(target_rows) else 0,), device=device)
        rows = torch.cat([anywhere, target_rows[picked]])  # (K,)
        return Negatives(rows, self.log_expected(rows))

    def log_expected(self, rows: Tensor) -> Tensor:
        """Return the log of how often each of the items (M,) is expected in a draw, (M,)."""
        if not self.in_batch:
            return torch.full(rows.shape, math.log(self.uniform / len(self.shares)), device=rows.device)  # (M,)
        shares = self.shares.to(rows.device)[rows]  # (M,)
        return (self.uniform / len(self.shares) + self.in_batch * shares).log()  # (M,)
