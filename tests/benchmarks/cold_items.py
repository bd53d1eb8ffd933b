"""New items in the full catalogue: a tenth of the items, absent from training, among all the others.

They are asked for twice: as on their first day, when nobody has taken one, and later, when they stand in the histories
of those who took them while the training is still the one that never saw them. What the others lose is told against
two: the same catalogue without new items, and a training that had them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from evaluation.baselines import as_counts, fit_personal, fit_popularity
from evaluation.evaluate import Examination
from evaluation.metrics import measure_users
from serve.recommender import Recommender
from tests.benchmarks.cold_asked import Asked, Models
from tests.benchmarks.cold_figures import METRICS, Values, describe
from tests.benchmarks.cold_training import Opened, know_everyone, put_items

SHARE = 0.1
PLACES = 10


@dataclass(frozen=True)
class ColdItems:
    """A training without some items, one with all of them, and both's board."""

    board: Opened
    warm: Opened
    cold: pd.DataFrame
    """The items that one training did not have."""
    without: Recommender
    complete: Recommender

    @classmethod
    def prepare(cls, board: Opened, rng: np.random.Generator) -> ColdItems:
        items = board.tables.items
        is_cold = items["item_id"].isin(rng.choice(items["item_id"], int(SHARE * len(items)), replace=False))
        cold = items[is_cold].reset_index(drop=True)
        warm = board.without("item_id", cold["item_id"].to_numpy())
        return cls(board, warm, cold, warm.train("without-items"), board.train("with-items"))

    @property
    def n_warm(self) -> int:
        return len(self.without.bundle.items)

    def extend(self, told: Opened, order: np.ndarray | None = None) -> Recommender:
        """Put the new items into the catalogue of the training without them, in another's place if there is an order.

        Args:
            told: the board whose histories are known.
            order: (cold,) of which new item each has the content; its own if there is none.
        """
        content = self.cold[self.board.item_columns()]
        content = content if order is None else content.iloc[order]
        return put_items(know_everyone(self.without, told), self.cold["item_id"].tolist(), content)

    def find_taken(self) -> dict[Any, list[Any]]:
        """Return the new items that each user has in truth."""
        rows = self.board.split.refit[self.board.split.refit["item_id"].isin(self.cold["item_id"])]
        return rows.groupby("user_id")["item_id"].agg(lambda ids: ids.unique().tolist()).to_dict()


def measure_items(board: Opened, _: int) -> dict[str, Any]:
    rng = np.random.default_rng(board.config.seed)
    trial = ColdItems.prepare(board, rng)
    return {
        **dict(measure_first_day(trial, rng)),
        **{f"taken since, {part}": figures for part, figures in measure_taken_since(trial)},
    }


def measure_first_day(trial: ColdItems, rng: np.random.Generator) -> Iterator[tuple[str, Any]]:
    """Yield figures where no history tells of a new item."""
    told, shuffled = trial.warm, trial.extend(trial.warm, rng.permutation(len(trial.cold)))
    extended, complete = trial.extend(told), know_everyone(trial.complete, told)
    asked = Asked.prepare(trial.board, told.split.refit, extended.catalogue.item_ids.ids.tolist())
    taken = trial.find_taken()
    models: Models = {
        "bascule": partial(asked.ask, extended),
        "shuffled content": partial(asked.ask, shuffled),
        **asked.neighbours(),
        "popularity": lambda: asked.examination.rank(fit_popularity(asked.past, as_counts).score),
        "random": lambda: asked.examination.rank(
            lambda users: rng.random((len(users), asked.past.n_items), np.float32)
        ),
        "bascule without new items": partial(asked.ask, know_everyone(trial.without, told)),
        "bascule, nothing listed that is taken in truth": partial(asked.ask_without, taken, extended),
        # it would list much that its users have in truth
        "the same, trained on all items": partial(asked.ask_without, taken, complete),
    }
    yield from compare(models, asked.examination, trial.n_warm)


def measure_taken_since(trial: ColdItems) -> Iterator[tuple[str, Any]]:
    """Yield figures where the histories have the new items that their users took; the towers are the same."""
    told = trial.board
    extended = trial.extend(told)
    asked = Asked.prepare(trial.board, told.split.refit, extended.catalogue.item_ids.ids.tolist())
    models: Models = {
        "bascule": partial(asked.ask, extended),
        **asked.neighbours(),
        "popularity": lambda: asked.examination.rank(fit_popularity(asked.past, as_counts).score),
        "personal frequency": lambda: asked.examination.rank(fit_personal(asked.past).score),
        "bascule without new items": partial(asked.ask, know_everyone(trial.without, told)),
        "trained on all items": partial(asked.ask, know_everyone(trial.complete, told)),
    }
    yield from compare(models, asked.examination, trial.n_warm)


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
