"""New items in the full catalogue: a tenth of the items, absent from training, among all the others.

What the others lose is told against two: the same catalogue without new items, and a training that had them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from evaluation.events import Events, as_counts
from evaluation.examination import Examination, Lists
from evaluation.holdout import group_requests, number_ids, plain_requests
from evaluation.metrics import measure_users
from evaluation.popularity import fit_popularity
from evaluation.recommended import recommend_views
from serve.recommender import Recommender
from tests.benchmarks.cold_content import HALF_LIVES, ContentNeighbours, content_matrix
from tests.benchmarks.cold_figures import METRICS, Values, describe
from tests.benchmarks.cold_training import Opened, add_items, know_everyone

SHARE = 0.1
PLACES = 10

Models = dict[str, Callable[[], Lists]]


@dataclass(frozen=True)
class ColdItems:
    """A training without some items, the same catalogue with them, and what is asked of it."""

    board: Opened
    without: Recommender
    extended: Recommender
    shuffled: Recommender
    """The new items have one another's content."""
    complete: Recommender
    """A training that had the new items too, asked with the same histories."""
    taken: list[list[Any]]
    """Of each request, the new items that its user has in truth, which no history tells."""
    past: Events
    examination: Examination
    requests: list[dict[str, Any]]

    @classmethod
    def prepare(cls, board: Opened, rng: np.random.Generator) -> ColdItems:
        items = board.tables.items
        is_cold = items["item_id"].isin(rng.choice(items["item_id"], int(SHARE * len(items)), replace=False))
        cold = items[is_cold].reset_index(drop=True)
        warm = board.without("item_id", cold["item_id"].to_numpy())
        recommender = know_everyone(warm.train("without-items"), warm)
        features = cold[board.item_columns()]
        extended, shuffled = (
            add_items(recommender, cold, recommender.encode_items(rows.to_dict("records")))
            for rows in (features, features.iloc[rng.permutation(len(cold))])
        )
        ids = number_ids(extended.bundle.items.column("item_id").to_pylist(), (board.split.refit, board.split.test))
        held_out = group_requests(board.split.test, ids)
        past = ids.events(warm.split.refit)
        examination = Examination.prepare(held_out.targets, past, board.config.data.repeats)
        requests = plain_requests(held_out.rows, board.split.test_at)
        complete = know_everyone(board.train("with-items"), warm)
        rows = board.split.refit[board.split.refit["item_id"].isin(cold["item_id"])]
        of_users = rows.groupby("user_id")["item_id"].agg(lambda ids: ids.unique().tolist()).to_dict()
        taken = [of_users.get(request["user_id"], []) for request in requests]
        return cls(board, recommender, extended, shuffled, complete, taken, past, examination, requests)

    @property
    def n_warm(self) -> int:
        return len(self.without.bundle.items)

    def ask(self, recommender: Recommender) -> Lists:
        return recommend_views(recommender, self.requests, self.examination.views)

    def ask_apart(self, recommender: Recommender) -> Lists:
        """Ask for lists without what is taken in truth: a training that had the new items would list much of it."""
        requests = [request | {"exclude": ids} for request, ids in zip(self.requests, self.taken, strict=True)]
        return recommend_views(recommender, requests, self.examination.views)

    def ask_complete(self) -> Lists:
        """Do so of the training that had all items; rows are those of the catalogue with new items."""
        extended, complete = (of.bundle.items.column("item_id").to_pylist() for of in (self.extended, self.complete))
        rows = {item_id: row for row, item_id in enumerate(extended)}
        theirs = np.array([rows[item_id] for item_id in complete] + [-1])
        return {view: theirs[lists] for view, lists in self.ask_apart(self.complete).items()}  # -1 fills a short list

    def neighbours(self) -> Models:
        """Return content-kNN with each half-life of a history."""
        ids = self.extended.bundle.items.column("item_id").to_pylist()
        items = self.board.tables.items.set_index("item_id").reindex(ids).reset_index()
        content = content_matrix(items, self.board.config.data.features.of("item"))
        return {
            f"content-kNN, half-life {half_life:g}": partial(self._rank_by_content, content, half_life)
            for half_life in HALF_LIVES
        }

    def _rank_by_content(self, content: Any, half_life: float) -> Lists:
        return self.examination.rank(ContentNeighbours(content, self.past, half_life).score)


def measure_items(board: Opened, _: int) -> dict[str, Any]:
    rng = np.random.default_rng(board.config.seed)
    trial = ColdItems.prepare(board, rng)
    rank = trial.examination.rank
    models: Models = {
        "bascule": partial(trial.ask, trial.extended),
        "shuffled content": partial(trial.ask, trial.shuffled),
        **trial.neighbours(),
        "popularity": lambda: rank(fit_popularity(trial.past, as_counts).score),
        "random": lambda: rank(lambda users: rng.random((len(users), trial.past.n_items), np.float32)),
        "bascule without new items": partial(trial.ask, trial.without),
        "bascule, nothing listed that is taken in truth": partial(trial.ask_apart, trial.extended),
        "the same, trained on all items": trial.ask_complete,
    }
    return dict(compare(models, trial.examination, trial.n_warm))


def compare(models: Models, examination: Examination, n_warm: int) -> Iterator[tuple[str, Any]]:
    """Yield each view's figures on new items, the others and both, and the share of places that new items take."""
    lists = {name: make() for name, make in models.items()}
    for view, targets in examination.views.items():
        is_cold = targets.items.item_row >= n_warm
        parts = (("new items", is_cold), ("other items", ~is_cold), ("both together", np.ones_like(is_cold)))
        for name, chosen in parts:
            if chosen.any():
                values = {model: measure_users(of[view], targets.keep(chosen)) for model, of in lists.items()}
                yield f"{view}, {name}", describe(values, best_neighbours(values))
        yield (
            f"{view}, places of new items",
            {name: float((of[view][:, :PLACES] >= n_warm).mean()) for name, of in lists.items()},
        )


def best_neighbours(values: dict[str, Values]) -> str:
    """Name the half-life that does best on these very targets: the baseline is chosen by the test."""
    names = [name for name in values if name.startswith("content-kNN")]
    return max(names, key=lambda name: values[name][METRICS[0]].mean())
