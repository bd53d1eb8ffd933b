"""Whole runs on small tables: what is written, what is measured, what is served, and that a seed repeats it."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import train
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from models.config import ModelConfig
from pipeline.config import TuneConfig
from serve import Recommender
from serve.bundle import verify
from serve.errors import SchemaError
from serve.index import Neighbours
from serve.recommender import golden_answer
from tests.models.tiny_towers import one_thread

ROOT = Path(__file__).parent.parent
DAY = 86_400
START = 1_600_000_000
N_USERS, N_ITEMS, N_TASTES = 60, 35, 5
QUIET = {"enable_progress_bar": False}
SMALL = ModelConfig(dim=8, affinity_dim=4, max_epochs=3, batch_size=16, warmup_steps=2, learning_rate=0.01)


def make_tables(seed, simultaneous):
    """Users keep to the items of one taste; baskets hold several items at one time."""
    rng = np.random.default_rng(seed)
    users = pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(N_USERS)]})
    users["gender"] = rng.choice(np.array(["f", "m", None], dtype=object), N_USERS)
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 100, "title": [f"item {i}" for i in range(N_ITEMS)]})
    items["category"] = [f"c{i % N_TASTES}" for i in range(N_ITEMS)]
    rows = []
    for user in range(N_USERS):
        own = np.flatnonzero(np.arange(N_ITEMS) % N_TASTES == user % N_TASTES)
        if simultaneous:
            for day in np.sort(rng.choice(300, 12, replace=False)):
                basket = rng.choice(own, 3, replace=False)
                rows += [(user, item, START + int(day) * DAY, 1 + int(rng.integers(3))) for item in basket]
        else:
            times = START + np.sort(rng.integers(0, 300 * DAY, len(own)))
            rows += [(user, item, int(time), 3) for item, time in zip(rng.permutation(own), times, strict=True)]
    events = pd.DataFrame(rows, columns=["user", "item", "datetime", "weight"])
    events.insert(0, "user_id", users["user_id"].to_numpy()[events.pop("user")])
    events.insert(1, "item_id", items["item_id"].to_numpy()[events.pop("item")])
    return events, users, items


FEATURES = FeaturesConfig(user={"gender": "categorical"}, item={"category": "categorical"})
BASKETS = DataConfig(
    features=FEATURES,
    split=SplitConfig("time", at="2021-06-01"),
    ties="simultaneous",
    repeats="allow",
)
ORDERED = DataConfig(features=replace(FEATURES, context={"hour": "hour_of_day"}))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def make_run(folder, data, seed=0):
    config = train.Config(data, SMALL, QUIET, folder, seed)
    return train.run(config, make_tables(3, data.ties == "simultaneous"))


@pytest.fixture(scope="module")
def baskets(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("baskets") / "run", BASKETS)


@pytest.fixture(scope="module")
def ordered(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("ordered") / "run", ORDERED)


@pytest.fixture(params=["baskets", "ordered"])
def finished(request):
    return request.getfixturevalue(request.param)


def test_a_run_leaves_what_it_promises(finished):
    folder = finished.bundle.parent
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"bundle", "profiles", "metrics.json", "report.html", "rejects.parquet", "checkpoints", "logs"}
    metrics = json.loads((folder / "metrics.json").read_text())
    for view, figures in metrics["test"]["bascule"].items():
        low, high = figures["NDCG@10_ci95"]
        assert low <= figures["NDCG@10"] <= high, view
    assert {"popularity", "itemknn", "ease"} <= metrics["paired"].keys()
    assert metrics["timing"]["total"] > 0
    assert not list(folder.glob(".bundle-*"))


def test_groups_which_may_be_a_few_people_are_in_no_bundle(finished):
    metrics = json.loads((finished.bundle.parent / "metrics.json").read_text())
    published = json.loads((finished.bundle / "manifest.json").read_text())["metrics"]
    assert "gender" in next(iter(metrics["slices"].values()))
    assert "slices" not in published
    assert published["test"] == metrics["test"]


def test_profiles_hold_what_was_before_the_test(finished, baskets):
    data = BASKETS if finished is baskets else ORDERED
    events, users, _ = make_tables(3, data.ties == "simultaneous")
    is_last = ~events.duplicated("user_id", keep="last")
    before = events[events["datetime"] < 1_622_505_600] if data is BASKETS else events[~is_last]
    assert 0 < len(before) < len(events)
    profiles = Recommender.load(finished.bundle).profiles
    for user in users["user_id"]:
        expected = before.loc[before["user_id"] == user, "item_id"]
        assert sorted(profiles.get(user).history.item_id) == sorted(expected)


def test_views_follow_the_repeat_policy(baskets, ordered):
    assert set(baskets.metrics["test"]["bascule"]) == {"all", "repeat", "novel"}
    assert set(ordered.metrics["test"]["bascule"]) == {"novel"}
    assert "with_context" in ordered.metrics


def test_the_taste_is_learned(ordered):
    test = ordered.metrics["test"]
    assert test["bascule"]["novel"]["NDCG@10"] > 2 * test["popularity"]["novel"]["NDCG@10"]


def test_verify_passes(finished):
    lines = verify(finished.bundle, lambda bundle: golden_answer(Recommender(bundle)))
    assert any("golden: 32 requests" in line for line in lines)


def test_the_same_seed_gives_the_same_bundle(baskets, tmp_path):
    again = make_run(tmp_path / "run", BASKETS)
    assert again.metrics == baskets.metrics
    assert torch.are_deterministic_algorithms_enabled()  # with several threads it takes this too
    versions = [Recommender.load(run.bundle).bundle.manifest.version for run in (baskets, again)]
    assert versions[0] == versions[1]
    for name in (
        "item_neighbour_offsets.npy",
        "item_neighbours.npy",
        "item_vectors.npy",
        "user_tower.onnx",
        "item_tower.onnx",
        "items.faiss",
        "golden.json",
        "MODEL_CARD.md",
        "manifest.json",
    ):
        assert (baskets.bundle / name).read_bytes() == (again.bundle / name).read_bytes(), name


def inline(profiles, position):
    """Write the user's profile as a request."""
    profile = profiles.get(profiles.user_ids[position])
    columns = profile.history.columns()
    times = columns["datetime"].astype("datetime64[s]").astype(str)
    history = [
        {"item_id": int(item), "datetime": f"{time}Z", "weight": float(weight)}
        for item, time, weight in zip(columns["item_id"], times, columns["weight"], strict=True)
    ]
    return {"history": history, "features": dict(profile.features)}


