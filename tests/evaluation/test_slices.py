import numpy as np
import pandas as pd
import pytest
from evaluation.metrics import (
    Targets,
    find_head,
    label_column,
    label_targets,
    measure_slices,
    measure_users,
)
from tests.evaluation.naive import as_sets

LISTS = np.array([[3, 0, 7, 9, 1], [0, 3, 5, 6, 2], [4, 0, 2, 8, 1]])
TARGETS = Targets(as_sets([[3, 10], [5, -1], [9, 1]]), np.array([1, 3, 1]))
EVENTS = np.array([50, 30, 4, 6, 1, 2, 0, 0, 3, 5, 20])


@pytest.fixture(autouse=True)
def every_slice(monkeypatch):
    monkeypatch.setattr("evaluation.metrics.MIN_USERS", 1)


def measure_one_each(labels) -> dict:
    """Measure labels of as many users, each with one request and one target."""
    requests = np.arange(len(labels))
    targets = Targets(as_sets([[0]] * len(labels)), requests)
    return measure_slices(np.full((len(labels), 5), 7), targets, {"city": labels})["city"]


def test_the_head_is_the_smallest_set_with_four_fifths_of_events():
    assert set(np.flatnonzero(find_head(EVENTS)).tolist()) == {
        0,
        1,
        10,
    }  # 80 of 121 events are too few, 100 are not
    assert find_head(np.array([8, 1, 1])).tolist() == [
        True,
        False,
        False,
    ]  # exactly 80 % is enough


def test_labels_of_targets():
    groups = {
        "gender": np.array(["f", "m", "x", None], object),
        "history": np.array(["s", "l", "n", None], object),
    }
    got = label_targets(TARGETS, np.array([3, 40, 0]), EVENTS, groups)
    assert got["history"].tolist() == ["1-4", "1-4", "20+", "20+", "0", "0"]
    assert got["item_events"].tolist() == ["5+", "5+", "0-4", "0-4", "5+", "5+"]
    assert got["popularity"].tolist() == [
        "tail",
        "head",
        "tail",
        "tail",
        "tail",
        "head",
    ]
    assert got["gender"].tolist() == ["m", "m", None, None, "m", "m"]
    assert got["history (column)"].tolist() == ["l", "l", None, None, "l", "l"]


def test_a_slice_of_users_is_measured_as_if_alone():
    labels = np.array(["a", "a", None, np.nan, "a", "a"], object)
    got = measure_slices(LISTS, TARGETS, {"group": labels})["group"]
    alone = Targets(as_sets([[3, 10], [9, 1]]), np.array([1, 1]))
    assert sorted(got) == ["a", "missing"]
    assert (got["a"]["users"], got["missing"]["Recall@10"]) == (1, pytest.approx(1 / 2))
    assert got["a"]["NDCG@10"] == pytest.approx(
        measure_users(LISTS[[0, 2]], alone)["NDCG@10"].mean()
    )


def test_a_slice_of_items_restricts_targets_and_not_lists():
    got = measure_slices(LISTS, TARGETS, {"kind": np.array([1, 2, 2, 1, 1, 2])})["kind"]
    assert got["1"]["Recall@10"] == pytest.approx(
        np.mean([(1 + 0) / 2, 0.0])
    )  # item 3 found, 9 and -1 not
    assert got["2"]["MRR@10"] == pytest.approx(np.mean([(0 + 1 / 5) / 2, 1 / 3]))
    assert len(got["2"]["MRR@10_ci95"]) == 2


def test_rare_values_are_one_slice_and_of_equally_frequent_ones_the_first_stay():
    names = [f"value-{number:02d}" for number in range(23)]
    got = measure_one_each(np.array([*names[20:], *names[:20], *names[:20]], object))
    assert {value: got[value]["users"] for value in got} == dict.fromkeys(names[:20], 2) | {
        "other": 3
    }
    assert sorted(measure_one_each(np.array(names[::-1], object))) == [
        "other",
        *names[:20],
    ]


def test_values_that_few_users_have_are_no_slices(monkeypatch):
    monkeypatch.undo()
    labels = np.array([*"aaaaa", *"bbbb", *"ccc", *[None] * 4, *"d"], object)
    assert {value: one["users"] for value, one in measure_one_each(labels).items()} == {
        "a": 5,
        "other": 12,
    }
    assert {value: one["users"] for value, one in measure_one_each(labels[:9]).items()} == {"a": 5}
    requests = as_sets([[0]] * 9)  # of two users, whatever they asked
    targets = Targets(requests, np.array([1] * 5 + [2] * 4))
    assert measure_slices(np.full((9, 5), 7), targets, {"city": labels[:9]}) == {"city": {}}


def test_whole_numbers_have_no_fraction():
    labels = np.array([25.0, 1.5, None], object)
    assert sorted(measure_one_each(labels)) == ["1.5", "25", "missing"]


def test_many_numbers_are_labelled_by_quartile():
    ages = pd.Series(
        [*range(10, 27), None], dtype="float64"
    )  # 17 values: the quartiles are 14, 18 and 22
    got = label_column(ages).tolist()
    assert got == ["10 to 14"] * 4 + ["14 to 18"] * 4 + ["18 to 22"] * 4 + ["22 to 26"] * 5 + [None]
    assert label_column(ages.astype("Int64")).tolist() == got
    infinite = pd.Series([*range(20), np.inf, -np.inf, np.nan])
    assert label_column(infinite).tolist() == [
        *label_column(infinite[:20]),
        None,
        None,
        None,
    ]


def test_a_value_is_one_label_whatever_the_space_around_it():
    labels = label_column(pd.Series(["f", "f ", "\tm", "m", "", " ", None]))
    assert labels[:4].tolist() == ["f", "f", "m", "m"]
    assert pd.isna(labels[4:]).all()
    assert label_column(pd.Series([1, 1.0, "1", " 1"], dtype=object)).tolist() == ["1"] * 4
