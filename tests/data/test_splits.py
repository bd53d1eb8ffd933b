from __future__ import annotations

import math
from dataclasses import replace

import datamodules.splits
import numpy as np
import pandas as pd
import pytest
from datamodules.clean import only_targets, weigh_targets
from datamodules.config import DataConfig, SplitConfig, TargetsConfig
from datamodules.splits import check_targets, split_interactions
from datamodules.tables import PART
from datamodules.values import TARGET_WEIGHT
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.errors import SchemaError

LEAVE = DataConfig()
STRICT = DataConfig(split=SplitConfig(strict=True))
NONE = DataConfig(split=SplitConfig("none"))


def baskets(config):
    return replace(config, ties="simultaneous")


def until(at):
    return DataConfig(split=SplitConfig("time", at))


def make_events(rows, columns=("user_id", "datetime")):
    events = pd.DataFrame(rows, columns=columns)
    return events.assign(item_id=np.arange(100, 100 + len(events)))


def naive_parts(events, config, chosen):
    """Go user by user: groups in order; the last is test, the one before validation of the chosen users."""
    part = dict.fromkeys(events.index, "train")
    keys = [name for name in ("datetime", "position") if name in events]
    for user in sorted(events["user_id"].unique()):
        mine = events[events["user_id"] == user]
        rows = sorted(mine.index, key=lambda row: (*mine.loc[row, keys], row))
        groups = [[row] for row in rows]
        if config.ties == "simultaneous":
            times = sorted(mine["datetime"].unique())
            groups = [[row for row in rows if mine.loc[row, "datetime"] == time] for time in times]
        if config.split.kind == "leave_one_out" and len(groups) > 1:
            part.update(dict.fromkeys(groups.pop(), "test"))
        elif config.split.kind == "leave_one_out":
            continue
        if user in chosen and len(groups) > 1:
            part.update(dict.fromkeys(groups.pop(), "validation"))
    return part


def parts_of(split):
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {row: name for name, frame in parts.items() for row in frame.index}


EVENTS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 2)),
    min_size=1,
    max_size=23,
)
CONFIGS = [LEAVE, STRICT, NONE, baskets(LEAVE), baskets(STRICT), baskets(NONE)]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.split.kind}-{config.ties}")
@given(rows=EVENTS, seed=st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_parts_are_those_of_a_naive_split(config, rows, seed):
    events = make_events(rows, ("user_id", "datetime", "position"))
    split = split_interactions(events, config, seed)
    everyone = set(events["user_id"])
    assert parts_of(split) == naive_parts(events, config, everyone)
    assert len(split.train) + len(split.validation) + len(split.test) == len(events)
    pd.testing.assert_frame_equal(split.refit, events.drop(split.test.index))
    assert set(split.train["user_id"]) == everyone


def test_a_set_is_split_by_the_seed_and_not_by_the_order_of_the_table():
    events = pd.DataFrame(
        {"user_id": np.repeat([1, 2, 3], 11), "item_id": np.tile(np.arange(11), 3)}
    )
    shuffled = events.sample(frac=1, random_state=1, ignore_index=True)
    pairs = []
    for frame, seed in [(events, 0), (shuffled, 0), (events, 1)]:
        test = split_interactions(frame, LEAVE, seed).test
        assert sorted(test["user_id"]) == [1, 2, 3]
        pairs.append(set(map(tuple, test.to_numpy())))
    assert pairs[0] == pairs[1] != pairs[2]


def test_the_time_split_has_two_windows_of_one_length():
    day = 86400
    start = 1512086400  # 2017-12-01
    times = start + day * np.array([-9, -3, -2, -1, 0, 1, 2])
    split = split_interactions(make_events([(1, time) for time in times]), until("2017-12-01"), 0)
    assert split.train.index.tolist() == [0, 1]
    assert split.validation.index.tolist() == [2, 3]
    assert split.test.index.tolist() == [4, 5, 6]
    assert (split.validation_at, split.test_at, split.kind) == (
        start - 2 * day,
        start,
        "time",
    )
    assert split.horizon == 2 * day


@pytest.mark.parametrize("n_before", [0, 1, 4])
def test_a_window_that_is_no_likeness_of_the_test_gives_way_to_the_last_groups(n_before):
    start = 1512086400  # 2017-12-01; all of the test is dated alike
    rows = [(user, start - 9_000 + second) for user in range(20) for second in (0, 60)]
    rows += [(user, start - 1) for user in range(n_before)]
    rows += [(user, start) for user in range(20)]
    split = split_interactions(make_events(rows), baskets(until("2017-12-01T00:00:00Z")), 0)
    assert split.test.index.tolist() == list(range(40 + n_before, 60 + n_before))
    if n_before == 4:
        assert split.validation.index.tolist() == list(range(40, 44))
        assert split.horizon == 1
        return
    held_out = split.validation
    assert (held_out.groupby("user_id").size() == 1).all()
    assert len(held_out) > 4
    last = split.refit.groupby("user_id")["datetime"].max()
    assert (held_out["datetime"].to_numpy() == last[held_out["user_id"]].to_numpy()).all()
    assert split.horizon is None


def test_the_moment_of_a_time_split_is_read_in_the_zone():
    events = make_events([(1, 0), (1, 1512086400), (1, 1512086400 + 5 * 3600)])
    config = replace(until("2017-12-01"), timezone="America/New_York")
    assert split_interactions(events, config, 0).test_at == 1512086400 + 5 * 3600
    config = replace(config, split=SplitConfig("time", "2017-12-01T00:00:00Z"))
    with pytest.raises(SchemaError, match="nothing to train on"):
        split_interactions(events.tail(2), config, 0)
    assert split_interactions(events, config, 0).test_at == 1512086400


def test_some_events_are_targets_and_the_parts_begin_at_them():
    rows = [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (2, 1), (2, 2), (3, 1)]
    events = make_events(rows).assign(**{TARGET_WEIGHT: [1, 0, 2, 0, 2, 0, 0, 1, 1]})
    split = split_interactions(events, STRICT, 0)
    assert split.test.index.tolist() == [
        4,
        5,
        7,
    ]  # what follows the last target is not known before it
    assert split.validation.index.tolist() == [2, 3]
    assert split.train.index.tolist() == [0, 1, 6, 8]
    assert only_targets(split.test).index.tolist() == [4, 7]


@given(
    rows=st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 9), st.integers(0, 2)),
        min_size=9,
        max_size=60,
    ),
    share=st.sampled_from([0.2, 0.5, 0.9]),
    seed=st.integers(0, 3),
)
@settings(max_examples=40, deadline=None)
def test_pairs_hold_out_a_share_of_each_users_items_whole(rows, share, seed):
    events = pd.DataFrame(rows, columns=["user_id", "item_id", "city"])
    config = DataConfig(split=SplitConfig("pairs", share=share))
    sizes = events.groupby("user_id")["item_id"].nunique()
    expected = {user: min(math.floor(size * share + 0.5), size - 1) for user, size in sizes.items()}
    if not sum(expected.values()):
        with pytest.raises(SchemaError, match="no user has enough items"):
            split_interactions(events, config, seed)
        return
    split = split_interactions(events, config, seed)
    parts = [
        set(map(tuple, part[["user_id", "item_id"]].to_numpy().tolist()))
        for part in (split.train, split.validation, split.test)
    ]
    assert sum(map(len, parts)) == len(set.union(*parts)) == sizes.sum()  # no pair in two parts
    for user, size in sizes.items():
        of_user = [sum(pair[0] == user for pair in part) for part in parts]
        left = size - expected[user]
        held_out = min(math.floor(left * share + 0.5), left - 1)
        assert of_user == [left - held_out, held_out, expected[user]]
    shuffled = events.sample(frac=1, random_state=seed, ignore_index=True)
    again = split_interactions(shuffled, config, seed).test
    assert sorted(map(tuple, again.to_numpy())) == sorted(map(tuple, split.test.to_numpy()))