def test_an_unseen_user_with_the_same_past_gets_the_same_vector(finished):
    recommender = Recommender.load(finished.bundle)
    ids = recommender.profiles.user_ids.tolist()
    known = recommender.encode_users([{"user_id": user} for user in ids])
    unseen = recommender.encode_users(
        [{"user_id": f"new {i}", **inline(recommender.profiles, i)} for i in range(len(ids))]
    )
    assert np.abs(known - unseen).max() <= 1e-6


def add_neighbours(scores: np.ndarray, neighbours: Neighbours, history_rows: np.ndarray) -> None:
    """Add what the items of a history add to the scores (N,), one by one."""
    counts = np.exp(-neighbours.decay * np.arange(len(history_rows))[::-1])
    for count, row in zip(counts, history_rows, strict=True):
        part = slice(neighbours.offsets[row], neighbours.offsets[row + 1])
        scores[neighbours.rows[part]] += count / counts.sum() ** 0.5 * neighbours.weights[part]


def test_lists_are_the_best_of_the_products_and_what_neighbours_add(ordered):
    recommender = Recommender.load(ordered.bundle)
    users = recommender.profiles.user_ids.tolist()
    answers = recommender.recommend([{"user_id": user} for user in users], k=7)
    scores = recommender.encode_users([{"user_id": user} for user in users]) @ recommender.bundle.vectors.T
    for row, user in enumerate(users):
        owned = recommender.item_rows(recommender.profiles.get(user).history.item_id.tolist())
        add_neighbours(scores[row], recommender.bundle.neighbours, owned)
        scores[row, owned] = -np.inf
        best = np.sort(scores[row])[::-1][:7]
        np.testing.assert_allclose(answers.of(row).score, best, atol=2e-5)
        assert not set(answers.of(row).item_id) & set(recommender.profiles.get(user).history.item_id)


def test_a_finished_run_is_not_written_over(ordered):
    with pytest.raises(SchemaError, match="finished run"):
        make_run(ordered.bundle.parent, ORDERED)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.dmi", "3"], "did you mean 'dim'"),
        (["--data.ties", "sometimes"], "allowed: ordered, simultaneous"),
        (["--data.interactions.path", "nowhere.csv"], "nowhere.csv does not exist"),
        (["--data.split.kind", "time", "--data.split.at", "2040-01-01"], "2040"),
        (["--ckpt_path", "first"], "allowed: last"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train.main(["--out", str(tmp_path / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "run" / "bundle").exists()


def test_a_call_that_is_no_run_of_tables_is_refused_in_one_line(tmp_path):
    events, users, items = make_tables(0, simultaneous=False)
    config = train.Config(DataConfig(), SMALL, QUIET, tmp_path / "run")
    with pytest.raises(SchemaError, match="tables is a DataFrame; allowed: a tuple of interactions, users and items"):
        train.run(config, events)
    with pytest.raises(SchemaError, match="interactions is empty"):  # a list of tables is one of them
        train.run(config, [events.iloc[:0], users, items])
    with pytest.raises(SchemaError, match=r"tune\.trials is 3 and this is a run"):
        train.run(replace(config, tune=TuneConfig(3)), (events, users, items))


def test_the_configuration_is_written_and_read_again(tmp_path):
    command = [sys.executable, str(ROOT / "train.py"), "--out", str(tmp_path), "--model.dim", "24", "--print_config"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "printed.yaml"
    path.write_text(done.stdout)
    config, text = train.parse(["--config", str(path)])
    assert config.model.dim == 24
    assert config.data.repeats == "allow"
    assert "dim: 24" in text
