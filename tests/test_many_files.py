import json
import re

import numpy as np
import pandas as pd
import pytest

from datamodules.config import DataConfig, FeaturesConfig, TableConfig
from datamodules.tables import read_tables
from serve.errors import SchemaError
from tests.written_tables import list_rejects

PART_B = "user_id,item_id,weight\n3,b,2\n,c,3\n4,d,x\n5,e,5\n"


def read_pattern(folder, pattern, **options):
    return read_tables(
        DataConfig(interactions=TableConfig(str(folder / pattern)), **{"max_reject_rate": 1.0, **options})
    )


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def test_all_files_of_a_pattern_are_one_table_in_the_order_of_their_names(tmp_path):
    write(
        tmp_path,
        events_10="user_id,item_id,weight\n1,a,1\n",
        events_2=PART_B,
        events_3="user_id,item_id,weight\n",
        other="no,table\n",
    )
    (tmp_path / "events_folder.csv").mkdir()
    tables, rejects = read_pattern(tmp_path, "events_*.csv")
    assert tables.interactions.to_numpy().tolist() == [[1, "a", 1], [3, "b", 2], [5, "e", 5]]
    assert tables.interactions["user_id"].dtype == "int64"
    assert list_rejects(rejects) == [(3, "user_id", "missing"), (4, "weight", "not a number")]
    assert rejects.frame["file"].tolist() == [str(tmp_path / "events_2.csv")] * 2
    assert rejects.records == {"interactions": 5}


@pytest.mark.parametrize("pattern", ["**/*.csv", "**/**/*.csv"])
def test_two_stars_name_the_files_of_all_folders_below(tmp_path, pattern):
    (tmp_path / "2024" / "05").mkdir(parents=True)
    write(tmp_path, a="user_id,item_id\n1,2\n")
    write(tmp_path / "2024", b="user_id,item_id\n3,4\n")
    write(tmp_path / "2024" / "05", c="user_id,item_id\n5,6\n")
    tables, _ = read_pattern(tmp_path, pattern)
    assert sorted(tables.interactions["user_id"]) == [1, 3, 5]


@pytest.mark.parametrize(("pattern", "users"), [("e?.csv", [1, 2, 3]), ("e[13].csv", [1, 3]), ("*2.csv", [2])])
def test_patterns(tmp_path, pattern, users):
    write(tmp_path, **{f"e{number}": f"user_id,item_id\n{number},7\n" for number in (3, 1, 2)})
    tables, _ = read_pattern(tmp_path, pattern)
    assert tables.interactions["user_id"].tolist() == users


@pytest.mark.parametrize("name", ["e[1].csv", "e?.csv", "e*.csv"])
def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path, name):
    write(tmp_path, e1="user_id,item_id\n1,7\n")
    (tmp_path / name).write_text("user_id,item_id\n5,7\n")
    tables, _ = read_pattern(tmp_path, name)
    assert tables.interactions["user_id"].tolist() == [5]


