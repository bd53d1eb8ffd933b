"""Whom the page asks the recommender for: users of the test, or known users where nothing was held out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from evaluation.frames import read_moment
from evaluation.holdout import group_requests, number_ids, plain_requests
from evaluation.recommended import as_lists
from evaluation.targets import Ints, ItemSets
from serve.recommender import Recommender

MOST_REQUESTS = 2048
"""Requests that lists are made for, drawn by the seed where there are more."""
PLACES = 10


@dataclass(frozen=True)
class Asked:
    """B requests, one per user of the test, as the evaluation made them."""

    requests: list[dict[str, Any]]
    history_length: Ints
    """(B,) events of the user so far."""
    targets: ItemSets | None
    """What each request should have found; None where nothing was held out."""

    def __len__(self) -> int:
        return len(self.requests)

    def take(self, index: Ints) -> Asked:
        """Return some of the requests."""
        targets = None if self.targets is None else self.targets.take(index)
        return Asked([self.requests[row] for row in index.tolist()], self.history_length[index], targets)

    def sample(self, most: int, seed: int) -> Asked:
        """Draw at most so many requests, in their order."""
        if len(self) <= most:
            return self
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:most]))


def ask_test_users(recommender: Recommender, holdout: pd.DataFrame, test_at: str | None, seed: int) -> Asked:
    """Ask for users of held-out interactions, at the moment of the test if it has one."""
    at = None if test_at is None else read_moment(test_at, None)
    ids = number_ids(recommender.bundle.items.column("item_id").to_pylist(), (holdout,))
    held_out = group_requests(holdout, ids)
    requests = plain_requests(held_out.rows, at)
    return Asked(requests, _count_events(recommender, requests), held_out.targets.items).sample(MOST_REQUESTS, seed)


def ask_known_users(recommender: Recommender, seed: int) -> Asked:
    """Ask for users that there are profiles of."""
    requests = [{"user_id": user_id} for user_id in recommender.profiles.user_ids.tolist()]
    return Asked(requests, _count_events(recommender, requests), None).sample(MOST_REQUESTS, seed)


def rank(recommender: Recommender, asked: Asked, filter_viewed: bool) -> Ints:
    """Return the first `PLACES` of each list, (B, PLACES) item rows, -1 where a list is shorter."""
    return as_lists(recommender.recommend(asked.requests, PLACES, filter_viewed=filter_viewed), PLACES)


def _count_events(recommender: Recommender, requests: list[dict[str, Any]]) -> Ints:
    profiles = recommender.profiles
    lengths: Mapping[Any, int] = dict(zip(profiles.user_ids.tolist(), np.diff(profiles.offsets).tolist(), strict=True))
    return np.array([lengths.get(request["user_id"], 0) for request in requests], np.int64)
