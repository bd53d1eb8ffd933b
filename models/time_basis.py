"""Durations as smooth functions of their logarithm: hat functions that a linear layer weighs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LONGEST = 20.0  # log(1 + seconds): 15 years


class LogTimeBasis(nn.Module):
    """Map seconds to K hat functions of log(1 + seconds), evenly spaced from 0 s to 15 years.

    Between two knots exactly two functions are non-zero and sum to 1, so that a linear layer on top is a
    piecewise linear function of log time.
    """

    knots: Tensor

    def __init__(self, n_functions: int) -> None:
        super().__init__()
        self.n_functions = n_functions
        self.step = LONGEST / (n_functions - 1)
        self.register_buffer("knots", torch.arange(n_functions) * self.step, persistent=False)

    def forward(self, seconds: Tensor) -> Tensor:
        """Map int64 seconds of any shape (...) to float (..., K); negative ones count as 0."""
        distance = (_log(seconds).unsqueeze(-1) - self.knots).abs() / self.step  # (..., K)
        return (1.0 - distance).clamp(min=0.0)  # (..., K)

    def locate(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Say where int64 seconds (...) lie among the knots: without K numbers for each, where there are many.

        Returns:
            pieces: (...) int64, i between knot i and i + 1.
            places: (...) float, i to i + 1.
        """
        places = _log(seconds) / self.step  # (...)
        return places.long().clamp(max=self.n_functions - 2), places  # (...), (...)


def _log(seconds: Tensor) -> Tensor:
    return torch.log1p(seconds.clamp(min=0).to(torch.float32)).clamp(max=LONGEST)  # (...)
