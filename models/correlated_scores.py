"""What correlations say to users of a catalogue: by vectors of a low rank, or by the numbers of single pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory, CorrelatedOwned
from serve.index import Neighbours, add_terms

TILE = 32
"""Requests whose sums are laid out at once."""


@dataclass(frozen=True)
class ByVectors:
    """Products of the items' vectors and their sum over a user's items."""

    side: CorrelatedHistory | CorrelatedOwned
    vectors: Tensor
    """(N, R)."""

    def sum_batch(self, batch: RequestBatch) -> Tensor:
        """Sum over the items of each request, (B, R)."""
        return self.side.sum_batch(self.vectors, batch)  # (B, R)

    def score(self, summed: Tensor) -> Tensor:
        """Score the catalogue by the sums (B, R): (B, N)."""
        return summed @ self.vectors.T  # (B, N)

    @property
    def longest(self) -> float:
        """Times the length of a sum, the most that an item scores."""
        return float(self.vectors.norm(dim=1).max())


@dataclass(frozen=True)
class ByNeighbours:
    """What the items of a history add to their neighbours."""

    neighbours: Neighbours

    def sum_batch(self, batch: RequestBatch) -> Tensor:
        """Sum over the items of each request, by the code that serves: (B, N)."""
        rows, lengths = batch.history_rows.numpy(), batch.arrays["history_lengths"].numpy()  # (B, L), (B,)
        terms, sums = (
            self.neighbours.of_histories(rows, lengths),
            np.zeros((len(rows), self.neighbours.n_items), np.float32),
        )
        if terms is not None:
            add_terms(sums, terms)
        return torch.from_numpy(sums)  # (B, N)

    def score(self, summed: Tensor) -> Tensor:
        """Return the sums, (B, N): they are scores."""
        return summed  # (B, N)


CorrelatedScores = ByVectors | ByNeighbours
