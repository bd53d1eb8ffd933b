"""The leak check on real data: no false alarm, and planted leaks are named."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import jsonargparse
import numpy as np
import pandas as pd
import pytest
import yaml

from datamodules.clean import clean
from datamodules.config import DataConfig, FeatureConfig
from datamodules.leaks import find_leaks
from datamodules.splits import split_interactions
from datamodules.tables import read_tables, tables_from_frames
from tests.planted_leaks import PLANTED, plant

ROOT = Path(__file__).parents[1]
DATA = Path(__file__).parents[2] / "shared" / "data"
CALENDAR = {"hour": FeatureConfig("hour_of_day", "datetime"), "weekday": FeatureConfig("day_of_week", "datetime")}


def declared(name):
    """Parse the data block of one of the configurations that come with the project."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=DataConfig)
    block = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["data"]
    return parser.instantiate(parser.parse_object({"data": block})).data


def with_context(config, context):
    return replace(config, features=replace(config.features, context={**config.features.context, **context}))


def read_some(name, context, share):
    """Read a share of the users."""
    config = with_context(declared(name), context)
    tables, _ = clean(read_tables(config)[0])
    events = tables.interactions
    return config, replace(tables, interactions=events[events["user_id"] % share == 0].reset_index(drop=True))


@cache
def grocery():
    return read_some("grocery", {"store": "categorical", **CALENDAR}, 5)


@cache
def movielens():
    return read_some("movielens-100k", CALENDAR, 2)


@cache
def frappe():
    return read_some("frappe", {"cost": "categorical"}, 2)


@cache
def beauty():
    events = pd.read_csv(DATA / "amazon-beauty" / "beauty_with_time.csv")
    events = events.rename(columns={"user": "user_id", "item": "item_id"})
    attributes = json.loads((DATA / "amazon-beauty" / "Beauty_item2attributes.json").read_text())
    items = pd.DataFrame({"item_id": np.unique(events["item_id"])})
    items["attributes"] = ["|".join(map(str, attributes.get(str(item), []))) for item in items["item_id"]]
    config = with_context(declared("amazon-beauty"), CALENDAR)
    return config, clean(tables_from_frames(config, events, items=items)[0])[0]


@pytest.fixture(autouse=True)
def _in_project(monkeypatch):
    """Paths of the configurations are relative to the project."""
    monkeypatch.chdir(ROOT)


def look(config, tables):
    return find_leaks(tables, split_interactions(tables.interactions, config, 0), config)


def need(reader):
    folder = {movielens: "movielens-100k", beauty: "amazon-beauty", frappe: "frappe"}.get(reader)
    if folder is not None and not (DATA / folder).exists():
        pytest.skip(f"no {folder} in {DATA}")


@pytest.mark.parametrize("reader", [grocery, movielens, beauty])
def test_real_data_raises_no_alarm(reader):
    need(reader)
    assert look(*reader()) == ()


def test_of_the_context_of_an_app_only_its_cost_is_named():
    need(frappe)
    config, tables = frappe()
    assert {"weather", "country", "city", "daytime"} < set(config.features.context)
    (leak,) = look(config, tables)
    assert (leak.column, leak.kind, leak.power) == ("cost", "fact of the item", 1.0)


@pytest.mark.parametrize("reader", [grocery, movielens, beauty, frappe])
def test_planted_leaks_are_named(reader):
    need(reader)
    config, tables = reader()
    planted = replace(tables, interactions=plant(tables.interactions, np.random.default_rng(0)))
    leaks = look(with_context(config, PLANTED), planted)
    assert {leak.column for leak in leaks} - {"cost"} == set(PLANTED)
    kinds = {(leak.column, leak.kind) for leak in leaks}
    assert kinds >= {("sku", "identifies the item"), ("receipt", "known after the choice")}
    assert ("bought_for", "known after the choice") in kinds
