from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics import measure_users
from evaluation.slices import find_head, label_column, label_history, label_targets, measure_slices
from evaluation.targets import ItemSets, Targets

LISTS = np.array([[3, 0, 7, 9, 1], [0, 3, 5, 6, 2], [4, 0, 2, 8, 1]])
TARGETS = Targets(ItemSets(np.array([3, 10, 5, -1, 9, 1]), np.array([0, 2, 4, 6])), np.array([1, 3, 1]))
EVENTS = np.array([50, 30, 4, 6, 1, 2, 0, 0, 3, 5, 20])


def test_history_groups_at_their_borders():
    lengths = np.array([0, 1, 4, 5, 19, 20, 900])
    assert label_history(lengths).tolist() == ["0", "1-4", "1-4", "5-19", "5-19", "20+", "20+"]


def test_head_is_the_smallest_set_with_four_fifths_of_events():
    head = set(np.flatnonzero(find_head(EVENTS)).tolist())
    assert head == {0, 1, 10}  # 50 + 30 = 80 are fewer than 96.8 of 121 events, 100 are not
    assert find_head(np.array([8, 1, 1])).tolist() == [True, False, False]  # exactly 80 % is enough


def test_labels_of_targets():
    gender = np.array(["f", "m", "x", None], object)
    got = label_targets(TARGETS, np.array([3, 40, 0]), EVENTS, {"gender": gender})
    assert got["history"].tolist() == ["1-4", "1-4", "20+", "20+", "0", "0"]
    assert got["item_events"].tolist() == ["5+", "5+", "0-4", "0-4", "5+", "5+"]
    assert got["popularity"].tolist() == ["tail", "head", "tail", "tail", "tail", "head"]
    assert got["gender"].tolist() == ["m", "m", None, None, "m", "m"]


def test_items_of_four_events_are_not_among_those_of_five():
    items = np.array([7, 4, 2, 9, 3])  # of 0, 1, 4, 5 and 6 events
    targets = Targets(ItemSets(items, np.array([0, 5])), np.array([0]))
    got = label_targets(targets, np.array([0]), EVENTS, {})
    assert got["item_events"].tolist() == ["0-4", "0-4", "0-4", "5+", "5+"]


def test_a_column_called_as_a_slice_of_ours_stands_beside_it():
    column = np.array(["short", "long", "none", None], object)
    got = label_targets(TARGETS, np.array([3, 40, 0]), EVENTS, {"history": column})
    assert got["history"].tolist() == ["1-4", "1-4", "20+", "20+", "0", "0"]
    assert got["history (column)"].tolist() == ["long", "long", None, None, "long", "long"]


def test_a_slice_of_users_is_measured_as_if_alone():
    labels = np.array(["a", "a", None, np.nan, "a", "a"], object)
    got = measure_slices(LISTS, TARGETS, {"group": labels})["group"]
    alone = Targets(ItemSets(np.array([3, 10, 9, 1]), np.array([0, 2, 4])), np.array([1, 1]))
    expected = measure_users(LISTS[[0, 2]], alone)["NDCG@10"]
    assert sorted(got) == ["a", "missing"]
    assert got["a"]["users"] == 1
    assert got["a"]["NDCG@10"] == pytest.approx(expected.mean())
    assert got["missing"]["Recall@10"] == pytest.approx(1 / 2)


def test_a_slice_of_items_restricts_targets_and_not_lists():
    labels = np.array([1, 2, 2, 1, 1, 2])
    got = measure_slices(LISTS, TARGETS, {"kind": labels})["kind"]
    assert got["1"]["users"] == 2
    assert got["1"]["Recall@10"] == pytest.approx(np.mean([(1 + 0) / 2, 0.0]))  # item 3 found, 9 and -1 not
    assert got["2"]["MRR@10"] == pytest.approx(np.mean([(0 + 1 / 5) / 2, 1 / 3]))
    assert len(got["2"]["MRR@10_ci95"]) == 2


def test_rare_values_are_one_slice():
    n_values, n_rare = 23, 3
    often = [f"value-{number:02d}" for number in range(n_values - n_rare) for _ in range(2)]
    rare = [f"value-{number:02d}" for number in range(n_values - n_rare, n_values)]
    labels = np.array([*rare, *often], object)
    requests = np.arange(len(labels) + 1)
    targets = Targets(ItemSets(np.zeros(len(labels), np.int64), requests), requests[:-1])
    got = measure_slices(np.full((len(labels), 5), 7), targets, {"city": labels})["city"]
    assert sorted(got) == ["other", *sorted(set(often))]
    assert got["other"]["users"] == n_rare
    assert {got[value]["users"] for value in often} == {2}


def test_of_equally_frequent_values_the_first_in_order_stay():
    """Whatever the order of the users: the same data would else have other groups."""
    names = np.array([f"value-{number:02d}" for number in range(23)], object)
    requests = np.arange(len(names) + 1)
    targets = Targets(ItemSets(np.zeros(len(names), np.int64), requests), requests[:-1])
    got = measure_slices(np.full((len(names), 5), 7), targets, {"city": names[::-1]})["city"]
    assert sorted(got) == ["other", *names[:20]]


