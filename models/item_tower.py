"""Map id embedding and content features to the item vector that histories, targets and the index share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.config import Recipe
from models.features import FeatureEmbedding
from serve.encode import category_features, count_categories
from serve.schema import Schema

AFFINITY_DIM = (
    16  # entries for the user's preference for categories, where a memory learns it
)


class ItemTower(nn.Module):
    """Map items to vectors of W = D + A + P entries: taste, category affinity, recent popularity.

    Taste = id embedding + content, normalised under `cosine`. Affinity is a sum of one table row per single-valued
    feature, popularity is given. Both join after the normalisation, and are still one dot product.
    """

    def __init__(self, schema: Schema, recipe: Recipe, n_items: int) -> None:
        super().__init__()
        features = schema.item_features
        self.dim = recipe.dim
        self.similarity = recipe.similarity
        self.id_dropout = recipe.id_dropout
        self.affinity_dim = (
            AFFINITY_DIM
            if schema.repeats == "allow" and category_features(features)
            else 0
        )
        self.id_table = nn.Embedding(n_items, self.dim)
        self.content = FeatureEmbedding(features, self.dim)
        self.affinity_table = nn.Embedding(
            max(count_categories(features), 1), self.affinity_dim
        )
        nn.init.normal_(self.id_table.weight, std=0.02)
        nn.init.zeros_(self.affinity_table.weight)

    def forward(
        self,
        item_rows: Tensor,
        content: Tensor,
        categories: Tensor,
        popularity: Tensor,
        has_content: Tensor,
    ) -> Tensor:
        """Make vectors (N, W) from ids (N,), content (N, D), affinity rows (N, F) and popularity (N, P).

        Popularity is the standardised logarithm before the moment of the step. In training, items that have content
        (N,), and no others, may lose their id part, by one draw per item and step.
        """
        ids = self.id_table(item_rows)  # (N, D)
        if self.training and self.id_dropout > 0:
            is_dropped = (
                torch.rand(len(item_rows), device=ids.device) < self.id_dropout
            )  # (N,)
            ids = ids * (~(is_dropped & has_content)).unsqueeze(1)  # (N, D)
        return self.complete(
            self.normalise(ids + content), categories, popularity
        )  # (N, W)

    def complete(self, taste: Tensor, categories: Tensor, popularity: Tensor) -> Tensor:
        """Complete taste (N, D) to vectors (N, W)."""
        affinity = self.affinity_table(categories).sum(dim=1)  # (N, A)
        return torch.cat(
            [taste, affinity, popularity.to(taste.dtype)], dim=-1
        )  # (N, W)

    def normalise(self, taste: Tensor) -> Tensor:
        return (
            functional.normalize(taste, dim=-1)
            if self.similarity == "cosine"
            else taste
        )  # (N, D)
