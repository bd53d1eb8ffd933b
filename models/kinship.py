"""Kinship: how near the categories of a new item are to those of what a user takes.

Taste places a new item where items like it stand on average, and affinity was trained beside it: who has taken much of
exactly its kind is lost in between, which content-kNN sees. So where repeats are recommended, users have C entries for
the shares of what they take that are of each category, times the square of its rarity as in a product of two TF-IDF
vectors, and new items those of their own categories. Items that were trained have zeros: of them taste knows better.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from datamodules.batch import RequestBatch
from models.memory import as_shares
from models.towers import Towers
from models.warm_start import factorise_categories

ENTRIES = 32
"""Of 2,491 categories of groceries: with 64 new items were found a little better, with 16 worse."""


@torch.no_grad()
def add_kinship(towers: Towers, requests: Iterable[RequestBatch], seed: int) -> None:
    """Give users kinship, and new items a table of it.

    Args:
        towers: trained; without memory or categories they stay as they are.
        requests: of all users, with what they take of each category.
        seed: of the factorisation.
    """
    memory, (n_items, n_features) = towers.user_tower.memory, towers.categories.shape
    if memory is None or not n_features:
        return
    preferences = torch.cat([batch.arrays["category_preferences"] for batch in requests])  # (U, Q)
    sizes = np.bincount(towers.categories.numpy().ravel(), minlength=preferences.shape[1])  # (Q,)
    weights = np.log(n_items / np.maximum(sizes, 1)) ** 2  # (Q,)
    of_users, of_items = factorise_categories(as_shares(preferences).numpy() * weights, sizes, ENTRIES, seed)
    memory.kinship = of_users * torch.from_numpy(weights).float().unsqueeze(1)  # (Q, C)
    towers.item_tower.kinship = of_items  # (Q, C)
