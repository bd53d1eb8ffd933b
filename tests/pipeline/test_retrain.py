"""The next version from the log and the weights of a run: what it knows, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import train
from pipeline.retrain import VERDICT, name_next
from serve.bundle import CONFIG, FEEDBACK, METRICS
from serve.recommender import Recommender
from service.forget import forget_users
from service.publish import read_version
from service.registry import Registry, publish_version, rollback
from tests.models.tiny_towers import one_thread
from tests.pipeline.shop import DISMISSED, NEW_ITEM, NEW_USER, log_events, open_shop
from tests.pipeline.small_runs import BASKETS, trace_exports

from evaluation import gate
from pipeline import retrain

ANY_LOSS = ("--loss", "1", "--slice-loss", "1", "--coverage-loss", "1")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread(), pytest.MonkeyPatch.context() as patch:
        trace_exports(patch)
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A shop whose run was retrained once."""
    folder = tmp_path_factory.mktemp("shop") / "shop"
    config = open_shop(folder, BASKETS)
    assert retrain.main(["--config", str(config), "--run", str(folder / "my")]) == 0
    return folder


def ask(shop: Path, *options: str) -> int:
    return retrain.main(["--config", str(shop / "shop.yaml"), "--run", str(shop / "my"), *options])


def ask_gate(shop: Path, *options: str) -> int:
    """Retrain with the registry; return the status."""
    words = [
        "--registry",
        str(shop / "registry"),
        "--state",
        str(shop / "my" / "state"),
    ]
    try:
        return ask(shop, *words, *options)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def registry(shop) -> Registry:
    """The registry beside the shop, whose first run is current."""
    shutil.rmtree(shop / "registry", ignore_errors=True)
    registry = Registry(shop / "registry")
    publish_version(registry, shop / "my" / "bundle", is_activated=True)
    return registry


def write_tables(shop: Path, folder: Path) -> list[str]:
    """Write what the gate reads, from the tables and the log; return its options."""
    log = pd.read_parquet(shop / "my" / FEEDBACK / "trained-my-2.parquet")
    events = pd.read_parquet(shop / "interactions.parquet")
    log = log[log["event"] == "buy"].astype({"item_id": "int64"})
    log["weight"] = log["weight"].fillna(events["weight"].mean())
    events = pd.concat([events, log[events.columns]]).drop_duplicates(
        ["user_id", "item_id", "datetime"]
    )
    user, item = DISMISSED
    events = events[~((events["user_id"] == user) & (events["item_id"] == item))].sort_values(
        "datetime", kind="stable"
    )
    is_test = events["datetime"] >= pd.Timestamp("2021-06-01").timestamp()
    for name, part in (("holdout", events[is_test]), ("train", events[~is_test])):
        part.to_parquet(folder / f"{name}.parquet")
    files = {f"--{name}": str(folder / f"{name}.parquet") for name in ("holdout", "train")}
    return [
        word for pair in (files | {"--users": str(shop / "users.parquet")}).items() for word in pair
    ]


def test_the_gate_lets_the_next_version_take_over_once(shop, registry, tmp_path):
    first = registry.current()
    assert ask_gate(shop, "--loss", "0") == gate.STOPPED
    assert (registry.current(), registry.versions()) == (first, [first])
    assert json.loads((shop / "my-2" / VERDICT).read_text())["verdict"] == "stopped"
    assert ask_gate(shop, *ANY_LOSS) == 0
    new = read_version(shop / "my-2" / "bundle")
    assert (registry.current(), registry.past()) == (new, [first])
    verdict, log = (
        (shop / "my-2" / VERDICT).read_text(),
        (registry.path / gate.AUDIT).read_text(),
    )
    for back in (False, True):  # somebody takes it back
        if back:
            rollback(registry)
        assert ask_gate(shop, *ANY_LOSS) == 0
        assert registry.current() == (first if back else new)
        assert (shop / "my-2" / VERDICT).read_text() == verdict
        assert (registry.path / gate.AUDIT).read_text() == log
    words = [
        "--current",
        str(shop / "my" / "bundle"),
        "--candidate",
        str(shop / "my-2" / "bundle"),
        "--state",
        str(shop / "my" / "state"),
        *ANY_LOSS,
    ]
    words += [
        "--at",
        "2021-06-01",
        "--out",
        str(tmp_path / VERDICT),
        *write_tables(shop, tmp_path),
    ]
    assert gate.main(words) == 0
    assert json.loads(verdict) == json.loads((tmp_path / VERDICT).read_text())