def test_each_file_is_read_as_its_suffix_says(tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id,tag\n1,007,x\n2,7,y\n")
    (tmp_path / "e.tsv").write_text("item_id\ttag\tuser_id\tmore\n8\tz\t3\t0\n")
    lines = [{"user_id": 4, "item_id": 7, "tag": None}, {"item_id": "9", "user_id": 2**60 + 1}]
    (tmp_path / "e.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    frame = pd.DataFrame({"user_id": pd.array([5, None], dtype="Int64"), "item_id": ["a", "b"], "tag": ["u", "v"]})
    frame.to_parquet(tmp_path / "e.parquet")
    tables, rejects = read_pattern(tmp_path, "e.*", features=FeaturesConfig(context={"tag": "categorical"}))
    events = tables.interactions
    assert events["user_id"].tolist() == [1, 2, 4, 2**60 + 1, 5, 3]
    assert events["user_id"].dtype == "int64"
    assert events["item_id"].tolist() == ["007", "7", "7", "9", "a", "8"]
    assert events["tag"].fillna("-").tolist() == ["x", "y", "-", "-", "u", "z"]
    assert rejects.frame[["file", "line"]].to_numpy().tolist() == [[str(tmp_path / "e.parquet"), 2]]
    assert rejects.dropped == {"interactions": ("more",)}


def test_the_unit_of_time_is_told_for_each_file(tmp_path):
    write(
        tmp_path,
        e1="user_id,item_id,datetime\n1,2,1512086400\n",
        e2="user_id,item_id,datetime\n1,3,1512086400000\n",
        e3="user_id,item_id,datetime\n1,4,2017-12-01\n",
    )
    tables, _ = read_pattern(tmp_path, "e*.csv")
    assert tables.interactions["datetime"].tolist() == [1512086400] * 3


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("e2.csv", "user,item_id\n1,2\n", "e2.csv: column 'user_id' is absent, the default .*; did you mean 'user'"),
        ("e2.csv", "user_id,item_id\n1,2\n", "e2.csv: column 'weight' is absent, which .*e1.csv has"),
        ("e2.csv", "user_id,item_id,weight,event\n1,2,3,x\n", "e1.csv: column 'event' is absent, which .*e2.csv has"),
        ("e2.csv", "", "e2.csv is empty, or its first line is"),
        ("e2.csv", 'user_id,item_id,weight\n1,2,"3\n4,5,6\n', "e2.csv: the quote opened on line 2"),
        ("e2.csv", "user_id,item_id,weight,datetime\n1,2,3,5\n", "e1.csv: column 'datetime' is absent"),
        ("e2.xlsx", "", "e2.xlsx: unknown suffix '.xlsx'"),
        ("e2.jsonl", '{"user_id": 1, "item_id": 2}\n', "e2.jsonl: column 'weight' is absent"),
        ("e2.parquet", "PAR1", "e2.parquet cannot be read"),
    ],
)
def test_a_file_of_another_layout_is_refused_by_its_own_name(tmp_path, name, text, message):
    write(tmp_path, e1="user_id,item_id,weight\n1,2,3\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(SchemaError, match=message) as error:
        read_pattern(tmp_path, "e*")
    assert "\n" not in str(error.value)


def test_a_file_without_a_record_lacks_no_column(tmp_path):
    write(tmp_path, e1="user_id,item_id\n", e2="user_id,item_id,weight\n1,2,3\n")
    tables, _ = read_pattern(tmp_path, "e*.csv")
    assert tables.interactions["weight"].tolist() == [3]


def test_files_without_a_record_are_no_table(tmp_path):
    write(tmp_path, e1="user_id,item_id\n", e2="user_id,item_id\n")
    with pytest.raises(SchemaError, match=r"e\*.csv is empty: expected at least one record"):
        read_pattern(tmp_path, "e*.csv")


def test_a_column_is_of_the_wrong_kind_if_it_is_so_over_all_files(tmp_path):
    write(tmp_path, e1="user_id,item_id,weight\n1,2,x\n", e2="user_id,item_id,weight\n1,2,3\n1,3,4\n")
    _, rejects = read_pattern(tmp_path, "e*.csv")
    assert list_rejects(rejects) == [(2, "weight", "not a number")]
    write(tmp_path, e3="user_id,item_id,weight\n1,2,y\n1,3,z\n")
    with pytest.raises(
        SchemaError, match=r"'weight' does not hold numbers: 3 of its 5 values are not, .*e1.csv, line 2: 'x'"
    ):
        read_pattern(tmp_path, "e*.csv")


def test_rows_of_one_item_that_differ_are_refused_with_their_files(tmp_path):
    write(
        tmp_path,
        events="user_id,item_id\n1,7\n",
        items_1="item_id,price\n7,1\n8,2\n",
        items_2="item_id,price\n9,3\n8,2\n",
        items_3="item_id,price\n9,4\n5,1\n",
    )
    features = FeaturesConfig(item={"price": "numeric"})
    items = TableConfig(str(tmp_path / "items_[12].csv"))
    tables, _ = read_pattern(tmp_path, "events.csv", items=items, features=features)
    assert tables.items["item_id"].tolist() == [7, 8, 9, 8]
    both = re.escape(f"{tmp_path}/items_2.csv and {tmp_path}/items_3.csv")
    message = rf"items: item_id 9 has rows that differ \(1 such ids\), in {both}: in 'price'; keep"
    with pytest.raises(SchemaError, match=message):
        read_pattern(tmp_path, "events.csv", items=TableConfig(str(tmp_path / "items_*.csv")), features=features)


def test_many_files_are_the_same_as_one(tmp_path):
    rng = np.random.default_rng(5)
    rows = [f"{rng.integers(9)},i{rng.integers(7)},{rng.integers(1, 4)}" for _ in range(40)]
    head = "user_id,item_id,weight"
    for at in range(0, 40, 7):
        write(tmp_path, **{f"part-{at:02d}": "\n".join([head, *rows[at : at + 7]])})
    write(tmp_path, whole="\n".join([head, *rows]))
    parts, _ = read_pattern(tmp_path, "part-*.csv")
    whole, _ = read_pattern(tmp_path, "whole.csv")
    pd.testing.assert_frame_equal(parts.interactions, whole.interactions)
