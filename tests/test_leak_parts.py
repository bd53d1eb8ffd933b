from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from datamodules.config import DataConfig, SplitConfig
from datamodules.leaks.parts import find_shared_events
from datamodules.splits import Split, split_interactions

N_USERS, N_EVENTS, N_ITEMS = 83, 17, 41
START = 1_500_000_000
TIMED = ["datetime"], ["datetime", "position", "event"]
UNTIMED = ["position"], []


@pytest.fixture
def events():
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEMS)[:N_EVENTS] for _ in range(N_USERS)])
    user = np.repeat(np.arange(N_USERS), N_EVENTS)
    time = START + 40 * rng.permutation(len(user))
    frame = pd.DataFrame({"user_id": user, "item_id": items, "datetime": time})
    return frame.sort_values(["user_id", "datetime"], ignore_index=True)


def parts(train, test, kind="files", **more):
    return Split(train, train.head(0), test, kind, **more)


def by_last(events):
    is_last = ~events.duplicated("user_id", keep="last")
    return events[~is_last], events[is_last]


def found(split):
    return [(leak.kind, leak.column, round(leak.power, 4)) for leak in find_shared_events(split)]


@pytest.mark.parametrize(
    ("kind", "columns"),
    [*product(["leave_one_out", "none"], TIMED), *product(["leave_one_out", "pairs", "none"], UNTIMED)],
)
def test_our_own_splits_share_nothing(events, kind, columns):
    events = events.assign(position=np.arange(len(events)), event="view")
    events = events[["user_id", "item_id", *columns]]
    again = pd.concat([events, events.head(29)], ignore_index=True) if kind == "pairs" else events
    assert found(split_interactions(again, DataConfig(split=SplitConfig(kind)), 0)) == []


def test_a_split_by_time_shares_nothing(events):
    at = pd.Timestamp(START + 30 * len(events), unit="s").isoformat()
    assert found(split_interactions(events, DataConfig(split=SplitConfig("time", at)), 0)) == []


def test_events_of_the_validation_that_are_tested_again_are_counted(events):
    train, test = by_last(events)
    split = Split(train, test.head(5), test, "files")  # the last training has them
    assert found(split) == [("test in training", "user_id, item_id, datetime", round(5 / N_USERS, 4))]


def test_parts_that_are_apart_in_time_may_share_few_users(events):
    early, late = events[events["datetime"] < START + 20 * len(events)], events[events["user_id"] >= 3]
    late = late[late["datetime"] >= START + 20 * len(events)]
    shared = early["user_id"].lt(3) | early["user_id"].eq(N_USERS - 1)  # one of eighty
    assert found(parts(early[shared], late)) == []


@pytest.mark.parametrize("kind", ["time", "pairs", "files"])
def test_what_the_last_training_sees_of_the_validation_counts_as_training(events, kind):
    at = START + 30 * len(events)
    is_test = (events["datetime"] >= at) & (np.arange(len(events)) % 2 == 0)
    known = events[~is_test]
    is_early = known["datetime"] < at
    alone, whole = (parts(rows, events[is_test], kind, test_at=at) for rows in (known[is_early], known))
    assert found(replace(alone, validation=known[~is_early])) == found(whole) != found(alone)


def test_events_in_two_parts_are_counted(events):
    train, test = by_last(events)
    split = parts(pd.concat([train, test.head(5)]), test)
    assert ("test in training", "user_id, item_id, datetime", round(5 / N_USERS, 4)) in found(split)
    (message,) = (leak.message for leak in find_shared_events(split))
    assert message.startswith(
        "5 of 83 test events (6.0%) are in training too, with the same user_id, item_id, datetime"
    )


def test_a_position_counts_anew_in_each_file(events):
    train, test = by_last(events)
    copied = pd.concat([train.assign(position=1), test.head(5).assign(position=2)])
    assert found(parts(copied, test.assign(position=3)))[0][0] == "test in training"
    assert found(parts(copied, test.assign(position=3), "leave_one_out")) == []


def test_validation_events_in_training_are_counted(events):
    train, validation = by_last(events)
    split = replace(parts(pd.concat([train, validation.head(3)]), train.head(0), "none"), validation=validation)
    assert found(split) == [("test in training", "user_id, item_id, datetime", round(3 / N_USERS, 4))]
    assert "3 of 83 validation events" in next(find_shared_events(split)).message


