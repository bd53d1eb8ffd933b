"""The item tower: id embedding + content features -> the vector that histories, targets and the index share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.directions import normalise
from models.features import FeatureEmbedding
from serve.schema import Feature, Similarity


class ItemTower(nn.Module):
    """Map items to vectors of W = D + R + A + P entries: taste, correlations, category affinity, recent popularity.

    Taste = id embedding + content, normalised under `cosine`. Affinity is a sum of one table row per
    single-valued feature, popularity is given. Both join after the normalisation, and are still one dot product.
    `models.blending` and `models.low_pass` put R entries behind taste, once all else is trained: correlations, and the
    factors of a filter.
    """

    correlations: Tensor

    def __init__(
        self,
        features: tuple[Feature, ...],
        n_items: int,
        dim: int,
        n_categories: int,
        affinity_dim: int,
        similarity: Similarity,
        id_dropout: float,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.similarity = similarity
        self.id_dropout = id_dropout
        self.id_table = nn.Embedding(n_items, dim)
        self.content = FeatureEmbedding(features, dim)
        self.affinity_table = nn.Embedding(max(n_categories, 1), affinity_dim)
        nn.init.normal_(self.id_table.weight, std=0.02)
        nn.init.zeros_(self.affinity_table.weight)
        self.register_buffer("correlations", torch.zeros(n_items, 0), persistent=False)  # (N, R)

    def forward(
        self,
        item_rows: Tensor,
        content: Tensor,
        categories: Tensor,
        popularity: Tensor,
        has_content: Tensor,
    ) -> Tensor:
        """Make the vectors of catalogue items.

        Args:
            item_rows: (N,) rows of the id table.
            content: (N, D) what `content` says of their features.
            categories: (N, F) rows of the affinity table.
            popularity: (N, P) standardised log popularity before the moment of the step.
            has_content: (N,) bool; only these may lose their id part (in training, one draw per item and step).

        Returns:
            (N, W).
        """
        ids = self.id_table(item_rows)  # (N, D)
        if self.training and self.id_dropout > 0:
            is_dropped = torch.rand(len(item_rows), device=ids.device) < self.id_dropout  # (N,)
            ids = ids * (~(is_dropped & has_content)).unsqueeze(1)  # (N, D)
        correlations = self.correlations[item_rows]  # (N, R)
        return self.join(ids + content, correlations, categories, popularity)  # (N, W)

    @property
    def history_dim(self) -> int:
        """D + R: the entries that histories hold."""
        return self.dim + self.correlations.shape[1]

    def join(self, taste: Tensor, correlations: Tensor, categories: Tensor, popularity: Tensor) -> Tensor:
        """Put taste (N, D), brought to its length, and correlations (N, R) into vectors (N, W)."""
        known = torch.cat([self.normalise(taste), correlations], dim=-1)  # (N, D + R)
        return self.complete(known, categories, popularity)  # (N, W)

    def complete(self, known: Tensor, categories: Tensor, popularity: Tensor) -> Tensor:
        """Complete taste and correlations (N, D + R) to vectors (N, W)."""
        affinity = self.affinity_table(categories).sum(dim=1)  # (N, A)
        return torch.cat([known, affinity, popularity.to(known.dtype)], dim=-1)  # (N, W)

    def normalise(self, taste: Tensor) -> Tensor:
        return normalise(taste) if self.similarity == "cosine" else taste  # (N, D)
