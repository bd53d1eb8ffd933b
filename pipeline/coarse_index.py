"""The coarse index of a large catalogue, tuned on users until it finds what was asked for."""

from __future__ import annotations

import math

import numpy as np

from serve.arrays import Objects
from serve.index import ItemIndex, Query, measure_items
from serve.nearest import TUNED_K, CoarseIndex, IndexFacts
from serve.recommender import Recommender

MIN_ITEMS = 100_000  # fewer are searched exactly, as quickly
N_USERS = 256  # to tune on, and as many to measure on
LISTS = 4.0  # as many lists as so many times the root of the number of items
READ = 4  # codes per item of a list, at least
STEP = 0.2  # share of lists by which the next number is larger
MARGIN = 0.2  # of what may be missed, kept for other users


def fit_coarse(
    recommender: Recommender, target: float
) -> tuple[IndexFacts, CoarseIndex] | None:
    """Build a coarse index, and let it read as many lists as it needs.

    Some users tell how many that are. Others must find the target, too, of whole scores and beside
    an exact search: their recall is stated. Nothing depends on time: work is counted in lists.

    Args:
        recommender: of a staged bundle, with profiles.
        target: share of the exact lists that is to be found.

    Returns:
        What the manifest says, and the index. None where the search stays exact: few items or
        users, a target of 1, or more than half of the lists would have to be read.
    """
    vectors = recommender.bundle.vectors
    users = np.random.default_rng(0).permutation(recommender.profiles.user_ids)
    if len(vectors) < MIN_ITEMS or target == 1 or len(users) < 2:
        return None

    n_users = min(N_USERS, len(users) // 2)
    tuned = ask(recommender, users[:n_users])
    others = ask(recommender, users[n_users : 2 * n_users])
    n_lists = 2 ** round(math.log2(LISTS * len(vectors) ** 0.5))
    coarse = CoarseIndex.build(vectors, n_lists)
    index = ItemIndex(vectors, recommender.bundle.index.is_hidden, coarse)

    coarse.n_probes = math.ceil(READ * TUNED_K * n_lists / len(vectors))
    wanted = target + MARGIN * (1 - target)
    while (
        index.measure_recall(tuned) < wanted
        or (recall := index.measure_recall(others)) < target
    ):
        coarse.n_probes += math.ceil(coarse.n_probes * STEP)
        if coarse.n_probes > n_lists // 2:
            return None

    facts = IndexFacts(
        kind=f"IVF{n_lists},SQ8",
        n_probes=coarse.n_probes,
        target=target,
        recall=recall,
        users=n_users,
        recall_of_items=measure_items(vectors, coarse),
    )
    return facts, coarse


def ask(recommender: Recommender, user_ids: Objects) -> Query:
    """Return the search of a few users at the end of the data."""
    requests = [{"user_id": user_id} for user_id in user_ids.tolist()]
    return next(recommender.queries(requests, "all"))
