"""People who never were: drawn from released popularity alone, they stand in for the users.

Whatever a bundle needs of people beside its item-item weights (a schema, popularity, requests by
which new items are placed) is made of their events. As they are computed from a release, nothing
made of them costs any privacy, and no file of the bundle is made by code that sees a real row.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from serve.arrays import Doubles

N_PEOPLE = 2_000
N_DRAWS = 50  # items that each of them draws, some of them twice


def draw_people(
    item_ids: np.ndarray, popularity: Doubles, user_ids: pd.Series, seed: int
) -> pd.DataFrame:
    """Draw events of people with average tastes.

    Args:
        item_ids: (N,) ids of the catalogue.
        popularity: (N,) released popularity, at least 0.
        user_ids: real ids, of which only the type is read.
        seed: of the draws.

    Returns:
        user_id and item_id of their events, each pair once.
    """
    rng = np.random.default_rng(seed)
    weights = popularity + (popularity.sum() == 0)  # (N,)
    shares = weights / weights.sum()
    rows = rng.choice(len(item_ids), N_PEOPLE * N_DRAWS, p=shares)
    people = np.repeat(np.arange(N_PEOPLE), N_DRAWS)
    drawn_ids = pd.Series(people.astype(str)).astype(user_ids.dtype)
    drawn = pd.DataFrame({"user_id": drawn_ids, "item_id": item_ids[rows]})
    return drawn.drop_duplicates(ignore_index=True)
