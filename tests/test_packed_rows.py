"""Files of items and requests that are compressed by gzip are the files that are in them."""

import gzip
import json
import subprocess
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from serve.__main__ import main
from serve.errors import SchemaError
from serve.item_files import ItemFile, read_item_ids
from serve.request_files import read_requests
from serve.row_files import check_file, count_rows
from tests.linear_bundle import SHOP, publish_linear

ITEMS = {
    "i.csv": b"item_id,brand,price\na,x,1\n\nb,y,2.5\n",
    "i.tsv": b"item_id\tbrand\tprice\na,b\tx\t1\n",
    "bars.csv": b"item_id|brand\n\xc3\xa9|x\n",
    "i.jsonl": b'{"item_id": "a", "brand": "x"}\n\n{"item_id": "b", "price": 3}\n',
}
REQUESTS = {
    "r.csv": b"user_id,gender,income\nu1,f,2\nu2,,\n",
    "R.CSV": b"\xef\xbb\xbfuser_id\r\nu1\r\n",
    "r.jsonl": b'{"user_id": "u1"}\n{"history": [{"item_id": "i0", "datetime": 1704110400}]}\n',
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return publish_linear(tmp_path_factory.mktemp("packed"), SHOP, seed=3)


def write_both(folder, name, content, n_parts=3):
    """Write a file as it is, and compressed in parts that follow each other, cut anywhere."""
    (folder / name).write_bytes(content)
    size = -(-len(content) // n_parts)
    parts = [gzip.compress(content[start : start + size]) for start in range(0, len(content), size)]
    (folder / f"{name}.gz").write_bytes(b"".join(parts))
    return folder / name, folder / f"{name}.gz"


def read_items(path):
    return [(block.columns, list(block.places)) for block in ItemFile(path, SHOP).blocks(2)]


@pytest.mark.parametrize("name", ITEMS)
def test_items_places_and_counts_are_those_of_the_file_within(tmp_path, name):
    plain, packed = write_both(tmp_path, name, ITEMS[name])
    assert read_items(packed) == read_items(plain)
    assert read_item_ids(packed) == read_item_ids(plain)
    assert count_rows(packed) == ITEMS[name].count(b"\n")


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_those_of_the_file_within(tmp_path, name):
    plain, packed = write_both(tmp_path, name, REQUESTS[name])
    assert [*read_requests(packed, SHOP)] == [*read_requests(plain, SHOP)]


def test_a_fault_is_named_by_the_line_of_the_file_within(tmp_path):
    _, packed = write_both(tmp_path, "r.jsonl", b'{"user_id": "u1"}\n\n{"user": 3}\n')
    with pytest.raises(SchemaError, match=r"r\.jsonl\.gz, line 3: "):
        list(read_requests(packed, SHOP))
    _, packed = write_both(tmp_path, "r.csv", b"user_id,gender\nu1,f\nu2,\xff\n")
    with pytest.raises(SchemaError, match=r"r\.csv\.gz, after line 1: no CSV in UTF-8"):
        list(read_requests(packed, SHOP))


@pytest.mark.parametrize("name", ["i.csv", "i.jsonl"])
def test_what_was_cut_off_gives_no_complete_list(tmp_path, name):
    _, packed = write_both(tmp_path, name, ITEMS[name], n_parts=1)
    content = packed.read_bytes()
    for length in range(2, len(content)):
        packed.write_bytes(content[:length])
        for read in (read_items, count_rows):
            with pytest.raises(SchemaError, match=rf"{name}\.gz: cannot be unpacked: .*; fetch the file again"):
                read(packed)


@pytest.mark.parametrize("name", ["i.csv", "i.jsonl"])
def test_no_byte_can_change_what_is_read(tmp_path, name):
    plain, packed = write_both(tmp_path, name, ITEMS[name], n_parts=1)
    expected, content = read_items(plain), packed.read_bytes()
    for place in range(len(content)):
        packed.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        with suppress(SchemaError):  # some bytes of the head tell only when and where it was packed
            assert read_items(packed) == expected


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("i.csv.gz", ITEMS["i.csv"], r"not compressed by gzip, which its name says; take \.gz from its name"),
        ("i.csv", gzip.compress(ITEMS["i.csv"]), r"compressed by gzip, which its name does not say; let its name end"),
        ("i.csv", b"PK\x03\x04rest", r"compressed by zip, as spreadsheets are; unpack it.*allowed: \.jsonl, "),
    ],
    ids=["plain", "gzip", "zip"],  # the bytes of the second hold the time
)
def test_a_file_that_is_compressed_otherwise_than_its_name_says_is_told_what_to_do(tmp_path, name, content, advice):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SchemaError, match=advice):
        read_items(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "kind"), [("i.parquet.gz", ".parquet.gz"), ("i.txt.GZ", ".txt.gz"), ("i.gz", ".gz"), ("i.zip", ".zip")]
)
def test_other_kinds_are_not_read_out_of_it(tmp_path, name, kind):
    with pytest.raises(SchemaError, match=rf"cannot read '{kind}'; allowed: .*\(\.gz may follow all but \.parquet\)$"):
        check_file(tmp_path / name)


@pytest.mark.parametrize("name", ["r", "it's my r", "$(r) & 'r'"])
def test_advice_for_a_compressed_array_works(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{name}.json.gz").write_bytes(gzip.compress(b'[{"user_id": "u1"}, {"user_id": "u2"}]'))
    with pytest.raises(SchemaError, match=r"cannot read '\.json\.gz'") as caught:
        check_file(tmp_path / f"{name}.json.gz")
    command = str(caught.value).split("to make lines of one array: ")[1]
    subprocess.run(["bash", "-c", command], check=True)
    assert [one.user_id for one in read_requests(tmp_path / f"{name}-lines.jsonl", SHOP)] == ["u1", "u2"]


def test_a_delimiter_is_allowed_of_compressed_text(bundle, tmp_path):
    rows = tmp_path / "i.csv.gz"
    rows.write_bytes(gzip.compress(b"item_id~brand\na~x\n"))
    words = ["export", "--bundle", bundle, "--side", "item", "--rows", rows, "--out", tmp_path / "o"]
    assert main([*map(str, words), "--delimiter", "~"]) == 0
    assert pq.read_table(tmp_path / "o").column("item_id").to_pylist() == ["a"]


def test_the_commands_take_compressed_files(bundle, tmp_path):
    requests = b"".join(json.dumps({"user_id": f"u{n}", "features": {"income": n}}).encode() + b"\n" for n in range(9))
    lists = {}
    for path in write_both(tmp_path, "r.jsonl", requests):
        out = tmp_path / f"{path.name}.csv"
        only = write_both(tmp_path, "only.csv", b"item_id\ni103\ni104\n")[path.suffix == ".gz"]
        words = ["recommend", "--bundle", bundle, "--k", 2, "--requests", path, "--only", only, "--out", out]
        assert main([str(word) for word in words]) == 0
        lists[path.suffix] = out.read_text()
    assert lists[".gz"] == lists[".jsonl"]
    assert lists[".gz"].count("\n") == 1 + 9 * 2
