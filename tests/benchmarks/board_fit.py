"""One fit on all before the test, outside train.py, and the test ranked at once by the towers themselves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from run_finishing import finish

import pipeline.stages
import train
from datamodules.batch import RequestBatch
from datamodules.clean import only_targets
from datamodules.datamodule import InteractionsDataModule
from datamodules.splits import Split, split_interactions
from datamodules.tables import Tables
from evaluation.metrics import Floats
from models.config import recipe_of
from models.towers import Towers
from models.validation import rank_views
from pipeline.config import Config, parse
from pipeline.stages import Trained
from serve.events import Ints
from tests.benchmarks.board_list import Board

QUIET = ("--trainer.enable_progress_bar", "false")
GIVEN_THE_TIME = "given the request's time"


@dataclass(frozen=True)
class Prepared:
    """A board's tables, read and split, and a configuration in which nothing is left open."""

    config: Config
    tables: Tables
    split: Split

    @property
    def test(self) -> pd.DataFrame:
        return only_targets(self.split.test)


def prepare(board: Board, tables: Path, seed: int, options: Sequence[str]) -> Prepared:
    """Read a board as train.py does."""
    config, _ = parse([*board.arguments(tables), *QUIET, *options, "--seed", str(seed)])
    with tempfile.TemporaryDirectory() as beside:
        read, _ = train.read(config, None, Path(beside))
    config, _ = run_training.settle(config, read)
    return Prepared(config, read, split_interactions(read.interactions, config.data, config.seed))


@dataclass(frozen=True)
class Clock:
    """Seconds since it was started, on the clock and of the processor."""

    started: float
    started_work: float

    @classmethod
    def start(cls) -> Clock:
        return cls(time.perf_counter(), time.process_time())

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self.started, time.process_time() - self.started_work


def fit_once(prepared: Prepared, config: Config) -> tuple[Trained, tuple[float, float]]:
    """Train on all before the test for the whole schedule; return what was trained and the seconds it took.

    The towers are finished as where there is no validation.
    """
    run_training.console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock.start()
        placed = replace(config, out=Path(folder))
        trained = run_training.fit_towers(placed, prepared.tables, prepared.split, recipe_of(config.model).max_epochs)
        return finish(placed, trained), clock.read()


@dataclass(frozen=True)
class FullRanking:
    """The test as requests made once: a user each, without context, at the moment that the split asks at.

    NDCG@10 as our evaluation counts it, but for users with several targets: those outside the catalogue do not count.
    """

    batches: dict[str, list[RequestBatch]]
    """By how they are asked: plainly and, where each user has one test event, told its moment."""
    popularity: torch.Tensor
    """(N, P) at the end of training."""
    n_users: int
    order: dict[str, Ints]
    """Of each view, the order by user of those who have a target in it, from the one in which they are asked."""

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.order)

    @classmethod
    def make(cls, prepared: Prepared, data: InteractionsDataModule) -> FullRanking:
        """Make the requests for towers that were trained on `data`."""
        test, split, schema = prepared.test, prepared.split, data.schema
        asked = InteractionsDataModule(
            split.refit, test, prepared.tables.users, data.catalogue, schema, 1, 0, split.horizon, split.test_at
        )
        batches = {"": asked.validation_batches}
        if split.test_at is None and schema.has_datetime and schema.repeats == "exclude" and test["user_id"].is_unique:
            moments = test.set_index("user_id")["datetime"].loc[asked.validation_users]
            moments = torch.from_numpy(moments.to_numpy(np.int64, copy=True))  # (R,)
            batches[GIVEN_THE_TIME] = tell_moments(asked.validation_batches, moments)
        views = ("all", "novel") if schema.repeats == "allow" else ("novel",)
        popularity = torch.from_numpy(data.trends.popularity[-1])
        return cls(batches, popularity, test["user_id"].nunique(), {view: order_users(asked, view) for view in views})

    def measure(self, towers: Towers) -> dict[str, Floats]:
        """Return NDCG@10 per user, by view and how it was asked; the mode of the towers stays what it was."""
        was_training = towers.training
        towers.eval()
        with torch.no_grad():
            items = towers.item_vectors(self.popularity)
            asked = {how: self._rank(towers, items, batches) for how, batches in self.batches.items()}
        towers.train(was_training)
        return {" ".join([view, how]).strip(): views[view] for how, views in asked.items() for view in self.views}

    def _rank(self, towers: Towers, items: torch.Tensor, batches: list[RequestBatch]) -> dict[str, Floats]:
        parts = [self._rank_batch(towers, items, batch) for batch in batches]
        values = {view: np.concatenate([part[view] for part in parts])[order] for view, order in self.order.items()}
        everybody = self.views[0]  # whose targets are all there are: a user without a known one is a miss
        values[everybody] = np.append(values[everybody], np.zeros(self.n_users - len(values[everybody])))
        return values

    def _rank_batch(self, towers: Towers, items: torch.Tensor, batch: RequestBatch) -> dict[str, Floats]:
        users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
        scores = towers.score_items(users, items, batch)  # (B, N)
        return rank_views(scores, bonus if "all" in self.views else None, batch)


def order_users(asked: InteractionsDataModule, view: str) -> Ints:
    """Return the order by id of the users who have a target in a view, all or novel, among these."""
    ids, start = [], 0
    for batch in asked.validation_batches:
        is_seen = (batch.target_owned < 0) | (view == "all")  # (M,)
        ids.append(asked.validation_users[start + batch.target_users[is_seen].unique().numpy()])
        start += len(batch.history_rows)
    return np.argsort(np.concatenate(ids))


def tell_moments(batches: list[RequestBatch], moments: torch.Tensor) -> list[RequestBatch]:
    """Return the same requests at other moments (B,)."""
    parts = moments.split([len(batch.arrays["request_times"]) for batch in batches])
    return [
        batch._replace(arrays=batch.arrays | {"request_times": part})
        for batch, part in zip(batches, parts, strict=True)
    ]
