"""A recommender that ranks by a matrix of scores: what it must answer is plain to see."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
from serve.profiles import Profiles
from serve.recommendations import Recommendations
from tests.tiny_bundle import SCHEMA


class FakeRecommender:
    """Scores depend on the user and, where a request has one, on its context and moment."""

    def __init__(self, item_ids, users, owned, seed=0, **schema):
        self.item_ids = item_ids
        self.scores = dict(
            zip(
                users,
                np.random.default_rng(seed).random((len(users), len(item_ids))),
                strict=True,
            )
        )
        self.owned = owned
        self.asked = []
        items = pa.table({"item_id": pa.array(item_ids)})
        index = SimpleNamespace(is_hidden=None, coarse=None)
        schema = replace(SCHEMA, **schema)
        self.profiles = Profiles.none(schema)
        manifest = SimpleNamespace(facts=SimpleNamespace(config={}))
        self.bundle = SimpleNamespace(items=items, schema=schema, index=index, manifest=manifest)

    def recommend(self, requests, k, filter_viewed):
        return self._answer(requests, k, lambda item, owned: not (filter_viewed and item in owned))

    def rank_owned(self, requests, k):
        return self._answer(requests, k, lambda item, owned: item in owned)

    def rank(self, request, k, keep):
        """Return the ids of one list."""
        owned = self.owned.get(request["user_id"], set())
        scores = np.roll(self.scores[request["user_id"]], 3 if "context" in request else 0)
        order = sorted(range(len(scores)), key=lambda row: -scores[row])
        return [row for row in order if keep(self.item_ids[row], owned)][:k]

    def _answer(self, requests, k, keep):
        self.asked.append(requests)
        lists = np.full((len(requests), k), -1, np.int64)
        for row, request in enumerate(requests):
            ranked = self.rank(request, k, keep)
            lists[row, : len(ranked)] = ranked
        return Recommendations.from_lists(
            [request["user_id"] for request in requests],
            lists,
            np.zeros(lists.shape, np.float32),
            item_ids=np.array(self.item_ids, object),
            unknown_items=np.zeros(len(requests), np.int64),
            user_id_type="string",
            reason=np.full(len(requests), None),
            held_back=np.zeros(len(requests), np.int64),
        )
