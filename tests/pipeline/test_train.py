"""Whole runs on small tables: what is written, measured and served, and that a seed repeats it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import train
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig, TargetsConfig
from pipeline.config import EvaluationConfig
from pipeline.run_folder import Work
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.index import Neighbours
from serve.recommender import Recommender
from service.forget import add_to_erasure_list
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import (
    BASKETS,
    N_USERS,
    ORDERED,
    QUIET,
    SETS,
    config_of,
    make_run,
    make_tables,
    trace_exports,
)
from tests.served import ROOT

from bascule import commands
from pipeline import run, stages, tables

DATA = {"baskets": BASKETS, "ordered": ORDERED, "sets": SETS}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, run.Run]:
    folder = tmp_path_factory.mktemp("runs")
    compiled = {name: make_run(folder / name, DATA[name]) for name in ("baskets", "ordered")}
    with pytest.MonkeyPatch.context() as patch:
        trace_exports(patch)
        return {**compiled, "sets": make_run(folder / "sets", DATA["sets"])}


@pytest.fixture(params=DATA)
def finished(request, runs):
    return runs[request.param]


def fit(data: DataConfig, frames, folder, **options) -> stages.Trained:
    """Train as a run does, without export and evaluation."""
    folder.mkdir(parents=True, exist_ok=True)
    work = tables.prepare(config_of(folder, data, **options), frames, folder)
    return stages.train(work, {})


def test_a_run_leaves_what_it_promises(finished, capsys):
    folder = finished.bundle.parent
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {
        "bundle",
        "profiles",
        "metrics.json",
        "report.html",
        "rejects.parquet",
        "checkpoints",
        "logs",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    for view, figures in metrics["test"]["bascule"].items():
        low, high = figures["NDCG@10_ci95"]
        assert low <= figures["NDCG@10"] <= high, view
    assert {"popularity", "itemknn", "ease"} <= metrics["paired"].keys()
    assert {"training", "total", "targets_per_second", "answer_ms"} <= metrics["timing"].keys()
    assert {
        "epochs",
        "continued_epochs",
        "temperature",
        "chosen",
        "refinement",
    } <= metrics["training"].keys()
    assert (
        bool(metrics["snapshot"]) is Bundle.load(finished.bundle).schema.has_datetime
    )  # what drift compares with
    published = json.loads((finished.bundle / "manifest.json").read_text())["metrics"]
    assert "slices" not in published  # groups may be a few people
    assert published["test"] == metrics["test"]
    assert commands.main(["verify", "--bundle", str(finished.bundle)]) == 0
    assert "golden: 32 requests" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["baskets", "ordered"])
def test_published_profiles_hold_every_event_and_nothing_owned_is_listed(runs, name):
    events, users, _ = make_tables(DATA[name])
    recommender = Recommender.load(runs[name].bundle)
    for user in users["user_id"]:
        taken = events.loc[events["user_id"] == user, "item_id"]
        history = recommender.profiles.get(user).history
        assert sorted(history.item_id) == sorted(taken)
        if name == "ordered":
            (answer,) = recommender.recommend([{"user_id": user}], k=10)
            assert len(answer.item_id) > 0
            assert not set(answer.item_id) & set(taken)


def test_views_follow_the_repeat_policy_and_the_taste_is_learned(runs):
    assert set(runs["baskets"].metrics["test"]["bascule"]) == {"all", "repeat", "novel"}
    for name in ("ordered", "sets"):
        test = runs[name].metrics["test"]
        assert set(test["bascule"]) == {"novel"}
        assert "with_context" in runs[name].metrics
        assert test["bascule"]["novel"]["NDCG@10"] > 2 * test["popularity"]["novel"]["NDCG@10"]


def test_an_unseen_user_with_the_same_past_gets_the_same_vector(finished):
    recommender = Recommender.load(finished.bundle)
    has_times, requests = recommender.bundle.schema.has_datetime, []
    for user in recommender.profiles.user_ids:
        profile = recommender.profiles.get(user)
        columns = profile.history.columns()
        history = [{"item_id": int(item)} for item in columns["item_id"]]
        if has_times:
            times = columns["datetime"].astype("datetime64[s]").astype(str)
            for one, time, weight in zip(history, times, columns["weight"], strict=True):
                one |= {"datetime": f"{time}Z", "weight": float(weight)}
        requests.append(
            {
                "user_id": f"new {user}",
                "history": history,
                "features": dict(profile.features),
            }
        )
    known = recommender.encode_users(
        [{"user_id": user} for user in recommender.profiles.user_ids.tolist()]
    )
    assert np.abs(known - recommender.encode_users(requests)).max() <= 1e-6


def add_neighbours(scores: np.ndarray, neighbours: Neighbours, history_rows: np.ndarray) -> None:
    """Add what the items of a history add to the scores (N,), one by one, and what is added for everybody."""
    counts = np.exp(-neighbours.decay * np.arange(len(history_rows))[::-1])
    for count, row in zip(counts, history_rows, strict=True):
        part = slice(neighbours.offsets[row], neighbours.offsets[row + 1])
        scores[neighbours.rows[part]] += count / counts.sum() ** 0.5 * neighbours.weights[part]
    of_all = slice(neighbours.offsets[-1], None)
    scores[neighbours.rows[of_all]] += neighbours.weights[of_all]


def test_lists_are_the_best_of_the_products_and_the_item_item_weights(runs):
    recommender = Recommender.load(runs["ordered"].bundle)
    users = recommender.profiles.user_ids.tolist()
    answers = recommender.recommend([{"user_id": user} for user in users], k=7)
    scores = (
        recommender.encode_users([{"user_id": user} for user in users])
        @ recommender.bundle.vectors.T
    )
    assert len(users) == N_USERS
    for row, user in enumerate(users):
        owned = recommender.catalogue.item_ids.require(
            recommender.profiles.get(user).history.item_id.tolist()
        )
        add_neighbours(scores[row], recommender.bundle.neighbours, owned)
        scores[row, owned] = -np.inf
        best = np.sort(scores[row])[::-1][:7]
        np.testing.assert_allclose(answers.of(row).score, best, rtol=1e-6, atol=2e-5)


def test_a_served_set_has_no_order_and_a_new_item_is_placed_by_its_content(runs):
    recommender = Recommender.load(runs["sets"].bundle)
    history = [{"item_id": item} for item in (100, 117, 105, 131, 110)]
    asked = [{"history": part, "context": {"place": "home"}} for part in (history, history[::-1])]
    first, second = recommender.encode_users(asked)
    assert np.abs(first - second).max() <= 1e-6
    elsewhere = recommender.encode_users([{"history": history, "context": {"place": "work"}}])
    assert np.abs(first - elsewhere).max() > 0.01 * np.abs(first).max()
    one, other, again = recommender.encode_items(
        [{"category": name} for name in ("c0", "c1", "c0")]
    )
    assert np.abs(one - again).max() <= 1e-6
    assert np.abs(one - other).max() > 0.01


def shuffle(frames: tuple[pd.DataFrame, ...]) -> tuple[pd.DataFrame, ...]:
    return tuple(
        frame.sample(frac=1, random_state=seed, ignore_index=True)
        for seed, frame in enumerate(frames)
    )


@pytest.mark.parametrize("name", ["ordered", pytest.param("baskets", marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_bundle_whatever_the_order_of_rows(runs, tmp_path, name):
    again = run.run(config_of(tmp_path / "run", DATA[name]), shuffle(make_tables(DATA[name])))
    assert again.metrics == runs[name].metrics
    assert torch.are_deterministic_algorithms_enabled()  # with several threads it takes this too
    for path in runs[name].bundle.iterdir():
        assert path.read_bytes() == (again.bundle / path.name).read_bytes(), path.name


SLOW_NAMES = ("baskets", "sets", "baskets once")


@pytest.mark.parametrize(
    "name", ["ordered", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NAMES)]
)
def test_a_quick_run_finds_the_tastes_says_what_it_is_and_repeats_itself(tmp_path, capsys, name):
    data = replace(ORDERED, ties="simultaneous") if name == "baskets once" else DATA[name]
    quick, again = (make_run(tmp_path / folder, data, quick=True, seed=2) for folder in ("a", "b"))
    assert "quick: towers were trained for" in capsys.readouterr().out
    for path in quick.bundle.iterdir():
        assert path.read_bytes() == (again.bundle / path.name).read_bytes(), path.name
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert metrics["quick"] is True
    assert "| Quick | true" in (quick.bundle / "MODEL_CARD.md").read_text()
    novel = {model: views["novel"]["NDCG@10"] for model, views in metrics["test"].items()}
    assert novel["bascule"] > 1.5 * novel["popularity"]
    assert commands.main(["verify", "--bundle", str(quick.bundle)]) == 0
    served = Recommender.load(quick.bundle)
    known, unknown = served.recommend([{"user_id": "u003"}, {}], 5)
    assert len(known.item_id) == len(unknown.item_id) == 5


def test_the_estimate_of_a_run_is_printed_once_and_changes_no_weight(tmp_path, capsys):
    timed = fit(ORDERED, make_tables(ORDERED), tmp_path / "a", trainer={})
    assert capsys.readouterr().out.count("minutes on this machine") == 1
    untimed = fit(ORDERED, make_tables(ORDERED), tmp_path / "b", trainer=QUIET)
    assert "minutes" not in capsys.readouterr().out
    expected = untimed.towers.state_dict()
    for name, weights in timed.towers.state_dict().items():
        assert torch.equal(weights, expected[name]), name


@pytest.mark.parametrize("name", ["baskets", "sets"])
def test_rows_in_another_order_give_the_same_towers(name, tmp_path):
    frames = make_tables(DATA[name])
    weights, again = (
        fit(DATA[name], tables, tmp_path / folder)
        for tables, folder in ((frames, "a"), (shuffle(frames), "b"))
    )
    assert again.data.schema == weights.data.schema
    expected = weights.towers.state_dict()
    assert all(
        torch.equal(expected[key], value) for key, value in again.towers.state_dict().items()
    )


@pytest.mark.parametrize("protocol", ["baskets", "ordered"])
def test_bfloat16_trains_and_leaves_float32(protocol, tmp_path):
    trained = fit(
        DATA[protocol],
        make_tables(DATA[protocol]),
        tmp_path,
        trainer={**QUIET, "precision": "bf16-mixed"},
    )
    assert {parameter.dtype for parameter in trained.towers.parameters()} == {torch.float32}
    assert {parameter.device.type for parameter in trained.towers.parameters()} == {"cpu"}


def test_disliked_items_are_evidence_and_no_targets(tmp_path):
    events, users, items = make_tables(ORDERED)
    events["weight"] = np.where(np.arange(len(events)) % 3 == 0, 1.0, 5.0)
    data = fit(
        replace(ORDERED, targets=TargetsConfig(min_weight=4)),
        (events, users, items),
        tmp_path,
    ).data
    disliked = set(map(tuple, events[events["weight"] < 4][["user_id", "item_id"]].to_numpy()))
    ids, asked, seen = data.catalogue.item_ids, set(), set()
    for plan in data.examples.plan(0, 0):
        batch = data.examples[plan]
        for b, user in enumerate(data.sequences.user_ids[plan.users]):
            rows, is_target = batch.history_rows[b].numpy(), batch.is_target[b].numpy()
            asked |= {(user, ids[row]) for row in rows[is_target]}
            seen |= {(user, ids[row]) for row in rows[: batch.arrays["history_lengths"][b]]}
    assert asked
    assert not asked & disliked
    assert seen & disliked


def test_a_later_run_keeps_the_codes_of_an_earlier_one_and_leaves_out_whom_it_forgot(
    runs, tmp_path
):
    events, users, items = make_tables(SETS)
    items["category"] = items["category"].replace("c0", "a new one")
    before = Bundle.load(runs["sets"].bundle).schema.item_features[0].vocabulary
    add_to_erasure_list(runs["sets"].bundle.parent, ["u007"])
    trained = fit(SETS, (events, users, items), tmp_path, previous=runs["sets"].bundle)
    assert "c0" in before
    assert trained.data.schema.item_features[0].vocabulary == (*before, "a new one")
    assert "u007" not in trained.data.sequences.user_ids
    assert "u008" in trained.data.sequences.user_ids


def test_a_finished_run_is_not_written_over_nor_repeated(runs, tmp_path, capsys, monkeypatch):
    folder = runs["ordered"].bundle.parent
    with pytest.raises(SchemaError, match="finished run"):
        make_run(folder, ORDERED)
    with pytest.raises(SchemaError, match="seed is 0 there and 5 here"):
        make_run(folder, ORDERED, resume=True, seed=5)
    monkeypatch.setattr(run, "produce", None)
    again = make_run(folder, ORDERED, resume=True)
    assert again.bundle == runs["ordered"].bundle
    assert "nothing is left to do" in " ".join(capsys.readouterr().out.split())


def test_a_call_that_is_no_run_of_tables_is_refused(tmp_path):
    events, users, items = make_tables(ORDERED)
    config = config_of(tmp_path / "run", ORDERED)
    with pytest.raises(SchemaError, match="empty"):
        run.run(config, (events.iloc[:0], users, items))
    strangers = events.assign(item_id=events["item_id"] + 10_000)
    with pytest.raises(SchemaError):  # before anything is trained
        run.run(config, (strangers, users, items))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FloatingPointError("the loss is nan"), "the loss is nan"),
        (MemoryError("no room"), "lower --model.batch_size"),
        (
            OSError(28, "No space left on device", "metrics.json"),
            "metrics.json: No space left on device",
        ),
    ],
)
def test_what_ends_a_run_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, error, text):
    def fail(*_):
        raise error

    monkeypatch.setattr(run, "produce", fail)
    monkeypatch.setattr(
        train,
        "parse",
        lambda argv, program: (config_of(tmp_path / "run", ORDERED), "seed: 0"),
    )
    monkeypatch.setattr(
        run,
        "prepare",
        lambda config, tables, beside: Work(config, None, None, None, {}, [], ""),
    )
    assert train.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not (tmp_path / "run" / "bundle").exists()


def test_an_item_that_the_items_table_lacks_is_read_and_not_recommended(tmp_path, monkeypatch):
    trace_exports(monkeypatch)
    events, users, items = make_tables(ORDERED)
    lacking = int(items["item_id"].iloc[7])
    options = {"evaluation": EvaluationConfig(["popularity"])}
    config = config_of(tmp_path / "run", ORDERED, **options)
    done = run.run(config, (events, users, items[items["item_id"] != lacking]))
    recommender = Recommender.load(done.bundle)
    answer = recommender.recommend([{}], len(items), filter_viewed=False)
    others = set(items["item_id"]) - {lacking}
    assert set(answer.item_id) == others
    assert recommender.recommend([{"history": [{"item_id": lacking}]}], 3).unknown_items == 0

    test = done.work.split.test
    n_missed = int((test["item_id"] == lacking).sum())
    assert n_missed > 0
    figures = done.metrics["test"]
    for model in ("bascule", "popularity"):
        assert figures[model]["novel"]["targets_outside_catalogue"] == n_missed


def test_baskets_that_are_numbered_need_no_dates(tmp_path, monkeypatch):
    trace_exports(monkeypatch)
    data = replace(BASKETS, split=SplitConfig(), features=FeaturesConfig())
    events, _, _ = make_tables(BASKETS)
    events["position"] = events.groupby("user_id")["datetime"].rank("dense").astype(int)
    events = events.drop(columns="datetime").drop_duplicates(["user_id", "item_id", "position"])
    config = config_of(tmp_path / "run", data, evaluation=EvaluationConfig(["popularity"]))
    done = run.run(config, (events, None, None))
    test = done.work.split.test
    dates = (events["position"] * 86400).to_numpy()
    assert sorted(done.work.tables.interactions["datetime"]) == sorted(dates)
    last = events["position"] == events.groupby("user_id")["position"].transform("max")
    assert len(test) == last.sum() > N_USERS  # whole baskets
    assert done.metrics["protocol"]["n_requests"] == N_USERS
    recommender = Recommender.load(done.bundle)
    assert len(recommender.recommend([{"user_id": "u001"}], 5).item_id) == 5
    assert recommender.bundle.schema.longest_gap == 86400  # nobody leaves out a number


def test_two_runs_do_not_write_into_one_folder(tmp_path, monkeypatch, capsys):
    config, codes = config_of(tmp_path, ORDERED), []
    monkeypatch.setattr(train, "parse", lambda argv, program: (config, "seed: 0"))
    monkeypatch.setattr(run, "prepare", lambda *_: codes.append(train.main([])) or os._exit)
    with pytest.raises((TypeError, AttributeError)):
        run.run(config)
    assert codes == [2]
    assert "another process writes here" in capsys.readouterr().err


def test_too_many_rejects_stop_a_run_and_are_left_in_its_folder(tmp_path):
    events, users, items = make_tables(ORDERED)
    events.loc[events.index[:200], "item_id"] = pd.NA
    with pytest.raises(SchemaError):
        run.run(config_of(tmp_path / "run", ORDERED), (events, users, items))
    rejects = pd.read_parquet(tmp_path / "run" / "rejects.parquet")
    assert len(rejects) == 200


@pytest.mark.slow
def test_a_failing_audit_publishes_nothing_and_the_run_goes_on_without_its_limit(
    tmp_path, monkeypatch
):
    found = {"column": "sex", "group": "f", "figure": "HR@10", "value": 0.1, "base": 0.2}
    found |= {"users": 40, "ratio": 0.5, "lost": 0.1, "lost_ci95": [0.05, 0.15], "p": 0.001}
    real = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *given: {**real(*given), "audit": [found]})
    options = {"quick": True, "evaluation": EvaluationConfig([], audit_users=0.8)}
    with pytest.raises(SchemaError, match="sex 'f'"):
        make_run(tmp_path / "run", ORDERED, **options)
    assert not (tmp_path / "run" / "bundle").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()

    options["evaluation"] = EvaluationConfig([], audit_users=0.4)
    published = make_run(tmp_path / "run", ORDERED, resume=True, **options)
    assert published.bundle.is_dir()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["audit"] == [found]
    assert not any(b'"audit"' in path.read_bytes() for path in published.bundle.iterdir())


def test_a_check_reads_everything_without_torch_and_writes_nothing(tmp_path):
    code = (
        "import sys, train\nstatus = train.main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules\nsys.exit(status)\n"
    )
    words = [sys.executable, "-c", code, "--sample", "library", "--check"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for more, status in (([], 0), (["--data.users.columns.user_id", "nobody"], 2)):
        done = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status
        assert ("model.dim" in done.stdout) is (status == 0)
        assert list(tmp_path.iterdir()) == []
