"""Training leaves out the records of whoever was forgotten before anything is made of them."""

import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import train
from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TableConfig
from datamodules.report import _forgotten_lines
from datamodules.tables import read_tables, tables_from_frames
from models.config import ModelConfig
from serve.erasure import add_to_erasure_list, forget_users
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.state import read_erasure_list
from tests.tiny_towers import one_thread

SENTINEL, LATER = "sentinel-8b2", "later-5f1"
DAY = 86_400
EVENTS = f"""user_id,item_id,datetime,weight
u1,a,2017-12-01,3
{SENTINEL},a,2017-12-01,3
{SENTINEL},b,yesterday,3
u2,b,2017-12-02,many
,b,2017-12-02,1
{SENTINEL},c
u2,c,2017-12-02,1,
u3,{SENTINEL},2017-12-03,2
"""
USERS = f"user_id,town\nu1,x\n{SENTINEL},secret town\nu2,y\n"


@pytest.fixture
def tombstones(tmp_path):
    add_to_erasure_list(tmp_path, [SENTINEL, "7"])
    return read_erasure_list(tmp_path)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "events.csv").write_text(EVENTS)
    (tmp_path / "users.csv").write_text(USERS)
    return DataConfig(
        interactions=TableConfig(str(tmp_path / "events.csv")),
        users=TableConfig(str(tmp_path / "users.csv")),
        features=FeaturesConfig(user={"town": "categorical"}),
        max_reject_rate=1.0,
    )


def test_records_of_forgotten_users_are_neither_rows_nor_rejects(config, tombstones):
    tables, rejects = read_tables(config, tombstones)
    assert tables.interactions["user_id"].tolist() == ["u1", "u3"]
    assert tables.interactions["item_id"].tolist() == ["a", SENTINEL]  # an item may be called so
    assert tables.users["user_id"].tolist() == ["u1", "u2"]
    frame = rejects.frame
    assert list(zip(frame["line"], frame["reason"], strict=True)) == [
        (5, "not a number"),
        (6, "missing"),
        (7, "too few columns"),
        (8, "too many columns"),
    ]
    assert frame["value"].tolist()[0] == "many"
    assert frame["value"].isna().tolist() == [False, True, True, True]  # whose a torn line is, nobody knows
    assert rejects.forgotten == {"interactions": 2, "users": 1}
    assert rejects.records == {"interactions": 6, "users": 2}


def test_without_tombstones_nothing_changes(config, tombstones):
    _, rejects = read_tables(config)
    assert rejects.forgotten == {}
    assert rejects.frame["value"].tolist()[-2:] == [f"{SENTINEL},c", "u2,c,2017-12-02,1,"]


@pytest.mark.parametrize(
    "ids",
    [
        [7, 70, 7, 1],
        ["7", "70", "7", "07"],
        [7.0, 70.0, 7.0, 1.0],
        pd.Categorical(["7", "70", "7", "07"]),
        pd.array([7, 70, 7, None], dtype="Int64"),
        np.array([7, "70", "7", "x"], dtype=object),
    ],
)
def test_an_id_of_any_type_is_found(tombstones, ids):
    events = pd.DataFrame({"user_id": ids, "item_id": ["a", "b", "c", "d"]})
    tables, rejects = tables_from_frames(DataConfig(), events, tombstones=tombstones)
    assert tables.interactions["item_id"].tolist() == (["b"] if pd.isna(ids[3]) else ["b", "d"])
    assert rejects.forgotten == {"interactions": 2}
    assert len(rejects.frame) == int(pd.isna(ids[3]))


def test_the_files_of_a_split_are_searched_too(config, tombstones, tmp_path):
    for name in ("validation", "test"):
        (tmp_path / f"{name}.csv").write_text(
            f"user_id,item_id,datetime,weight\n{SENTINEL},a,2018-01-01,1\nu1,b,2018-01-01,1\n"
        )
    split = SplitConfig("files", validation=str(tmp_path / "validation.csv"), test=str(tmp_path / "test.csv"))
    plain = DataConfig(interactions=config.interactions, split=split, max_reject_rate=1.0)
    tables, rejects = read_tables(plain, tombstones)
    assert SENTINEL not in set(tables.interactions["user_id"])
    assert rejects.forgotten == {"interactions": 2, "validation": 1, "test": 1}


