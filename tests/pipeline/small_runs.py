"""Small tables of users who keep to the items of one taste, and runs on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from models.config import ModelConfig
from pipeline.config import Config
from pipeline.run import Run, run

from models import export

DAY = 86_400
START = 1_600_000_000
N_USERS, N_ITEMS, N_TASTES = 60, 35, 5
QUIET = {"enable_progress_bar": False}
SMALL = ModelConfig(dim=8, max_epochs=3, batch_size=16, learning_rate=0.01)
FEATURES = FeaturesConfig(
    user={"gender": "categorical", "joined": "date"}, item={"category": "categorical"}
)
ORDERED = DataConfig(features=replace(FEATURES, context={"hour": "hour_of_day"}))
BASKETS = DataConfig(
    features=FEATURES,
    split=SplitConfig("time", at="2021-06-01"),
    ties="simultaneous",
    repeats="allow",
)
SETS = DataConfig(
    features=FeaturesConfig(item={"category": "categorical"}, context={"place": "categorical"}),
    split=SplitConfig("pairs", share=0.3),
)


def make_tables(data: DataConfig) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Draw the tables that suit a configuration: events in order, baskets of three items, or sets with places."""
    rng = np.random.default_rng(3)
    users = pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(N_USERS)]})
    users["gender"] = rng.choice(np.array(["f", "m", None], dtype=object), N_USERS)
    users["joined"] = [
        None if i % 7 == 0 else f"2019-0{1 + i % 9}-1{i % 10}" for i in range(N_USERS)
    ]
    items = pd.DataFrame(
        {
            "item_id": np.arange(N_ITEMS) + 100,
            "title": [f"item {i}" for i in range(N_ITEMS)],
        }
    )
    items["category"] = [f"c{i % N_TASTES}" for i in range(N_ITEMS)]
    rows = []
    for user in range(N_USERS):
        own = np.flatnonzero(np.arange(N_ITEMS) % N_TASTES == user % N_TASTES)
        if data.repeats == "allow":
            for day in np.sort(rng.choice(300, 12, replace=False)):
                basket = rng.choice(own, 3, replace=False)
                rows += [
                    (user, item, START + int(day) * DAY, 1 + int(rng.integers(3)))
                    for item in basket
                ]
        else:
            times = START + np.sort(rng.integers(0, 300 * DAY, len(own)))
            rows += [
                (user, item, int(time), 3)
                for item, time in zip(rng.permutation(own), times, strict=True)
            ]
    events = pd.DataFrame(rows, columns=["user", "item", "datetime", "weight"])
    events.insert(0, "user_id", users["user_id"].to_numpy()[events.pop("user")])
    events.insert(1, "item_id", items["item_id"].to_numpy()[events.pop("item")])
    if data.split.kind == "pairs":
        events = events.drop(columns=["datetime", "weight"])
        events["place"] = np.array(["home", "work", "away"])[np.arange(len(events)) % 3]
        events = pd.concat([events, events[::4].assign(place="abroad")], ignore_index=True)
    return events, users, items


def config_of(folder: Path, data: DataConfig, **options) -> Config:
    return Config(**{"data": data, "model": SMALL, "trainer": QUIET, "out": folder, **options})


def make_run(folder: Path, data: DataConfig, **options) -> Run:
    return run(config_of(folder, data, **options), make_tables(data))


def trace_exports(patch: pytest.MonkeyPatch) -> None:
    """Let runs write their graphs as quick ones do: compiling takes 12 s of a small run's 15.

    Compiled graphs are what tests/models/test_export.py and tests/pipeline/test_train.py ask of.
    """
    export_graph = export.export_graph
    patch.setattr(
        export,
        "export_graph",
        lambda graph, example, path, space_id, _: export_graph(
            graph, example, path, space_id, is_traced=True
        ),
    )
