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
import torch

from datamodules.config import DataConfig
from datamodules.schema_fitting import LONGEST_SET
from datamodules.splits import Split
from datamodules.tables import Tables
from models.config import ModelConfig
from models.defaults import choose_recipe, count_data
from models.initialise import start_taste, start_untrained
from models.refine import ALONE, Refinement
from pipeline.config import Config
from pipeline.run_folder import Work, console
from pipeline.stages import Trained, make_last_data, make_model
from privacy.gaussian import Account
from privacy.item_item import Statistics, release_statistics
from privacy.people import draw_people
from serve.errors import SchemaError
from serve.index import Neighbours

NO_TEMPERATURE = 1.0  # nothing is trained


def train_privately(work: Work) -> tuple[Config, Trained, dict[str, Any]]:
    """Make towers of noised statistics.

    Args:
        work: the real tables.

    Returns:
        the configuration that the bundle may name, the towers, and what is stated of privacy.

    Raises:
        SchemaError: there is no table of items, which are public where users are not.
    """
    privacy = work.config.privacy
    if privacy.epsilon is None or not len(work.tables.items):
        raise SchemaError(
            "privacy.epsilon needs a table of items: without one, the catalogue would tell what "
            "single users had; give data.items"
        )

    console.rule("noised statistics")
    account = Account(privacy.epsilon, privacy.delta, np.random.default_rng())
    item_ids = np.unique(work.tables.items["item_id"].to_numpy())
    matrix = read_public_matrix(work.split.refit, item_ids)
    statistics = release_statistics(matrix, account)
    statement = account.describe()
    compared = (
        f"{len(statistics.items):,} items compared by {len(statistics.values)} factors"
    )
    console.print(f"{compared}; each user has epsilon {privacy.epsilon:g}")

    drawn = hide(work, item_ids, statistics)
    return drawn.config, make_private_towers(drawn, statistics), statement


def read_public_matrix(rows: pd.DataFrame, item_ids: np.ndarray) -> sp.csr_array:
    """Return the binary interactions (U, N) with the items of the catalogue."""
    users = pd.factorize(rows["user_id"])[0]
    columns = pd.Index(item_ids).get_indexer(rows["item_id"])
    is_listed = columns >= 0
    shape = (int(users.max(initial=-1)) + 1, len(item_ids))
    cells = (users[is_listed], columns[is_listed])
    matrix = sp.csr_array((np.ones(is_listed.sum()), cells), shape)
    matrix.data[:] = 1  # duplicates were summed
    return matrix


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

    data = leave_out_people(config.data)
    # Not even the sizes that real counts would choose.
    recipe, _ = choose_recipe(ModelConfig(n_blocks=0), count_data(tables, data))
    config = replace(config, data=data, model=recipe.to_config())
    return replace(work, config=config, recipe=recipe, tables=tables, split=split)


def leave_out_people(data: DataConfig) -> DataConfig:
    """Return the declaration without features of users and contexts."""
    features = replace(data.features, user={}, context={})
    length = data.history_length or LONGEST_SET
    return replace(data, features=features, history_length=length)


def make_private_towers(work: Work, statistics: Statistics) -> Trained:
    """Make towers of released statistics and drawn people.

    Args:
        work: with drawn people.
        statistics: what was released.
    """
    seed = work.config.seed
    data = make_last_data(work)
    towers = make_model(work.recipe, data, seed).towers
    start_untrained(towers, data, work.recipe.logit_unit, seed)
    start_taste(towers, torch.from_numpy(statistics.find_factors(work.recipe.dim)))

    weights = statistics.weigh(work.recipe.neighbours)
    offsets = weights.indptr.astype(np.int64)
    scores = (ALONE * weights.data).astype(np.float32)
    towers.neighbours = Neighbours(offsets, weights.indices, scores)
    refinement = Refinement({"private_ease": ALONE})
    return Trained(towers.eval(), data, 0, NO_TEMPERATURE, {}, refinement=refinement)
