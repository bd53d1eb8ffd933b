from __future__ import annotations

import json
import shutil
from dataclasses import asdict, fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from tests.test_train import ORDERED, make_tables

import pipeline.stages
import train
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from datamodules.sets import FOLDS
from datamodules.splits import split_interactions
from datamodules.tables import tables_from_frames
from models.config import ModelConfig, Recipe, recipe_of
from models.defaults import Choice
from pipeline.config import Config, complete_text, parse
from pipeline.run_folder import declare, is_finished, read_published
from pipeline.stages import count_data, print_choices, settle
from serve.errors import SchemaError
from tests.models.tiny_towers import one_thread

OPEN = {field.name for field in fields(Recipe)}
SMALL = {"dim": 7, "max_epochs": 2, "learning_rate": 1e-5, "batch_size": 16}
"""What a configuration fixes; the rate is one that YAML writes with an exponent."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Run a configuration that leaves most of the model open, from the command line."""
    folder = tmp_path_factory.mktemp("open")
    for name, table in zip(("interactions", "users", "items"), make_tables(3, simultaneous=False), strict=True):
        table.to_parquet(folder / f"{name}.parquet")
    data = {name: {"path": str(folder / f"{name}.parquet")} for name in ("interactions", "users", "items")}
    data["features"] = {"item": {"category": "categorical"}}
    (folder / "mine.yaml").write_text(yaml.safe_dump({"data": data, "model": SMALL}))
    command = [f"--config={folder / 'mine.yaml'}", f"--out={folder / 'run'}", "--trainer.enable_progress_bar=false"]
    assert train.main(command) == 0
    return folder / "run", command


def read_again(run):
    """Parse the `config.yaml` of a run and decide what it leaves open."""
    config, text = parse([f"--config={run / 'config.yaml'}", f"--out={run}"])
    (run.parent / "beside").mkdir(exist_ok=True)
    tables, _ = train.read(config, None, run.parent / "beside")
    return config, text, *settle(config, tables)


@pytest.fixture
def going_on(monkeypatch):
    """Let the last training go on from the first, however little data there is."""
    monkeypatch.setattr(run_training, "MOST_ADDED", 1.0)
    monkeypatch.setattr(run_training, "MANY_EVENTS", 0)


def prepare_run(folder):
    """Prepare a run in which one item, with a category of its own, comes in the validation alone."""
    model = ModelConfig(dim=8, max_epochs=3, batch_size=16, warmup_steps=2, dropout=0.3, learning_rate=0.03)
    events, users, items = make_tables(3, simultaneous=False)
    place = events.groupby("user_id").cumcount(ascending=False)
    events.loc[(place == 1) & (events["user_id"] == events["user_id"].iloc[0]), "item_id"] = 999
    late = pd.DataFrame({"item_id": [999], "title": ["late"], "category": ["unheard"]})
    tables, _ = tables_from_frames(ORDERED, events, users, pd.concat([items, late], ignore_index=True))
    config, _ = settle(Config(ORDERED, model, {"enable_progress_bar": False}, out=folder), tables)
    split = split_interactions(tables.interactions, ORDERED, config.seed)
    assert 999 in set(split.validation["item_id"])
    return config, tables, split


def test_the_last_training_goes_on_from_the_best_weights_of_the_first(tmp_path, monkeypatch, going_on):
    config, tables, split = prepare_run(tmp_path)
    first = run_training.fit_towers(config, tables, split, None)
    assert "unheard" in first.schema.item_features[0].vocabulary
    before = {name: value.clone() for name, value in first.towers.state_dict().items()}
    monkeypatch.setattr(run_training, "CONTINUED_RATE", 1e-30)  # too little to move anything
    still = run_training.continue_towers(config, tables, split, 1)
    assert still.epochs == 1
    assert still.schema == first.schema
    assert still.temperature == pytest.approx(first.temperature)
    assert all(torch.equal(value, before[name]) for name, value in still.towers.state_dict().items())
    assert len(still.data.sequences.events.item_row) == len(split.refit) > len(split.train)
    shutil.rmtree(tmp_path / "checkpoints" / "final")
    monkeypatch.setattr(run_training, "CONTINUED_RATE", 0.2)
    moved = run_training.continue_towers(config, tables, split, 1)
    shifts = [(value - before[name]).abs() for name, value in moved.towers.named_parameters() if value.numel()]
    assert 0 < max(shift.max() for shift in shifts) < 0.2


