"""A run takes the place of nothing in its folder that no run left there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from datamodules.config import DataConfig
from models.config import ModelConfig
from pipeline.config import Config
from pipeline.run_folder import (
    declare,
    declare_finished,
    is_finished,
    note_published,
    read_published,
    refuse_replacing,
)
from serve.errors import SchemaError

from pipeline import run_folder


def config_of(out: Path, **options) -> Config:
    return Config(DataConfig(), ModelConfig(dim=8), out=out, **options)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "report.html"])
def test_a_folder_that_holds_somebodys_file_and_no_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(
        SchemaError,
        match=f"holds no run, but '{name}', which a run would replace: choose another --out",
    ):
        refuse_replacing(config_of(tmp_path))
    refuse_replacing(config_of(tmp_path, overwrite=True))


@pytest.mark.parametrize("deeper", ["", "run"])
def test_a_file_is_no_folder_for_a_run_and_stays(tmp_path, deeper):
    path = tmp_path / "events.csv"
    path.write_text("user_id,item_id")
    with pytest.raises(SchemaError, match="choose a folder"):
        refuse_replacing(config_of(path / deeper, overwrite=True))
    assert path.read_text() == "user_id,item_id"


@pytest.mark.parametrize("trace", ["checkpoints/select", "checkpoints/final", None])
def test_what_an_earlier_run_left_is_replaced(tmp_path, trace):
    (tmp_path / "config.yaml").write_text("of a run")
    if trace is None:
        note_published(tmp_path, {}, "of a bundle that was removed")
    else:
        (tmp_path / trace).mkdir(parents=True)
    refuse_replacing(config_of(tmp_path))


def test_checkpoints_and_logs_of_somebody_else_stay(tmp_path):
    mine = [
        tmp_path / folder / name
        for folder in ("checkpoints", "logs")
        for name in ("best.pt", "other/last.ckpt")
    ]
    of_run = [
        tmp_path / folder / stage / "x"
        for folder in ("checkpoints", "logs")
        for stage in ("select", "final")
    ]
    for path in (*mine, *of_run):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("content")
    note_published(tmp_path, {}, "of a bundle that was removed")
    assert not is_finished(config_of(tmp_path), "")
    assert all(path.exists() for path in mine)
    assert not any(path.parent.exists() for path in of_run)
    assert not (tmp_path / "checkpoints" / "published.json").exists()


@pytest.mark.parametrize(("there", "stays"), [("of this run", False), ("of the one before", True)])
def test_a_finished_run_begins_anew_under_overwrite_and_an_interrupted_one_goes_on(
    tmp_path, monkeypatch, there, stays
):
    """Both at once, as where whatever restarts a run always says so."""
    (tmp_path / "bundle").mkdir()
    checkpoint = tmp_path / "checkpoints" / "select" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("content")
    note_published(tmp_path, {}, "of this run")
    monkeypatch.setattr(run_folder, "read_version", lambda _: there)
    assert not is_finished(config_of(tmp_path, overwrite=True, resume=True), "")
    assert checkpoint.exists() == stays


@pytest.mark.parametrize(
    ("there", "is_refused"), [("of this run", False), ("of the one before", True)]
)
def test_a_run_does_not_go_on_beside_the_bundle_of_the_one_before(
    tmp_path, monkeypatch, there, is_refused
):
    (tmp_path / "bundle").mkdir()
    note_published(tmp_path, {}, "of this run")
    monkeypatch.setattr(run_folder, "read_version", lambda _: there)
    with (
        pytest.raises(SchemaError, match=r"holds a finished run: .*add --overwrite")
        if is_refused
        else nullcontext()
    ):
        refuse_replacing(config_of(tmp_path, resume=True))
    with pytest.raises(SchemaError, match=r"holds a finished run: .*add --overwrite"):
        refuse_replacing(config_of(tmp_path))


@pytest.mark.parametrize(
    "name", ["enable_progress_bar", "enable_model_summary", "log_every_n_steps"]
)
def test_what_is_seen_of_a_training_makes_no_other_run(tmp_path, name):
    assert declare(config_of(tmp_path, trainer={name: 7})) == declare(config_of(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 3},
        {"trainer": {"precision": "bf16-mixed"}},
        {"previous": Path("runs/old/bundle")},
    ],
)
def test_what_a_run_is_made_of_makes_another_run(tmp_path, options):
    assert declare_finished(config_of(tmp_path, **options), "rows") != declare_finished(
        config_of(tmp_path), "rows"
    )
    assert declare_finished(config_of(tmp_path), "others") != declare_finished(
        config_of(tmp_path), "rows"
    )


def test_a_note_of_what_was_published_is_read(tmp_path):
    assert read_published(tmp_path) == ("", {})
    note_published(tmp_path, {"seed": 3}, "abc123")
    assert read_published(tmp_path) == ("abc123", {"seed": 3})


def test_an_interrupted_run_is_continued_or_begun_anew_only_as_it_is_told(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "select" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("content")
    with pytest.raises(SchemaError, match=r"--ckpt_path last.*--overwrite"):
        refuse_replacing(config_of(tmp_path))
    assert checkpoint.exists()
    refuse_replacing(config_of(tmp_path, resume=True))
    refuse_replacing(config_of(tmp_path, overwrite=True))
    note_published(tmp_path, {}, "of a bundle that was removed")
    refuse_replacing(config_of(tmp_path))
