from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import (
    CleaningReport,
    check_joins,
    clean,
    only_evidence,
    only_targets,
    order_tables,
    weigh_targets,
)
from datamodules.config import (
    DataConfig,
    FeaturesConfig,
    SplitConfig,
    TableConfig,
    TargetsConfig,
)
from datamodules.tables import Tables, tables_from_frames
from datamodules.values import TARGET_WEIGHT
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.errors import SchemaError

COLUMNS = ["user_id", "item_id", "datetime", "event", "weight", "device"]


def make_tables(rows, users=(1, 2), items=("a", "b", "c")):
    return Tables(
        pd.DataFrame(rows, columns=COLUMNS),
        pd.DataFrame({"user_id": list(users), "age": [None] * len(users)}),
        pd.DataFrame({"item_id": list(items)}),
    )


def test_equal_rows_go_and_rows_that_differ_anywhere_stay():
    first = (1, "a", 10, "buy", 1.0, "tv")
    others = [
        (2, *first[1:]),
        (1, "b", *first[2:]),
        (1, "a", 11, *first[3:]),
        (1, "a", 10, "view", 1.0, "tv"),
    ]
    others += [(1, "a", 10, "buy", 2.0, "tv"), (1, "a", 10, "buy", 1.0, None)]
    cleaned, report = clean(make_tables([first, *others, first, others[-1], first]))
    expected = make_tables([first, *others]).interactions
    pd.testing.assert_frame_equal(cleaned.interactions, expected)
    assert report == CleaningReport(3, 0, 0, 0, 0)


ROW = st.tuples(
    st.integers(1, 2),
    st.sampled_from("abc"),
    st.integers(1, 3),
    st.sampled_from(["buy", None]),
    st.sampled_from([-1.0, 0.0, 1.5]),
    st.just("tv"),
)


@given(st.lists(ROW, min_size=1, max_size=17))
@settings(max_examples=20, deadline=None)
def test_cleaning_is_idempotent_and_does_not_see_a_table_given_twice(rows):
    once, _ = clean(make_tables(rows))
    again, report = clean(once)
    doubled, _ = clean(make_tables(rows + rows))
    pd.testing.assert_frame_equal(again.interactions, once.interactions)
    pd.testing.assert_frame_equal(doubled.interactions, once.interactions)
    assert (report.duplicate_events, report.negative_weights) == (0, 0)
    assert list(once.interactions["weight"]) == undo_one_by_one(dict.fromkeys(rows))


def undo_one_by_one(rows, types=None) -> list[float]:
    """Return the weights that are left, in the order of the rows, by a stack for each user and item."""
    rows = list(rows)
    left = [row[4] for row in rows]
    stacks = {}
    for place in sorted(range(len(rows)), key=lambda n: (rows[n][2], rows[n][4] < 0, n)):
        user, item, _, event, amount, _ = rows[place]
        stack = stacks.setdefault((user, item), [])
        if amount > 0 and (types is None or event in types):
            stack.append(place)
        due = -amount
        while due > 1e-9 and stack:
            taken = min(due, left[stack[-1]])
            left[stack[-1]] -= taken
            due -= taken
            if left[stack[-1]] < 1e-9:
                left[stack.pop()] = None
    return [weight for weight in left if weight is not None and weight >= 0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("types", [None, ["buy"], ["buy", "view"]])
def test_a_return_takes_its_amount_from_the_latest_events_before_it(seed, types):
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, 3, 90), rng.choice(list("abcd"), 90), rng.integers(0, 20, 90)]
    events = rng.choice(["buy", "view", "back"], 90)
    amounts = rng.integers(1, 9, 90) / 10
    amounts = np.where((events == "back") | (rng.random(90) < 0.1), -amounts, amounts)
    rows = list(dict.fromkeys(zip(*columns, events, amounts, ["tv"] * 90, strict=True)))
    config = DataConfig(targets=TargetsConfig(events=types))
    cleaned, report = clean(make_tables(rows), config)
    expected = undo_one_by_one(rows, types)
    assert cleaned.interactions["weight"].tolist() == pytest.approx(expected)
    amounts = np.array([row[4] for row in rows])
    n_sold = (amounts > 0).sum()
    assert report.negative_weights == (amounts < 0).sum() > 0
    assert report.taken_back == n_sold - len(expected) > 0


