"""Ids of the interactions that no row of the users or the items is called by."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

import train
from datamodules.clean import check_joins, measure_unlisted
from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.profiles import make_profiles
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue, build_sequences
from datamodules.tables import Tables, tables_from_frames
from serve.errors import SchemaError
from serve.schema import FIRST_CODE, UNKNOWN

EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": ["B1", "B2", "B2", "B3"]})
USERS = pd.DataFrame({"user_id": [2, 1, 4]})
ITEMS = pd.DataFrame({"item_id": ["B3", "B9"], "asin": ["P1", "P2"]})
GIVEN = ("interactions", "users", "items")


def make(users=USERS, items=ITEMS) -> Tables:
    return tables_from_frames(DataConfig(), EVENTS, users, items)[0]


def test_the_share_is_of_distinct_ids_that_have_events():
    assert measure_unlisted(make(), GIVEN) == {"users": 1 / 3, "items": 2 / 3}
    assert measure_unlisted(make(), ("interactions", "items")) == {"items": 2 / 3}


def test_tables_that_share_an_id_are_taken():
    check_joins(make(), GIVEN)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"users": pd.DataFrame({"user_id": ["0002", "0001"]})},
            r"none of the 3 users .* users table: user_id is '1' in the interactions and '0002' in the users; .* "
            r"name the right column as user_id in data\.users\.columns",
        ),
        (
            {"items": ITEMS[["asin"]].set_axis(["item_id"], axis=1)},
            r"none of the 3 items .* items table: item_id is 'B1' in the interactions and 'P1' in the items; .* "
            r"name the right column as item_id in data\.items\.columns",
        ),
        ({"users": pd.DataFrame({"user_id": [7]})}, r"user_id is 1 in the interactions and 7 in the users"),
    ],
)
def test_a_table_that_shares_no_id_is_refused(tables, message):
    with pytest.raises(SchemaError, match=message):
        check_joins(make(**tables), GIVEN)


def test_a_table_that_is_not_given_or_is_empty_is_not_judged():
    check_joins(tables_from_frames(DataConfig(), EVENTS)[0], ("interactions",))
    check_joins(replace(make(), users=USERS.head(0)), GIVEN)


def test_a_run_stops_before_it_trains_on_columns_that_do_not_join(tmp_path):
    data = DataConfig(items=TableConfig(columns={"item_id": "asin"}))
    config = train.Config(data, out=tmp_path)
    with pytest.raises(SchemaError, match=r"item_id is 'B1' in the interactions and 'P1' in the items"):
        train.read(config, (EVENTS, USERS, ITEMS.drop(columns="item_id")), tmp_path)
    tables, _ = train.read(config, (EVENTS, USERS, ITEMS.drop(columns="item_id").replace("P1", "B1")), tmp_path)
    assert len(tables.items) == 2


def test_integers_above_2_to_53_are_read_where_another_row_is_absent():
    """As floats they would all be values that no vocabulary has."""
    brand = 1487580005134238553
    events = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [10, 12, 11, 10]})
    users = pd.DataFrame({"user_id": [1], "region": [brand]})
    items = pd.DataFrame({"item_id": [10, 11], "brand": [brand, brand + 2]})
    features = FeaturesConfig(user={"region": "categorical"}, item={"brand": "categorical"})
    config = DataConfig(features=features)
    tables = tables_from_frames(config, events, users, items)[0]
    schema = fit_schema(tables, tables.interactions, config)
    catalogue = build_catalogue(tables.items, tables.interactions, schema)
    sequences = build_sequences(tables.interactions, tables.users, catalogue.item_ids, schema)
    profiles = make_profiles(tables.interactions, tables.users, schema)
    assert catalogue.features.codes[:, 0].tolist() == [FIRST_CODE, FIRST_CODE + 1, UNKNOWN]
    assert sequences.user.codes[:, 0].tolist() == [FIRST_CODE, UNKNOWN]
    assert profiles.features["region"].tolist() == [str(brand), None]
    assert catalogue.to_arrow().column("brand").to_pylist() == [brand, brand + 2, None]