@pytest.mark.parametrize(
    "columns", [("user_id", "datetime"), ("user_id", "item_id")], ids=["order", "sets"]
)
def test_without_a_file_validation_is_what_the_training_rows_alone_would_stop_by(
    columns, monkeypatch
):
    monkeypatch.setattr(datamodules.splits, "VALIDATION_USERS", 7)
    rng = np.random.default_rng(2)
    rows = [
        (user, int(number)) for user in range(12) for number in rng.choice(50, 5, replace=False)
    ]
    events = pd.DataFrame(rows, columns=columns)
    events = events if "item_id" in events else events.assign(item_id=np.arange(len(events)))
    is_test = rng.random(len(events)) < 0.3
    given = events.assign(**{PART: np.where(is_test, "test", "train")})
    split = split_interactions(given, DataConfig(split=SplitConfig("files", test="t.csv")), 4)
    alone = split_interactions(events[~is_test], NONE, 4)
    assert list(split.test.index) == list(np.flatnonzero(is_test))
    assert list(split.validation.index) == list(alone.validation.index)
    assert split.validation["user_id"].nunique() == 7


PURCHASES = DataConfig(targets=TargetsConfig(events=["purchase"]))
START = 1_700_000_000


def visit(user: str, *events: str) -> list[tuple[str, str, str]]:
    return [(user, *event.split(" of ")) for event in events]


def make(*visits: list[tuple[str, str, str]]) -> pd.DataFrame:
    rows = pd.DataFrame(
        [row for user in visits for row in user],
        columns=["user_id", "event", "item_id"],
    )
    return rows.assign(datetime=range(START, START + len(rows)))


VIEWED_FIRST = make(
    visit("u", "view of a", "purchase of a", "view of b", "purchase of b", "view of c"),
    visit("v", "view of b", "view of c", "purchase of c"),
)


def split_of(events: pd.DataFrame, config: DataConfig):
    return split_interactions(weigh_targets(events, config), config, 0)


def test_targets_that_are_all_owned_are_refused_where_nothing_is_repeated():
    with pytest.raises(
        SchemaError,
        match=r"all 2 held-out pairs .* set data\.repeats to allow, or leave out the events",
    ):
        check_targets(split_of(VIEWED_FIRST, PURCHASES), "exclude")
    check_targets(split_of(VIEWED_FIRST, PURCHASES), "allow")


def test_a_training_without_a_target_is_refused():
    once = make(
        visit("u", "view of a", "purchase of b"),
        visit("v", "view of a", "view of b", "purchase of c"),
    )
    with pytest.raises(SchemaError, match=r"none of the 3 events of the training is a target"):
        check_targets(split_of(once, PURCHASES), "exclude")
    check_targets(split_of(once, replace(PURCHASES, split=SplitConfig("none"))), "exclude")
