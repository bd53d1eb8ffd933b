"""`bascule evaluate`: figures of a bundle and a holdout, or one line about what is wrong."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation.__main__ import main
from evaluation.given import check_reachable, find_doubts
from serve.errors import SchemaError
from tests.evaluation.fake_recommender import FakeRecommender
from tests.tiny_bundle import SCHEMA, item_ids, publish_tiny

USERS, AT, DAY = ["007", "8", "NA"], 1_600_000_000, 86_400


@pytest.fixture(autouse=True)
def every_slice(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.MIN_USERS", 1)


def make_rows(n, first, last, seed) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    times = pd.to_datetime(rng.integers(first, last, n), unit="s").strftime("%Y-%m-%d %H:%M:%S")
    rows = pd.DataFrame(
        {
            "user_id": rng.choice(USERS, n),
            "item_id": rng.choice(item_ids(), n),
            "datetime": times,
        }
    )
    return rows.assign(
        weight=rng.integers(1, 5, n),
        device=rng.choice(["web", "phone"], n),
        event="buy",
    )


TRAIN, HOLDOUT = (
    make_rows(59, AT - 90 * DAY, AT, 1),
    make_rows(17, AT, AT + 20 * DAY, 2),
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_tiny(tmp_path_factory.mktemp("run"), seed=1).path


@pytest.fixture
def built(monkeypatch):
    """Put the fake in the place of the recommender, and keep its profiles."""
    made = []

    def build(_, profiles):
        made.append(profiles)
        owned = {user: set(profiles.get(user).history.item_id) for user in profiles.user_ids}
        return FakeRecommender(item_ids(), USERS, owned)

    monkeypatch.setattr("evaluation.given.Recommender", build)
    return made


@pytest.fixture
def words(bundle, tmp_path):
    """Return the options of a holdout and histories in files."""
    HOLDOUT.to_csv(tmp_path / "holdout.csv.gz", index=False)
    TRAIN.to_parquet(tmp_path / "train.parquet")
    return [
        "--bundle",
        str(bundle),
        "--holdout",
        f"{tmp_path}/holdout.csv.gz",
        "--train",
        f"{tmp_path}/train.parquet",
    ]


def test_figures_of_a_bundle_and_a_holdout(words, built, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main([*words, "--at", "2020-09-13T12:26:40", "--json", str(out)]) == 0
    metrics, said = json.loads(out.read_text()), capsys.readouterr()
    assert metrics["protocol"]["n_users"] == 3
    assert metrics["test"]["bascule"]["all"]["targets"] == len(
        HOLDOUT.drop_duplicates(["user_id", "item_id"])
    )
    assert metrics["baselines"]["personal-decayed"]["validation"]
    assert all(
        part in said.out
        for part in (
            "view 'all', users: 3",
            "view 'novel'",
            "NDCG@20",
            f"figures: {out}",
        )
    )
    assert "ease: lambda" in said.err
    assert (built[0].user_ids.tolist(), len(built[0].history)) == (USERS, len(TRAIN))


def test_users_are_sliced_by_their_features_and_baselines_are_those_named(words, built, tmp_path):
    out, users = tmp_path / "figures.json", tmp_path / "users.csv"
    users.write_text("user_id,gender,income\n8,f,2.5\n007,,\n")
    assert (
        main(
            [
                *words,
                "--json",
                str(out),
                "--users",
                str(users),
                "--baselines",
                "itemknn",
                "popularity",
            ]
        )
        == 0
    )
    metrics = json.loads(out.read_text())
    assert list(metrics["with_context"]) == ["bascule", "bascule without context"]
    assert list(metrics["baselines"]) == ["popularity", "itemknn"]
    assert set(metrics["slices"]["all"]["gender"]) == {"f", "missing"}
    assert set(metrics["slices"]["all"]["income"]) == {"2.5", "missing"}
    assert built[0].get("8").features == {"gender": "f", "income": 2.5}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--at", "yesterday", "moment 'yesterday' cannot be read"),
        (
            "--train",
            "pyproject.toml",
            "unknown suffix '.toml'; allowed: .csv",
        ),
        ("--bundle", "nowhere", "nowhere"),
        ("--json", "{}", "is a folder or in none; give a file"),
    ],
)
def test_faults_are_one_line_and_replace_nothing(
    words, built, tmp_path, capsys, option, value, message
):
    before = (tmp_path / "train.parquet").read_bytes()
    assert main([*words, f"{option}={value.format(tmp_path)}"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message.format(tmp_path) in line
    assert (tmp_path / "train.parquet").read_bytes() == before


def test_a_holdout_of_which_no_list_can_hold_anything_is_refused():
    catalogue, excluding = pd.Series(item_ids()), replace(SCHEMA, repeats="exclude")
    bare = HOLDOUT.drop(columns="datetime")
    elsewhere = HOLDOUT.assign(item_id=np.arange(len(HOLDOUT)) % 5 + 1)
    with pytest.raises(
        SchemaError,
        match=r"none of the 5 items .*: item_id is 1 in the test and 'item-00' in the",
    ):
        check_reachable(elsewhere, TRAIN, catalogue, SCHEMA)
    check_reachable(
        elsewhere.assign(item_id=["item-01", *elsewhere["item_id"][1:]]),
        TRAIN,
        catalogue,
        SCHEMA,
    )
    first, *_, last = HOLDOUT[["user_id", "item_id"]].drop_duplicates().itertuples(index=False)
    with pytest.raises(
        SchemaError,
        match=f"before it, as '{first.user_id}' has '{first.item_id}', and this bundle",
    ):
        check_reachable(pd.concat([bare, elsewhere]), bare, catalogue, excluding)
    check_reachable(bare, HOLDOUT, catalogue, SCHEMA)
    with pytest.raises(SchemaError, match=r"17 of the 17 events of the test are among those"):
        check_reachable(HOLDOUT, HOLDOUT, catalogue, SCHEMA)
    is_last = (HOLDOUT["user_id"] == last.user_id) & (HOLDOUT["item_id"] == last.item_id)
    check_reachable(bare, bare[~is_last], catalogue, excluding)


def doubts(history, at=None, **schema) -> list[str]:
    return [note.split(";")[0] for note in find_doubts(history, replace(SCHEMA, **schema), at)]


def test_doubts_about_a_holdout_are_noted(words, built, tmp_path, capsys):
    rows = pd.DataFrame(
        {
            "user_id": list("abcd"),
            "item_id": list("pqrs"),
            "datetime": [AT - 1, AT, AT + 1, AT + 2],
        }
    )
    rows = rows.assign(event="buy", weight=1.0)
    assert doubts(rows) == []
    assert doubts(rows[:2], AT) == ["events before the test at or after its moment: 1 of 2"]
    bare = rows[["user_id", "item_id"]]
    lacking = "columns that the bundle was trained with and the events before the test lack: "
    assert doubts(bare) == [f"{lacking}datetime, event, weight"]
    assert doubts(bare, has_datetime=False, has_weight=False, event_types=()) == []
    TRAIN.drop(columns="datetime").to_parquet(tmp_path / "train.parquet")
    assert main([*words, "--baselines"]) == 0
    assert f"note: {lacking}datetime; they count as missing" in capsys.readouterr().err
