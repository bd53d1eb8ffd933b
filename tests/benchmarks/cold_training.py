"""A board trained without some of its items or users, exported, and opened as serving does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from run_finishing import finish

import train
from datamodules.profiles import make_profiles
from datamodules.splits import Split
from datamodules.tables import Tables
from pipeline.stages import fit_towers
from serve.live_items import LiveItems
from serve.recommender import Recommender
from serve.versions import Stage
from tests.benchmarks.board_fit import prepare
from tests.benchmarks.board_list import find_boards


@dataclass(frozen=True)
class Opened:
    """A board's data, with the recipe that all of it leads to."""

    config: train.Config
    tables: Tables
    split: Split

    def item_columns(self) -> list[str]:
        return [str(feature.column) for feature in self.config.data.features.of("item").values()]

    def without(self, column: str, ids: np.ndarray) -> Opened:
        """Take users or items away, and all that happened with them before the test."""
        table = f"{column.removesuffix('_id')}s"
        left = {name: _drop(getattr(self.tables, name), column, ids) for name in ("interactions", table)}
        parts = {name: _drop(getattr(self.split, name), column, ids) for name in ("train", "validation")}
        return replace(self, tables=replace(self.tables, **left), split=replace(self.split, **parts))

    def train(self, name: str) -> Recommender:
        """Train on all before the test, going on where a killed run of this name stopped, and export.

        The towers are finished as is usual where there is no validation.
        """
        config = replace(self.config, out=self.config.out / name)
        with Stage.open(config.out) as stage:
            trained = finish(config, fit_towers(config, self.tables, self.split, config.model.max_epochs))
            _, recommender = train.stage_bundle(config, trained, self.tables, self.split, stage)
        return recommender


def open_board(name: str, tables: Path, runs: Path, seed: int, options: Sequence[str]) -> Opened:
    """Read and split a board's data; its trainings will go below `runs`."""
    (board,) = find_boards([name])
    prepared = prepare(board, tables / board.dataset, seed, options)
    return Opened(replace(prepared.config, out=runs), prepared.tables, prepared.split)


def know_everyone(recommender: Recommender, board: Opened) -> Recommender:
    """Give it the profiles of all users of a board, those that training did not see among them."""
    return Recommender(
        recommender.bundle, make_profiles(board.split.refit, board.tables.users, recommender.bundle.schema)
    )


def put_items(recommender: Recommender, item_ids: Sequence[Any], content: pd.DataFrame) -> Recommender:
    """Put new items into the live catalogue, as a back end does: they are placed by `encode_items`.

    Args:
        recommender: as loaded.
        item_ids: of n new items.
        content: (n, ...) their columns.
    """
    values = content.astype(object).where(content.notna(), None).to_dict("records")
    with TemporaryDirectory() as folder, closing(LiveItems(Path(folder) / "items.db", recommender)) as live:
        live.put_many(dict(zip(item_ids, values, strict=True)))
        return live.recommender


def _drop(table: pd.DataFrame, column: str, ids: np.ndarray) -> pd.DataFrame:
    return table[~table[column].isin(ids)] if column in table else table
