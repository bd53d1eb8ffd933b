"""Events on disk give what events in memory give: rows, rejects, split, schema, sequences, profiles."""

from dataclasses import fields, replace
from pathlib import Path

import datamodules.blocks as blocks_module
import datamodules.out_of_core as out_of_core
import datamodules.sequences as sequences_module
import datamodules.sliding_windows as windows_module
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datamodules.batch import FeatureDropout
from datamodules.blocks import split_blocks
from datamodules.clean import clean, order_tables
from datamodules.config import (
    DataConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from datamodules.out_of_core import is_on_disk, read_blocks, type_events
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue, build_sequences
from datamodules.sliding_windows import WindowExamples
from datamodules.splits import split_interactions
from datamodules.tables import read_tables
from evaluation.holdout import profiles_from_frame
from pipeline.config import Config
from pipeline.pack import list_profiles
from pipeline.tables import read_from_disk
from serve.errors import SchemaError
from serve.files import NOBODY
from serve.profiles import Profiles, settle_profiles, stage_parts

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
    return read_from_disk(run, folder / "beside")


@pytest.fixture
def tiles(request, monkeypatch):
    if request.param == "many tiles":
        monkeypatch.setattr(out_of_core, "ROWS", 700)
        monkeypatch.setattr(out_of_core, "SORTED_ROWS", 600)
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
    on_tables, report, on_disk = read_on_disk(config, tmp_path)

    assert cleaning.duplicate_events >= 40
    assert report["cleaning"] == cleaning
    assert len(rejects.tables["interactions"]) >= 4
    listed = report["rejects"].tables["interactions"]
    shown = ["file", "line", "column", "reason", "costs"]
    ours = listed.sort_values(["file", "line"], kind="stable")[shown]
    assert_same(ours, rejects.tables["interactions"][shown])
    assert report["rejects"].records == rejects.records

    assert on_disk.is_whole
    assert_same(on_tables.interactions, tables.interactions)
    for part in ("train", "validation", "test"):
        assert_same(getattr(on_disk.split, part), getattr(expected, part))
    assert (expected.validation_at, expected.test_at) == (
        on_disk.split.validation_at,
        on_disk.split.test_at,
    )
    assert len(on_disk.train) == len(expected.train) > 100
    assert len(on_disk.refit) == len(expected.refit)


@pytest.mark.parametrize(
    ("split", "tiles"), [("last", "many tiles"), ("time", "one tile")], indirect=["tiles"]
)
def test_the_same_schema_and_sequences(tmp_path, tiles, split):
    write_shop(tmp_path)
    config = declare(tmp_path, split)
    tables, _, _ = read_in_memory(config)
    train = split_interactions(tables.interactions, config, seed=0).train
    on_tables, _, on_disk = read_on_disk(config, tmp_path)

    expected = fit_schema(tables, train, config)
    schema = fit_schema(on_tables, on_disk.train, config)
    assert expected.event_types == ("view", "buy")
    assert schema.weight_mean == pytest.approx(expected.weight_mean)
    assert schema.weight_scale == pytest.approx(expected.weight_scale)
    weight = {"weight_mean": expected.weight_mean, "weight_scale": expected.weight_scale}
    assert replace(schema, **weight) == expected
    if tiles == "one tile":
        assert schema == expected

    catalogue = build_catalogue(tables.items, train, expected)
    in_memory = build_sequences(train, tables.users, catalogue.item_ids, expected)
    mapped = on_disk.train.to_sequences(tables.users, catalogue.item_ids, expected)
    assert isinstance(mapped.events.item_row, np.memmap)
    assert mapped.events.item_row.dtype == np.int32
    for field in fields(in_memory.events):
        if field.name != "context":
            ours = getattr(mapped.events, field.name)
            assert ours.tolist() == getattr(in_memory.events, field.name).tolist()
    assert mapped.user_ids.tolist() == in_memory.user_ids.tolist()
    assert (mapped.user.codes == in_memory.user.codes).all()
    assert (mapped.target_weight == in_memory.target_weight).all()

    ours = WindowExamples(mapped, schema, 8, FeatureDropout())
    theirs = WindowExamples(in_memory, schema, 8, FeatureDropout())
    assert (ours.is_repeat == theirs.is_repeat).all()
    assert ours.is_repeat.sum() > 100


@pytest.mark.parametrize("tiles", ["many tiles"], indirect=True)
def test_profiles_of_tiles_are_those_of_the_table(tmp_path, tiles):
    write_shop(tmp_path)
    config = declare(tmp_path)
    tables, _, _ = read_in_memory(config)
    refit = split_interactions(tables.interactions, config, seed=0).refit
    _, _, on_disk = read_on_disk(config, tmp_path)
    schema = fit_schema(tables, refit, config)
    expected = profiles_from_frame(refit, tables.users, schema)

    stage_parts(tmp_path / "profiles", list_profiles(on_disk.refit, tables.users, schema), "v")
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
    _, report, on_disk = read_on_disk(config, tmp_path)
    assert report["cleaning"] == cleaning
    assert len(expected.test) > 1000
    for part in ("train", "validation", "test"):
        assert_same(getattr(on_disk.split, part), getattr(expected, part))
    schema = fit_schema(in_memory, expected.refit, config)
    assert fit_schema(in_memory, on_disk.refit, config) == schema


def test_weights_that_are_no_float32_stay_exact(tmp_path):
    write_shop(tmp_path)
    _, _, on_disk = read_on_disk(declare(tmp_path), tmp_path)
    assert on_disk.blocks.events.weight.dtype == np.float64
    assert on_disk.blocks.events.event.dtype == np.int8


def test_an_interrupted_preparation_begins_its_step_again(tmp_path, monkeypatch):
    write_shop(tmp_path)
    config = declare(tmp_path)
    _, _, whole = read_on_disk(config, tmp_path)
    folder = tmp_path / "run" / "blocks"
    typed = folder / "typed.json"
    first_typed = typed.stat().st_mtime_ns
    (folder / "blocks.json").unlink()
    (folder / "item.npy").write_bytes(b"half")
    (folder / "numbered.parquet").write_bytes(b"half")
    _, _, again = read_on_disk(config, tmp_path)
    assert again.blocks.digest == whole.blocks.digest
    assert typed.stat().st_mtime_ns == first_typed

    monkeypatch.setattr(out_of_core, "_write_blocks", None)
    _, _, kept = read_on_disk(config, tmp_path)
    assert kept.blocks.digest == whole.blocks.digest

    monkeypatch.undo()
    events = pd.read_csv(tmp_path / "events-0.csv", dtype=str).iloc[1:]
    events.to_csv(tmp_path / "events-0.csv", index=False)
    _, _, other = read_on_disk(config, tmp_path)
    assert other.blocks.digest != whole.blocks.digest
    assert typed.stat().st_mtime_ns > first_typed


def test_drawn_users_are_whole_and_include_the_validation(tmp_path, monkeypatch):
    write_shop(tmp_path)
    config = declare(tmp_path)
    _, _, whole = read_on_disk(config, tmp_path)
    monkeypatch.setattr(blocks_module, "MAX_SAMPLE", 700)
    sample = split_blocks(whole.blocks, config, seed=0)
    counts = whole.sample["user_id"].value_counts()
    drawn = sample.sample["user_id"].value_counts()
    assert 0 < len(sample.sample) <= 700
    assert not sample.is_whole
    assert drawn.to_dict() == counts[drawn.index].to_dict()
    assert len(sample.split.validation) == len(drawn) > 5
    assert len(sample.train) == len(whole.train)


def test_windows_are_shuffled_range_by_range(tmp_path, monkeypatch):
    write_shop(tmp_path)
    config = declare(tmp_path, history_length=12)
    tables, _, on_disk = read_on_disk(config, tmp_path)
    schema = fit_schema(tables, on_disk.train, config)
    item_ids = build_catalogue(tables.items, on_disk.sample, schema).item_ids
    sequences = on_disk.train.to_sequences(tables.users, item_ids, schema)
    examples = WindowExamples(sequences, schema, 8, FeatureDropout())
    monkeypatch.setattr(windows_module, "SHUFFLED", 400)

    def list_targets(plans):
        targets = []
        for plan in plans:
            later = plan.starts != sequences.events.offsets[plan.users]
            for start, stop in zip(plan.starts + later, plan.stops, strict=True):
                targets += range(start, stop)
        return targets

    plans = examples.plan(3, 0)
    assert list_targets(plans) == list_targets(plans)
    assert sorted(list_targets(plans)) == list(range(len(on_disk.train)))
    assert list_targets(plans) != list_targets(examples.plan(3, 1))
    assert len(plans) == len(list(plans)) == len(list(examples.plan(3, 1))) > 10
    assert len({plan.seed for plan in plans}) == len(plans)
    users = {int(plan.users.max() - plan.users.min()) for plan in plans}
    assert max(users) < N_USERS // 2
    batch = examples[next(iter(plans))]
    assert batch.is_target.any()


UNFIT = {
    "repeats": {"repeats": "allow"},
    "ties": {"ties": "simultaneous"},
    "context": {"features": FeaturesConfig(context={"hour": "hour_of_day"})},
    "date": {"features": FeaturesConfig(user={"joined": "date"})},
    "feedback": {"feedback": "log.parquet"},
    "pairs": {"split": SplitConfig("pairs")},
    "targets": {"targets": TargetsConfig(["buy"])},
    "events": {"events": {"buy": 2.0}},
    "query": {"interactions": TableConfig(query="SELECT 1")},
    "JSON Lines": {"interactions": TableConfig("events.jsonl.gz")},
    "position": {"interactions": TableConfig("e.csv", columns={"position": "line"})},
}


@pytest.mark.parametrize("key", UNFIT)
def test_what_needs_memory_is_refused_by_its_key(key):
    options = {"interactions": TableConfig("events.csv"), **UNFIT[key]}
    with pytest.raises(SchemaError, match=key) as refused:
        is_on_disk(DataConfig(on_disk=True, **options))
    assert "data.on_disk: false" in str(refused.value)
    assert not is_on_disk(DataConfig(on_disk=False, **options))


def test_large_files_go_to_disk_by_themselves(tmp_path, monkeypatch):
    write_shop(tmp_path, suffix="parquet")
    config = declare(tmp_path, suffix="parquet")
    n_rows = N_EVENTS + N_EVENTS // 40
    needed = out_of_core.BYTES_PER_EVENT * n_rows
    for free, expected in ((3 * needed, False), (needed, True), (needed // 2, True)):
        monkeypatch.setattr(out_of_core, "read_free_bytes", lambda free=free: free)
        assert is_on_disk(config) == expected
    unfit = replace(config, repeats="allow")
    monkeypatch.setattr(out_of_core, "read_free_bytes", lambda: needed + 1)
    assert not is_on_disk(unfit)
    monkeypatch.setattr(out_of_core, "read_free_bytes", lambda: needed)
    with pytest.raises(SchemaError, match="repeats"):
        is_on_disk(unfit)
    assert "on_disk" not in replace(config, on_disk=True).declared()


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
        type_events(declare(tmp_path, suffix="parquet"), NOBODY, tmp_path / "blocks")


def test_excluded_users_are_left_out_and_counted(tmp_path):
    write_shop(tmp_path)
    config = declare(tmp_path, exclude_users=["u007", "u008"])
    tables, _, cleaning = read_in_memory(config)
    on_tables, report, _ = read_on_disk(config, tmp_path)
    assert cleaning.excluded_events > 20
    assert report["cleaning"] == cleaning
    assert_same(on_tables.interactions, tables.interactions)


def test_ids_of_both_kinds_become_texts(tmp_path):
    write_shop(tmp_path, "{}")
    events = pd.read_csv(tmp_path / "events-1.csv", dtype=str)
    events.loc[3, "user_id"] = "x3"
    events.to_csv(tmp_path / "events-1.csv", index=False)
    config = declare(tmp_path)
    tables, _, _ = read_in_memory(config)
    typed = type_events(config, NOBODY, tmp_path / "blocks")
    read, _ = read_tables(config, interactions=typed)
    blocks, _ = read_blocks(clean(read, config)[0], tmp_path / "blocks")
    users = np.flatnonzero(blocks.events.counts)
    assert_same(blocks.to_frame(users), tables.interactions)
    assert pq.read_table(tmp_path / "blocks" / "users.parquet").num_rows == len(blocks.user_ids)