def test_a_pair_in_two_parts_is_counted(events):
    train, test = by_last(events)
    again = test.head(7).assign(datetime=START - 1)
    assert found(parts(pd.concat([train, again]), test, "pairs")) == [
        ("test in training", "user_id, item_id", round(7 / N_USERS, 4))
    ]


def test_training_events_after_the_test_began_are_counted(events):
    at = START + 30 * len(events)
    is_test = events["datetime"] >= at
    late = events[is_test].head(11)
    train = pd.concat([events[~is_test], late.assign(item_id=N_ITEMS)])
    assert found(parts(train, events[is_test], "time", test_at=at)) == [
        ("test in training", "datetime", round(11 / len(train), 4))
    ]


def test_files_split_by_the_last_event_or_by_time_or_by_user_are_clean(events):
    assert found(parts(*by_last(events))) == []
    middle = events["datetime"].median()
    assert found(parts(events[events["datetime"] < middle], events[events["datetime"] >= middle])) == []
    assert found(parts(events[events["user_id"] < 50], events[events["user_id"] >= 50])) == []


def test_files_split_at_random_know_the_future_of_their_users(events):
    rng = np.random.default_rng(1)
    is_test = rng.random(len(events)) < 0.2
    train, test = events[~is_test], events[is_test]
    first, last = test.groupby("user_id")["datetime"].min(), train.groupby("user_id")["datetime"].max()
    share = (last.reindex(first.index) > first).mean()
    assert share > 0.8
    assert found(parts(train, test)) == [("test in training", "datetime", round(share, 4))]


def test_pairs_of_data_with_times_know_the_future_of_their_users(events):
    split = split_interactions(events, DataConfig(split=SplitConfig("pairs")), 0)
    first = split.test.groupby("user_id")["datetime"].min()
    last = split.refit.groupby("user_id")["datetime"].max()
    share = (last.reindex(first.index) > first).mean()
    assert share > 0.8
    assert found(split) == [("test in training", "datetime", round(share, 4))]
    assert "set data.split.kind to leave_one_out or time" in next(find_shared_events(split)).message


def test_a_few_training_events_later_than_the_test_are_counted(events):
    middle = events["datetime"].median()
    is_test = (events["datetime"] >= middle) & (events["user_id"] >= 3)
    later = events["datetime"] >= middle
    train, test = events[~later], events[is_test]
    stray = events[later & (events["user_id"] < 3)]
    n = int((stray["datetime"] > test["datetime"].min()).sum())
    assert 0 < n <= 0.05 * len(test)
    assert found(parts(pd.concat([train, stray]), test)) == [
        ("test in training", "datetime", round(n / (len(train) + len(stray)), 4))
    ]


@pytest.mark.parametrize("columns", [["datetime"], []])
def test_a_few_users_in_two_parts_are_counted(events, columns):
    events = events[["user_id", "item_id", *columns]]
    is_test = (events["user_id"] >= 40) | ((events["user_id"] < 2) & ~events.duplicated("user_id", keep="last"))
    n_users = N_USERS - 40 + 2
    assert found(parts(events[~is_test], events[is_test])) == [("user in two parts", "user_id", round(2 / n_users, 4))]
    leak = next(find_shared_events(parts(events[~is_test], events[is_test])))
    assert leak.message.startswith("2 of 45 test users (4.4%) have events in training and all others have none")


def test_lines_of_one_purchase_that_differ_in_weight_are_shared_between_files_alone(events):
    again = events.drop_duplicates("user_id", keep="last").assign(weight=2.0)
    lines = pd.concat([events.assign(weight=1.0), again], ignore_index=True)
    lines = lines.sort_values(["user_id", "datetime"], ignore_index=True, kind="stable")
    split = split_interactions(lines, DataConfig(split=SplitConfig("leave_one_out")), 0)
    assert split.test["weight"].eq(2).all()
    assert found(split) == []
    by_files = found(parts(*by_last(lines)))
    assert by_files == [("test in training", "user_id, item_id, datetime", 1.0)]


