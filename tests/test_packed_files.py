"""Files compressed by gzip are the tables that are in them."""

import gzip
import io
import json
import tarfile

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.config import DataConfig, TableConfig
from datamodules.tables import read_tables
from serve.errors import SchemaError
from tests.written_tables import EVENTS, FAULTS, HOSTILE, encode, list_rejects

LINES = b'{"user_id": 1, "item_id": "a"}\n\nno object\n{"user_id": 2, "item_id": "b"}\n'


def read_file(path, **layout):
    return read_tables(DataConfig(interactions=TableConfig(str(path), **layout), max_reject_rate=1.0))


def read_both(folder, name, content, members=1, **layout):
    """Read a file as it is, and compressed in so many parts; return both tables and rejects without names of files."""
    (folder / name).write_bytes(content)
    size = max(1, -(-len(content) // members))
    parts = [gzip.compress(content[start : start + size]) for start in range(0, len(content), size)]
    (folder / f"{name}.gz").write_bytes(b"".join(parts))
    plain, packed = (read_file(folder / one, **layout) for one in (name, f"{name}.gz"))
    assert set(packed[1].frame["file"]) <= {str(folder / f"{name}.gz")}
    return plain, packed


def assert_alike(plain, packed):
    pd.testing.assert_frame_equal(plain[0].interactions, packed[0].interactions)
    pd.testing.assert_frame_equal(plain[1].frame.drop(columns="file"), packed[1].frame.drop(columns="file"))
    assert plain[1].records == packed[1].records


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_with_the_lines_of_the_file_that_is_in_it(tmp_path, name):
    record, rejects = FAULTS[name]
    plain, packed = read_both(tmp_path, "events.csv", EVENTS.encode() + b"9,9,2017-12-01,9\n" + encode(record))
    assert_alike(plain, packed)
    assert list_rejects(packed[1]) == rejects


@pytest.mark.parametrize(
    ("name", "content", "layout"),
    [
        ("events.tsv", b"user_id\titem_id\n1\ta,b,c\n2\td\n", {}),
        ("ratings.dat", b"1::a\n2::b\n", {"names": ["user_id", "item_id"]}),
        ("ratings", b"1::a\n2::b\n", {"names": ["user_id", "item_id"]}),
        ("events.csv", "user_id;item_id\n1;é\n".encode("latin-1"), {"encoding": "latin-1"}),
        ("events.csv", "\ufeffuser_id,item_id\r\n1,é\r\n".encode(), {}),
        ("events.jsonl", LINES, {}),
        ("events.NDJSON", b"\xef\xbb\xbf" + LINES, {}),
    ],
)
@pytest.mark.parametrize("members", [1, 3])
def test_a_compressed_file_is_laid_out_as_the_one_in_it(tmp_path, name, content, layout, members):
    plain, packed = read_both(tmp_path, name, content, members, **layout)
    assert len(packed[0].interactions) > 0
    assert_alike(plain, packed)


@settings(max_examples=20, deadline=None)
@given(HOSTILE, st.integers(1, 3))
def test_whatever_the_lines_are(tmp_path_factory, pieces, members):
    folder = tmp_path_factory.mktemp("packed")
    content = b"user_id,item_id\n9,9\n" + "".join(pieces).encode(errors="surrogateescape") + b"\n"
    try:
        both = read_both(folder, "events.csv", content, members)
    except SchemaError:
        for name in ("events.csv", "events.csv.gz"):
            with pytest.raises(SchemaError):
                read_file(folder / name)
    else:
        assert_alike(*both)


def test_a_pattern_may_name_files_of_both_kinds(tmp_path):
    (tmp_path / "e1.csv").write_text("user_id,item_id\n1,7\n")
    (tmp_path / "e2.csv.gz").write_bytes(gzip.compress(b"user_id,item_id\n2,8\n"))
    tables, _ = read_file(tmp_path / "e*")
    assert tables.interactions.to_numpy().tolist() == [[1, 7], [2, 8]]


ROWS = {
    "csv": b"user_id,item_id\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(5000)),
    "jsonl": b"".join(json.dumps({"user_id": n, "item_id": n * n}).encode() + b"\n" for n in range(5000)),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(tmp_path, kind, share):
    path, content = tmp_path / f"events.{kind}.gz", gzip.compress(ROWS[kind])
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(SchemaError, match=rf"^\S*events.{kind}.gz cannot be read: .* gunzip .* the file again$"):
        read_file(path)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("place", [0.1, 0.5, 0.9, 0.9999])
def test_a_damaged_file_is_refused(tmp_path, kind, place):
    path, content = tmp_path / f"events.{kind}.gz", bytearray(gzip.compress(ROWS[kind]))
    at = int(place * len(content))
    content[at : at + 8] = bytes(byte ^ 0xFF for byte in content[at : at + 8])
    path.write_bytes(content)
    with pytest.raises(SchemaError, match=rf"events.{kind}.gz"):
        read_file(path)


def test_an_empty_one_is_empty(tmp_path):
    for number, content in enumerate((b"", gzip.compress(b""))):
        path = tmp_path / f"e{number}.csv.gz"
        path.write_bytes(content)
        with pytest.raises(SchemaError, match=r"is empty"):
            read_file(path)


@pytest.mark.parametrize("rest", [b"garbage", bytes(99)])
def test_what_follows_the_compressed_parts_is_told_with_what_to_do(tmp_path, rest):
    path = tmp_path / "events.csv.gz"
    path.write_bytes(gzip.compress(ROWS["csv"]) + rest)
    with pytest.raises(SchemaError, match=r"events.csv.gz cannot be read: .*; unpack it with gunzip and name the file"):
        read_file(path)


def test_an_archive_is_no_table(tmp_path):
    path, packed = tmp_path / "events.tar.gz", io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("events.csv")
        member.size = len(b"1,7\n2,8\n")
        archive.addfile(member, io.BytesIO(b"1,7\n2,8\n"))
    path.write_bytes(packed.getvalue())
    with pytest.raises(SchemaError, match=r"events.tar.gz: an archive, .* unpack it and name one of those"):
        read_file(path, names=["user_id", "item_id"])


def test_without_a_suffix_before_it_the_one_that_is_there_is_named(tmp_path):
    path = tmp_path / "events.gz"
    path.write_bytes(gzip.compress(ROWS["csv"]))
    with pytest.raises(SchemaError, match=r"unknown suffix '.gz'; allowed: .csv"):
        read_file(path)


def test_parquet_is_compressed_within(tmp_path):
    path = tmp_path / "events.parquet.gz"
    path.write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(SchemaError, match=r"Parquet is compressed within; unpack it"):
        read_file(path)


def test_a_dump_of_reviews_is_told_its_suffix(tmp_path):
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(gzip.compress(LINES))
    with pytest.raises(SchemaError, match=r"unknown suffix '.json': .*call the file .jsonl"):
        read_file(path)
