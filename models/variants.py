"""Choose how many variants of a thing, such as sizes of one milk, stand in the first rows of lists.

Variants share a value of a fine category, the one that a user's neighbouring events share most
beyond chance. As few of them as cost the validation less than 1 % stay in the first rows, and the
others follow. Letters: N items, E events.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import pandas as pd
import torch

from datamodules.datamodule import InteractionsDataModule
from datamodules.sequences import Catalogue
from models.validation import TOP, Figures, Limit, Validation, is_told, mean_of_views
from serve.arrays import Ints
from serve.encode import category_features

MAX_ITEMS = 20  # of a value on average: more are a department and no variants
MIN_ITEMS = 1.5  # fewer are hardly ever variants
TRIALS = (1, 2, 3)  # variants in the first rows
MAX_LOSS = 0.01  # of NDCG


def choose_variants(
    validation: Validation,
    data: InteractionsDataModule,
    rank: Callable[[Validation], Figures],
) -> dict[str, Any]:
    """Choose a column of items, and how many of the first rows may share a value of it.

    Args:
        validation: requests that are ranked as they are served.
        data: training data.
        rank: adds item-item weights to the scores of the towers.

    Returns:
        `column`, `most`, and NDCG with this limit (`ndcg`) and `without`. Empty where no category
        is fine enough, or each limit costs too much.
    """
    fine = find_fine(data.catalogue)
    taken = data.sequences.events.item_row
    column = max(fine, key=lambda name: measure_lift(fine[name][taken]), default=None)
    if column is None:
        return {}

    limited = copy(validation)
    limited.depth = TOP
    before = rank(limited)
    without = mean_of_views(before)
    for most in TRIALS:
        limited.limit = Limit(torch.from_numpy(fine[column]), most)
        ndcg = mean_of_views(rank(limited))
        if is_told(before) and ndcg >= (1 - MAX_LOSS) * without:
            return {"column": column, "most": most, "ndcg": ndcg, "without": without}

    return {}


def find_fine(catalogue: Catalogue) -> dict[str, Ints]:
    """Return the codes (N,) of each category whose values a few items share, -1 for none."""
    fine = {}
    for feature, _ in category_features(catalogue.item_features):
        codes = pd.factorize(catalogue.table[feature.column])[0].astype(np.int64)
        n_values = codes.max(initial=-1) + 1
        n_items = np.count_nonzero(codes >= 0)
        if MIN_ITEMS * n_values <= n_items <= MAX_ITEMS * n_values:
            fine[feature.column] = codes

    return fine


def measure_lift(codes: Ints) -> float:
    """Tell how much oftener neighbouring events share a value than any two events do.

    A size, or a colour, is shared by unlike things.

    Args:
        codes: (E,) of the items of the events of one user after another.
    """
    known = codes[codes >= 0]
    shares = np.bincount(known) / max(1, len(known))
    by_chance = (shares**2).sum()
    return (
        float(np.mean(known[1:] == known[:-1]) / by_chance) if len(known) > 1 else 0.0
    )
