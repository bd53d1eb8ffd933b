"""The user's side of the correlation part of vectors: what goes together with her items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

POWER = 0.5
"""Of the number of events, by which a sum is divided; scores of one user rank alike at any."""


class CorrelatedHistory(nn.Module):
    """Sum the correlation parts of a history; nothing of it is trained."""

    def __init__(self, dim: int, decay: float) -> None:
        """Fix how the sum is made.

        Args:
            dim: R, entries of the part.
            decay: events of a history count by exp(-decay * events after them); 0 where they have no order.
        """
        super().__init__()
        self.dim = dim
        self.decay = decay

    def forward(self, parts: Tensor, lengths: Tensor) -> Tensor:
        """Sum parts (B, L, R) of histories of `lengths` (B,) events, behind which is padding: (B, R)."""
        places = torch.arange(parts.shape[1], device=parts.device)  # (L,)
        later = lengths.unsqueeze(1) - 1 - places  # (B, L); below 0: padding
        weights = torch.exp(-self.decay * later.clamp(min=0)) * (later >= 0)  # (B, L)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0) ** POWER  # (B, L)
        return (weights.unsqueeze(-1) * parts).sum(dim=1)  # (B, R)
