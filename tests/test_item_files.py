import csv
import json
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import SchemaError
from serve.item_files import ItemFile, read_item_ids
from serve.row_files import count_rows
from tests.linear_bundle import SHOP

TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=4)
ROWS = st.lists(st.tuples(TEXTS, st.none() | st.integers(-9, 9)), min_size=1, max_size=13)


def write_all(folder, rows):
    """Write the same rows in the three formats."""
    pq.write_table(pa.table(rows, schema=pa.schema([("item_id", pa.int32()), ("brand", "string"), ("price", "int64")])),
                   folder / "i.parquet", row_group_size=4)  # fmt: skip
    names = list(rows)
    records = [dict(zip(names, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    (folder / "i.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    with (folder / "i.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NOTNULL if hasattr(csv, "QUOTE_NOTNULL") else csv.QUOTE_MINIMAL)
        writer.writerow(names)
        writer.writerows(zip(*rows.values(), strict=True))


@given(rows=ROWS, size=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_formats_hold_the_same_items_in_blocks_of_one_size(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("items")
    brands, prices = map(list, zip(*rows, strict=True))
    ids = list(range(100, 100 + len(rows)))
    write_all(folder, {"item_id": ids, "brand": brands, "price": prices})
    for suffix in ("parquet", "jsonl", "csv"):
        blocks = list(ItemFile(folder / f"i.{suffix}", SHOP).blocks(size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert 0 < len(blocks[-1]) <= size
        read = {
            name: [value for b in blocks for value in list(b.columns[name])] for name in ("item_id", "brand", "price")
        }
        if suffix == "csv":
            assert list(map(int, read["item_id"])) == ids
            assert [value or None for value in read["brand"]] == brands
            assert [int(value) if value else None for value in read["price"]] == prices
        else:
            assert read == {"item_id": ids, "brand": brands, "price": prices}


def test_suffixes_in_capitals_are_the_same(tmp_path):
    pq.write_table(pa.table({"item_id": [7, 8], "brand": ["x", "y"]}), tmp_path / "I.PARQUET")
    (tmp_path / "I.JSONL").write_text('{"item_id": 7, "brand": "x"}\n{"item_id": 8, "brand": "y"}\n')
    for name, place in (("I.PARQUET", "I.PARQUET, row 2"), ("I.JSONL", "I.JSONL, line 2")):
        file = ItemFile(tmp_path / name, SHOP)
        (rows,) = file.blocks(5)
        assert list(rows.columns["brand"]) == ["x", "y"]
        assert file.name_place(rows.places[1]) == place
        assert count_rows(tmp_path / name) == 2


def test_a_file_that_is_none_of_items_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "i.txt").write_text("item_id,brand\n7,x\n")
    faults = {
        "i.txt": "i.txt: cannot read '.txt'; allowed: .jsonl",
        "gone.csv": "gone.csv: no such file",
        ".": "is a folder",
    }
    for name, said in faults.items():
        with pytest.raises(SchemaError, match=re.escape(said)):
            ItemFile(tmp_path / name, SHOP)


def test_remarks_are_of_all_blocks(tmp_path):
    rows = [{"item_id": 1, "brand": "x"}, {"item_id": 2, "price": 3, "size": 7}, {"item_id": 3, "department": "meat"}]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = ItemFile(tmp_path / "i.jsonl", SHOP)
    (whole,) = file.blocks(5)
    assert whole.columns == {
        "item_id": [1, 2, 3],
        "brand": ["x", None, None],
        "price": [None, 3, None],
        "department": [None, None, "meat"],
    }
    file = ItemFile(tmp_path / "i.jsonl", SHOP)
    assert [len(block) for block in file.blocks(1)] == [1, 1, 1]
    assert file.remarks() == ["columns that no feature reads: size"]


def test_items_of_which_nothing_is_known_may_fill_any_block_but_the_first(tmp_path):
    known, unknown = {"item_id": 1, "brand": "x"}, {"item_id": 2, "size": 7}
    for name, rows in (("i.jsonl", (known, unknown)), ("other.jsonl", (unknown, known))):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [block.columns["item_id"] for block in ItemFile(tmp_path / "i.jsonl", SHOP).blocks(1)] == [[1], [2]]
    said = r"^other\.jsonl, line 1: no column is a feature of items; allowed: brand, department, price$"
    with pytest.raises(SchemaError, match=said):
        next(ItemFile(tmp_path / "other.jsonl", SHOP).blocks(1))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"brand": "x"}, "i.jsonl, line 3: no column 'item_id'; name it with --columns item_id=COLUMN"),
        ([3], "i.jsonl, line 3: item is [3] (list); expected an object of columns"),
    ],
)
def test_a_block_of_other_columns_is_refused_with_its_place(tmp_path, row, said):
    rows = [{"item_id": 1, "brand": "x"}, {"item_id": 2, "brand": "y"}, row]
    (tmp_path / "i.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = ItemFile(tmp_path / "i.jsonl", SHOP).blocks(2)
    assert len(next(blocks)) == 2
    with pytest.raises(SchemaError, match=re.escape(said)):
        next(blocks)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_ids_are_those_of_all_blocks(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("serve.item_files._IDS_AT_ONCE", 2)
    write_all(tmp_path, {"item_id": [7, 5, 9, 5, 1], "brand": ["x"] * 5, "price": [1] * 5})
    assert list(map(int, read_item_ids(tmp_path / f"i.{suffix}"))) == [7, 5, 9, 5, 1]


def test_places_are_lines_of_text_and_rows_of_parquet(tmp_path):
    (tmp_path / "i.csv").write_text('item_id,brand\na,"x\ny"\n\nb,z\n')
    (tmp_path / "i.jsonl").write_text('\n{"item_id": 1, "brand": "x"}\n\n{"item_id": 2}\n')
    pq.write_table(pa.table({"item_id": range(5), "brand": ["x"] * 5}), tmp_path / "i.parquet")
    places = {}
    for suffix in ("csv", "jsonl", "parquet"):
        file = ItemFile(tmp_path / f"i.{suffix}", SHOP)
        places[suffix] = [file.name_place(place) for block in file.blocks(2) for place in block.places]
    assert places["csv"] == ["i.csv, line 3", "i.csv, line 5"]
    assert places["jsonl"] == ["i.jsonl, line 2", "i.jsonl, line 4"]
    assert places["parquet"] == [f"i.parquet, row {row}" for row in range(1, 6)]


def test_numbers_without_gaps_are_arrays(tmp_path):
    table = {"item_id": pa.array(range(7), pa.int64()), "price": pa.array(np.arange(7.0)), "brand": [None] * 7}
    pq.write_table(pa.table(table), tmp_path / "i.parquet")
    (block,) = ItemFile(tmp_path / "i.parquet", SHOP).blocks(11)
    assert block.columns["price"].dtype == np.float64
    assert block.columns["brand"] == [None] * 7


def test_remarks_name_the_columns_that_do_not_fit(tmp_path):
    (tmp_path / "i.jsonl").write_text('{"item_id": 1, "brand": "x"}\n{"item_id": 2, "title": "t", "brand": "y"}\n')
    file = ItemFile(tmp_path / "i.jsonl", SHOP)
    list(file.blocks(1))
    assert file.remarks() == [
        "columns that no feature reads: title",
        "columns that are not there, taken as missing: department, price",
    ]
    bare = ItemFile(tmp_path / "i.jsonl", replace(SHOP, item_features=()))
    assert len(list(bare.blocks(2))) == 1


def test_rows_are_counted(tmp_path):
    (tmp_path / "i.csv").write_text("item_id\n1\n2\n")
    pq.write_table(pa.table({"item_id": range(5)}), tmp_path / "i.parquet")
    assert count_rows(tmp_path / "i.csv") == 3
    assert count_rows(tmp_path / "i.parquet") == 5
