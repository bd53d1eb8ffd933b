"""The user's side of the correlation part of vectors: what goes together with her items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch
from models.memory import sum_by_user

POWER = 0.5
"""Of the number of items, which divides: how much long histories count beside short ones. From 0 to 1 pairs of Amazon
Beauty ranked alike."""


class CorrelatedHistory(nn.Module):
    """Sum the correlation parts of a history, whose events have no order; nothing of it is trained."""

    def forward(self, parts: Tensor, lengths: Tensor) -> Tensor:
        """Sum parts (B, L, R) of histories of `lengths` (B,) events, behind which is padding: (B, R)."""
        places = torch.arange(parts.shape[1], device=parts.device)  # (L,)
        is_event = (places < lengths.unsqueeze(1)).to(parts.dtype)  # (B, L)
        weights = is_event / is_event.sum(dim=1, keepdim=True).clamp(min=1.0) ** POWER  # (B, L)
        return (weights.unsqueeze(-1) * parts).sum(dim=1)  # (B, R)

    def sum_batch(self, factors: Tensor, batch: RequestBatch) -> Tensor:
        """Do so for requests, with the parts of the catalogue (N, R): (B, R)."""
        return self(factors[batch.history_rows], batch.arrays["history_lengths"])  # type: ignore[no-any-return]


class CorrelatedOwned(nn.Module):
    """Sum the correlation parts of all items that a user owns, where these are recommended too.

    They say what she may take besides: the memory knows better what she takes again, so that owned items keep the
    score they had, and a lead (`models.lead`): the longer the sum, the higher the best of the others rise.
    """

    def __init__(self, lead: float = 0.0) -> None:
        """Let owned items have `lead` times the length of the sum more than their score without correlations."""
        super().__init__()
        self.lead = lead

    def forward(self, parts: Tensor, owners: Tensor, n_users: int) -> Tensor:
        """Sum parts (E, R) of the items of their `owners` (E,), rows of `n_users`: (B, R)."""
        summed = sum_by_user(parts, owners, n_users)  # (B, R)
        counts = sum_by_user(parts.new_ones(parts.shape[0], 1), owners, n_users)  # (B, 1)
        return summed / counts.clamp(min=1.0) ** POWER  # (B, R)

    def change(self, summed: Tensor, parts: Tensor, owners: Tensor) -> Tensor:
        """Return what owned items have beyond the product, for the sums (B, R) of `forward`: (E,)."""
        leads: Tensor = self.lead * summed.norm(dim=1)  # (B,)
        return leads[owners] - (summed[owners] * parts).sum(dim=1)  # (E,)

    def sum_batch(self, factors: Tensor, batch: RequestBatch) -> Tensor:
        """Do as `forward` for requests, with the parts of the catalogue (N, R): (B, R)."""
        return self(factors[batch.owned_rows], batch.owned_users, len(batch.history_rows))  # type: ignore[no-any-return]
