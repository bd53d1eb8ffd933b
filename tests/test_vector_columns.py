"""Columns of vectors and texts in files of every kind and in frames, up to the served catalogue."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datamodules.reading.cells import read_cells
from datamodules.reading.columns import Column

from datamodules.clean import clean
from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.tables import read_tables, tables_from_frames
from serve.encode import Vector
from serve.errors import SchemaError

FEATURES = FeaturesConfig(item={"image": "vector", "title": "text", "tags": "multi_categorical"})
VECTORS = [[0.5, -1.0, 2.0], None, [3e5, 0.0, 0.25], [0.0, 0.0, 1.0]]
TITLES = ["One, two", None, "Three", "one"]
TAGS = ["a|b", "c", None, "a"]
EVENTS = pd.DataFrame({"user_id": [1, 1, 2, 2], "item_id": [10, 11, 12, 13], "datetime": [10**9 + n for n in range(4)]})
IMAGE = Column("image", "picture", "vector", "read by data.features.item.image")


def write_items(path, vectors, titles=TITLES):
    rows = {"item_id": [10, 11, 12, 13], "image": vectors, "title": titles, "tags": TAGS}
    if path.suffix == ".jsonl":
        records = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".csv":
        written = [None if vector is None else str(vector) for vector in vectors]
        pd.DataFrame({**rows, "image": written}).to_csv(path, index=False)
    else:
        kind = pa.list_(pa.float64(), 3) if path.stem == "fixed" else pa.list_(pa.float32())
        table = pa.table({**rows, "image": pa.array(vectors, kind)})
        pq.write_table(table, path)
    return path


def read_items(path):
    events = path.with_name("events.csv")
    EVENTS.to_csv(events, index=False)
    config = DataConfig(TableConfig(str(events)), items=TableConfig(str(path)), features=FEATURES)
    tables, rejects = read_tables(config)
    return clean(tables)[0], rejects.frame


@pytest.mark.parametrize("name", ["items.parquet", "fixed.parquet", "items.jsonl", "items.csv"])
def test_files_of_every_kind_hold_vectors(tmp_path, name):
    tables, rejects = read_items(write_items(tmp_path / name, VECTORS))
    cells = tables.items["image"].tolist()
    assert [None if cell is None else cell.entries().tolist() for cell in cells] == VECTORS
    assert not len(rejects)


def test_a_text_file_may_separate_entries_by_spaces(tmp_path):
    (tmp_path / "items.csv").write_text(
        "item_id,image,title,tags\n10,0.5 -1 2,One,\n11,,Two,\n12,(1 2 3),Three,\n13,,,\n"
    )
    tables, _ = read_items(tmp_path / "items.csv")
    cells = tables.items["image"].tolist()
    assert [cell and cell.entries().tolist() for cell in cells] == [[0.5, -1, 2], None, [1, 2, 3], None]


@pytest.mark.parametrize("vectors", [pd.Series(VECTORS), pd.Series([v and np.array(v) for v in VECTORS])])
def test_frames_hold_lists_or_arrays(vectors):
    items = pd.DataFrame({"item_id": [10, 11, 12, 13], "image": vectors, "title": TITLES, "tags": TAGS})
    tables, _ = tables_from_frames(DataConfig(features=FEATURES), EVENTS, EVENTS[["user_id"]].drop_duplicates(), items)
    cells = tables.items["image"].tolist()
    assert cells == [v and Vector.pack(np.float32(v)) for v in VECTORS]


def test_equal_rows_with_vectors_are_duplicates(tmp_path):
    frame = pd.DataFrame({"item_id": [10, 10, 11], "image": [[1, 2], [1, 2], None], "title": "x", "tags": "y"})
    tables, _ = tables_from_frames(DataConfig(features=FEATURES), EVENTS, EVENTS[["user_id"]].drop_duplicates(), frame)
    cleaned, report = clean(tables)
    assert (len(cleaned.items), report.duplicate_items) == (2, 1)


def test_rows_at_fault_are_named_with_their_reason():
    cells = pd.Series([[1.0, 2.0], "a b", [1.0, float("inf")], None, [3.0, 4.0], 5.0], dtype=object)
    read = read_cells(IMAGE, cells, None, is_text=False)
    assert {reason: np.flatnonzero(rows).tolist() for reason, rows in read.faults.items()} == {
        "no list of numbers": [1, 5],
        "an entry is not finite": [2],
    }
    assert [cell and cell.entries().tolist() for cell in read.values] == [[1, 2], None, None, None, [3, 4], None]


@pytest.mark.parametrize("name", ["items.parquet", "items.jsonl", "items.csv"])
def test_unequal_widths_stop_with_both_and_the_record(tmp_path, name):
    path = write_items(tmp_path / name, [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0, 7.0]])
    message = "column 'image': the vector of record 4 has 3 numbers, the first one 2; all vectors of a column have one"
    with pytest.raises(SchemaError, match=message):
        read_items(path)


def test_unequal_widths_of_two_files_stop_with_both(tmp_path):
    for name, ids, vectors in [
        ("items-1.jsonl", [10, 11], [None, [1, 2]]),
        ("items-2.jsonl", [12], [None]),
        ("items-3.jsonl", [13], [[1, 2, 3]]),
    ]:
        records = [
            {"item_id": item, "image": vector, "title": "x", "tags": "y"}
            for item, vector in zip(ids, vectors, strict=True)
        ]
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    message = r"items-3.jsonl: the vectors of column 'image' have 3 numbers, those of .*items-1.jsonl have 2; all"
    with pytest.raises(SchemaError, match=message):
        read_items(tmp_path / "items-*.jsonl")


@pytest.mark.parametrize("kind", ["text", "numeric", "categorical"])
def test_a_column_is_a_vector_or_something_else(kind):
    features = FeaturesConfig(item={"a": FeatureConfig("vector", "x"), "b": FeatureConfig(kind, "x")})
    message = f"data.features.item: column 'x' is read as vector and as {kind}; allowed: as vector alone"
    with pytest.raises(SchemaError, match=message):
        tables_from_frames(DataConfig(features=features), EVENTS, EVENTS[["user_id"]], EVENTS[["item_id"]])


def test_the_catalogue_is_served_as_it_was_read(tmp_path):
    titles = [["One", "two"], None, ["Three"], 7]
    frame = pd.DataFrame(
        {"item_id": [10, 11, 12, 13], "image": VECTORS, "title": titles, "tags": [["a", "b"], "c", None, "a"]}
    )
    tables, _ = tables_from_frames(DataConfig(features=FEATURES), EVENTS, EVENTS[["user_id"]].drop_duplicates(), frame)
    schema = fit_schema(tables, tables.interactions, DataConfig(features=FEATURES))
    catalogue = build_catalogue(tables.items, tables.interactions, schema)
    served = catalogue.to_arrow()
    assert served.column("image").type == pa.list_(pa.float32(), 3)
    assert served.column("image").to_pylist() == VECTORS
    assert served.column("title").to_pylist() == ["One\ntwo", None, "Three", "7"]
    assert served.column("tags").to_pylist() == ["a|b", "c", None, "a"]
    again = build_catalogue(served.to_pandas(), tables.interactions, schema)
    assert np.array_equal(again.features.codes, catalogue.features.codes)
    assert np.array_equal(again.features.values, catalogue.features.values)
