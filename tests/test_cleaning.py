import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.clean import CleaningReport, clean
from datamodules.tables import Tables

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


def test_negative_weights_go_and_zero_stays():
    rows = [(1, "a", 10 + at, "buy", weight, "tv") for at, weight in enumerate([1, -0.5, 0, -2, 0, 0.5, 3])]
    cleaned, report = clean(make_tables([*rows, rows[1], rows[2]]))
    assert cleaned.interactions["weight"].tolist() == [1, 0, 0, 0.5, 3]
    assert report == CleaningReport(2, 2, 2, 0, 0)


def test_equal_users_and_items_are_one():
    tables = make_tables([(1, "a", 1, "buy", 1.0, "tv")], users=(5, 3, 5, 5), items=("a", "a", "b"))
    cleaned, report = clean(tables)
    assert cleaned.users["user_id"].tolist() == [5, 3]
    assert cleaned.items["item_id"].tolist() == ["a", "b"]
    assert (report.duplicate_users, report.duplicate_items) == (2, 1)


def test_events_without_weight_are_kept():
    events = pd.DataFrame({"user_id": [1, 1, 1], "item_id": [3, 3, 4]})
    cleaned, report = clean(Tables(events, events[["user_id"]].head(1), events[["item_id"]].tail(1)))
    assert cleaned.interactions.to_numpy().tolist() == [[1, 3], [1, 4]]
    assert report == CleaningReport(1, 0, 0, 0, 0)


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
    kept = list(dict.fromkeys(row for row in rows if row[4] >= 0))
    assert list(once.interactions["weight"]) == [row[4] for row in kept]
