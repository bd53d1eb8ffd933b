"""Build the towers for a schema and a catalogue; where repeats are learned, start their tables from the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.item_tower import ItemTower
from models.memory import Memory
from models.towers import Towers
from models.user_tower import UserTower
from models.warm_start import (
    REPEATED_USER_POWER,
    item_factors,
    start_affinity,
    start_correlated,
    start_pooling,
    start_taste,
)
from serve.encode import category_features, count_categories
from serve.schema import FIRST_CODE, Schema, Similarity


@dataclass(frozen=True)
class EncodedItems:
    """The encoded catalogue of N items."""

    codes: Tensor
    """(N, C)"""
    values: Tensor
    """(N, V)"""
    categories: Tensor
    """(N, F)"""


@dataclass(frozen=True)
class PastOfAll:
    """What the memory starts from."""

    requests: Iterable[RequestBatch]
    """One of each training user, with all her events."""
    pairs: tuple[np.ndarray, np.ndarray]
    """(E,) user and (E,) item row of the events that factors may be taken from."""


def build_towers(
    schema: Schema,
    items: EncodedItems,
    past: PastOfAll,
    dim: int,
    affinity_dim: int,
    n_blocks: int,
    n_heads: int,
    dropout: float,
    id_dropout: float,
    similarity: Similarity,
    temperature: float,
    freeze_items: bool,
    seed: int,
) -> Towers:
    """Build both towers.

    Args:
        schema: of the data.
        items: the catalogue.
        past: read where repeats are allowed.
        dim: D.
        affinity_dim: A; read where repeats are allowed and items have single-valued features.
        n_blocks: attention blocks.
        n_heads: heads of a block.
        dropout: in the user tower.
        id_dropout: in the item tower.
        similarity: `dot` or `cosine`.
        temperature: first one; under `cosine` the unit of the memory's scores.
        freeze_items: read for sets without request context and blocks: items stay where correlations put them.
        seed: of the factorisations.
    """
    unit = temperature if similarity == "cosine" else 1.0
    if schema.repeats == "exclude":
        towers = _join(schema, items, None, 0, dim, n_blocks, n_heads, dropout, id_dropout, similarity)
        if schema.is_set and not n_blocks:
            if schema.context_features:
                start_pooling(towers, *past.pairs, unit, seed)
            else:
                start_correlated(towers, *past.pairs, freeze_items, seed)
        return towers
    affinity_dim = affinity_dim if category_features(schema.item_features) else 0
    memory, preferences = _build_memory(schema, past.requests, dim, affinity_dim, unit)
    towers = _join(schema, items, memory, affinity_dim, dim, n_blocks, n_heads, dropout, id_dropout, similarity)
    shape = (len(preferences), len(items.codes))
    start_taste(towers, item_factors(*past.pairs, shape, dim, seed, REPEATED_USER_POWER))
    if affinity_dim:
        start_affinity(towers, memory, preferences, seed)
    return towers


def _join(
    schema: Schema,
    items: EncodedItems,
    memory: Memory | None,
    affinity_dim: int,
    dim: int,
    n_blocks: int,
    n_heads: int,
    dropout: float,
    id_dropout: float,
    similarity: Similarity,
) -> Towers:
    features, n_categories = schema.item_features, count_categories(schema.item_features)
    item_tower = ItemTower(features, len(items.codes), dim, n_categories, affinity_dim, similarity, id_dropout)
    user_tower = UserTower(
        schema.user_features,
        schema.context_features,
        FIRST_CODE + len(schema.event_types),
        dim,
        n_blocks,
        n_heads,
        dropout,
        similarity,
        schema.ties == "ordered",
        schema.is_set,
        len(schema.popularity_days),
        memory,
    )
    return Towers(item_tower, user_tower, items.codes, items.values, items.categories)


def _build_memory(
    schema: Schema, requests: Iterable[RequestBatch], dim: int, affinity_dim: int, unit: float
) -> tuple[Memory, Tensor]:
    """Build the memory, and return the category preferences (U, Q) of all users with it."""
    arrays = [batch.arrays for batch in requests]
    preferences = torch.cat([part["category_preferences"] for part in arrays])  # (U, Q)
    shares = preferences.sum(dim=0)  # (Q,)
    n_features = len(category_features(schema.item_features))
    memory = Memory(
        dim,
        affinity_dim,
        len(schema.popularity_days),
        len(schema.decay_days),
        torch.cat([part["owned_statistics"] for part in arrays]),
        torch.cat([part["user_statistics"] for part in arrays]),
        shares * n_features / shares.sum().clamp(min=1e-12),
        unit,
    )
    return memory, preferences
