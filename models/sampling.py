"""Negatives of a step, shared by all its targets: from the catalogue, from the step's own targets, or both.

Letters: M targets, K negatives, N items, P places of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

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

    "Expected" is one number for an item whichever source it was drawn from: `uniform * its places / P + in_batch *
    share`.
    """

    uniform: int
    """Draws from the pool, with replacement."""
    in_batch: int
    """Draws from the targets of the step, with replacement."""
    shares: Tensor
    """(N,) each item's share of all training targets."""

    @classmethod
    def make(cls, uniform: int, in_batch: int, target_counts: Tensor) -> NegativeSampler | None:
        """Make the sampler, or none if nothing is to be drawn: then the whole catalogue is looked at.

        Args:
            uniform: draws from the pool of the catalogue.
            in_batch: draws from the step's targets.
            target_counts: (N,) how often each item is a target of an epoch.
        """
        return cls(uniform, in_batch, target_counts / target_counts.sum().clamp(min=1)) if uniform else None

    def to(self, device: torch.device) -> NegativeSampler:
        """Draw on a device."""
        return replace(self, shares=self.shares.to(device))

    @cached_property
    def pool(self) -> Tensor:
        """The catalogue, (P,): each item once, unless most are no target; then those that are fill about half of it.

        A table of items may list twenty times as many as anybody took: few that were would be drawn, and the others are
        soon told from any target.
        """
        is_target = self.shares > 0  # (N,)
        n_targets = int(is_target.sum())
        times = max(1, round((len(self.shares) - n_targets) / max(n_targets, 1)))
        rows = torch.arange(len(self.shares), device=self.shares.device)  # (N,)
        return rows.repeat_interleave(torch.where(is_target, times, 1))  # (P,)

    @cached_property
    def log_expected_of_all(self) -> Tensor:
        """The log of how often each item is expected in a draw, (N,)."""
        places = torch.bincount(self.pool, minlength=len(self.shares)).double()  # (N,)
        return (self.uniform * places / len(self.pool) + self.in_batch * self.shares).log().float()  # (N,)

    def draw(self, target_rows: Tensor) -> Negatives:
        """Draw for a step with these targets (M,)."""
        device = target_rows.device
        places = torch.randint(len(self.pool), (self.uniform,), device=device)  # (uniform,)
        picked = torch.randint(max(len(target_rows), 1), (self.in_batch if len(target_rows) else 0,), device=device)
        rows = torch.cat([self.pool[places], target_rows[picked]])  # (K,)
        return Negatives(rows, self.log_expected(rows))

    def log_expected(self, rows: Tensor) -> Tensor:
        """Return the log of how often each of the items (M,) is expected in a draw, (M,)."""
        return self.log_expected_of_all[rows]  # (M,)
