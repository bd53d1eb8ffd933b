"""Runs that are killed, told to stop, or find the disk full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pipeline.run_folder
import train
from datamodules.config import DataConfig
from models.config import ModelConfig
from pipeline.run_folder import note_published
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.profiles import Profiles
from serve.recommender import Recommender
from tests.linear_bundle import SHOP, write_linear
from tests.linear_profiles import known_users, make_profiles
from tests.pipeline.killed_training import make_tables

ROOT = Path(__file__).parent.parent
N_KILLS = 12
LEFT = [".lock", "bundle", "config.yaml", "metrics.json", "profiles", "rejects.parquet"]
SECONDS = 10


def run_program(*words: str) -> dict:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("stopped") / "runs"
    return run_program("tests.pipeline.stopped_runs", "quick", str(folder), str(N_KILLS), "1")


def assert_whole(found: dict, seed: int) -> None:
    """One seed in everything that a reader sees, and nothing beside it."""
    assert found["reader"] == f"bundle {seed} profiles {seed}"
    assert found["at_once"] == found["reader"]
    assert found["metrics"] == [found["version"], seed]
    assert found["config"] == seed
    assert found["names"] == LEFT
    assert found["profiles"] == 4  # lock, manifest and two files


def assert_equal_chain(report: dict, n_kills: int) -> None:
    assert report["code"] == 0
    assert len(report["killed_after"]) == n_kills + 1
    assert report["left"] == []
    assert report["killed"] == report["whole"]


def assert_killed_publishing(found: list[dict], n_kills: int) -> None:
    *killed, last = found
    assert [one["code"] for one in killed] == [-9] * n_kills
    before = 0
    for one in killed:
        seed = one["metrics"][1]
        assert before <= seed <= one["number"]
        assert_whole(one, seed)
        before = seed
    assert 0 < len({one["version"] for one in killed}) < n_kills
    assert last["code"] == 0
    assert_whole(last, last["number"])


@pytest.mark.parametrize("protocol", ["ordered", "baskets"])
def test_a_training_killed_and_resumed_ends_with_the_same_weights_and_curves(report, protocol):
    chain = report[protocol]
    assert {"weights", "curve select", "curve final"} <= chain["whole"].keys()
    assert_equal_chain({**chain, "left": []}, 3)  # what stands in for the export ends without clearing


def test_a_run_killed_while_it_publishes_leaves_the_old_bundle_or_the_new_with_all_that_is_its_own(report):
    assert_killed_publishing(report["kills"], N_KILLS)


@pytest.mark.parametrize(
    ("phase", "code"),
    [
        ("reading", 143),
        ("training", 143),
        ("training, Ctrl-C", 130),
        ("within C", 143),
        ("preparing", 143),
        ("preparing, Ctrl-C", 130),
        ("profiles", 143),
    ],
)
def test_told_to_stop_a_run_publishes_nothing_and_goes_on_later(report, phase, code):
    found = report["signals"][phase]
    assert found["code"] == code
    assert found["seconds"] < SECONDS
    assert len(found["said"].splitlines()) == (0 if phase == "within C" else 1)
    assert_whole(found, 1)
    assert found["again"] == 0
    assert_whole(found["later"], 2)


def test_told_to_stop_in_the_instant_of_publishing_a_run_finishes(report):
    found = report["signals"]["publishing"]
    assert found["code"] == 0
    assert_whole(found, 2)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("config.yaml", 1),
        ("rejects.parquet", 1),
        ("manifest.json", 1),
        ("metrics.json", 1),
        ("users-", 1),
        ("published.json", 1),
        ("profiles/manifest.json", 2),  # the bundle is in its place, and readers find its profiles
    ],
)
def test_a_full_disk_is_named_and_leaves_a_whole_bundle(report, name, seed):
    found = report["full"][name]
    assert found["code"] == 2
    (line,) = found["said"].splitlines()
    assert "File too large" in line
    assert name in line
    assert_whole(found, seed)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["ordered", "baskets"])
def test_twenty_kills_in_a_chain_give_the_same_bundle(tmp_path, protocol):
    report = run_program("tests.pipeline.killed_training", str(tmp_path), protocol, "20", "run", "7")
    assert "bundle/manifest.json" in report["whole"]
    assert "metrics" in report["whole"]
    assert_equal_chain(report, 20)


@pytest.mark.slow
def test_fifty_kills_of_publishing(tmp_path):
    assert_killed_publishing(run_program("tests.pipeline.stopped_runs", "kills", str(tmp_path / "runs"), "50", "5"), 50)


CONFIG = ModelConfig(dim=8, max_epochs=3)


def make_config(out: Path, **options) -> train.Config:
    options = {"model": CONFIG, "trainer": {"enable_progress_bar": False}} | options
    return train.Config(DataConfig(), out=out, **options)


@pytest.fixture
def quick(monkeypatch) -> None:
    """Let a run be as quick as the linear bundle that stands in for it."""

    def produce(work, stage):
        facts = write_linear(stage, SHOP, 1)
        stage.seal(facts, {})
        recommender = Recommender(Bundle.load_staged(stage.path), make_profiles(SHOP, known_users(SHOP)))
        return facts, recommender, {"seed": work.config.seed}, {}, None

    monkeypatch.setattr(train, "prepare", lambda config, tables, stage: train.Work(config, None, {}, [], str(tables)))
    monkeypatch.setattr(train, "produce", produce)
    monkeypatch.setattr(train, "write_report", lambda *_: None)
    monkeypatch.setattr(train, "print_summary", lambda *_: None)


def test_a_finished_run_is_not_repeated_when_it_is_to_go_on(tmp_path, quick, monkeypatch, capsys):
    first = train.run(make_config(tmp_path, resume=True))
    monkeypatch.setattr(train, "produce", None)
    again = train.run(make_config(tmp_path, resume=True, trainer={"enable_progress_bar": True}))
    assert again.bundle == first.bundle
    assert again.metrics["seed"] == 0
    assert "nothing is left to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": False}, "holds a finished run"),
        ({"seed": 5}, "seed is 0 there and 5 here"),
        ({"model": ModelConfig(dim=8, max_epochs=4)}, r"model\.max_epochs is 3 there and 4 here"),
        ({"trainer": {"precision": "bf16-mixed"}}, 'trainer.precision is not set there and "bf16-mixed" here'),
    ],
)
def test_a_finished_run_of_anything_else_is_refused(tmp_path, quick, options, message):
    train.run(make_config(tmp_path))
    with pytest.raises(SchemaError, match=message):
        train.run(make_config(tmp_path, **{"resume": True, **options}))


@pytest.mark.parametrize(
    ("tables", "previous", "message"),
    [
        ("others", None, 'rows is "ours" there and "others" here'),
        ("ours", Path("old/bundle"), 'previous is "None" there and "old/bundle" here'),
    ],
)
def test_a_finished_run_of_other_tables_or_after_another_bundle_is_refused(tmp_path, quick, tables, previous, message):
    train.run(make_config(tmp_path), "ours")
    with pytest.raises(SchemaError, match=message):
        train.run(make_config(tmp_path, resume=True, previous=previous), tables)


@pytest.mark.parametrize(("options", "is_kept"), [({"resume": True}, True), ({}, False)])
def test_checkpoints_are_kept_for_a_run_that_goes_on_alone(tmp_path, options, is_kept):
    for name in ("checkpoints/select", "logs/select"):
        (tmp_path / name).mkdir(parents=True)
    assert not run_state.is_finished(make_config(tmp_path, **options), "")
    assert (tmp_path / "checkpoints" / "select").exists() == is_kept
    assert (tmp_path / "logs" / "select").exists() == is_kept


def test_a_finished_run_that_is_overwritten_begins_anew(tmp_path, quick):
    train.run(make_config(tmp_path))
    (tmp_path / "checkpoints" / "select").mkdir()
    assert not run_state.is_finished(make_config(tmp_path, resume=True, overwrite=True), "")
    assert not (tmp_path / "checkpoints").exists()


def test_an_overwriting_run_that_was_interrupted_goes_on(tmp_path, quick):
    train.run(make_config(tmp_path))
    note_published(tmp_path, {}, "of-another")
    assert not run_state.is_finished(make_config(tmp_path, resume=True, overwrite=True), "")
    assert (tmp_path / "checkpoints").exists()
    with pytest.raises(SchemaError, match="add --overwrite"):
        run_state.is_finished(make_config(tmp_path, resume=True), "")


def test_a_training_that_diverges_ends_with_one_line(tmp_path, monkeypatch, capsys):
    model = ModelConfig(dim=8, max_epochs=3, warmup_steps=1, learning_rate=1e30)
    config = make_config(tmp_path, model=model)
    monkeypatch.setattr(train, "parse", lambda argv: (config, "seed: 0"))
    monkeypatch.setattr(train, "read_tables", lambda data, _: train.tables_from_frames(data, *make_tables(False)))
    assert train.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "in epoch 1, step " in line
    assert "lower --model.learning_rate" in line
    assert not (tmp_path / "bundle").exists()


def test_two_runs_do_not_write_into_one_folder(tmp_path, monkeypatch, capsys):
    config = make_config(tmp_path)
    monkeypatch.setattr(train, "parse", lambda argv: (config, "seed: 0"))
    codes = []
    monkeypatch.setattr(train, "prepare", lambda *_: codes.append(train.main([])) or sys.exit(5))
    with pytest.raises(SystemExit):
        train.run(config)
    assert codes == [2]
    assert "another run writes into" in capsys.readouterr().err


def test_rejects_that_stop_a_run_can_be_looked_at(tmp_path, monkeypatch):
    def refuse(rejects, rate):
        raise SchemaError("too many")

    monkeypatch.setattr(train, "check_reject_rates", refuse)
    monkeypatch.setattr(train, "write_rejects", lambda rejects, path: path.write_text("list"))
    (tmp_path / "beside").mkdir()
    with pytest.raises(SchemaError):
        train.keep_rejects(SimpleNamespace(), make_config(tmp_path), tmp_path / "beside")
    assert (tmp_path / "rejects.parquet").read_text() == "list"


def test_profiles_beside_a_published_run_are_read(tmp_path, quick):
    run = train.run(make_config(tmp_path))
    assert Profiles.load(tmp_path / "profiles").user_ids.tolist() == list(known_users(SHOP))
    assert len(Recommender.load(run.bundle).profiles) == len(known_users(SHOP))
