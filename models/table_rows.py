"""Bound the id table: frequent items have rows of their own, all others share rows by a hash.

A row costs memory in training whether or not its item is ever seen again. With `model.table_rows`
an item is admitted to a row of its own by its events, of which old ones count little: each new
training evicts what went out of use. Content and item-item weights still tell apart the items that
share a row. After training every item has a vector of its own, as without a bound.

Letters: N items, R rows of the table, E events.
"""

from __future__ import annotations

import numpy as np
import torch
from pandas.util import hash_array
from torch import Tensor

from datamodules.datamodule import InteractionsDataModule
from models.towers import Towers
from serve.arrays import Doubles
from serve.clock import DAY
from serve.events import Events

SHARED = 8  # one row of so many is shared
HALF_LIFE = 90 * DAY  # age at which an event counts half


def bound_table(
    towers: Towers, data: InteractionsDataModule, n_rows: int | None
) -> None:
    """Let rare items share rows of the id table, if all items are more than `n_rows`."""
    if n_rows is not None and n_rows < towers.n_items:
        towers.fold(assign_rows(data, n_rows), n_rows)


def assign_rows(data: InteractionsDataModule, n_rows: int) -> Tensor:
    """Assign the rows of the id table to the items of the catalogue.

    Args:
        data: gives the training events and the catalogue.
        n_rows: R, less than N.

    Returns:
        (N,) row of each item; the last eighth of the rows is shared.
    """
    item_ids = data.catalogue.item_ids
    n_shared = max(n_rows // SHARED, 1)
    n_own = n_rows - n_shared

    hashes = hash_array(item_ids, categorize=False)  # (N,), the same in every run
    rows = n_own + (hashes % np.uint64(n_shared)).astype(np.int64)  # (N,)
    counts = decayed_counts(data.sequences.events, len(item_ids))  # (N,)
    admitted = np.argsort(-counts, kind="stable")[:n_own]  # (n_own,)
    rows[admitted] = np.arange(n_own)
    return torch.from_numpy(rows)  # (N,)


def decayed_counts(events: Events, n_items: int) -> Doubles:
    """Count the events of each item, each by 2 ** (-age / half-life), (N,)."""
    age = events.time.max(initial=0) - events.time  # (E,)
    weights = np.exp2(-age / HALF_LIFE)  # (E,)
    counts: Doubles = np.zeros(n_items)  # (N,)
    np.add.at(counts, events.item_row, weights)
    return counts
