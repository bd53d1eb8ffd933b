"""Build the towers for a schema and a catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.item_tower import ItemTower
from models.memory import Memory
from models.towers import Towers
from models.user_tower import UserTower
from serve.categories import category_features, count_categories
from serve.schema import FIRST_CODE, Schema, Similarity


def build_towers(
    schema: Schema,
    item_codes: Tensor,
    item_values: Tensor,
    categories: Tensor,
    memory: Memory | None,
    dim: int,
    n_blocks: int,
    n_heads: int,
    dropout: float,
    id_dropout: float,
    similarity: Similarity,
) -> Towers:
    """Build both towers.

    Args:
        schema: of the data.
        item_codes: (N, C) encoded catalogue, with `item_values` (N, V) and `categories` (N, F).
        item_values: see `item_codes`.
        categories: see `item_codes`.
        memory: of the user tower, where repeats are allowed.
        dim: D.
        n_blocks: attention blocks.
        n_heads: heads of a block.
        dropout: in the user tower.
        id_dropout: in the item tower.
        similarity: `dot` or `cosine`.
    """
    affinity_dim = 0 if memory is None else memory.affinity_dim
    n_categories = count_categories(schema.item_features)
    item_tower = ItemTower(
        schema.item_features, len(item_codes), dim, n_categories, affinity_dim, similarity, id_dropout
    )
    user_tower = UserTower(
        schema.user_features,
        schema.context_features,
        FIRST_CODE + len(schema.event_types),
        dim,
        n_blocks,
        n_heads,
        dropout,
        similarity,
        memory,
    )
    return Towers(item_tower, user_tower, item_codes, item_values, categories)


def build_memory(
    schema: Schema, requests: Iterable[RequestBatch], dim: int, affinity_dim: int, unit: float
) -> tuple[Memory, Tensor]:
    """Build the memory from requests of training users.

    Args:
        schema: of the data.
        requests: give the samples to standardise by.
        dim: D.
        affinity_dim: A; 0 is taken where items have no single-valued feature.
        unit: see `Memory`.

    Returns:
        The memory, and the category preferences (U, Q) of all users.
    """
    arrays = [batch.arrays for batch in requests]
    preferences = torch.cat([part["category_preferences"] for part in arrays])  # (U, Q)
    n_features = len(category_features(schema.item_features))
    shares = preferences.sum(dim=0)  # (Q,)
    memory = Memory(
        dim,
        affinity_dim if n_features else 0,
        len(schema.popularity_days),
        len(schema.decay_days),
        torch.cat([part["owned_statistics"] for part in arrays]),
        torch.cat([part["user_statistics"] for part in arrays]),
        shares * n_features / shares.sum().clamp(min=1e-12),
        unit,
    )
    return memory, preferences