def test_events_of_one_weight_in_two_parts_are_counted(events):
    train, test = by_last(events.assign(weight=3.0))
    split = parts(pd.concat([train, test.head(5)]), test, "leave_one_out")
    assert found(split) == [("test in training", "user_id, item_id, datetime, weight", round(5 / N_USERS, 4))]


def test_a_set_is_compared_by_its_pairs(events):
    train, test = by_last(events[["user_id", "item_id"]].assign(weight=1.0))
    split = parts(pd.concat([train, test.head(13).assign(weight=2.0)]), test, "leave_one_out")
    assert found(split) == [("test in training", "user_id, item_id", round(13 / N_USERS, 4))]


def rows_of(users, times, **more):
    """Give each user an item of her own at each of the times."""
    frame = pd.DataFrame([(user, user, time) for user in users for time in times])
    return frame.set_axis(["user_id", "item_id", "datetime"], axis=1).assign(**more)


@pytest.mark.parametrize(("n_shared", "is_named"), [(1, True), (2, True), (3, False)])
def test_parts_of_different_users_share_one_in_twenty_at_most(n_shared, is_named):
    train = rows_of([*range(100, 160), *range(n_shared)], [START])[["user_id", "item_id"]].assign(item_id=0)
    test = rows_of([*range(40)] * 2, [START])[["user_id", "item_id"]]  # each has two events
    expected = [("user in two parts", "user_id", round(n_shared / 40, 4))]
    assert found(parts(train, test.assign(item_id=np.arange(80) + 1))) == (expected if is_named else [])


@pytest.mark.parametrize(("n_later", "is_named"), [(1, False), (2, False), (3, True), (200, True)])
def test_later_events_of_one_user_in_a_hundred_are_a_slip_of_a_clock(n_later, is_named):
    test = rows_of(range(200), [START + 50])
    train = pd.concat([rows_of(range(200), [START]), rows_of(range(n_later), [START + 99])]).assign(item_id=-1)
    expected = [("test in training", "datetime", round(n_later / 200, 4))]
    named = [leak for leak in found(parts(train, test, "pairs")) if leak[1] == "datetime"]
    assert named == (expected if is_named else [])


def test_an_event_of_training_at_the_first_moment_of_the_test_is_late():
    train, test = rows_of(range(9), [START]), rows_of(range(20, 29), [START + 50, START + 60])
    at_once = pd.concat([train, rows_of([9], [START + 50])])
    assert found(parts(train, test, "time", test_at=START + 50)) == []
    assert found(parts(at_once, test, "time", test_at=START + 50)) == [("test in training", "datetime", 0.1)]


def test_files_that_meet_in_one_moment_are_apart_in_time():
    """Where times are days, the last day of training may be the first of the test."""
    train = rows_of(range(60), [START, START + 50])
    test = rows_of(range(60, 100), [START + 50, START + 70])
    assert found(parts(train, test)) == []
    late = rows_of([200], [START + 60])
    assert found(parts(pd.concat([train, late]), test)) == [("test in training", "datetime", round(1 / 121, 4))]


def test_a_test_of_one_moment_is_one_by_time():
    train, test = rows_of(range(60), [START, START + 20]), rows_of(range(60, 100), [START + 50])
    late = rows_of([200, 201], [START + 60])
    assert found(parts(train, test)) == []
    assert found(parts(pd.concat([train, late]), test)) == [("test in training", "datetime", round(2 / 122, 4))]


def test_late_events_of_tested_users_are_named_once():
    train, test = rows_of(range(60), [START]).assign(item_id=-1), rows_of(range(60), [START + 50, START + 60])
    late = rows_of(range(2), [START + 70]).assign(item_id=-2)
    (leak,) = find_shared_events(parts(pd.concat([train, late]), test))
    assert leak.message.startswith("2 of 60 test users (3.3%) have events in training that are later")


def test_a_purchase_is_another_event_than_the_view_of_the_same_moment():
    viewed = rows_of(range(9), [START], event="view", weight=1.0)
    assert found(parts(viewed, viewed.assign(event="buy"), "leave_one_out")) == []
    assert found(parts(viewed, viewed, "leave_one_out")) != []
