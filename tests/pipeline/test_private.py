"""A private bundle is made of the noised statistics, and of nothing else of people."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pipeline.private
import pytest
import scipy.sparse as sp
from datamodules.config import DataConfig
from pipeline.config import Config, EvaluationConfig, PrivacyConfig
from pipeline.run import run
from privacy.item_item import release_statistics
from serve.bundle import Bundle
from serve.errors import SchemaError
from tests.pipeline.small_runs import N_ITEMS, ORDERED, SETS, config_of, make_tables

PRIVATE = PrivacyConfig(epsilon=4.0)


def run_private(folder, data, tables):
    config = config_of(folder, data, quick=True, privacy=PRIVATE, evaluation=EvaluationConfig([]))
    return run(config, tables)


def read_bytes(bundle):
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def release_fixed(matrix, account):
    """Release the same whoever is there."""
    account.rng = np.random.default_rng(5)
    fixed = sp.csr_array(np.random.default_rng(4).random((800, matrix.shape[1])) < 0.4)
    return release_statistics(fixed.astype(np.float64), account)


@pytest.mark.slow
def test_nothing_of_people_but_the_statistics_changes_a_byte(tmp_path, monkeypatch):
    data = ORDERED  # with times, and features of all sides
    monkeypatch.setattr(pipeline.private, "release_statistics", release_fixed)
    events, users, items = make_tables(data)
    whole = run_private(tmp_path / "whole", data, (events, users, items))
    left = events[~events["user_id"].isin(users["user_id"][::3])].iloc[5:]
    aged = users[1:].assign(gender="x")
    part = run_private(tmp_path / "part", data, (left, aged, items))
    assert len(left) < 0.7 * len(events)
    contents = read_bytes(whole.bundle)
    others = read_bytes(part.bundle)
    assert len(contents) > 8
    assert [name for name in contents if contents[name] != others[name]] == []


@pytest.mark.slow
def test_a_private_run_states_its_bound_and_answers(tmp_path):
    made = run_private(tmp_path / "run", SETS, make_tables(SETS))
    content = json.loads((tmp_path / "run" / "metrics.json").read_bytes())
    stated = content["privacy"]
    assert stated["epsilon"] == pytest.approx(4.0)
    assert stated["delta"] == PRIVATE.delta
    assert stated["unit"].startswith("a user")
    assert content["test"]["bascule"]
    bundle = Bundle.load(made.bundle)
    manifest = bundle.manifest
    assert manifest.facts.config["privacy"] == stated
    assert manifest.metrics == {}
    assert bundle.segments is None
    assert bundle.schema.user_features == ()
    assert bundle.schema.context_features == ()
    card = (made.bundle / "MODEL_CARD.md").read_text()
    assert "epsilon 4.0, delta 1e-05" in card


@pytest.mark.slow
def test_items_without_a_table_are_not_public(tmp_path):
    events, users, _ = make_tables(SETS)
    data = replace(SETS, features=replace(SETS.features, item={}))
    with pytest.raises(SchemaError, match="items"):
        run_private(tmp_path / "run", data, (events, users, None))


def test_noise_is_not_drawn_by_the_seed_of_the_configuration(monkeypatch):
    drawn = []
    rng = np.random.default_rng

    def note(*seeds):
        drawn.append(seeds)
        return rng(*seeds)

    class Stop(Exception):
        pass

    def stop(matrix, account):
        raise Stop

    events, _, items = make_tables(SETS)
    work = replace_work(events, items)
    monkeypatch.setattr(pipeline.private, "release_statistics", stop)
    monkeypatch.setattr(pipeline.private.np.random, "default_rng", note)
    with pytest.raises(Stop):
        pipeline.private.release(work)
    assert drawn == [()]


def replace_work(events, items):
    """The few parts of a work that a release reads."""
    from types import SimpleNamespace

    config = Config(data=SETS, privacy=PRIVATE, seed=7)
    split = SimpleNamespace(refit=events)
    return SimpleNamespace(config=config, split=split, tables=SimpleNamespace(items=items))


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0.0}, {"epsilon": 1e9}, {"epsilon": 1.0, "delta": 0.0}, {"delta": 0.5}],
)
def test_a_bound_that_bounds_nothing_is_refused(options):
    with pytest.raises(SchemaError, match=r"privacy\."):
        PrivacyConfig(**options)


def test_what_is_not_noised_is_refused(tmp_path):
    with pytest.raises(SchemaError, match="repeats"):
        Config(data=DataConfig(repeats="allow"), privacy=PRIVATE)
    with pytest.raises(SchemaError, match="previous"):
        Config(data=SETS, privacy=PRIVATE, previous=tmp_path)


def test_drawn_people_follow_released_popularity():
    popularity = np.array([0.0, 1.0, 5.0, 2.0])
    ids = np.array(["a", "b", "c", "d"])
    drawn = pipeline.private.draw_people(ids, popularity, pd.Series(["real"]), 0)
    counts = drawn["item_id"].value_counts()
    assert list(counts.index) == ["c", "d", "b"]
    assert not drawn.duplicated().any()
    assert "real" not in set(drawn["user_id"])


def test_real_rows_become_pairs_of_the_catalogue():
    events, _, items = make_tables(SETS)
    ids = np.sort(items["item_id"].to_numpy())[: N_ITEMS - 5]
    matrix = pipeline.private.read_public_matrix(events, ids)
    pairs = events[events["item_id"].isin(ids)][["user_id", "item_id"]].drop_duplicates()
    assert matrix.sum() == len(pairs)
    assert matrix.max() == 1
