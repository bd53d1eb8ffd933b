"""Events on disk give what events in memory give: rows, rejects, split, schema, sequences, profiles."""

from dataclasses import fields, replace
from pathlib import Path

import datamodules.on_disk as on_disk_module
import datamodules.sequences as sequences_module
import numpy as np
import pandas as pd
import pytest
from datamodules.batch import FeatureDropout
from datamodules.clean import clean, order_tables
from datamodules.config import (
    DataConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from datamodules.on_disk import FOLDER, type_interactions
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue, build_sequences
from datamodules.sliding_windows import WindowExamples
from datamodules.splits import split_interactions
from datamodules.tables import read_tables
from evaluation.holdout import profiles_from_frame
from pipeline.config import Config
from pipeline.pack import list_profiles
from pipeline.tables import count_parts, prepare, read_from_disk
from serve.errors import SchemaError
from serve.files import NOBODY
from serve.profiles import Profiles, settle_profiles, stage_profiles

DAY = 86_400
START = 1_600_000_000
N_USERS, N_ITEMS, N_EVENTS = 40, 30, 2_000
SAMPLE = Path(__file__).parents[2] / "datamodules" / "sample"
SPLITS = {
    "last": SplitConfig("leave_one_out"),
    "strict": SplitConfig("leave_one_out", strict=True),
    "none": SplitConfig("none"),
    "time": SplitConfig("time", at="2021-01-01"),
}


def write_shop(folder, user_form="u{:03d}", suffix="csv"):
    """Write events with ties, equal rows and bad rows in two files, and tables of users and items."""
    rng = np.random.default_rng(11)
    users = rng.integers(N_USERS, size=N_EVENTS)
    events = pd.DataFrame(
        {
            "user_id": [user_form.format(user) for user in users],
            "item_id": rng.integers(N_ITEMS, size=N_EVENTS) + 100,
            "datetime": START + DAY * rng.integers(150, size=N_EVENTS),
            "event": rng.choice(["view", "buy", "odd"], N_EVENTS, p=[0.7, 0.299, 0.001]),
            "weight": rng.integers(0, 9, N_EVENTS) / 10,
        }
    )
    events = pd.concat([events, events.iloc[::40]], ignore_index=True)
    events.loc[5, "event"] = None
    if suffix == "csv":
        events = events.astype({"datetime": object, "weight": object})
        events.loc[[7, 1500], "datetime"] = "soon"
        events.loc[9, "item_id"] = np.nan
        events = events.astype({"item_id": "Int64"})
    events.loc[11, "datetime"] = START - 9 * 365 * DAY  # a void parts it from the others
    for number, rows in enumerate((events.iloc[:800], events.iloc[800:])):
        path = folder / f"events-{number}.{suffix}"
        if suffix == "csv":
            rows.to_csv(path, index=False)
        else:
            rows.to_parquet(path, index=False)
    known = [user_form.format(user) for user in range(3, N_USERS + 4)]
    towns = np.array(["a", "b", "c"])[np.arange(len(known)) % 3]
    pd.DataFrame({"user_id": known, "town": towns}).to_csv(folder / "users.csv", index=False)
    items = np.arange(N_ITEMS + 2) + 100
    pd.DataFrame({"item_id": items, "price": items / 7}).to_csv(folder / "items.csv", index=False)


def declare(folder, split="last", suffix="csv", **options):
    return DataConfig(
        TableConfig(str(folder / f"events-*.{suffix}")),
        TableConfig(str(folder / "users.csv")),
        TableConfig(str(folder / "items.csv")),
        features=FeaturesConfig(user={"town": "categorical"}, item={"price": "numeric"}),
        split=SPLITS[split],
        **options,
    )


def read_in_memory(config):
    tables, rejects = read_tables(config)
    tables, cleaning = clean(tables, config)
    return order_tables(tables, config.ties), rejects, cleaning


def read_on_disk(config, folder, seed=0):
    run = Config(data=config, out=folder / "run", seed=seed)
    (folder / "beside").mkdir(exist_ok=True)
    tables, report, on_disk = read_from_disk(run, folder / "beside")
    split = split_interactions(tables.interactions, config, seed)
    return tables, report, split, replace(on_disk, counts=count_parts(on_disk, split))


@pytest.fixture
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(on_disk_module, "ROWS", 700)
        monkeypatch.setattr(on_disk_module, "SORTED_ROWS", 600)
        monkeypatch.setattr(sequences_module, "TILE", 500)
    return request.param


def assert_same(frame, other):
    pd.testing.assert_frame_equal(
        frame.reset_index(drop=True), other.reset_index(drop=True), check_exact=True
    )


@pytest.mark.parametrize(
    ("split", "user_form", "tiles"),
    [
        ("last", "u{:03d}", "many tiles"),
        ("strict", "{}", "one tile"),
        ("none", "u{:03d}", "one tile"),
        ("time", "{}", "many tiles"),
    ],
    indirect=["tiles"],
)
def test_the_same_split_of_the_same_rows(tmp_path, tiles, split, user_form):
    write_shop(tmp_path, user_form)
    config = declare(tmp_path, split)
    tables, rejects, cleaning = read_in_memory(config)
    expected = split_interactions(tables.interactions, config, seed=0)
    on_tables, report, on_split, on_disk = read_on_disk(config, tmp_path)

    assert cleaning.duplicate_events >= 40
    assert report["cleaning"] == cleaning
    assert len(rejects.tables["interactions"]) >= 4
    listed = report["rejects"].tables["interactions"]
    shown = ["file", "line", "column", "reason", "costs"]
    ours = listed.sort_values(["file", "line"], kind="stable")[shown]
    assert_same(ours, rejects.tables["interactions"][shown])
    assert report["rejects"].records == rejects.records

    assert on_disk.count()["interactions"] == len(tables.interactions)
    assert_same(on_tables.interactions, tables.interactions)
    for part in ("train", "validation", "test"):
        assert_same(getattr(on_split, part), getattr(expected, part))
    for part in ("train", "refit"):
        rows = getattr(expected, part)
        lengths = rows["user_id"].value_counts()
        ours = pd.Series(on_disk.counts[part], on_disk.user_ids)
        assert ours[ours > 0].to_dict() == lengths.to_dict()
        listed = on_disk.list_items(part)["item_id"]
        assert listed.tolist() == sorted(rows["item_id"].unique())


@pytest.mark.parametrize(
    ("split", "tiles"), [("last", "many tiles"), ("time", "one tile")], indirect=["tiles"]
)
def test_the_same_schema_and_sequences(tmp_path, tiles, split):
    write_shop(tmp_path)
    config = declare(tmp_path, split)
    tables, _, _ = read_in_memory(config)
    train = split_interactions(tables.interactions, config, seed=0).train
    _, _, on_split, on_disk = read_on_disk(config, tmp_path)
    expected = fit_schema(tables, train, config)
    schema = fit_schema(tables, on_split.train, config)
    assert expected.event_types == ("view", "buy")
    assert schema == expected

    catalogue = build_catalogue(tables.items, train, expected)
    in_memory = build_sequences(train, tables.users, catalogue.item_ids, expected)
    nobody = train.head(0)
    mapped = on_disk.build_sequences("train", nobody, catalogue.item_ids, expected)
    assert not mapped.events.item_row.flags.owndata
    for field in fields(in_memory.events):
        if field.name != "context":
            ours = getattr(mapped.events, field.name)
            assert ours.tolist() == getattr(in_memory.events, field.name).tolist()
    assert mapped.user_ids.tolist() == in_memory.user_ids.tolist()
    assert (mapped.user.codes == in_memory.user.codes).all()
    assert (mapped.target_weight == in_memory.target_weight).all()

    ours = WindowExamples(mapped, schema, 8, FeatureDropout())
    theirs = WindowExamples(in_memory, schema, 8, FeatureDropout())
    assert (ours.target_weight == theirs.target_weight).all()
    assert (ours.target_weight == 0).sum() > 100


@pytest.mark.parametrize("tiles", ["many tiles"], indirect=True)
def test_profiles_of_tiles_are_those_of_the_table(tmp_path, tiles):
    write_shop(tmp_path)
    config = declare(tmp_path)
    tables, _, _ = read_in_memory(config)
    refit = split_interactions(tables.interactions, config, seed=0).refit
    _, _, _, on_disk = read_on_disk(config, tmp_path)
    schema = fit_schema(tables, refit, config)
    expected = profiles_from_frame(refit, tables.users, schema)

    stage_profiles(tmp_path / "profiles", list_profiles(on_disk, schema), "v")
    settle_profiles(tmp_path / "profiles", "v")
    written = Profiles.load(tmp_path / "profiles")
    assert written.user_ids.tolist() == expected.user_ids.tolist()
    assert written.offsets.tolist() == expected.offsets.tolist()
    assert written.features["town"].tolist() == expected.features["town"].tolist()
    for name, column in expected.history.columns().items():
        assert written.history.columns()[name].tolist() == column.tolist()
    assert len(list((tmp_path / "profiles").glob("*.parquet"))) == 2


@pytest.mark.slow
def test_the_bundled_sample_is_read_alike(tmp_path):
    tables = {
        name: TableConfig(str(SAMPLE / f"{name}.parquet"))
        for name in ("interactions", "users", "items")
    }
    config = DataConfig(**tables, split=SplitConfig("time", at="2017-12-01"))
    in_memory, _, cleaning = read_in_memory(config)
    expected = split_interactions(in_memory.interactions, config, seed=0)
    on_tables, report, on_split, _ = read_on_disk(config, tmp_path)
    assert report["cleaning"] == cleaning
    assert len(expected.test) > 1000
    for part in ("train", "validation", "test"):
        assert_same(getattr(on_split, part), getattr(expected, part))
    schema = fit_schema(in_memory, expected.refit, config)
    assert fit_schema(on_tables, on_split.refit, config) == schema


def test_drawn_users_are_whole(tmp_path, monkeypatch):
    write_shop(tmp_path)
    config = declare(tmp_path)
    whole, _, _, on_disk = read_on_disk(config, tmp_path)
    monkeypatch.setattr(on_disk_module, "MAX_SAMPLE", 700)
    drawn, _, split, again = read_on_disk(config, tmp_path)
    counts = whole.interactions["user_id"].value_counts()
    of_drawn = drawn.interactions["user_id"].value_counts()
    assert 0 < len(drawn.interactions) <= 700
    assert of_drawn.to_dict() == counts[of_drawn.index].to_dict()
    assert set(drawn.users["user_id"]) == set(of_drawn.index) & set(whole.users["user_id"])
    assert again.count() == on_disk.count()
    # an event of each user is the test, and one of drawn users the validation
    assert again.counts["refit"].sum() == len(whole.interactions) - len(counts)
    held_out = again.counts["refit"] - again.counts["train"]
    assert held_out.sum() == len(split.validation) == len(of_drawn) > 5


UNFIT = {
    "repeats": {"repeats": "allow"},
    "ties": {"ties": "simultaneous"},
    "context": {"features": FeaturesConfig(context={"hour": "hour_of_day"})},
    "feedback": {"feedback": "log.parquet"},
    "pairs": {"split": SplitConfig("pairs")},
    "targets": {"targets": TargetsConfig(["buy"])},
    "events": {"events": {"buy": 2.0}},
    "exclude_users": {"exclude_users": ["u1"]},
    "query": {"interactions": TableConfig(query="SELECT 1")},
    "position": {"interactions": TableConfig("e.csv", columns={"position": "line"})},
}


def test_several_devices_would_each_read_all_into_memory(tmp_path):
    data = DataConfig(interactions=TableConfig("events.csv"), on_disk=True)
    config = Config(data, trainer={"devices": 2}, out=tmp_path)
    with pytest.raises(SchemaError, match="devices"):
        prepare(config, None, tmp_path)


@pytest.mark.parametrize("key", UNFIT)
def test_what_needs_memory_is_refused_by_its_key(key):
    options = {"interactions": TableConfig("events.csv"), **UNFIT[key]}
    with pytest.raises(SchemaError, match=key) as refused:
        DataConfig(on_disk=True, **options)
    assert "data.on_disk: false" in str(refused.value)
    assert "on_disk" not in DataConfig(on_disk=False, **options).declared()


def test_json_lines_are_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"user_id": 1, "item_id": 2, "datetime": 3}\n')
    config = DataConfig(TableConfig(str(path)), on_disk=True)
    with pytest.raises(SchemaError, match=r"data\.on_disk: false"):
        type_interactions(config, NOBODY, tmp_path / FOLDER)


