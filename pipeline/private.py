"""The private counterpart of a training: no row of a person goes further than two noised releases.

`privacy` releases popularity and a Gram matrix. Schema, catalogue, recipe and towers are then made
of the items table, which is public, and of people drawn from the release. Item-item weights rank;
the vectors of items are the leading eigenvectors, as far as content explains them placed by it,
and serve likeness, new items and ties. A user's vector is made of their own history when they ask.

Segments and features of users and contexts are off; figures of the test stay beside the bundle, in
`metrics.json`, which is the operator's, as profiles are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from datamodules.schema_fitting import LONGEST_SET
from datamodules.splits import Split
from datamodules.tables import Tables
from models.config import ModelConfig
from models.defaults import choose_recipe, count_data
from pipeline.run_folder import Work, console
from privacy.gaussian import Account
from privacy.item_item import Statistics, release_statistics
from serve.arrays import Doubles
from serve.errors import SchemaError

N_PEOPLE = 2_000  # who are drawn in place of real ones
N_DRAWS = 50  # items that each of them draws, some of them twice


def release(work: Work) -> tuple[Work, Statistics, dict[str, Any]]:
    """Release noised statistics, and put drawn people in the place of real ones.

    Args:
        work: the real tables.

    Returns:
        the work that `pipeline.stages.train_released` may see, the statistics, and what is stated.

    Raises:
        SchemaError: there is no table of items, which are public where users are not.
    """
    privacy = work.config.privacy
    if privacy.epsilon is None or not len(work.tables.items):
        raise SchemaError(
            "privacy.epsilon needs a table of items: without one, the catalogue would tell what "
            "single users had; give data.items"
        )

    n_users = work.split.refit["user_id"].nunique()
    if privacy.delta * n_users > 1:
        raise SchemaError(
            f"privacy.delta is {privacy.delta:g}, and {n_users:,} users are learned from; allowed: "
            f"up to {1 / n_users:.1g}, one over their number"
        )

    console.rule("noised statistics")
    account = Account(privacy.epsilon, privacy.delta, np.random.default_rng())
    item_ids = np.unique(work.tables.items["item_id"].to_numpy())
    matrix = read_public_matrix(work.split.refit, item_ids)
    statistics = release_statistics(matrix, account)
    console.print(f"{len(statistics.items):,} of {len(item_ids):,} items compared")
    return hide(work, item_ids, statistics), statistics, account.describe()


def read_public_matrix(rows: pd.DataFrame, item_ids: np.ndarray) -> sp.csr_array:
    """Return the binary interactions (U, N) with the items of the catalogue."""
    is_listed = rows["item_id"].isin(item_ids)
    pairs = rows[is_listed].drop_duplicates(["user_id", "item_id"])
    users = pd.factorize(pairs["user_id"])[0]
    columns = np.searchsorted(item_ids, pairs["item_id"].to_numpy())
    shape = (len(rows), len(item_ids))  # those after the last user are empty
    return sp.csr_array((np.ones(len(pairs)), (users, columns)), shape)


def hide(work: Work, item_ids: np.ndarray, statistics: Statistics) -> Work:
    """Put drawn people in the place of all real ones."""
    config = work.config
    rows = draw_people(
        item_ids,
        statistics.popularity,
        work.split.refit["user_id"],
        config.seed,
    )
    users = rows[["user_id"]].drop_duplicates()
    tables = Tables(rows, users, work.tables.items)
    split = Split(rows, rows[:0], rows[:0], "none")

    features = replace(config.data.features, user={}, context={})
    length = config.data.history_length or LONGEST_SET
    data = replace(config.data, features=features, history_length=length)
    # Not even the sizes that real counts would choose.
    recipe, _ = choose_recipe(ModelConfig(n_blocks=0), count_data(tables, data))
    config = replace(config, data=data, model=recipe.to_config())
    return replace(work, config=config, recipe=recipe, tables=tables, split=split)


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
