import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve.__main__ import main
from serve.recommender import Recommender
from tests.linear_bundle import SHOP, item_values, publish_linear

ROWS = [{"item_id": f"new{row}", **item_values(row)} for row in range(9)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_linear(tmp_path_factory.mktemp("layouts"), SHOP, seed=3)


def run(bundle, side, out, *more):
    return main([str(word) for word in ("export", "--bundle", bundle, "--side", side, "--out", out, *more)])


def read(folder, side):
    """Return ids and vectors of all shards."""
    table = pq.read_table(folder)  # names with _ are left out
    return table.column(f"{side}_id").to_pylist(), np.array(table.column("vector").to_pylist(), np.float32)


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def renamed_rows():
    """Return rows under the names of another system, and a column that is called as one of ours by chance."""
    return [{"sku": one["item_id"], "cost": one["price"], "price": "?", "brand": one["brand"]} for one in ROWS]


@pytest.mark.parametrize(("name", "delimiter"), [("i.csv", ";"), ("i.csv", "|"), ("i.tsv", "\t"), ("i.csv", "~")])
def test_delimiter_and_columns_may_be_other_ones(bundle, tmp_path, name, delimiter):
    rows = renamed_rows()
    with (tmp_path / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    words = ["--rows", tmp_path / name, "--columns", "item_id=sku, price=cost"]
    words += ["--delimiter", "~"] if delimiter == "~" else []
    assert run(bundle, "item", tmp_path / "out", *words) == 0
    assert_placed(bundle, tmp_path / "out")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_columns_of_typed_files_may_be_other_ones(bundle, tmp_path, suffix):
    rows = write_rows(tmp_path / f"i.{suffix}", renamed_rows())
    assert run(bundle, "item", tmp_path / "out", "--rows", rows, "--columns", "item_id=sku,price=cost") == 0
    assert_placed(bundle, tmp_path / "out")


def assert_placed(bundle, folder):
    """Compare with the same items, given one by one under our names."""
    ids, vectors = read(folder, "item")
    assert ids == [f"new{row}" for row in range(9)]
    served = Recommender.load(bundle)
    names = ("price", "brand")
    single = [served.encode_items([{name: item_values(row)[name] for name in names}])[0] for row in range(9)]
    np.testing.assert_allclose(vectors, single, atol=1e-6)


def test_users_of_a_file_may_have_another_column(bundle, tmp_path, capsys):
    (tmp_path / "r.csv").write_text("customer;gender\nu1;f\nu3;?\n")
    rows = ("--rows", tmp_path / "r.csv", "--columns", "user_id=customer")
    assert run(bundle, "user", tmp_path / "out", *rows) == 0
    assert read(tmp_path / "out", "user")[0] == ["u1", "u3"]
    assert "1 of 2 requests name values not seen in training: features.gender '?' (1 times)" in capsys.readouterr().out


def test_a_layout_that_does_not_fit_is_refused(bundle, tmp_path, capsys):
    (tmp_path / "i.csv").write_text("sku;price\na;1\n")
    rows = ("--rows", tmp_path / "i.csv")
    faults = {
        "i.csv, line 1: no column 'skuu', where item_id should be; did you mean 'sku'?": ("item_id=skuu", *rows),
        "no feature of items reads 'prise'; did you mean 'price'?": ("item_id=sku,prise=price", *rows),
        "columns: got 'sku'; expected NAME=COLUMN": ("sku", *rows),
        "columns: got 'item_id=b'": ("item_id=a,item_id=b", *rows),
        "delimiter is ';;'": ("item_id=sku", *rows, "--delimiter", ";;"),
        "give the file with --rows": ("item_id=sku",),
    }
    for message, (columns, *more) in faults.items():
        assert run(bundle, "item", tmp_path / "out", "--columns", columns, *more) == 2
        assert message in capsys.readouterr().err
    path = write_rows(tmp_path / "i.parquet", ROWS)
    assert run(bundle, "item", tmp_path / "out", "--rows", path, "--delimiter", r"\t") == 2
    assert "i.parquet: a delimiter is given" in capsys.readouterr().err


def test_another_layout_is_another_source(bundle, tmp_path, capsys):
    (tmp_path / "i.csv").write_text("item_id,sku,price\na,b,1\n")
    assert run(bundle, "item", tmp_path / "out", "--rows", tmp_path / "i.csv") == 0
    (tmp_path / "out" / "_SUCCESS").unlink()
    more = ("--rows", tmp_path / "i.csv", "--columns", "item_id=sku")
    assert run(bundle, "item", tmp_path / "out", *more) == 2
    assert "of source" in capsys.readouterr().err