@pytest.mark.parametrize(
    ("column", "value"), [("weight", -1.0), ("position", 3), ("datetime", None)]
)
def test_rows_that_need_memory_are_refused(tmp_path, column, value):
    write_shop(tmp_path, suffix="parquet")
    path = tmp_path / "events-0.parquet"
    for path in sorted(tmp_path.glob("*.parquet")):
        events = pd.read_parquet(path)
        changed = events.drop(columns=column) if value is None else events.assign(**{column: value})
        changed.to_parquet(path, index=False)
    with pytest.raises(SchemaError, match=r"data\.on_disk: false"):
        type_interactions(declare(tmp_path, suffix="parquet"), NOBODY, tmp_path / FOLDER)


def test_ids_of_both_kinds_become_texts(tmp_path):
    write_shop(tmp_path, "{}")
    events = pd.read_csv(tmp_path / "events-1.csv", dtype=str)
    events.loc[3, "user_id"] = "x3"
    events.to_csv(tmp_path / "events-1.csv", index=False)
    config = declare(tmp_path)
    tables, _, _ = read_in_memory(config)
    on_tables, _, _, on_disk = read_on_disk(config, tmp_path)
    assert_same(on_tables.interactions, tables.interactions)
    assert "x3" in on_disk.user_ids


def test_nothing_but_rejects_is_refused(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id,datetime\n" + "1,,2020-01-01\n" * 3)
    config = DataConfig(TableConfig(str(path)), max_reject_rate=1.0, on_disk=True)
    with pytest.raises(SchemaError, match="rejected"):
        read_on_disk(config, tmp_path)