def test_a_return_in_the_test_takes_nothing_from_the_training():
    rows = [
        (1, "a", day * 86_400, "buy", weight, "tv")
        for day, weight in ((1, 2.0), (9, 1.0), (10, -1.5))
    ]
    split = SplitConfig("time", "1970-01-06")
    kept = clean(make_tables(rows), DataConfig(split=split))[0].interactions
    assert kept["weight"].tolist() == [2.0]
    assert clean(make_tables(rows))[0].interactions["weight"].tolist() == [1.5]


def test_events_without_returns_stay_as_they_are():
    rows = [
        (1, "a", 3, "buy", 0.1, "tv"),
        (1, "a", 1, "buy", 0.2, "tv"),
        (2, "b", 2, "buy", 0.0, "tv"),
    ]
    cleaned, report = clean(make_tables(rows))
    pd.testing.assert_frame_equal(cleaned.interactions, make_tables(rows).interactions)
    assert report.taken_back == 0


def test_the_events_of_excluded_users_are_left_out_and_counted():
    rows = [
        (1, "a", 1, "buy", 1.0, "tv"),
        (2, "a", 1, "buy", 1.0, "tv"),
        (2, "b", 1, "buy", 1.0, "tv"),
    ]
    cleaned, report = clean(make_tables(rows), DataConfig(exclude_users=["2 ", "nobody"]))
    assert cleaned.interactions["user_id"].tolist() == [1]
    assert report.excluded_events == 2


@pytest.mark.parametrize(("keep", "expected"), [("first", [1, 2]), ("last", [9, 2])])
def test_the_declared_row_of_an_id_is_kept_and_the_others_are_counted(keep, expected):
    items = pd.DataFrame({"item_id": ["a", "b", "a", "a"], "price": [1, 2, 1, 9]})
    config = DataConfig(
        items=TableConfig(keep=keep), features=FeaturesConfig(item={"price": "numeric"})
    )
    events = pd.DataFrame({"user_id": [1, 2], "item_id": ["a", "b"]})
    tables, report = clean(tables_from_frames(config, events, items=items)[0], config)
    assert sorted(tables.items["price"]) == sorted(expected)
    assert tables.items["item_id"].is_unique
    assert report.duplicate_items == 2


USERS = pd.DataFrame({"user_id": [3, 1, 2], "age": [30.0, 10.0, 20.0]})
ITEMS = pd.DataFrame({"item_id": ["b", "a"], "vector": [(2.0, 1.0), None]})


def make_events(n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    cells = np.array(["x", 3, None, True, 2.5], dtype=object)
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, 3, n),
            "item_id": rng.choice(["a", "b", "c"], n),
            "datetime": rng.integers(0, 4, n),
            "position": np.arange(n) % 5,
            "device": rng.choice(cells, n),
        }
    ).drop_duplicates(ignore_index=True)


@pytest.mark.parametrize(
    ("columns", "ties"),
    [
        (["user_id", "item_id", "datetime", "device"], "simultaneous"),
        (["user_id", "item_id", "device"], "ordered"),
        (["user_id", "item_id"], "ordered"),
    ],
)
def test_baskets_and_sets_are_in_one_order_however_the_file_was(columns, ties):
    events = make_events()[columns].drop_duplicates(ignore_index=True)
    expected = None
    for seed in range(5):
        shuffled = events.sample(frac=1, random_state=seed, ignore_index=True)
        ordered = order_tables(Tables(shuffled, USERS, ITEMS), ties).interactions
        assert sorted(map(repr, ordered.to_numpy())) == sorted(map(repr, events.to_numpy()))
        expected = ordered if expected is None else expected
        pd.testing.assert_frame_equal(ordered, expected)


def test_ordered_ties_keep_the_order_of_the_table():
    events = make_events()
    ordered = order_tables(Tables(events, USERS, ITEMS), "ordered").interactions
    rows = sorted(
        events.index,
        key=lambda row: (*events.loc[row, ["user_id", "datetime", "position"]], row),
    )
    pd.testing.assert_frame_equal(ordered, events.loc[rows].reset_index(drop=True))


