"""Negatives of a step, drawn from the catalogue and shared by all targets of the step.

Letters: M targets, K negatives, N items, P places of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Negatives:
    """Items that all targets of a step are compared with."""

    rows: Tensor
    """(K,) item rows; one may occur more than once."""
    log_expected: Tensor
    """(K,) log of how often that item is expected among the K."""


@dataclass(frozen=True)
class NegativeSampler:
    """Draws negatives with replacement from a pool.

    The pool holds each item once, unless most items are no target: then those that are fill about half of it. A table
    of items may list twenty times as many as have events, and the others are soon told from any target.
    """

    n_negatives: int
    pool: Tensor
    """(P,) item rows."""
    log_expected: Tensor
    """(N,) log of how often each item is expected in a draw."""

    @classmethod
    def make(cls, n_negatives: int, target_counts: Tensor) -> NegativeSampler | None:
        """Make the sampler of K negatives, or none for 0: then the whole catalogue is looked at.

        Args:
            n_negatives: K.
            target_counts: (N,) how often each item is a target of an epoch.
        """
        if not n_negatives:
            return None
        is_target = target_counts > 0  # (N,)
        n_items, n_targets = len(target_counts), int(is_target.sum())
        copies = torch.where(is_target, max(1, round((n_items - n_targets) / max(n_targets, 1))), 1)  # (N,)
        pool = torch.arange(n_items).repeat_interleave(copies)  # (P,)
        return cls(n_negatives, pool, (n_negatives * copies.double() / len(pool)).log().float())

    def to(self, device: torch.device) -> NegativeSampler:
        """Draw on a device."""
        return replace(self, pool=self.pool.to(device), log_expected=self.log_expected.to(device))

    def draw(self) -> Negatives:
        """Draw the negatives of a step."""
        places = torch.randint(len(self.pool), (self.n_negatives,), device=self.pool.device)  # (K,)
        rows = self.pool[places]  # (K,)
        return Negatives(rows, self.log_expected[rows])
