"""A small shop in two protocols: ordered without repeats, and baskets with repeats."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from datamodules.batch import FeatureDropout, RequestBatch, WindowBatch
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig
from datamodules.datamodule import InteractionsDataModule
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import Catalogue, build_catalogue
from datamodules.tables import Tables
from serve.arrays import Repeats, Ties
from serve.events import Events
from serve.schema import Schema

U, N = 13, 23  # users, items; the last two items have no row in the items table
D, A, L = 6, 4, 5  # taste, affinity, history length
DAY = 86_400
FIRST = 1_400_000_000
EVERYTHING_SHOWN = FeatureDropout(0.0, 0.0, 0.0, 0.0, 0.0)
FEATURES = FeaturesConfig(
    user={"gender": "categorical", "income": "numeric", "joined": "date"},
    item={
        "category": "categorical",
        "tags": FeatureConfig("multi_categorical"),
        "shelf": FeatureConfig("hierarchical", separator=">"),
        "price": "numeric",
        "released": "date",
    },
    context={"device": "categorical", "hour": "hour_of_day"},
)
ORDERED = DataConfig(features=FEATURES, history_length=L)
BASKETS = replace(ORDERED, ties="simultaneous", repeats="allow")


@dataclass(frozen=True)
class World:
    """Tables and what is made of them."""

    tables: Tables
    schema: Schema
    catalogue: Catalogue


def user_table(rng: np.random.Generator) -> pd.DataFrame:
    income = np.where(rng.random(U) < 0.3, np.nan, rng.normal(5, 2, U))
    gender = rng.choice(np.array(["f", "m", None], dtype=object), U)
    gender[-4:] = ["f", "m", "f", "m"]  # fewer users would have no code
    joined = [
        None if user % 4 == 0 else f"201{user % 4}-0{user % 9 + 1}-1{user % 10}"
        for user in range(U)
    ]
    return pd.DataFrame(
        {
            "user_id": np.arange(U) + 100,
            "gender": gender,
            "income": income,
            "joined": joined,
        }
    )


def item_table(rng: np.random.Generator) -> pd.DataFrame:
    n = N - 2
    price = np.where(rng.random(n) < 0.2, np.nan, rng.normal(3, 1, n))
    category, tags = (
        rng.choice(["a", "b", "c", "d"], n),
        rng.choice(["x", "x|y", "y|z|x", "z"], n),
    )
    items = pd.DataFrame(
        {
            "item_id": np.arange(n) + 500,
            "category": category,
            "tags": tags,
            "price": price,
        }
    )
    items["shelf"] = [None if row % 5 == 0 else f"s{row % 2} > s{row % 3}" for row in range(n)]
    return items.assign(
        released=[None if row % 6 == 0 else f"2013-0{row % 9 + 1}-01T10:00:00" for row in range(n)]
    )


def event_table(rng: np.random.Generator, ties: Ties, repeats: Repeats) -> pd.DataFrame:
    """Draw 0 to 17 events of each user; user 102 has none and user 103 a single one."""
    parts = []
    for user in range(U):
        n = {2: 0, 3: 1}.get(user, int(rng.integers(2, 18)))
        items = rng.permutation(N)[:n] if repeats == "exclude" else rng.integers(0, N, n)
        steps = (
            rng.integers(0, 18, n) * DAY
            if ties == "simultaneous"
            else np.cumsum(rng.integers(0, 3, n)) * 5000
        )
        times = FIRST + user * 1000 + np.sort(steps)
        parts.append(
            pd.DataFrame({"user_id": user + 100, "item_id": items + 500, "datetime": times})
        )
    events = pd.concat(
        [
            *parts,
            pd.DataFrame({"user_id": [101, 104], "item_id": 500 + N - 2, "datetime": FIRST}),
        ]
    )
    events.loc[events.index[-1], "item_id"] = 500 + N - 1
    n = len(events)
    events["event"], events["weight"] = (
        rng.choice(["view", "buy"], n),
        rng.integers(1, 6, n).astype(float),
    )
    events["device"] = rng.choice(["phone", "web"], n)
    return events.sample(frac=1, random_state=3).reset_index(drop=True)


def make_world(config: DataConfig, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    tables = Tables(event_table(rng, config.ties, config.repeats), user_table(rng), item_table(rng))
    schema = fit_schema(tables, tables.interactions, config)
    return World(tables, schema, build_catalogue(tables.items, tables.interactions, schema))


def hold_out(world: World) -> tuple[World, pd.DataFrame]:
    """Take every fifth event out of training."""
    events = world.tables.interactions
    is_out = np.arange(len(events)) % 5 == 0
    return replace(world, tables=replace(world.tables, interactions=events[~is_out])), events[
        is_out
    ].copy()


def make_data(
    world: World,
    withheld: FeatureDropout = EVERYTHING_SHOWN,
    validation: pd.DataFrame | None = None,
    batch_size: int = 4,
    seed: int = 7,
    horizon: int | None = None,
) -> InteractionsDataModule:
    train = world.tables.interactions
    return InteractionsDataModule(
        train,
        train.head(9) if validation is None else validation,
        world.tables.users,
        world.catalogue,
        world.schema,
        batch_size,
        seed,
        horizon,
        dropout=withheld,
    )


def batches(data: InteractionsDataModule, epoch: int = 0) -> list[WindowBatch | RequestBatch]:
    """Make all batches of an epoch."""
    return [data.examples[plan] for plan in data.examples.plan(data.seed, epoch)]


def draw_events(counts: list[int], schema: Schema, rng: np.random.Generator) -> Events:
    """Draw histories of the given lengths, of baskets of about two items under `simultaneous`."""
    n = sum(counts)
    step = 2 if schema.ties == "simultaneous" else 1000
    segment = np.repeat(np.arange(len(counts)), counts)
    times = FIRST + DAY * rng.integers(0, step * max(counts) // 4 + 2, n)
    order = np.lexsort((times, segment))
    return Events(
        rng.integers(0, N, n),
        times[order],
        rng.integers(1, 4, n),
        rng.integers(1, 6, n).astype(np.float32),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


NO_CONTEXT = replace(
    FEATURES, user={"gender": "categorical", "income": "numeric"}, context={}
)  # no date has a time
DEVICE = replace(NO_CONTEXT, context={"device": "categorical"})


def make_set_world(features=NO_CONTEXT, repeats="exclude", length=50) -> World:
    """Take times out of the shop, and tie events to pairs more than once."""
    config = replace(
        ORDERED,
        features=replace(FEATURES, context={}),
        repeats=repeats,
        history_length=length,
    )
    tables = make_world(BASKETS).tables
    events = tables.interactions.drop(columns="datetime").drop_duplicates(ignore_index=True)
    tables = replace(tables, interactions=events)
    config = replace(config, features=features)
    schema = fit_schema(tables, events, config)
    return World(tables, schema, build_catalogue(tables.items, events, schema))


def pairs_of(data) -> dict[int, set[int]]:
    events = data.sequences.events
    owned: dict[int, set[int]] = {}
    for user, row in zip(events.segments.tolist(), events.item_row.tolist(), strict=True):
        owned.setdefault(user, set()).add(row)
    return owned