@pytest.mark.parametrize(
    "options",
    [
        ("--at", "2021-05-01"),  # the current version has seen what would be tested
        ("--data.split.kind", "leave_one_out", "--data.split.at", "null"),
        ("--data.split.kind", "none", "--data.split.at", "null"),
        ("--loss", "7"),
        ("--registry", "{shop}/nowhere"),
    ],
)
def test_what_the_gate_cannot_judge_is_not_trained(shop, registry, tmp_path, capsys, options):
    first = registry.current()
    assert (
        ask_gate(
            shop,
            "--out",
            str(tmp_path / "new"),
            *(word.format(shop=shop) for word in options),
        )
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new").exists()
    assert registry.versions() == [first]


def read_metrics(run: Path):
    return json.loads((run / METRICS).read_bytes())


def test_the_next_version_knows_what_was_logged_and_says_where_it_came_from(shop):
    metrics = read_metrics(shop / "my-2")
    assert metrics["training"]["warm_start"] == read_version(shop / "my" / "bundle")
    assert metrics["training"]["refinement"] == read_metrics(shop / "my")["training"]["refinement"]
    assert metrics["data"]["records"]["feedback"] == 44
    assert metrics["data"]["feedback"]["appended"] == 43
    assert metrics["data"]["feedback"]["interactions_of_dismissed_pairs"] > 0
    recommender = Recommender.load(shop / "my-2" / "bundle")
    user, item = DISMISSED
    assert item not in recommender.profiles.get(user).history.item_id
    assert item in Recommender.load(shop / "my" / "bundle").profiles.get(user).history.item_id
    assert "feedback" in (shop / "my-2" / CONFIG).read_text()


def test_a_run_that_found_nothing_is_not_gone_on_from(shop, tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(shop / "my", folder / "my")
    path = folder / "my" / METRICS
    path.write_text(json.dumps(read_metrics(folder / "my") | {"signal": "no signal found"}))
    assert ask(shop, "--run", str(folder / "my"), "--state", str(shop / "my" / "state")) == 0
    metrics = read_metrics(folder / "my-2")
    assert metrics["training"]["warm_start"] is None
    assert metrics["data"]["records"]["feedback"] == 44


@pytest.mark.slow
def test_the_same_log_gives_the_same_bytes_and_a_later_event_waits_for_the_next_run(shop, tmp_path):
    assert ask(shop, "--out", str(tmp_path / "again")) == 0
    for path in (shop / "my-2" / "bundle").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "bundle" / path.name).read_bytes(), (
            path.name
        )
    before = read_version(shop / "my-2" / "bundle")
    log_events(shop / "my", 1_625_900_000)
    assert ask(shop) == 0  # it is finished
    assert read_version(shop / "my-2" / "bundle") == before
    assert len(pd.read_parquet(shop / "my" / FEEDBACK / "trained-my-2.parquet")) == 44


@pytest.mark.slow
def test_a_run_goes_on_from_a_run_that_went_on_with_the_log_of_the_first(shop, tmp_path):
    folder = tmp_path / "shop"
    shutil.copytree(shop, folder)
    log_events(folder / "my", 1_625_900_000)
    moved = ("--data.split.at", "2021-06-10", "--state", str(folder / "my" / "state"))
    words = [
        "--config",
        str(folder / "shop.yaml"),
        "--run",
        str(folder / "my-2"),
        *moved,
    ]
    assert {path.name for path in find(folder, NEW_USER)} >= {
        "state.db",
        "trained-my-2.parquet",
    }
    for run in ("my", "my-2"):
        forget_users(folder / run, [NEW_USER])
    assert retrain.main(words) == 0
    assert read_metrics(folder / "my-3")["training"]["warm_start"] == read_version(
        folder / "my-2" / "bundle"
    )
    assert len(pd.read_parquet(folder / "my" / FEEDBACK / "trained-my-3.parquet")) > 50
    assert find(folder, NEW_USER) == []


def find(folder: Path, text: str) -> list[Path]:
    """Return the files that hold a text, Parquet unpacked."""
    contents = {
        path: pd.read_parquet(path).to_csv().encode()
        if path.suffix == ".parquet"
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return [path for path, content in contents.items() if text.encode() in content]


@pytest.mark.slow
def test_new_items_and_users_are_there_where_everything_trains(shop, tmp_path):
    words = [
        "--config",
        str(shop / "shop.yaml"),
        "--run",
        str(shop / "my"),
        "--out",
        str(tmp_path / "all"),
    ]
    assert retrain.main([*words, "--data.split.kind", "none", "--data.split.at", "null"]) == 0
    recommender = Recommender.load(tmp_path / "all" / "bundle")
    assert set(recommender.profiles.get(NEW_USER).history.item_id) == {
        105,
        110,
        NEW_ITEM,
    }
    old = Recommender.load(shop / "my" / "bundle")
    known = old.bundle.items.column("item_id").to_pylist()
    assert recommender.bundle.items.column("item_id").to_pylist() == [*known, NEW_ITEM]
    both = [one.bundle.vectors[: len(known), :8].astype(np.float64) for one in (old, recommender)]
    cosines = (both[0] * both[1]).sum(axis=1) / np.prod(
        [np.linalg.norm(one, axis=1) for one in both], axis=0
    )
    assert cosines.min() > 0.8  # it went on from there


@pytest.mark.parametrize(
    "options",
    [
        ("--data.split.at", "2021-05-01"),  # the weights have seen what would be tested
        ("--data.split.kind", "pairs", "--data.split.at", "null"),
        ("--model.dim", "16"),
        ("--out", "{shop}/my"),
        ("--run", "{shop}/nowhere"),
        ("--state", "{shop}/state"),
    ],
)
def test_what_cannot_go_on_is_one_line_and_status_2(shop, tmp_path, capsys, options):
    asked = [word.format(shop=shop) for word in options]
    assert (
        ask(
            shop,
            *(() if "--out" in asked else ("--out", str(tmp_path / "new"))),
            *asked,
        )
        == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "new" / "bundle").exists()


@pytest.mark.slow
def test_a_run_without_its_weights_is_trained_anew_only(shop, tmp_path, capsys):
    shutil.copytree(shop / "my", tmp_path / "my")
    shutil.rmtree(tmp_path / "my" / "checkpoints")
    words = [
        "--config",
        str(shop / "shop.yaml"),
        "--previous",
        str(tmp_path / "my" / "bundle"),
    ]
    assert train.main([*words, "--out", str(tmp_path / "new"), "--warm_start"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert train.main([*words, "--out", str(tmp_path / "new"), "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("name", "following"),
    [("my", "my-2"), ("my-2", "my-3"), ("a-b-19", "a-b-20"), ("7", "7-2")],
)
def test_runs_are_numbered(name, following):
    assert name_next(Path("runs") / name).name == following
