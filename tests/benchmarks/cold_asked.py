"""What is asked of a catalogue that has new items, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from evaluation.baselines import Events
from evaluation.evaluate import Examination, Lists, recommend_views
from evaluation.holdout import group_requests, number_ids, plain_requests
from serve.recommender import Recommender
from tests.benchmarks.cold_content import HALF_LIVES, ContentNeighbours, content_matrix
from tests.benchmarks.cold_training import Opened

Models = dict[str, Callable[[], Lists]]
"""Lists of item rows by model, made when they are asked for."""


@dataclass(frozen=True)
class Asked:
    """The users of the test with the histories that models are told, and one numbering of items for all of them."""

    board: Opened
    item_ids: list[Any]
    """Of the catalogue with new items, by item row."""
    past: Events
    examination: Examination
    requests: list[dict[str, Any]]

    @classmethod
    def prepare(cls, board: Opened, histories: pd.DataFrame, item_ids: list[Any]) -> Asked:
        ids = number_ids(item_ids, (board.split.refit, board.split.test))
        held_out = group_requests(board.split.test, ids)
        past = ids.events(histories)
        examination = Examination.prepare(held_out.targets, past, board.config.data.repeats)
        return cls(board, item_ids, past, examination, plain_requests(held_out.rows, board.split.test_at))

    def ask(self, recommender: Recommender) -> Lists:
        return self._ask(recommender, self.requests)

    def ask_without(self, taken: dict[Any, list[Any]], recommender: Recommender) -> Lists:
        """Ask for lists without these items of each user."""
        return self._ask(
            recommender, [request | {"exclude": taken.get(request["user_id"], [])} for request in self.requests]
        )

    def _ask(self, recommender: Recommender, requests: list[dict[str, Any]]) -> Lists:
        rows = {item_id: row for row, item_id in enumerate(self.item_ids)}
        theirs = np.array([rows[item_id] for item_id in recommender.catalogue.item_ids.ids.tolist()] + [-1])
        lists = recommend_views(recommender, requests, self.examination.views)
        return {view: theirs[of] for view, of in lists.items()}  # -1 fills a short list

    def neighbours(self) -> Models:
        """Return content-kNN with each half-life of a history."""
        items = self.board.tables.items.set_index("item_id").reindex(self.item_ids).reset_index()
        content = content_matrix(items, self.board.config.data.features.of("item"))
        return {
            f"content-kNN, half-life {half_life:g}": partial(self._rank_by_content, content, half_life)
            for half_life in HALF_LIVES
        }

    def _rank_by_content(self, content: Any, half_life: float) -> Lists:
        return self.examination.rank(ContentNeighbours(content, self.past, half_life).score)
