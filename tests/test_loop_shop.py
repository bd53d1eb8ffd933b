"""The simulated shop keeps its rules, and what is said of its trainings is counted by their truth."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from tests.benchmarks import loop_report, loop_shop
from tests.benchmarks.loop_breaks import BREAKS, LOST, break_data
from tests.benchmarks.loop_report import BEGIN, END, SCENARIOS, Outcome, Training, write_page
from tests.benchmarks.loop_shop import Shop

N_WEEKS = 3


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop(0, N_WEEKS)


def judge(truth: float, is_passed: bool, broken: str = "") -> Training:
    """Make a training that is so much better, and what the gate said."""
    quality = {
        "name": "NDCG@10, lower bound",
        "is_passed": is_passed,
        "value": -0.03,
        "users": 900,
        "note": "0.2000 to 0.2100",
    }
    whole = {"name": "files and golden answers", "is_passed": True}
    return Training.judged("retrained", 1, broken, (truth, 0.0), [whole, quality])


def make_outcomes(trainings: list[Training]) -> list[Outcome]:
    outcomes = [
        Outcome(name, [1.0, 1.0 + place], [0.0, 0.2]) for place, name in enumerate(SCENARIOS)
    ]
    outcomes[1].trainings = trainings
    return outcomes


def test_nobody_takes_what_they_have_or_what_has_not_come(shop):
    week = 1
    owned = np.random.default_rng(0).random((len(shop.arrives), len(shop.born))) < 0.3
    people = np.arange(len(shop.arrives))
    taken = np.array(shop.meet(np.random.default_rng(1), week, people, owned))
    assert len(taken) > len(people)
    assert not owned[taken[:, 0], taken[:, 1]].any()
    assert (shop.born[taken[:, 1]] <= week).all()
    assert len(np.unique(taken, axis=0)) == len(taken)


def test_what_is_taken_follows_liking(shop):
    """Over the people who were there, each item is taken in the share that its chances give."""
    nothing = np.zeros((len(shop.arrives), len(shop.born)), bool)
    people = np.arange(len(shop.arrives))
    rng = np.random.default_rng(2)
    n_turns = 10
    counts = np.zeros(len(shop.born))
    for _ in range(n_turns):
        taken = np.array(shop.meet(rng, 0, people, nothing))
        counts += np.bincount(taken[:, 1], minlength=len(counts))
    there = shop.born <= 0
    expected = n_turns * loop_shop.MET / there.sum() * shop.like(0).sum(axis=0)
    assert (counts[~there] == 0).all()
    assert np.abs(counts - expected)[there].max() < 5 * np.sqrt(expected[there].max())


def test_newcomers_come_from_their_week_on_and_most_people_never_see_a_list(shop):
    pleased = np.ones(len(shop.arrives), bool)
    rng = np.random.default_rng(3)
    came = np.array([[shop.come(rng, week, pleased) for _ in range(40)] for week in range(N_WEEKS)])
    shares = came.mean(axis=1)  # (weeks, U)
    for week in range(N_WEEKS):
        assert (shares[week, shop.arrives > week] == 0).all()
        assert (shares[week, shop.arrives <= week] > 0).all()
    others = shares[-1][~shop.is_listed]
    assert len(others) > 3 * shop.is_listed.sum()
    assert others.mean() == pytest.approx(loop_shop.OTHERS_COME, abs=0.01)
    assert shares[-1][shop.is_listed].mean() == pytest.approx(loop_shop.COMES_AGAIN, abs=0.01)


def write_log(folder) -> None:
    """Write 600 events, one each second from 1 on, as a service logs them, and the same as a table."""
    events = pd.DataFrame({"number": range(1, 601), "user": np.arange(600) % 50})
    events["item_id"] = np.arange(600) % 40
    events["datetime"] = events["number"]
    (folder / "state").mkdir()
    with closing(sqlite3.connect(folder / "state" / "state.db")) as log:
        events.to_sql("event_rows", log, index=False)
    table = events.rename(columns={"user": "user_id"})[["user_id", "item_id", "datetime"]]
    table.to_csv(folder / "events.csv", index=False)


def read_log(folder) -> pd.DataFrame:
    with closing(sqlite3.connect(folder / "state.db")) as log:
        return pd.read_sql("SELECT * FROM event_rows", log)


@pytest.mark.parametrize("broken", BREAKS)
def test_a_break_is_of_what_was_before_and_leaves_the_log_of_the_service(tmp_path, broken):
    write_log(tmp_path)
    whole = read_log(tmp_path / "state")
    table = pd.read_csv(tmp_path / "events.csv")
    at = 400
    log = read_log(break_data(tmp_path, tmp_path / "state", broken, at))
    before = whole[whole["datetime"] < at]
    left = log[log["datetime"] < at]
    now = pd.read_csv(tmp_path / "events.csv")
    pd.testing.assert_frame_equal(read_log(tmp_path / "state"), whole)
    later = log[log["datetime"] >= at].reset_index(drop=True)
    pd.testing.assert_frame_equal(later, whole[whole["datetime"] >= at].reset_index(drop=True))
    if broken == "shuffled join":
        for old, new in ((before, left), (table, now)):
            assert (old["item_id"].to_numpy() != new["item_id"].to_numpy()).mean() > 0.9
            assert sorted(old["item_id"]) == sorted(new["item_id"])
            assert (old["datetime"].to_numpy() == new["datetime"].to_numpy()).all()
    if broken == "lost events":
        assert len(left) / len(before) == pytest.approx(1 - LOST, abs=0.07)
        assert len(now) / len(table) == pytest.approx(1 - LOST, abs=0.07)
    if broken == "stale weights":
        pd.testing.assert_frame_equal(log, whole)
        pd.testing.assert_frame_equal(now, table)


def test_trainings_are_counted_by_their_truth():
    trainings = [judge(0.02, True)] * 3 + [judge(0.02, False)]
    trainings += [judge(-0.009, True), judge(-0.02, False), judge(-0.06, False, "lost events")]
    trainings.append(judge(0.25, False).turned())
    assert trainings[-1].truth == pytest.approx(-0.2)
    rows = loop_report.summarise_trainings([make_outcomes(trainings)])[2:]
    kinds = [row.split(" | ")[0].removeprefix("| ") for row in rows]
    passed = [row.split(" | ")[-1].split(" (")[0] for row in rows]
    assert dict(zip(kinds, passed, strict=True)) == {
        "ordinary training, truly better": "3 of 4",
        "ordinary training, equal": "1 of 1",
        "ordinary training, worse by 1 to 5 %": "0 of 1",
        "version in use in place of the training, worse by 5 % and more": "0 of 1",
        "lost events, worse by 5 % and more": "0 of 1",
    }
    assert all("+5.0 %" in row for row in rows)
    for_lists, in_the_test = loop_report.count_right([make_outcomes(trainings)])[2:]
    assert [cell.split(" (")[0] for cell in for_lists.split(" | ")[1:]] == [
        "3 of 4",
        "1 of 1",
        "1 of 1",
    ]
    assert "4 of 7" in in_the_test


def test_a_page_gets_the_same_tables_from_kept_results(tmp_path):
    outcomes = make_outcomes([judge(0.02, True), judge(-0.06, False, "stale weights")])
    outcomes[1].weeks = {130: 1}
    kept = [Outcome.read(facts) for facts in json.loads(json.dumps(list(map(asdict, outcomes))))]
    assert kept == outcomes
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page([kept, kept], page)
    text = page.read_text()
    assert "old" not in text
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    for row in loop_report.summarise_trainings([outcomes, outcomes]):
        assert row in text
    write_page([kept, kept], page)
    assert page.read_text() == text
