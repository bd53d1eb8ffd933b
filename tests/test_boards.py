"""The benchmark of boards: what it asks train.py for, and how it reads and shows what was measured."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import tests.benchmarks.boards as boards
from pipeline.config import parse
from tests.benchmarks.bench_lists import measure_lists
from tests.benchmarks.board_list import ALLOWED, BOARDS, find_boards
from tests.benchmarks.kept import check_options, write_whole
from tests.benchmarks.peers import PeerCommand, on_other_tables, read_peers, read_settings
from tests.tiny_bundle import SCHEMA

SCORED = {"exclude": {"NDCG@10": 0.25, "HR@10": 0.5, "intervals": {"NDCG@10": [0.2, 0.3]}, "users": 7}}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_board_is_a_configuration_of_train_py(board, tmp_path):
    config, _ = parse([*board.arguments(tmp_path), "--out", str(tmp_path)])
    assert config.data.interactions.path == str(tmp_path / board.table)
    assert config.data.repeats == ("allow" if board.repeats == ALLOWED else "exclude")
    assert config.data.split.strict == board.name.endswith("-strict")
    assert not config.data.features.user or not board.name.endswith("-no-demographics")
    assert not config.data.features.item or not board.name.endswith("-ids")
    is_liked = config.data.targets.min_weight is not None
    assert is_liked == board.name.endswith("-liked")
    assert board.has_peers != (config.data.split.strict or is_liked)
    assert board.without is None or find_boards([board.without])[0].dataset == board.dataset


def test_baselines_are_fitted_once_for_all_seeds(tmp_path, monkeypatch):
    commands = []

    def run(command, cwd):
        commands.append([str(word) for word in command])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(boards.subprocess, "run", run)
    for seed in (0, 1, 2):
        boards.train(BOARDS[0], tmp_path, tmp_path / str(seed), seed, ["--model.max_epochs", "1"])
    (tmp_path / "1" / "metrics.json").write_text("{}")
    boards.train(BOARDS[0], tmp_path, tmp_path / "1", 1, ["--model.max_epochs", "1"])
    (less,) = find_boards([f"{BOARDS[0].name}-no-demographics"])
    boards.train(less, tmp_path, tmp_path / "less", 0, [])
    assert ["--evaluation.baselines" in command for command in commands] == [False, True, True, True]
    assert all(command[-2:] == ["--ckpt_path", "last"] for command in commands)


def test_results_of_other_options_are_not_mixed(tmp_path):
    check_options(tmp_path / "one", ["--a", "1"])
    check_options(tmp_path / "one", ["--a", "1"])
    with pytest.raises(SystemExit, match=r"holds results of \['--a', '1'\], not of \['--a', '2'\]"):
        check_options(tmp_path / "one", ["--a", "2"])


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "new" / "result", fail)
    assert not (tmp_path / "new" / "result").exists()
    write_whole(tmp_path / "new" / "result", lambda path: path.write_text("whole"))
    assert (tmp_path / "new" / "result").read_text() == "whole"


def test_lists_are_measured_as_a_loop_does(tmp_path):
    rng = np.random.default_rng(0)
    n_users, n_items = 13, 31
    wanted = pd.DataFrame({"user_id": rng.integers(0, n_users, 40), "item_id": rng.integers(0, n_items, 40)})
    ranked = {user: rng.permutation(n_items)[:23].tolist() for user in range(n_users - 1)}  # one has no list
    rows = [(user, item, place + 1) for user, items in ranked.items() for place, item in enumerate(items)]
    pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).sample(frac=1, random_state=1).to_csv(tmp_path / "lists")
    wanted.to_csv(tmp_path / "holdout")
    targets = defaultdict(set)
    for user, item in wanted.itertuples(index=False):
        targets[str(user)].add(item)
    expected = []
    for user in sorted(targets):
        gains = [1 / math.log2(place + 2) for place in range(20)]
        hits = [item in targets[user] for item in ranked.get(int(user), [])[:20]]
        got = sum(gain for gain, hit in zip(gains, hits, strict=False) if hit)
        expected.append(got / sum(gains[: len(targets[user])]))
    assert measure_lists(tmp_path / "lists", tmp_path / "holdout", "NDCG@20") == pytest.approx(expected)


@pytest.fixture
def measured(tmp_path):
    """Leave what two runs and two peers leave on the first board."""
    for seed, value in ((0, 0.3), (1, 0.5)):
        views = {"novel": {"NDCG@10": value, "NDCG@10_ci95": [0.1, 0.9], "HR@10": 2 * value, "HR@10_ci95": [0.1, 0.9]}}
        others = {"popularity": views} if seed == 0 else {}
        content = {
            "test": {"bascule": views, **others},
            "paired": others,
            "baselines": {"popularity": {}, "ease": {"skipped": "too large"}} if others else {},
            "with_context": {"bascule": views},
            "timing": {
                "training": 10,
                "training_again": 5,
                "training_cpu": 4,
                "training_again_cpu": 2,
                "baseline_popularity": 0.2,
            },
        }
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "metrics.json").write_text(json.dumps(content))
    results = tmp_path / "peers" / BOARDS[0].dataset / "results"
    results.mkdir(parents=True)
    for name in ("ease", "sasrec"):
        (results / f"{name}.json").write_text(json.dumps(SCORED))
    (results / "sasrec.log").write_text("noise\nfit_seconds 149.54 cpu 140.21\npredict_seconds 0.80 cpu 0.70\n")
    return tmp_path


def test_rows_of_a_board(measured):
    one = boards.Ran(BOARDS[0], measured, {seed: measured / str(seed) for seed in (0, 1)})
    ours, informed, popularity = boards.describe(one)
    assert (ours.seeds, ours.figures, ours.seconds) == (
        "0, 1",
        "NDCG@10 0.4000 ± 0.1414, HR@10 0.8000 ± 0.2828",
        ("15", "6"),
    )
    assert informed.model == "**Bascule**, given the request's time"
    assert (popularity.model, popularity.seeds, popularity.seconds) == ("popularity", "0", ("0.2", ""))
    assert popularity.figures == "NDCG@10 0.3000, HR@10 0.6000; **Bascule** minus it NDCG@10 +0.3000 (+0.1000, +0.9000)"


@pytest.mark.parametrize(("context", "names"), [(SCHEMA.context_features, ["plain", "context"]), ((), ["plain"])])
def test_a_row_is_told_its_context_where_the_bundle_reads_one(measured, monkeypatch, context, names):
    """`boards.py --only frappe --data.features.context {}` is a training without any."""
    (board,) = find_boards(["frappe"])
    runs = {seed: measured / str(seed) for seed in (0, 1)}
    for run in runs.values():
        (run / "bundle").mkdir()
        (run / "bundle" / "schema.json").write_text(replace(SCHEMA, context_features=context).to_json())
    asked = []

    def score_lists(bench, run, tables, name):
        asked.append((run, name))
        return SCORED

    monkeypatch.setattr(boards, "score_lists", score_lists)
    rows = list(boards.describe_bench(measured, boards.Ran(board, measured, runs)))
    assert len(rows) == len(names)
    assert asked == [(run, name) for name in names for run in runs.values()]


def test_peers_of_a_folder_and_of_a_table_are_the_same_rows(measured):
    text = f"dataset,model,NDCG@10,HR@10,fit s,fit CPU s\n{BOARDS[0].dataset},ease,.25,.5,,\n"
    (measured / "peers.csv").write_text(text + f"{BOARDS[0].dataset},sasrec,.25,.5,149.54,140.21\n")
    for path in (measured / "peers", measured / "peers.csv"):
        rows = [boards.describe_peer(BOARDS[0], peer) for peer in read_peers(path)]
        assert [row.model for row in rows] == ["ease (peer)", "sasrec (peer)"]
        assert [row.seconds for row in rows] == [("", ""), ("149.5", "140.2")]
        assert {row.figures for row in rows} == {"NDCG@10 0.2500, HR@10 0.5000"}


def test_views_of_a_peer_have_the_names_of_the_board(tmp_path):
    results = tmp_path / "complete-journey" / "results"
    results.mkdir(parents=True)
    (results / "ease.json").write_text(
        json.dumps({view: {"NDCG@20": value} for view, value in (("all", 0.5), ("novel", 0.25))})
    )
    (peer,) = read_peers(tmp_path)
    (board,) = find_boards(["complete-journey"])
    assert boards.describe_peer(board, peer).figures == "all NDCG@20 0.5000, novel NDCG@20 0.2500"


def test_settings_of_the_bench(tmp_path):
    (tmp_path / "settings").mkdir()
    line = "rechub-dssm   rechub  rechub_dssm.py  --user-features age,zip --item-features genres --batch 256"
    (tmp_path / "settings" / "movies.txt").write_text(
        f"# name interpreter script options\n\nease peers ease.py\n{line}\n"
    )
    commands = read_settings(tmp_path, "movies")
    assert commands["ease"] == PeerCommand("ease", "peers", "ease.py", ())
    moved = on_other_tables(commands["rechub-dssm"], "attributes")
    assert moved.options == ("--item-features", "attributes", "--batch", "256")


def test_a_training_that_fails_ends_the_benchmark_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(boards.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit, match=r"^movielens-100k, seed 3: train\.py ended with status 2$"):
        boards.train(BOARDS[0], tmp_path, tmp_path / "run", 3, [])
