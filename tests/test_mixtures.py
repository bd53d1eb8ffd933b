"""Files that are hashed and listed rightly, and still do not belong together or cannot be served."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from serve.bundle import Bundle, write_items
from serve.errors import BundleError
from serve.index import write_index
from serve.publish import Stage
from tests.tiny_bundle import (
    FACTS,
    METRICS,
    D,
    N,
    P,
    item_ids,
    tiny_item_tower,
    tiny_user_tower,
    tiny_vectors,
    write_stage,
)


@pytest.mark.parametrize(
    ("name", "alter", "message"),
    [
        ("user_tower.onnx", lambda space: tiny_user_tower("0" * 16, 1), "is of space 0000000000000000"),
        ("item_tower.onnx", lambda space: tiny_item_tower("0" * 16, 1), "is of space 0000000000000000"),
        ("user_tower.onnx", lambda space: tiny_user_tower(space, 1, D - P), "vectors of width 5"),
        ("item_tower.onnx", lambda space: tiny_item_tower(space, 1, D + 1), "vectors of width 8"),
        ("user_tower.onnx", lambda space: b"\x08\x01garbage", "no ONNX graph"),
        ("items.parquet", lambda space: b"PAR1garbage", "no Parquet file"),
        ("schema.json", lambda space: b"\xff", "cannot be read"),
        ("items.faiss", lambda space: b"garbage", "no FAISS index"),
    ],
)
def test_a_sealed_mixture_is_refused_naming_the_file(tmp_path, name, alter, message):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        space_id = stage.seal(FACTS, METRICS).space_id
        (stage.path / name).write_bytes(alter(space_id))
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=rf"{re.escape(name)}.*{message}"):
            Bundle.load_staged(stage.path)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": item_ids()[:-1]}, "10 rows; expected 11"),
        ({"item_id": [*item_ids()[:-1], "item-00"]}, "missing or equal"),
        ({"item_id": [*item_ids()[:-1], None]}, "missing or equal"),
        ({"item_id": list(range(N))}, "item_id is int64; schema.json says string"),
        ({"sku": item_ids()}, "no column 'item_id'; it has sku"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(tmp_path, items, message):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        write_items(pa.table(items), stage.path / "items.parquet")
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=rf"items\.parquet.*{message}"):
            Bundle.load_staged(stage.path)


def test_an_index_of_other_vectors_is_refused_though_all_hashes_fit(tmp_path):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        write_index(stage.path / "items.faiss", tiny_vectors(2))
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=r"items\.faiss holds other vectors than item_vectors\.npy"):
            Bundle.load_staged(stage.path)


@pytest.mark.parametrize(
    "vectors",
    [
        np.asfortranarray(tiny_vectors(1)),
        tiny_vectors(1).astype(np.float64),
        np.full((N, D), np.nan, dtype=np.float32),
    ],
    ids=["column order", "float64", "not finite"],
)
def test_vectors_that_cannot_be_searched_are_refused(tmp_path, vectors):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        np.save(stage.path / "item_vectors.npy", vectors)
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=r"item_vectors\.npy"):
            Bundle.load_staged(stage.path)


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        stage.seal(FACTS, METRICS)
        np.save(stage.path / "item_vectors.npy", np.array([[Path]]), allow_pickle=True)
        with pytest.raises(ValueError, match="Python objects"):
            stage.seal(FACTS, METRICS)
