from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa

from evaluation.report import pictures
from evaluation.report.pictures import picture_map
from evaluation.report.projection import OTHER, choose_colouring, colour_by, project, share_of_alike
from serve.bundle import Bundle
from serve.recommender import Recommender
from serve.schema import Feature
from tests.linear_bundle import SHOP, publish_linear


def test_the_plane_is_that_of_the_two_largest_eigenvectors():
    vectors = np.random.default_rng(3).standard_normal((31, 7)) * [5, 1, 3, 1, 1, 1, 1]
    points, share = project(vectors)
    values, axes = np.linalg.eigh(np.cov(vectors.T, bias=True))
    expected = (vectors - vectors.mean(0)) @ axes[:, [-1, -2]]
    np.testing.assert_allclose(np.abs(points), np.abs(expected), atol=1e-9)
    assert abs(share - values[-2:].sum() / values.sum()) < 1e-9


def test_vectors_of_one_column_and_equal_vectors_have_a_plane():
    points, share = project(np.arange(5.0)[:, None])
    assert points.shape == (5, 2)
    assert share == 1
    points, share = project(np.ones((4, 3)))
    assert not points.any()
    assert share == 0


def test_the_colouring_parts_the_items_and_covers_them():
    n = 60
    columns = {
        "one": ["same"] * n,
        "many": [f"v{row}" for row in range(n)],
        "two": [("a", "b")[row % 2] for row in range(n)],
        "five": [f"c{row % 5}" if row else None for row in range(n)],
        "flag": [row % 2 for row in range(n)],
    }
    schema = replace(SHOP, item_features=tuple(Feature(name, "categorical", name) for name in columns))
    items = pa.table({"item_id": list(range(n)), **columns})
    assert choose_colouring(items, schema).column == "five"
    assert choose_colouring(items.select(["item_id", "one", "flag"]), schema) is None


def test_the_most_frequent_values_have_colours_and_the_rest_one():
    values = [letter for count, letter in enumerate("abcdefghij", 1) for _ in range(count)] + [None]
    colouring = colour_by(pa.table({"x": values}), "x")
    assert colouring.labels == ("j", "i", "h", "g", "f", "e", "d", "c", OTHER)
    assert [colouring.labels[code] for code in colouring.codes] == [
        value if value in colouring.labels else OTHER for value in values
    ]
    assert {colouring.labels[code] for code in colouring.named[colouring.named >= 0]} == set("jihgfedc")


def test_likeness_is_counted_over_nearest_items():
    rng = np.random.default_rng(5)
    vectors, codes = rng.standard_normal((19, 3)), rng.integers(-1, 3, 19)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same, pairs, met = [], 0, 0
    for row in range(19):
        if codes[row] < 0:
            continue
        others = [other for other in range(19) if other != row]
        nearest = sorted(others, key=lambda other: -unit[row] @ unit[other])[:4]
        same += [codes[other] == codes[row] for other in nearest]
        pairs += len(others)
        met += sum(codes[other] == codes[row] for other in others)
    alike, by_chance = share_of_alike(vectors, codes, 4)
    assert abs(alike - np.mean(same)) < 1e-12
    assert abs(by_chance - met / pairs) < 1e-12


def test_no_more_neighbours_are_told_of_than_there_are(tmp_path):
    bundle = Bundle.load(publish_linear(tmp_path, SHOP, seed=3))
    few = replace(bundle, items=bundle.items.slice(0, 5), vectors=bundle.vectors[:5])
    for whole, events, neighbours in ((bundle, len(bundle.vectors), 10), (few, 5, 4)):
        drawn = picture_map(Recommender(whole), np.arange(events))
        assert drawn is not None
        assert (drawn.n_items, drawn.neighbours) == (events, neighbours)


def test_the_map_is_of_the_most_popular_items(tmp_path, monkeypatch):
    bundle, drawn = Bundle.load(publish_linear(tmp_path, SHOP, seed=3)), []
    monkeypatch.setattr(pictures, "MOST_ITEMS", 6)
    monkeypatch.setattr(pictures, "project", lambda vectors: drawn.append(vectors) or project(vectors))
    monkeypatch.setattr(pictures, "choose_colouring", lambda items, schema: drawn.append(items["item_id"].to_pylist()))
    events = np.random.default_rng(5).permutation(len(bundle.vectors))
    shown = picture_map(Recommender(bundle), events)
    top = sorted(range(len(events)), key=lambda row: -events[row])[:6]
    vectors, ids = drawn
    assert shown.n_items == 6
    assert (vectors == bundle.vectors[top, : vectors.shape[1]]).all()
    assert ids == [bundle.items["item_id"].to_pylist()[row] for row in top]


def test_the_map_says_how_many_neighbours_are_alike_and_how_many_would_be_by_chance(tmp_path, monkeypatch):
    bundle, drawn = Bundle.load(publish_linear(tmp_path, SHOP, seed=3)), []
    monkeypatch.setattr(pictures, "project", lambda vectors: drawn.append(vectors) or project(vectors))
    shown = picture_map(Recommender(bundle), np.zeros(len(bundle.vectors), np.int64))
    colouring = choose_colouring(bundle.items, bundle.schema)
    expected = share_of_alike(*drawn, colouring.named, shown.neighbours)
    assert shown.column == colouring.column
    assert (shown.alike, shown.by_chance) == expected
    assert shown.alike != shown.by_chance
    assert shown.variance == project(*drawn)[1]
