from __future__ import annotations

from dataclasses import replace

import pyarrow as pa

from evaluation.report.item_names import name_items
from serve.schema import Feature
from tests.linear_bundle import SHOP

CATEGORIES = replace(SHOP, item_features=tuple(Feature(name, "categorical", name) for name in ("aisle", "kind", "new")))


def test_a_text_feature_comes_before_a_column_called_title():
    schema = replace(SHOP, item_features=(Feature("words", "text", "words"),))
    items = pa.table({"item_id": [3, 5], "title": ["a", "b"], "words": ["red  shoe", None]})
    assert name_items(items, schema) == ["red shoe", "item 5"]


def test_a_column_called_title_or_name_serves():
    assert name_items(pa.table({"item_id": [3, 5], "Name": ["a", "b"]}), SHOP) == ["a", "b"]
    items = pa.table({"item_id": [3, 5], "name": ["n", "m"], "title": ["a", "b"]})
    assert name_items(items, SHOP) == ["a", "b"]


def test_vectors_are_no_names():
    """Embeddings of titles in a column called title were what examples showed of each item."""
    vectors = pa.array([[0.25, 0.5], [0.5, 0.125]], pa.list_(pa.float32(), 2))
    items = pa.table({"item_id": [3, 5], "title": vectors, "aisle": ["tea", "milk"]})
    schema = replace(CATEGORIES, item_features=(Feature("title", "vector", "title"), *CATEGORIES.item_features))
    assert name_items(items, schema) == ["tea", "milk"]
    assert name_items(items.append_column("name", pa.array(["a", "b"])), schema) == ["a", "b"]


def test_equal_names_get_their_ids():
    items = pa.table({"item_id": ["x", "y", "z"], "title": ["milk", "milk", "tea"]})
    assert name_items(items, SHOP) == ["milk (x)", "milk (y)", "tea"]


def test_categories_are_joined_the_most_telling_first_and_flags_named():
    columns = {
        "aisle": ["food", "food", "food", "home"],
        "kind": ["tea", "bread", None, "lamp"],
        "new": [0, 1, 1, 0],
    }
    items = pa.table({"item_id": [1, 2, 3, 4], **columns})
    assert name_items(items, CATEGORIES) == ["tea · food", "new · bread · food", "new · food", "lamp · home"]


def test_ids_are_the_last_resort():
    assert name_items(pa.table({"item_id": [7, 11]}), CATEGORIES) == ["item 7", "item 11"]


def test_a_long_title_is_cut():
    (name,) = name_items(pa.table({"item_id": [1], "title": ["word " * 99]}), SHOP)
    assert len(name) == 90
    assert name.endswith("…")
