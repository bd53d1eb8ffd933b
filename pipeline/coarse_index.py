"""The coarse index of a large catalogue, tuned on users until it finds what was asked for.

Letters: N items, U users, W columns of a vector.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import numpy as np

from serve.arrays import Flags, Floats
from serve.index import ItemIndex, Query, measure_drawn
from serve.nearest import TUNED_K, CoarseIndex, Effort, IndexFacts, share_found
from serve.recommender import Recommender

MIN_ITEMS = 100_000  # fewer are searched exactly, as quickly
N_USERS = 512  # to tune on, and as many to measure on
LISTS = 4.0  # as many lists as so many times the root of the number of items
FETCHED = (1.5, 3.0, 6.0)  # candidates per item of a list, the fewest that suffice
READ = 4  # codes per item of a list, at least
MARGIN = 0.2  # of what may be missed, kept for other users
N_TIMED = 50  # searches of one request


def fit_coarse(
    recommender: Recommender, target: float
) -> tuple[IndexFacts, CoarseIndex] | None:
    """Build and tune a coarse index.

    Half of the users tell in which directions users look, and how many lists must be read. The
    recall is measured on the others, on whole scores and beside a search of all items. Nothing of
    it depends on time: effort is counted in lists.

    Args:
        recommender: of a staged bundle, with profiles.
        target: share of the exact lists that is to be found.

    Returns:
        What the manifest says, and the index. None where an exact search is as good: few items or
        users, a target of 1, or no fewer than all lists would have to be read.
    """
    vectors = recommender.bundle.vectors
    n_users = min(2 * N_USERS, len(recommender.profiles))
    if len(vectors) < MIN_ITEMS or target == 1 or n_users < 2:
        return None

    drawn = np.random.default_rng(0).permutation(recommender.profiles.user_ids)
    tuned = ask(recommender, drawn[: n_users // 2])
    others = ask(recommender, drawn[n_users // 2 : n_users])
    users = np.concatenate([query.users for query in tuned])  # (U, W)
    coarse = CoarseIndex.build(vectors, users, count_lists(len(vectors)))
    is_hidden = recommender.bundle.index.is_hidden
    needed = target + MARGIN * (1 - target)
    effort = tune(vectors, is_hidden, coarse, tuned, needed)
    if effort.n_probes == coarse.n_lists:
        return None

    coarse = coarse.with_effort(effort)
    facts = IndexFacts(
        kind=f"IVF{coarse.n_lists},SQ8",
        n_probes=effort.n_probes,
        n_fetched=effort.n_fetched,
        target=target,
        recall=ItemIndex(vectors, is_hidden, coarse).measure_recall(others),
        users=n_users - n_users // 2,
        drawn_recall=measure_drawn(vectors, coarse),
    )
    return facts, coarse


def ask(recommender: Recommender, user_ids: Iterable[str | int]) -> list[Query]:
    """Return the searches of users at the end of the data."""
    requests = [{"user_id": user_id} for user_id in user_ids]
    return list(recommender.queries(requests, "all"))


def count_lists(n_items: int) -> int:
    """Choose the number of lists, a power of 2."""
    return int(2 ** round(np.log2(LISTS * n_items**0.5)))


def tune(
    vectors: Floats,
    is_hidden: Flags | None,
    coarse: CoarseIndex,
    queries: Sequence[Query],
    needed: float,
) -> Effort:
    """Return the least effort with a recall, all lists if less does not do.

    Args:
        vectors: (N, W) of the items.
        is_hidden: (N,) items that are never listed.
        coarse: the index.
        queries: of users.
        needed: the recall.
    """
    exact = ItemIndex(vectors, is_hidden)
    expected = exact.list_rows(queries, TUNED_K)

    def suffices(n_probes: int, n_fetched: float) -> bool:
        effort = Effort(n_probes, n_fetched)
        index = ItemIndex(vectors, is_hidden, coarse.with_effort(effort))
        found = index.list_rows(queries, TUNED_K)
        return share_found(expected, found) >= needed

    # So that a search of so many lists has enough candidates.
    least = math.ceil(READ * TUNED_K * coarse.n_lists / len(vectors))
    for n_fetched in FETCHED:
        too_few = 0
        enough = least
        while enough < coarse.n_lists and not suffices(enough, n_fetched):
            too_few = enough
            enough *= 2
        if enough < coarse.n_lists:
            break
    else:
        return Effort(coarse.n_lists, n_fetched)

    while enough - too_few > max(1, enough // 16):
        middle = (too_few + enough) // 2
        if suffices(middle, n_fetched):
            enough = middle
        else:
            too_few = middle

    return Effort(enough, n_fetched)


def time_searches(recommender: Recommender) -> dict[str, float]:
    """Return the median milliseconds of the search of one request, with and without the index."""
    index = recommender.bundle.index
    user_ids = recommender.profiles.user_ids[:N_TIMED]
    queries: list[Query] = []
    for tile in ask(recommender, user_ids):
        queries += tile.each()

    timing = {}
    exact = ItemIndex(index.vectors, index.is_hidden)
    for name, each in {"search": index, "exact_search": exact}.items():
        seconds = []
        for query in queries:
            begin = time.perf_counter()
            each.search(query, TUNED_K)
            seconds.append(time.perf_counter() - begin)
        timing[f"{name}_ms"] = round(float(np.median(seconds)) * 1000, 3)

    return timing
