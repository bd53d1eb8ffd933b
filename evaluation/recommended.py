"""Ranked lists as a bundle serves them: through its user tower, its memory and its index."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from evaluation.examination import LIST_LENGTH, Lists
from evaluation.targets import Ints
from serve.recommendations import Recommendations
from serve.recommender import Recommender

Ask = Callable[[Sequence[Mapping[str, Any]], int], Recommendations]


def recommend_views(recommender: Recommender, requests: Sequence[Mapping[str, Any]], views: Iterable[str]) -> Lists:
    """Ask for the lists of each view: of everything, of owned items, of the others."""
    ask: dict[str, Ask] = {
        "all": partial(recommender.recommend, filter_viewed=False),
        "repeat": recommender.rank_owned,
        "novel": partial(recommender.recommend, filter_viewed=True),
    }
    return {view: as_lists(ask[view](requests, LIST_LENGTH), LIST_LENGTH) for view in views}


def as_lists(recommendations: Recommendations, k: int) -> Ints:
    """Lay ranked items out as (B, k) item rows; -1 fills a short list."""
    lengths = np.diff(recommendations.offsets)
    lists = np.full((len(lengths), k), -1, np.int64)
    request = np.repeat(np.arange(len(lengths)), lengths)
    lists[request, recommendations.rank - 1] = recommendations.item_row
    return lists
