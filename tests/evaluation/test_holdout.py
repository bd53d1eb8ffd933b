from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation.holdout import (
    Ids,
    profiles_from_frame,
    read_interactions,
    read_users,
    split_validation,
)
from serve.errors import SchemaError
from tests.tiny_bundle import SCHEMA

AT = 1_600_000_000
ROWS = pd.DataFrame(
    {
        "user_id": ["a", "b", "a"],
        "item_id": ["p", "q", "r"],
        "datetime": AT,
        "weight": 1,
        "position": 3,
    }
)
NOBODY = pd.DataFrame({"user_id": []}, dtype=object)


def read(folder, frame, name="events.csv", schema=SCHEMA):
    path = folder / name
    if isinstance(frame, str):
        path.write_text(frame)
    else:
        frame.to_csv(path, index=False) if ".csv" in name else frame.to_parquet(path)
    return read_interactions(path, schema)


@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events.parquet"])
def test_interactions_come_in_the_types_of_the_bundle(tmp_path, name):
    frame = pd.DataFrame(
        {
            "user_id": [12, 5, 12],
            "item_id": ["007", "NA", "8"],
            "datetime": [AT, AT + 7, AT + 1],
        }
    )
    frame = frame.assign(event=[" buy ", None, "view"], position=[2, 3, 5], other=1)
    got = read(tmp_path, frame, name, replace(SCHEMA, user_id_type="integer"))
    assert got["user_id"].dtype == np.int64
    assert got["item_id"].tolist() == ["007", "NA", "8"]
    assert (got["datetime"].tolist(), got["position"].tolist()) == (
        [AT, AT + 7, AT + 1],
        [2, 3, 5],
    )
    assert "other" not in got
    profiles = profiles_from_frame(got, pd.DataFrame({"user_id": [3, 12]}), SCHEMA)
    assert profiles.user_ids.tolist() == [3, 5, 12]
    assert profiles.get(12).history.item_id.tolist() == ["007", "8"]
    assert profiles.get(12).history.event.tolist() == ["buy", "view"]
    assert pd.isna(profiles.get(5).history.event[0])
    assert len(profiles.get(3).history) == 0


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            ROWS.rename(columns={"item_id": "item"}),
            "column 'item_id' is absent.*did you mean 'item'",
        ),
        (ROWS.assign(user_id=[None, "a", "b"]), "line 2, column 'user_id', value None: missing"),
        (
            ROWS.assign(datetime=["2020-11-01", "2020-13-01", "2020-11-03"]),
            "line 3, column 'datetime', value '2020-13-01': not a time",
        ),
        (
            ROWS.assign(weight=["many", "1", "1"]),
            "line 2, column 'weight', value 'many': not a number",
        ),
        (
            ROWS.assign(weight=[0, 0, -2.5]),
            "line 4, column 'weight', value '-2.5': below the minimum 0",
        ),
        (
            ROWS.assign(position=["0", "-inf", "1"]),
            "line 3, column 'position', value '-inf': not finite",
        ),
        ("", "is empty"),
        (
            "user_id,item_id,stars\n11,12,5,\n13,14,4,\n",
            "line 2.*too many columns",
        ),
        (
            "user_id,item_id,item_id\n11,12,13\n",
            "2 columns are called 'item_id'; rename all but one",
        ),
    ],
)
def test_unreadable_interactions_are_refused(tmp_path, frame, message):
    with pytest.raises(SchemaError, match=message) as caught:
        read(tmp_path, frame)
    assert "events.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("users", "message"),
    [
        (
            {"user_id": ["a", "b", "a"], "gender": "f", "income": 1},
            "user_id 'a' is there twice",
        ),
        (
            {"user_id": ["a", "b", "c"], "gander": "f", "income": 1},
            "column 'gender' is absent.*did you mean 'gander'",
        ),
    ],
)
def test_unfit_users_are_refused_and_numbers_are_numbers(tmp_path, users, message):
    path = tmp_path / "users.csv"
    pd.DataFrame(users).to_csv(path, index=False)
    with pytest.raises(SchemaError, match=message):
        read_users(path, SCHEMA)
    path.write_text("user_id,gender,income\na,f,2.50\nb,,\n")
    np.testing.assert_array_equal(read_users(path, SCHEMA)["income"], [2.5, np.nan])


