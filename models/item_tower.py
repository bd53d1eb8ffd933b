"""Map id embedding and content to the item vector that histories, targets and the index share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.init import normal_, zeros_

from models.config import Recipe
from models.features import FeatureEmbedding
from serve.encode import category_features, count_categories
from serve.schema import Schema

# Entries for the user's preference for categories, where a memory learns it.
AFFINITY_DIM = 16


class ItemTower(nn.Module):
    """Map items to vectors of W = D + A + P entries: taste, category affinity, recent popularity.

    Taste is id embedding + content, normalised under `cosine`. Affinity is the sum of one table row
    per single-valued feature, popularity is given. Both join after the normalisation, so that the
    score still is one dot product.
    """

    def __init__(self, schema: Schema, recipe: Recipe, n_rows: int) -> None:
        super().__init__()
        features = schema.item_features
        has_affinity = schema.repeats == "allow" and category_features(features)
        self.dim = recipe.dim
        self.similarity = recipe.similarity
        self.id_dropout = recipe.id_dropout
        self.affinity_dim = AFFINITY_DIM if has_affinity else 0

        self.id_table = nn.Embedding(n_rows, self.dim)
        self.content = FeatureEmbedding(features, self.dim)
        self.affinity_table = nn.Embedding(
            max(count_categories(features), 1), self.affinity_dim
        )
        normal_(self.id_table.weight, std=0.02)
        zeros_(self.affinity_table.weight)

    def forward(
        self,
        id_rows: Tensor,
        content: Tensor,
        categories: Tensor,
        popularity: Tensor,
        has_content: Tensor,
    ) -> Tensor:
        """Make item vectors.

        Args:
            id_rows: (N,) rows of the id table; items may share one.
            content: (N, D) embedded content.
            categories: (N, F) rows of the affinity table.
            popularity: (N, P) standardised logarithm before the moment of the step.
            has_content: (N,) items that may lose their id in a step of training, by one draw each.

        Returns:
            (N, W) vectors.
        """
        ids = self.id_table(id_rows)  # (N, D)
        if self.training and self.id_dropout > 0:
            draws = torch.rand(len(id_rows), device=ids.device)  # (N,)
            is_dropped = (draws < self.id_dropout) & has_content  # (N,)
            ids = ids * (~is_dropped).unsqueeze(1)  # (N, D)

        return self.complete(
            self.normalise(ids + content), categories, popularity
        )  # (N, W)

    def complete(self, taste: Tensor, categories: Tensor, popularity: Tensor) -> Tensor:
        """Complete taste (N, D) to vectors (N, W)."""
        affinity = self.affinity_table(categories).sum(dim=1)  # (N, A)
        parts = [taste, affinity, popularity.to(taste.dtype)]
        return torch.cat(parts, dim=-1)  # (N, W)

    def normalise(self, taste: Tensor) -> Tensor:
        if self.similarity == "dot":
            return taste  # (N, D)
        return normalize(taste, dim=-1)  # (N, D)