def test_a_run_that_goes_on_says_for_how_long(tmp_path, monkeypatch, going_on):
    config, tables, split = prepare_run(tmp_path)
    monkeypatch.setattr(run_training, "CONTINUED_SHARE", 0.7)
    trained, _ = run_training.train(config, tables, split)
    assert 1 <= trained.continued == min(trained.epochs, 2)
    curve = pd.read_csv(tmp_path / "logs" / "final" / "metrics.csv")
    assert len(curve) == trained.continued
    monkeypatch.setattr(run_training, "MOST_ADDED", 0.0)
    shutil.rmtree(tmp_path / "checkpoints")
    anew, _ = run_training.train(config, tables, split)
    assert anew.continued == 0


def test_only_trainings_that_saw_nearly_all_of_many_events_go_on(monkeypatch):
    monkeypatch.setattr(run_training, "MANY_EVENTS", 2_000)
    rows = pd.DataFrame({"user_id": np.repeat(np.arange(20), 210), "item_id": np.tile(np.arange(210), 20)})
    rows["datetime"] = np.arange(len(rows))

    def goes_on(rows=rows, **changes):
        config = Config(DataConfig(**changes))
        return run_training.continues(config, split_interactions(rows, config.data, 0))

    assert goes_on()
    assert goes_on(split=SplitConfig("none"))
    assert not goes_on(split=SplitConfig(strict=True))
    assert not goes_on(ties="simultaneous")
    assert not goes_on(repeats="allow")
    assert not goes_on(rows.drop(columns="datetime"))
    assert not goes_on(rows[rows["item_id"] < 150])  # one of 149 events before the test is validation
    assert not goes_on(rows[rows["user_id"] < 9])  # too few


def test_the_config_of_a_run_holds_all_that_was_chosen(finished):
    run, _ = finished
    model = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert model.keys() == {field.name for field in fields(ModelConfig)}
    assert not [name for name, value in model.items() if value is None]
    assert {name: model[name] for name in SMALL} == SMALL
    chosen = json.loads((run / "metrics.json").read_text())["training"]["chosen"]
    assert chosen.keys() == OPEN - SMALL.keys()
    assert {name: choice["value"] for name, choice in chosen.items()} == {name: model[name] for name in chosen}
    assert all(choice["reason"] for choice in chosen.values())


def test_the_config_of_a_run_leaves_nothing_to_choose_and_is_the_same_run(finished):
    run, command = finished
    config, text, whole, choices = read_again(run)
    assert choices == []
    assert whole == config
    assert yaml.safe_load(complete_text(text, whole))["model"] == asdict(whole.model)
    first, _ = parse(command)
    tables, _ = train.read(first, None, run.parent / "beside")
    settled, choices = settle(first, tables)
    assert {choice.name for choice in choices} == OPEN - SMALL.keys()
    assert declare(settled) == declare(replace(whole, trainer=settled.trainer))
    assert declare(whole) != declare(first)


def test_a_finished_run_with_options_left_open_is_known_by_its_command(finished, capsys):
    run, command = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train.main([*command, "--ckpt_path", "last"]) == 0
    assert "finished: nothing is left to do" in " ".join(capsys.readouterr().out.split())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _, _, whole, _ = read_again(run)
    assert is_finished(replace(whole, resume=True), read_published(run)[1]["rows"])