def test_a_list_where_an_id_should_be_is_the_same_fault_as_ever(tombstones):
    ids = [["u1"], np.array([1, 2]), None, "u2", "u3"]
    events = pd.DataFrame({"user_id": ids, "item_id": ["a", "b", "c", "d", "e"]})
    plain, guarded = (tables_from_frames(DataConfig(), events, **given) for given in ({}, {"tombstones": tombstones}))
    assert guarded[0].interactions["user_id"].tolist() == ["u2", "u3"]
    pd.testing.assert_frame_equal(guarded[0].interactions, plain[0].interactions)
    assert guarded[1].frame["reason"].tolist() == plain[1].frame["reason"].tolist()
    assert guarded[1].forgotten == {}


def make_frames():
    """Draw ten events of each of 24 users, two sentinels among them, of whom the first alone comes from its town."""
    rng = np.random.default_rng(0)
    ids = [SENTINEL, LATER, *(f"u{number}" for number in range(22))]
    events = pd.DataFrame({"user_id": np.repeat(ids, 10), "item_id": [f"i{n}" for n in rng.integers(0, 17, 240)]})
    events["datetime"] = 1_600_000_000 + np.tile(np.arange(10), 24) * DAY
    users = pd.DataFrame({"user_id": ids, "town": ["sentinel-town", *(["x", "y"] * 12)[:23]]})
    return events, users, events[["item_id"]].drop_duplicates()


def configure(folder, previous=None):
    small = ModelConfig(dim=8, affinity_dim=4, max_epochs=1, batch_size=16, warmup_steps=1, id_dropout=0.0)
    data = DataConfig(features=FeaturesConfig(user={"town": "categorical"}))
    return train.Config(data, small, {"enable_progress_bar": False}, folder, 0, previous=previous)


def mentions(folder, text):
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        cells = repr(pq.ParquetFile(path).read().to_pydict()) if path.suffix == ".parquet" else ""
        if text.encode() in path.read_bytes() or text in cells:
            found.append(path.relative_to(folder).as_posix())
    return found


def test_a_forgotten_user_is_in_no_file_of_the_next_training(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    add_to_erasure_list(run, [SENTINEL])
    with one_thread():
        train.run(configure(run), make_frames())
    assert mentions(run, SENTINEL) == []
    assert mentions(run, "sentinel-town") == []
    report = json.loads((run / "metrics.json").read_text())["data"]
    assert report["forgotten"] == {"interactions": 10, "users": 1}
    assert (report["counts"]["users"], report["counts"]["users_table"]) == (23, 23)
    assert len(Profiles.load(run / "profiles")) == 23
    assert Recommender.load(run / "bundle").profiles.get(SENTINEL) is None
    assert [name.split("-")[0] for name in mentions(run, LATER)] == ["profiles/users"]
    assert forget_users(run, [LATER])["erased"]["profiles"] == 1
    assert mentions(run, LATER) == []


def test_a_run_that_goes_on_from_another_leaves_out_whom_that_one_forgot(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    add_to_erasure_list(old, [SENTINEL])
    config = configure(new, previous=old / "bundle")
    tables, report = train.read(config, make_frames(), new)
    assert SENTINEL not in set(tables.interactions["user_id"]) | set(tables.users["user_id"])
    assert report["rejects"].forgotten == {"interactions": 10, "users": 1}
    assert read_erasure_list(new).holds(SENTINEL)


def test_the_report_counts_and_names_nobody():
    report = {"interactions": 12_345, "test": 2}
    assert _forgotten_lines(report) == [
        ("forgotten users", "left out with their records: 12,345 of interactions, 2 of test")
    ]
    assert _forgotten_lines({}) == []


def test_the_tables_at_hand_are_not_changed(tombstones):
    events, users, items = make_frames()
    before = events.copy(), users.copy()
    tables, _ = tables_from_frames(DataConfig(), events, users, items, tombstones=tombstones)
    pd.testing.assert_frame_equal(events, before[0])
    pd.testing.assert_frame_equal(users, before[1])
    cleaned, report = clean(tables)
    assert SENTINEL not in set(cleaned.users["user_id"])
    assert report.duplicate_users == 0