def test_values_called_as_ours_are_told_from_them():
    """Whoever says "other" of her gender is of a group of people, which the gaps between groups left out."""
    labels = np.array(["other", "other", "missing", None, "woman", "other"], object)
    got = measure_slices(LISTS, TARGETS, {"gender": labels})["gender"]
    assert sorted(got) == ["missing", "missing (value)", "other (value)", "woman"]
    assert got["other (value)"]["users"] == got["missing (value)"]["users"] == got["missing"]["users"] == 1


def test_whole_numbers_are_written_as_vocabularies_write_them():
    """A column with gaps holds fractions; 25.0 is 25 in every other table of a run."""
    labels = label_column(pd.Series([25.0, 31.0, None, 25.0, 1.5, 31.0]))
    got = measure_slices(LISTS, TARGETS, {"age": labels})["age"]
    assert sorted(got) == ["1.5", "25", "31", "missing"]


def test_one_long_text_takes_the_memory_of_one():
    """It took its length for each target of the test, four bytes a letter."""
    n_targets, length = 400, 100_000
    labels = np.array(["short"] * (n_targets - 1) + ["x" * length], object)
    requests = np.arange(n_targets + 1)
    targets = Targets(ItemSets(np.zeros(n_targets, np.int64), requests), requests[:-1])
    tracemalloc.start()
    got = measure_slices(np.full((n_targets, 5), 7), targets, {"note": labels})["note"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [got[label]["users"] for label in ("short", "x" * length)] == [n_targets - 1, 1]
    assert peak < n_targets * length


def test_many_numbers_are_labelled_by_quartile():
    ages = pd.Series([*range(10, 27), None], dtype="float64")  # 17 values: the quartiles are 14, 18 and 22
    got = label_column(ages).tolist()
    expected = ["10 to 14"] * 4 + ["14 to 18"] * 4 + ["18 to 22"] * 4 + ["22 to 26"] * 5
    assert got == [*expected, None]
    whole = ages.astype("Int64")
    for same in (whole, whole.astype(object).where(whole.notna(), None)):
        assert label_column(same).tolist() == got


def test_numbers_that_are_mostly_one_have_fewer_groups():
    got = label_column(pd.Series([0] * 31 + list(range(1, 14)))).tolist()
    assert got[:31] == ["0 to 2.25"] * 31  # of 44 values the upper quartile lies a quarter from 2 to 3
    assert set(got) == {"0 to 2.25", "2.25 to 13"}


def test_few_numbers_and_texts_are_labels_themselves():
    assert label_column(pd.Series([3, 5, 3])).tolist() == [3, 5, 3]
    texts = [f"{number}" for number in range(17)]
    assert label_column(pd.Series(texts)).tolist() == texts


@pytest.mark.parametrize(("kind", "most"), [("int64", 12), ("str", 20)])
def test_numbers_are_quartiles_from_where_they_are_too_many(kind, most):
    few, many = (pd.Series(np.arange(n)).astype(kind) for n in (most, most + 1))
    assert label_column(few).tolist() == few.tolist()
    assert len(set(label_column(many))) == 4


def test_numbers_without_end_are_of_no_quartile():
    column = pd.Series([*range(20), np.inf, -np.inf, np.nan])
    assert label_column(column).tolist() == [*label_column(column[:20]), None, None, None]


@pytest.mark.parametrize("numbers", [np.arange(-11, 11), np.arange(22) / 4, np.arange(-22, 0) / 8])
def test_texts_of_signed_numbers_and_fractions_are_quartiles_too(numbers):
    column = pd.Series(numbers)
    assert label_column(column.astype("str")).tolist() == label_column(column).tolist()
    assert len(set(label_column(column))) == 4


def test_a_value_is_one_label_as_it_is_one_of_a_vocabulary():
    """The same people stood in two groups of one name, and those of whom nothing is known in one without a name."""
    genders = pd.Series(["f", "f ", "\tm", "m", "", " ", None])
    labels = label_column(genders)
    assert labels[:4].tolist() == ["f", "f", "m", "m"]
    assert pd.isna(labels[4:]).all()
    assert label_column(pd.Series([1, 1.0, "1", " 1"], dtype=object)).tolist() == ["1"] * 4
    assert label_column(pd.Series([*map(str, range(18, 60)), ""])).tolist()[:1] == ["18 to 28.25"]


@pytest.mark.parametrize("first", [20240100, 1_500_000_000, -3], ids=["dates", "epochs", "negative"])
def test_quartiles_of_near_numbers_are_groups_of_their_own(first):
    """Six digits do not tell such numbers apart: two quartiles became one."""
    column = pd.Series(np.arange(first, first + 100))
    labels = label_column(column)
    assert [int((labels == label).sum()) for label in dict.fromkeys(labels)] == [25] * 4
    assert not any("e+" in label for label in labels)


def test_quartiles_of_fractions_that_differ_late_are_groups_of_their_own():
    labels = label_column(pd.Series(1 + np.arange(100) * 1e-12))
    assert [int((labels == label).sum()) for label in dict.fromkeys(labels)] == [25] * 4


def test_many_numbers_of_a_csv_file_are_labelled_as_those_of_other_files():
    ages = pd.Series([*range(18, 60), None], dtype="Int64")
    texts = ages.astype("str")
    assert label_column(texts).tolist() == label_column(ages).tolist()
    codes = texts.str.zfill(5)
    assert label_column(codes).tolist()[:2] == ["00018", "00019"]
    assert label_column(texts.fillna("none")).tolist()[:2] == ["18", "19"]
