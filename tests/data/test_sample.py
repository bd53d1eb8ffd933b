from __future__ import annotations

import pytest
from datamodules.clean import clean
from datamodules.splits import split_interactions
from datamodules.tables import read_tables
from tests.data.test_config import load

CONFIG = load("grocery")
DEMOGRAPHICS, CONTENT = CONFIG.features.user, CONFIG.features.item


@pytest.fixture(scope="module")
def sample():
    return read_tables(CONFIG)


def test_all_records_of_the_sample_are_read(sample):
    tables, rejects = sample
    assert rejects.frame.empty
    assert rejects.records == {
        "interactions": 1_238_823,
        "users": 2_469,
        "items": 12_523,
    }
    assert rejects.dropped == {"interactions": ("store",), "users": (), "items": ()}
    assert list(tables.interactions) == ["user_id", "item_id", "datetime", "weight"]
    assert list(tables.users) == ["user_id", *DEMOGRAPHICS]
    assert list(tables.items) == ["item_id", *CONTENT]
    assert tables.interactions.dtypes[["user_id", "item_id", "datetime"]].eq("int64").all()
    assert tables.users["age"].notna().sum() == 801
    assert tables.interactions["datetime"].agg(["min", "max"]).tolist() == [
        1483271606,
        1514779280,
    ]


def test_the_figures_of_its_readme_hold(sample):
    tables, report = clean(sample[0])
    assert (
        report.duplicate_events,
        report.negative_weights,
        report.zero_weights_kept,
    ) == (6, 0, 7_610)
    split = split_interactions(sample[0].interactions, CONFIG, 0)
    assert len(split.refit) == 1_134_063
    assert len(split.test) == 104_760
    pairs = split.test[["user_id", "item_id"]].drop_duplicates()
    owned = split.refit[["user_id", "item_id"]].drop_duplicates()
    assert (len(pairs), pairs["user_id"].nunique()) == (89_106, 2_025)
    assert round(len(pairs.merge(owned)) / len(pairs), 3) == 0.488
    assert split.refit["item_id"].value_counts().min() >= 20
    assert (
        ~tables.interactions["item_id"].drop_duplicates().isin(tables.items["item_id"])
    ).sum() == 3
