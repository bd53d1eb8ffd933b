from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from datamodules.clean import hint_at_ties, order_tables
from datamodules.tables import Tables

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
    rows = sorted(events.index, key=lambda row: (*events.loc[row, ["user_id", "datetime", "position"]], row))
    pd.testing.assert_frame_equal(ordered, events.loc[rows].reset_index(drop=True))


def test_users_and_items_are_ordered_by_id():
    tables = order_tables(Tables(make_events(), USERS, ITEMS), "ordered")
    assert tables.users["age"].tolist() == [10.0, 20.0, 30.0]
    assert tables.items["vector"].tolist() == [None, (2.0, 1.0)]


def test_many_ties_in_time_are_hinted_at():
    events = pd.DataFrame({"user_id": [1, 1, 1, 1, 2], "item_id": list("abbca"), "datetime": [5, 5, 5, 6, 5]})
    (hint,) = hint_at_ties(events, "ordered")
    assert hint.startswith("50.0% of events")  # a and b of user 1; that b is there twice counts once
    assert list(hint_at_ties(events, "simultaneous")) == []
    assert list(hint_at_ties(events.assign(position=range(5)), "ordered")) == []
    assert list(hint_at_ties(events.drop(columns="datetime"), "ordered")) == []
    assert list(hint_at_ties(events.assign(datetime=range(5)), "ordered")) == []
