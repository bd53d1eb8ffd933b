"""Files that are hashed and listed rightly, and still do not belong together or cannot be served."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from serve.bundle import ANSWERING, Bundle, write_index, write_items
from serve.errors import BundleError
from service.publish import Stage
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
        (
            "user_tower.onnx",
            lambda space: tiny_user_tower("0" * 16, 1),
            "is of another space",
        ),
        (
            "item_tower.onnx",
            lambda space: tiny_item_tower("0" * 16, 1),
            "is of another space",
        ),
        (
            "user_tower.onnx",
            lambda space: tiny_user_tower(space, 1, D - P),
            "width of vectors",
        ),
        (
            "item_tower.onnx",
            lambda space: tiny_item_tower(space, 1, D + 1),
            "width of vectors",
        ),
        ("user_tower.onnx", lambda space: b"\x08\x01garbage", "no ONNX graph"),
        ("items.parquet", lambda space: b"PAR1garbage", "no Parquet file"),
        ("schema.json", lambda space: b"\xff", "cannot be read"),
    ],
)
def test_a_sealed_mixture_is_refused_naming_the_file(tmp_path, name, alter, message):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        space_id = stage.seal(FACTS, METRICS).space_id
        (stage.path / name).write_bytes(alter(space_id))
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=rf"{re.escape(name)}.*{message}"):
            Bundle.load(stage.path, required=ANSWERING)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"item_id": item_ids()[:-1]}, "has 10 rows"),
        ({"item_id": [*item_ids()[:-1], "item-00"]}, "each with its own string"),
        ({"item_id": [*item_ids()[:-1], None]}, "each with its own string"),
        ({"item_id": list(range(N))}, "type int64; expected 11 rows, each with its own string"),
        ({"sku": item_ids()}, "no Parquet file with item_id"),
    ],
)
def test_a_catalogue_that_does_not_fit_is_refused(tmp_path, items, message):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        write_items(pa.table(items), stage.path / "items.parquet")
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match=rf"items\.parquet.*{message}"):
            Bundle.load(stage.path, required=ANSWERING)


def test_an_index_of_other_vectors_is_refused_though_all_hashes_fit(tmp_path):
    with Stage.open(tmp_path) as stage:
        write_stage(stage.path, 1)
        write_index(stage.path / "items.faiss", tiny_vectors(2))
        stage.seal(FACTS, METRICS)
        with pytest.raises(BundleError, match="is of another space"):
            Bundle.load(stage.path, required=ANSWERING)
