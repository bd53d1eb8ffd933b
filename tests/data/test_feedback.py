"""Logged events beside the interactions: each counts once, dismissed pairs leave, every row is accounted for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import clean, only_evidence, weigh_targets
from datamodules.config import (
    DataConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from datamodules.tables import PART, read_tables, tables_from_frames
from serve.errors import SchemaError
from serve.files import read_erasure_list
from service.forget import add_to_erasure_list

START = 1_700_000_000
LOG_COLUMNS = ["user_id", "item_id", "event", "datetime", "weight", "request_id"]
CONFIG = DataConfig(
    TableConfig(columns={"user_id": "customer", "datetime": "ts"}),
    features=FeaturesConfig(context={"device": "categorical"}),
)


def write_log(path, rows):
    """Write a log as the export does, from rows of user, item, event, time and weight."""
    log = pd.DataFrame([(*map(str, row[:2]), *row[2:], "r1") for row in rows], columns=LOG_COLUMNS)
    log.to_parquet(path)
    return str(path)


def make_events(rows):
    events = pd.DataFrame(rows, columns=["customer", "item_id", "event", "ts", "weight"])
    return events.assign(device="tv")


def read(events, log, **options):
    return tables_from_frames(replace(CONFIG, feedback=log, max_reject_rate=1.0, **options), events)


def draw(rng, n, kinds, first=START):
    times = first + np.sort(rng.integers(6, size=n))
    weights = rng.integers(1, 4, n).astype(float)
    columns = (
        rng.integers(3, size=n),
        rng.integers(4, size=n),
        rng.choice(kinds, n),
        times,
        weights,
    )
    return [
        tuple(one.item() if hasattr(one, "item") else one for one in row)
        for row in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_those_of_a_plain_loop_and_all_are_counted(tmp_path, seed):
    rng = np.random.default_rng(seed)
    table, log = (
        draw(rng, 25, ["view", "buy"]),
        draw(rng, 40, ["view", "buy", "like", "dismiss", "undismiss"]),
    )
    last = {row[:2]: row[2] for row in log if row[2] in ("dismiss", "undismiss")}
    dismissed = {pair for pair, sign in last.items() if sign == "dismiss"}
    seen, expected = (
        {row[:4] for row in table},
        [row for row in table if row[:2] not in dismissed],
    )
    for row in log:
        if (
            row[2] not in ("dismiss", "undismiss")
            and row[:2] not in dismissed
            and row[:4] not in seen
        ):
            seen.add(row[:4])
            expected.append(row)
    tables, rejects = read(make_events(table), write_log(tmp_path / "log.parquet", log))
    found = tables.interactions[["user_id", "item_id", "event", "datetime", "weight"]]
    assert list(found.itertuples(index=False, name=None)) == expected
    assert pd.api.types.is_integer_dtype(found["user_id"])
    assert tables.interactions["device"].isna().sum() == len(expected) - sum(
        row[:2] not in dismissed for row in table
    )
    counts = rejects.logged
    assert rejects.records == {"interactions": len(table), "feedback": len(log)}
    of_log = ("appended", "known", "dismissals", "of_dismissed_pairs")
    assert sum(counts[name] for name in of_log) == len(log)
    assert counts["dismissals"] == sum(row[2] in ("dismiss", "undismiss") for row in log)
    gone = counts["interactions_of_dismissed_pairs"]
    assert len(expected) == len(table) - gone + counts["appended"]
    assert dismissed
    assert gone


def test_bad_rows_name_the_log_and_forgotten_users_are_in_no_table(tmp_path):
    rows = [
        (1, 2, "buy", START, 1.0),
        (7, 2, "buy", START, 1.0),
        ("", 3, "buy", START, 1.0),
        (1, 3, "buy", None, 2.0),
    ]
    path = write_log(tmp_path / "log.parquet", rows)
    make_events([(1, 2, "view", START, 1.0), (7, 3, "view", START, 1.0)]).to_csv(
        tmp_path / "events.csv", index=False
    )
    add_to_erasure_list(tmp_path, [7])
    layout = replace(CONFIG.interactions, path=str(tmp_path / "events.csv"))
    config = replace(CONFIG, interactions=layout, feedback=path, max_reject_rate=1.0)
    tables, rejects = read_tables(config, read_erasure_list(tmp_path))
    assert tables.interactions["user_id"].tolist() == [1, 1]
    assert tables.users["user_id"].tolist() == [1]
    assert rejects.forgotten == {"interactions": 1, "feedback": 1}
    assert (
        rejects.records["feedback"]
        == rejects.logged["appended"] + len(rejects.tables["feedback"])
        == 3
    )
    bad = rejects.tables["feedback"]
    assert set(bad["file"]) == {path}
    assert sorted(zip(bad["line"], bad["column"], bad["reason"], strict=True)) == [
        (3, "user_id", "missing"),
        (4, "datetime", "missing"),
    ]


def test_columns_that_the_tables_lack_or_always_have_are_taken_away_or_filled(tmp_path):
    log = write_log(
        tmp_path / "log.parquet",
        [("a", "x", "view", START, None), ("b", "y", "buy", START + 1, 9.0)],
    )
    plain = tables_from_frames(
        DataConfig(feedback=log), pd.DataFrame({"user_id": ["a"], "item_id": ["x"]})
    )[0]
    assert plain.interactions.to_dict("list") == {
        "user_id": ["a", "b"],
        "item_id": ["x", "y"],
    }
    events = pd.DataFrame(
        {
            "user_id": ["a", "a"],
            "item_id": ["x", "z"],
            "position": [3, 9],
            "weight": [1.0, 7.0],
        }
    )
    filled = tables_from_frames(DataConfig(feedback=log), events)[0].interactions
    assert filled["position"].tolist() == [3, 9, 11]
    assert filled["weight"].tolist() == [1, 7, 9]
    events["item_id"] = ["q", "z"]
    filled = tables_from_frames(DataConfig(feedback=log), events)[0].interactions
    assert filled["weight"].tolist() == pytest.approx(
        [1, 7, 3, 9]
    )  # sqrt((1 + 1) * (7 + 1)) - 1 = 3


@pytest.mark.parametrize("has_weight", [False, True])
def test_a_logged_return_takes_back_the_latest_event_of_its_pair(tmp_path, has_weight):
    events = pd.DataFrame(
        {"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "datetime": [START] * 3}
    )
    if has_weight:
        events["weight"] = 1.0
    log = write_log(
        tmp_path / "log.parquet",
        [
            ("a", "x", "buy", START + 5, 1.0),
            ("a", "x", "buy", START + 9, -1.0),
            ("b", "x", "buy", START + 9, -1.0),
            ("b", "y", "buy", START + 9, -1.0),  # was never bought
        ],
    )
    config = DataConfig(feedback=log)
    tables, report = clean(tables_from_frames(config, events)[0], config)
    kept = tables.interactions
    assert [*zip(kept["user_id"], kept["item_id"], kept["datetime"], strict=True)] == [
        ("a", "x", START),
        ("a", "y", START),
    ]
    assert ("weight" in kept) == has_weight
    assert set(kept) <= {*events, "weight"}
    assert (report.negative_weights, report.taken_back) == (3, 2)


def test_logged_events_have_no_place_among_numbered_baskets(tmp_path):
    log = write_log(tmp_path / "log.parquet", [(1, 4, "buy", START, 1.0)])
    config = DataConfig(feedback=log, ties="simultaneous")
    events = pd.DataFrame({"user_id": [1, 1], "item_id": [4, 5], "position": [1, 2]})
    with pytest.raises(SchemaError, match=r"a basket of its own; allowed: .* datetime; give"):
        tables_from_frames(config, events)
    dated = tables_from_frames(config, events.assign(datetime=[START - 9, START - 8]))[0]
    assert len(dated.interactions) == 3


def test_an_event_that_no_key_names_is_read_as_any_other_of_the_tables(tmp_path):
    log = write_log(
        tmp_path / "log.parquet",
        [(1, 5, "like", START, 1.0), (1, 6, "buy", START, 1.0)],
    )
    tables, _ = read(make_events([(1, 4, "view", START, 1.0)]), log)
    config = replace(CONFIG, targets=TargetsConfig(["buy"]))
    weighed = weigh_targets(tables.interactions, config)
    assert only_evidence(weighed)["event"].tolist() == ["view", "like"]


def test_a_log_without_rows_changes_nothing_and_one_that_is_missing_is_refused(
    tmp_path,
):
    events = make_events([(1, 4, "view", START, 1.0)])
    tables, rejects = read(events, write_log(tmp_path / "log.parquet", []))
    pd.testing.assert_frame_equal(tables.interactions, read(events, None)[0].interactions)
    assert rejects.records["feedback"] == sum(rejects.logged.values()) == 0
    with pytest.raises(SchemaError, match=r"none\.parquet"):
        read(events, str(tmp_path / "none.parquet"))


def test_logged_events_are_trained_on_where_files_give_the_split(tmp_path):
    test = make_events([(1, 9, "view", START, 1.0)])
    test.to_csv(tmp_path / "test.csv", index=False)
    log = write_log(tmp_path / "log.parquet", [(1, 5, "view", START, 1.0)])
    split = SplitConfig("files", test=str(tmp_path / "test.csv"))
    tables, _ = read(make_events([(1, 4, "view", START, 1.0)]), log, split=split)
    parts = dict(zip(tables.interactions["item_id"], tables.interactions[PART], strict=True))
    assert parts == {4: "train", 5: "train", 9: "test"}
