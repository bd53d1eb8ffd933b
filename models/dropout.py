"""Dropout whose mask is made of random bytes: a float for every entry, as torch draws, takes long on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 256


class Dropout(nn.Module):
    """Set entries to 0 with probability p, rounded to 1/256, and scale the others so that the mean stays."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.n_dropped = min(round(p * LEVELS), LEVELS - 1)  # something is left to be scaled

    def extra_repr(self) -> str:
        return f"p={self.n_dropped / LEVELS:g}"

    def forward(self, values: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape (...) while training."""
        if not self.training or not self.n_dropped:
            return values
        n_words = -(-values.numel() // 8)
        words = torch.randint(-(1 << 63), (1 << 63) - 1, (n_words,), device=values.device)  # (n_words,)
        bytes_ = words.view(torch.uint8)[: values.numel()].view(values.shape)  # (...)
        kept = torch.ge(bytes_, self.n_dropped, out=torch.empty_like(values))  # (...)
        return values * kept.mul_(LEVELS / (LEVELS - self.n_dropped))  # (...)
