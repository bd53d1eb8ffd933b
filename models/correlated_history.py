"""The user's side of the correlation part of vectors: what goes together with her items."""

from __future__ import annotations

import torch
from torch import Tensor, nn

POWER = 0.5
"""Of the sum of weights, which divides: how much long histories count beside short ones. From 0 to 1 MovieLens and
pairs of Amazon Beauty ranked alike."""


class CorrelatedHistory(nn.Module):
    """Sum the correlation parts of a history; nothing of it is trained."""

    def __init__(self, decay: float) -> None:
        """Let an event count by exp(-decay * events after it); 0 where they have no order."""
        super().__init__()
        self.decay = decay

    def forward(self, parts: Tensor, lengths: Tensor) -> Tensor:
        """Sum parts (B, L, R) of histories of `lengths` (B,) events, behind which is padding: (B, R)."""
        places = torch.arange(parts.shape[1], device=parts.device)  # (L,)
        later = lengths.unsqueeze(1) - 1 - places  # (B, L); below 0: padding
        weights = torch.exp(-self.decay * later.clamp(min=0)) * (later >= 0)  # (B, L)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0) ** POWER  # (B, L)
        return (weights.unsqueeze(-1) * parts).sum(dim=1)  # (B, R)