def test_histories_are_oldest_first_and_positions_order_equal_times():
    rows = pd.DataFrame(
        {
            "user_id": "b",
            "item_id": list("pqrs"),
            "datetime": [9, 2, 9, 9],
            "position": [7, 8, 5, 5],
        }
    )
    history = (
        profiles_from_frame(rows.assign(weight=[0.5, 0.25, 0.0, 3.0]), NOBODY, SCHEMA)
        .get("b")
        .history
    )
    assert history.item_id.tolist() == ["q", "r", "s", "p"]
    assert (history.datetime.tolist(), history.weight.tolist()) == (
        [2, 9, 9, 9],
        [0.25, 0.0, 3.0, 0.5],
    )


def test_validation_is_a_window_as_long_as_the_test_where_both_parts_have_events():
    rows = pd.DataFrame({"user_id": list("abaab"), "item_id": "p", "datetime": [3, 5, 7, 6, 1]})
    train, validation = split_validation(rows, pd.DataFrame({"datetime": [9, 10]}), 8, 0)
    assert (train.index.tolist(), validation.index.tolist()) == ([0, 1, 4], [2, 3])
    for at in (
        99,
        8,
    ):  # a window that holds nothing, or everything: the last moments instead
        holdout = pd.DataFrame({"datetime": [at + (2 if at == 99 else 99)]})
        assert split_validation(rows, holdout, at, 0)[1].index.tolist() == [1, 2]


def test_without_a_moment_validation_is_the_last_moment_or_position_of_each_user():
    rows = pd.DataFrame(
        {
            "user_id": list("abaab"),
            "item_id": list("pqrst"),
            "datetime": [3, 5, 7, 7, 5],
        }
    )
    train, validation = split_validation(rows, rows, None, 0)
    assert (train.index.tolist(), validation.index.tolist()) == (
        [0, 1, 4],
        [2, 3],
    )  # b has one moment only
    positions = rows.drop(columns="datetime").assign(position=[9, 4, 5, 2, 3])
    assert split_validation(positions, rows, None, 0)[1].index.tolist() == [0, 1]


def test_without_times_validation_is_pairs_as_many_as_are_held_out_whatever_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"user_id": rng.integers(40, size=3000), "item_id": rng.integers(50, size=3000)}
    )
    train, validation = split_validation(rows, rows.drop_duplicates()[:380], None, 3)
    assert sorted([*train.index, *validation.index]) == rows.index.tolist()
    pairs, held_out = (set(part.itertuples(index=False, name=None)) for part in (train, validation))
    assert not pairs & held_out  # all rows of a pair together
    n_pairs = len(pairs | held_out)
    assert len(held_out) / n_pairs == pytest.approx(380 / (380 + n_pairs), abs=0.03)
    shuffled = split_validation(
        rows.sample(frac=1, random_state=1), rows.drop_duplicates()[:380], None, 3
    )[1]
    assert sorted(shuffled.index) == validation.index.tolist()
    assert set(split_validation(rows, pd.concat([rows, rows + 99]), None, 3)[0]["user_id"]) == set(
        rows["user_id"]
    )


@pytest.mark.parametrize(
    ("column", "is_ordered"), [("datetime", True), ("position", True), ("day", False)]
)
def test_events_are_oldest_first_where_the_table_has_an_order(column, is_ordered):
    rows = pd.DataFrame({"user_id": [1, 1, 1], "item_id": [7, 8, 9], column: [30, 10, 20]})
    events = Ids.number([7, 8, 9], [rows]).events(rows)
    assert events.is_ordered == is_ordered
    assert events.item_row.tolist() == ([1, 2, 0] if is_ordered else [0, 1, 2])