def test_users_and_items_are_ordered_by_id():
    tables = order_tables(Tables(make_events(), USERS, ITEMS), "ordered")
    assert tables.users["age"].tolist() == [10.0, 20.0, 30.0]
    assert tables.items["vector"].tolist() == [None, (2.0, 1.0)]


VISITS = pd.DataFrame({"user_id": [1, 1, 2, 3], "item_id": ["B1", "B2", "B2", "B3"]})
VISITORS = pd.DataFrame({"user_id": [2, 1, 4]})
BOOKS = pd.DataFrame({"item_id": ["B3", "B9"], "asin": ["P1", "P2"]})
GIVEN = ("interactions", "users", "items")


def make(users=VISITORS, items=BOOKS) -> Tables:
    return tables_from_frames(DataConfig(), VISITS, users, items)[0]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"users": pd.DataFrame({"user_id": ["0002", "0001"]})},
            r"none of the users .* users table: user_id is '1' in the interactions and '0001' in the users; "
            r"name the right column as user_id in data\.users\.columns",
        ),
        (
            {"items": BOOKS[["asin"]].set_axis(["item_id"], axis=1)},
            r"none of the items .* items table: item_id is 'B1' in the interactions and 'P1' in the items; "
            r"name the right column as item_id in data\.items\.columns",
        ),
        (
            {"users": pd.DataFrame({"user_id": [7]})},
            r"user_id is 1 in the interactions and 7 in the users",
        ),
    ],
)
def test_a_table_that_shares_no_id_is_refused(tables, message):
    with pytest.raises(SchemaError, match=message):
        check_joins(make(**tables), GIVEN)


EVENTS = pd.DataFrame(
    {
        "user_id": [1, 1, 1, 2, 2],
        "item_id": [5, 6, 7, 5, 8],
        "event": ["view", "buy", None, "cart", "buy"],
        "weight": [1.0, 5.0, 4.0, 2.0, 3.0],
    }
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DataConfig(targets=TargetsConfig(events=["buy"])), [0, 1, 0, 0, 1]),
        (DataConfig(targets=TargetsConfig(min_weight=3)), [0, 1, 1, 0, 1]),
        (DataConfig(targets=TargetsConfig(["buy", "cart"], 3)), [0, 1, 0, 0, 1]),
        (
            DataConfig(events={"view": 1, "buy": 3}),
            [0.5555556, 1.6666667, 0.5555556, 0.5555556, 1.6666667],
        ),
        (
            DataConfig(events={"buy": 6, "cart": 3}, targets=TargetsConfig(["buy", "cart"])),
            [0, 1.2, 0, 0.6, 1.2],
        ),
    ],
)
def test_weights_are_those_declared_and_of_mean_one(config, expected):
    weighed = weigh_targets(EVENTS, config)
    assert weighed[TARGET_WEIGHT].tolist() == pytest.approx(expected)
    assert only_targets(weighed).index.tolist() == [
        row for row, weight in enumerate(expected) if weight
    ]
    assert len(only_targets(weighed)) + len(only_evidence(weighed)) == len(EVENTS)
    assert only_targets(weighed)[TARGET_WEIGHT].mean() == pytest.approx(1)


def test_without_a_declaration_every_event_is_a_target():
    assert weigh_targets(EVENTS, DataConfig()) is EVENTS
    assert len(only_targets(EVENTS)) == len(EVENTS)
    assert only_evidence(EVENTS).empty


@pytest.mark.parametrize(
    ("config", "columns", "message"),
    [
        (
            DataConfig(targets=TargetsConfig(["by"])),
            ["event"],
            "event 'by' is declared.*did you mean 'buy'",
        ),
        (DataConfig(targets=TargetsConfig([])), ["event"], "no event is a target"),
        (DataConfig(events={"buy": 2.0}), ["weight"], "reads 'event', which is absent"),
        (
            DataConfig(targets=TargetsConfig(min_weight=4)),
            ["event"],
            "reads 'weight', which is absent",
        ),
        (
            DataConfig(targets=TargetsConfig(min_weight=9)),
            ["weight"],
            r"no event is a target",
        ),
    ],
)
def test_a_declaration_that_fits_no_event_is_refused(config, columns, message):
    with pytest.raises(SchemaError, match=message):
        weigh_targets(EVENTS[["user_id", "item_id", *columns]], config)
