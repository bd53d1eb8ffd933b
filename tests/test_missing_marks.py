"""Texts that stand for missing values: declared, they are empty cells; not declared, they are hinted at."""

import json

import numpy as np
import pandas as pd
import pytest

from datamodules.clean import clean
from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.report import report_data
from datamodules.splits import split_interactions
from datamodules.tables import check_reject_rates, read_tables, tables_from_frames
from serve.errors import SchemaError

FEATURES = FeaturesConfig(user={"age": "numeric", "town": "categorical", "taste": "vector"})
AGES = ["31", "unknown", " NA ", "47", "", "unknown"]
TOWNS = ["Ulm", "unknown", "-", "NAnjing", "Bonn", "Ulm"]
TASTES = ["1 2", "NA", "3 4", "5 6", "", "7 8"]
MARKS = ["unknown", "NA ", "-"]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


def write_users(folder, suffix):
    path = folder / f"users{suffix}"
    rows = pd.DataFrame({"user_id": range(6), "age": AGES, "town": TOWNS, "taste": TASTES})
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dict("records")))
    elif suffix == ".parquet":
        rows.to_parquet(path)
    else:
        rows.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    return path


def configure(folder, suffix, missing):
    (folder / "events.csv").write_text("user_id,item_id\n0,7\n0,9\n1,8\n1,7\n")
    users = TableConfig(str(write_users(folder, suffix)), missing=missing)
    return DataConfig(TableConfig(str(folder / "events.csv")), users, features=FEATURES)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_declared_mark_is_an_empty_cell_in_files_of_every_kind(tmp_path, suffix):
    tables, rejects = read_tables(configure(tmp_path, suffix, MARKS))
    assert not len(rejects.frame)
    np.testing.assert_array_equal(tables.users["age"], [31, np.nan, np.nan, 47, np.nan, np.nan])
    assert [None if pd.isna(town) else town for town in tables.users["town"]] == [
        "Ulm",
        None,
        None,
        "NAnjing",
        "Bonn",
        "Ulm",
    ]
    assert [cell and cell.entries().tolist() for cell in tables.users["taste"]] == [
        [1, 2],
        None,
        [3, 4],
        [5, 6],
        None,
        [7, 8],
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_declared_is_no_mark(tmp_path, suffix):
    tables, rejects = read_tables(configure(tmp_path, suffix, ["unknown"]))
    assert rejects.frame["value"].str.strip().tolist() == ["NA", "NA"]
    assert tables.users["user_id"].tolist() == [0, 3, 4, 5]


def test_a_mark_in_a_column_that_must_be_filled_is_a_missing_value():
    events = pd.DataFrame(
        {
            "user_id": pd.Categorical(["a", "none", "b"]),
            "item_id": pd.Series([1, 2, "none"], dtype=object),
            "weight": [1.0, 2.0, 3.0],
        }
    )
    tables, rejects = tables_from_frames(DataConfig(TableConfig(missing=["none"])), events)
    assert tables.interactions.to_dict("list") == {"user_id": ["a"], "item_id": [1], "weight": [1.0]}
    assert list(zip(rejects.frame["line"], rejects.frame["column"], rejects.frame["reason"], strict=True)) == [
        (2, "user_id", "missing"),
        (3, "item_id", "missing"),
    ]


def make_ages(marks):
    ages = [*map(str, range(20, 30)), *marks]
    return pd.DataFrame({"user_id": range(len(ages)), "age": ages})


def read_ages(marks):
    events = pd.DataFrame({"user_id": [0, 0, 1], "item_id": [1, 2, 1]})
    config = DataConfig(features=FeaturesConfig(user={"age": "numeric"}))
    return config, *tables_from_frames(config, events, make_ages(marks))


def test_a_refusal_hints_at_the_text_that_most_bad_records_share():
    _, _, rejects = read_ages(["?", "?", "?", "old"])
    with pytest.raises(SchemaError) as error:
        check_reject_rates(rejects, 0.1)
    assert str(error.value).endswith(
        "value '?': not a number; users.age is '?' in 3 bad records: if that stands for a missing value, "
        "add it to data.users.missing"
    )


def test_a_column_of_marks_hints_at_them_rather_than_at_another_kind():
    with pytest.raises(
        SchemaError, match=r"'age' does not hold numbers.*users.age is 'NA' in 11 bad records.*users.missing"
    ):
        read_ages(["NA"] * 11)


@pytest.mark.parametrize("marks", [["?", "?"], ["?", "?", "?", "a", "b", "c", "d"]])
def test_a_few_texts_or_many_are_no_mark(marks):
    _, _, rejects = read_ages(marks)
    with pytest.raises(SchemaError, match=r"not a number; mend the files or raise the rate$"):
        check_reject_rates(rejects, 0.1)


def test_the_data_report_names_the_mark():
    config, tables, rejects = read_ages(["?", "?", "?"])
    tables, cleaning = clean(tables)
    report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, config, 0), config, ())
    assert report["missing_marks"] == [
        "users.age is '?' in 3 bad records: if that stands for a missing value, add it to data.users.missing"
    ]