def test_another_value_of_what_was_chosen_is_another_run(finished, capsys):
    _, command = finished
    chosen = yaml.safe_load((finished[0] / "config.yaml").read_text())["model"]["patience"]
    assert train.main([*command, "--ckpt_path", "last", f"--model.patience={chosen + 1}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"model.patience is {chosen} there and {chosen + 1} here" in line


def test_a_finished_run_of_other_rows_is_another_run(finished, tmp_path, capsys):
    run, command = finished
    pd.read_parquet(run.parent / "interactions.parquet")[1:].to_parquet(tmp_path / "interactions.parquet")
    (run.parent / "interactions.parquet").rename(tmp_path / "whole")
    shutil.move(tmp_path / "interactions.parquet", run.parent)
    try:
        assert train.main([*command, "--ckpt_path", "last"]) == 2
    finally:
        shutil.move(tmp_path / "whole", run.parent / "interactions.parquet")
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds another run, finished: rows is" in line


def test_what_is_counted_is_what_the_tables_hold(tmp_path):
    rng = np.random.default_rng(0)
    events = pd.DataFrame({"user_id": rng.integers(9, size=83), "item_id": rng.integers(31, size=83)})
    events["datetime"] = np.arange(83) + 1_600_000_000
    config = DataConfig(features=FeaturesConfig(user={"age": "numeric"}, context={"hour": "hour_of_day"}))
    users = pd.DataFrame({"user_id": range(20), "age": range(20, 40)})
    frames = (events, users, pd.DataFrame({"item_id": range(50)}))
    counts = count_data(tables_from_frames(config, *frames)[0], config)
    sizes = [sum(events["user_id"] == user) for user in set(events["user_id"])]
    assert counts.n_events == 83
    assert counts.n_examples == counts.n_users == len(sizes)
    assert counts.n_items == len(set(events["item_id"]))
    assert counts.mean_history == pytest.approx(sum(sizes) / len(sizes))
    assert (counts.has_content, counts.has_context, counts.has_demographics) == (False, True, True)
    assert (counts.is_set, counts.is_repeated, counts.trains_on_windows) == (False, False, True)


def test_one_user_of_very_many_events_does_not_make_all_histories_long():
    robot = pd.DataFrame({"user_id": 9, "item_id": np.arange(5000) % 31})
    others = pd.DataFrame({"user_id": np.repeat(np.arange(8), 3), "item_id": np.arange(24)})
    events = pd.concat([robot, others]).assign(datetime=np.arange(5024) + 1_600_000_000)
    counts = count_data(tables_from_frames(DataConfig(), events)[0], DataConfig())
    assert counts.n_events == 5024
    assert counts.mean_history == pytest.approx((8 * 3 + 100 * 3) / 9)


def test_a_set_is_counted_by_its_pairs_and_by_the_parts_it_is_asked_in():
    items = {1: [1, 2, 3, 4, 5, 6, 7, 7, 7], 2: [1, 1], 3: [2, 3]}
    events = pd.DataFrame([(user, item) for user, row in items.items() for item in row], columns=["user_id", "item_id"])
    frames = (events, pd.DataFrame({"user_id": [1, 2, 3]}), pd.DataFrame({"item_id": range(1, 8)}))
    counts = count_data(tables_from_frames(DataConfig(), *frames)[0], DataConfig())
    assert (counts.n_events, counts.n_users, counts.mean_history) == (10, 3, pytest.approx(10 / 3))
    assert counts.n_examples == FOLDS + 1 + 2


@pytest.mark.parametrize(
    ("columns", "options", "is_set", "trains_on_windows"),
    [
        (["datetime"], {}, False, True),
        (["position"], {}, False, True),
        ([], {}, True, False),
        (["datetime"], {"ties": "simultaneous"}, False, False),
        (["datetime"], {"ties": "simultaneous", "repeats": "allow"}, False, False),
    ],
)
def test_windows_are_trained_on_only_where_every_event_is_a_target(columns, options, is_set, trains_on_windows):
    events = pd.DataFrame({"user_id": [1, 1, 2], "item_id": [3, 4, 3]})
    for name in columns:
        events[name] = [1_600_000_000, 1_600_000_060, 1_600_000_120]
    config = DataConfig(**options)
    frames = (events, pd.DataFrame({"user_id": [1, 2]}), pd.DataFrame({"item_id": [3, 4]}))
    counts = count_data(tables_from_frames(config, *frames)[0], config)
    assert (counts.is_set, counts.trains_on_windows) == (is_set, trains_on_windows)
    assert counts.is_repeated == (options.get("repeats") == "allow")


def test_what_was_chosen_is_printed_with_its_reason():
    console = Console(record=True, width=100)
    print_choices([Choice("dim", 37, "of the reason"), Choice("similarity", "cosine", "12 events a user")], console)
    lines = console.export_text().splitlines()
    assert "chosen from the data" in lines[0]
    assert [line.rstrip().split(maxsplit=2) for line in lines[1:]] == [
        ["model.dim", "37", "of the reason"],
        ["model.similarity", "cosine", "12 events a user"],
    ]


def test_nothing_is_printed_where_nothing_was_chosen():
    console = Console(record=True, width=100)
    print_choices([], console)
    assert console.export_text() == ""


def test_a_recipe_with_an_open_part_is_refused_naming_it():
    whole, _ = settle(Config(data=ORDERED), tables_from_frames(ORDERED, *make_tables(3, False))[0])
    assert recipe_of(whole.model).dim == whole.model.dim
    with pytest.raises(SchemaError, match=r"model\.patience is left open"):
        recipe_of(replace(whole.model, patience=None))
