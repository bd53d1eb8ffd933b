"""Whether there are targets to learn from, and whether lists can hold those that are held out."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import train
from datamodules.clean import clean, weigh_targets
from datamodules.config import DataConfig, SplitConfig, TargetsConfig
from datamodules.report import print_report, report_data
from datamodules.splits import Split, check_files, check_targets, hint_at_owned, split_interactions
from datamodules.tables import tables_from_frames
from serve.errors import SchemaError

PURCHASES = DataConfig(targets=TargetsConfig(events=["purchase"]))
START = 1_700_000_000


def visit(user: str, *events: str) -> list[tuple[str, str, str]]:
    return [(user, *event.split(" of ")) for event in events]


def make(*visits: list[tuple[str, str, str]]) -> pd.DataFrame:
    rows = pd.DataFrame([row for user in visits for row in user], columns=["user_id", "event", "item_id"])
    return rows.assign(datetime=range(START, START + len(rows)))


VIEWED_FIRST = make(
    visit("u", "view of a", "purchase of a", "view of b", "purchase of b", "view of c"),
    visit("v", "view of b", "view of c", "purchase of c"),
)


def split_of(events: pd.DataFrame, config: DataConfig):
    return split_interactions(weigh_targets(events, config), config, 0)


def report_of(events: pd.DataFrame, config: DataConfig):
    tables, rejects = tables_from_frames(config, events)
    tables, cleaning = clean(tables)
    tables = replace(tables, interactions=weigh_targets(tables.interactions, config))
    split = split_interactions(tables.interactions, config, 0)
    return report_data(tables, rejects, cleaning, split, config, ())


def test_targets_that_are_all_owned_are_refused_where_nothing_is_repeated():
    with pytest.raises(SchemaError, match=r"all 2 pairs .* set data\.repeats to allow, or leave out the events"):
        check_targets(split_of(VIEWED_FIRST, PURCHASES), "exclude")
    check_targets(split_of(VIEWED_FIRST, PURCHASES), "allow")


@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_without_a_target_is_refused(part):
    moments = [START + day * 86_400 for day in range(12)]
    bought = {0, 1, 2, 10 if part == "validation" else 7}
    rows = [("u", "purchase" if day in bought else "view", f"item {day}") for day in range(12)]
    events = pd.DataFrame(rows, columns=["user_id", "event", "item_id"]).assign(datetime=moments)
    config = replace(PURCHASES, split=SplitConfig("time", at=str(np.datetime64(moments[8], "s"))))
    message = rf"none of the \d events of the {part} is a target, so that nothing can be measured by it; declare"
    with pytest.raises(SchemaError, match=message):
        check_targets(split_of(events, config), "exclude")


def test_a_test_that_nothing_passes_is_refused_whatever_validates():
    split = split_of(VIEWED_FIRST, PURCHASES)
    in_reach = make(visit("w", "purchase of b"))
    validation = pd.concat([split.validation, weigh_targets(in_reach, PURCHASES)], ignore_index=True)
    with pytest.raises(SchemaError, match=r"all 2 pairs .* every figure would be 0"):
        check_targets(replace(split, validation=validation), "exclude")


def test_one_target_in_reach_is_enough():
    unseen = make(visit("w", "view of a", "purchase of b"))
    check_targets(split_of(pd.concat([VIEWED_FIRST, unseen], ignore_index=True), PURCHASES), "exclude")


def test_what_is_held_out_of_nothing_is_not_refused():
    alone = make(visit("u", "purchase of a"), visit("v", "purchase of a"))
    check_targets(split_of(alone, PURCHASES), "exclude")


def test_a_training_without_a_target_is_refused():
    once = make(visit("u", "view of a", "purchase of b"), visit("v", "view of a", "view of b", "purchase of c"))
    with pytest.raises(SchemaError, match=r"none of the 3 events to train on is a target: 2 are held out for the test"):
        check_targets(split_of(once, PURCHASES), "exclude")
    check_targets(split_of(once, replace(PURCHASES, split=SplitConfig("none"))), "exclude")


def test_a_first_training_without_a_target_is_refused_though_the_last_has_one():
    twice = make(visit("u", "view of a", "purchase of b", "purchase of c"))
    strict = replace(PURCHASES, split=SplitConfig(strict=True))
    with pytest.raises(SchemaError, match=r"none of the 1 events .* 1 are held out for the test, 1 for the validation"):
        check_targets(split_of(twice, strict), "exclude")


@pytest.mark.parametrize("given", [{}, {"tune": train.Config().tune.__class__(trials=2)}])
def test_a_run_and_a_search_stop_before_they_train(tmp_path, given):
    another = make(visit("w", "view of a", "purchase of a", "view of b", "purchase of b"))
    pd.concat([VIEWED_FIRST, another]).to_csv(tmp_path / "events.csv", index=False)
    data = replace(PURCHASES, interactions=replace(PURCHASES.interactions, path=str(tmp_path / "events.csv")))
    config = train.Config(data, out=tmp_path / "run", **given)
    with pytest.raises(SchemaError, match="every figure would be 0"):
        train.search(config, "") if given else train.run(config)


@pytest.mark.parametrize(("part", "tuned"), [("test", False), ("validation", False), ("validation", True)])
def test_a_file_of_items_that_nothing_else_has_is_refused(tmp_path, part, tuned):
    parts = {"interactions": make(visit("u", "view of a", "view of b"), visit("v", "view of a"))}
    parts |= {name: make(visit("v", f"view of {item}")) for name, item in (("test", "b"), ("validation", "b"))}
    parts[part]["item_id"] = "0b"
    paths = {name: str(tmp_path / f"{name}.csv") for name in parts}
    for name, rows in parts.items():
        rows.to_csv(paths[name], index=False)
    files = SplitConfig("files", validation=paths["validation"], test=paths["test"])
    data = DataConfig(interactions=replace(DataConfig().interactions, path=paths["interactions"]), split=files)
    config = train.Config(data, out=tmp_path / "run", tune=train.Config().tune.__class__(trials=2 if tuned else None))
    with pytest.raises(SchemaError, match=rf"none of the 1 items of data\.split\.{part} is .* '0b' there and 'a' here"):
        train.search(config, "") if tuned else train.run(config)


def test_a_file_with_one_listed_item_is_enough():
    rows = weigh_targets(make(visit("u", "view of a"), visit("v", "view of x", "view of y")), DataConfig())
    split = Split(rows[:1], rows[:0], rows[1:], "files")
    declared = SplitConfig("files", test="test.csv")
    check_files(split, declared, pd.DataFrame({"item_id": ["y"]}))
    with pytest.raises(SchemaError, match=r"none of the 2 items of data\.split\.test .* 'x' there and 'z' here"):
        check_files(split, declared, pd.DataFrame({"item_id": ["z"]}))
    check_files(split, SplitConfig(), pd.DataFrame({"item_id": ["z"]}))  # cut from the interactions


def test_files_are_judged_by_their_targets_and_by_all_that_is_trained_on_before_them():
    rows = weigh_targets(make(visit("u", "view of a", "purchase of b", "view of a", "purchase of x")), PURCHASES)
    no_items = pd.DataFrame({"item_id": []}, dtype=str)
    validated = Split(rows[:1], rows[3:], rows[3:], "files")  # the last training has the item of the test
    check_files(validated, SplitConfig("files", test="test.csv"), no_items)
    seen_alone = Split(rows[:1], rows[:0], rows[2:], "files")
    with pytest.raises(SchemaError, match=r"none of the 1 items of data\.split\.test .* 'x' there and 'a' here"):
        check_files(seen_alone, SplitConfig("files", test="test.csv"), no_items)


@pytest.mark.parametrize(("share", "n_hints"), [(None, 0), (0.0999, 0), (0.1, 1)])
def test_from_a_tenth_on_it_is_said_that_tested_pairs_are_owned(share, n_hints):
    assert len(list(hint_at_owned(share, "exclude"))) == n_hints
    assert not list(hint_at_owned(share, "allow"))


def test_the_report_counts_targets_alone_and_says_how_many_are_out_of_reach():
    unseen = make(visit("w", "view of a", "purchase of b", "view of a"))
    events = pd.concat([VIEWED_FIRST, unseen], ignore_index=True)
    report = report_of(events, PURCHASES)
    assert report["cold"]["test_pairs_owned_before"] == pytest.approx(2 / 3)  # not the views that go with them
    assert report["cold"]["test_items_unseen"] == pytest.approx(0)
    (hint,) = report["out_of_reach"]
    assert hint.startswith("66.7% of the tested pairs")
    text = io.StringIO()
    print_report(report, Console(file=text, width=400))
    assert hint in text.getvalue()
    assert report_of(events, replace(PURCHASES, repeats="allow"))["out_of_reach"] == []
    assert report["targets"] == {"train": 1, "validation": 0, "test": 3}
    assert "1 train, 0 validation, 3 test" in text.getvalue()
    assert report_of(events, DataConfig())["targets"] is None
    assert report_of(events, DataConfig())["out_of_reach"] != []  # the last events of u and w are of owned items
