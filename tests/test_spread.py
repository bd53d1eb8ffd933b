from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.filters.labels import Labels, label_distinct

from serve.filters import Limit, Walk, complete
from serve.index import ItemIndex


def draw_labels(n_items, n_values, rng):
    """Return values of each item, skewed, and the same as labels; some items have none, some two."""
    values = [
        sorted({int(rng.integers(n_values) * rng.random()) for _ in range(rng.integers(0, 3))}) for _ in range(n_items)
    ]
    codes = np.array([code for of in values for code in of], dtype=np.int64)
    return values, Labels("x", np.arange(n_items), codes, np.cumsum([0, *map(len, values)]), {})


def walk_naively(order, limits, k):
    counts, taken = [Counter() for _ in limits], []
    for row in order:
        if all(count[value] < most for (of, most), count in zip(limits, counts, strict=True) for value in of[row]):
            taken.append(row)
            for (of, _), count in zip(limits, counts, strict=True):
                count.update(of[row])
    return taken[:k]


@settings(max_examples=150, deadline=None)
@given(
    n_items=st.integers(1, 300),
    most=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    k=st.integers(1, 60),
    depth=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0, 2, 1000]),
)
def test_the_list_is_that_of_a_walk_down_all_items(n_items, most, k, depth, seed, spread):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(0, spread + 1, (n_items, 1)).astype(np.float32)  # with few values, many scores are equal
    index, user = ItemIndex.build(vectors), np.ones((1, 1), np.float32)
    drawn = [draw_labels(n_items, 5, rng), draw_labels(n_items, 40, rng)]
    barred = rng.random(n_items) < 0.3
    walk = Walk([Limit(labels, n) for (_, labels), n in zip(drawn, most, strict=True)], k)

    def search(mask):
        scores, rows = index.search(user, depth, None, mask)
        return scores[0], rows[0]

    complete(walk, search, barred)
    scores, rows = np.empty(k, np.float32), np.empty(k, np.int64)
    walk.write(scores, rows)
    order = [row for row in sorted(range(n_items), key=lambda row: (-vectors[row, 0], row)) if not barred[row]]
    expected = walk_naively(order, [(values, n) for (values, _), n in zip(drawn, most, strict=True)], k)
    assert rows[rows >= 0].tolist() == expected
    assert rows.tolist()[len(expected) :] == [-1] * (k - len(expected))
    assert scores[: len(expected)].tolist() == vectors[expected, 0].tolist()
    assert np.isneginf(scores[len(expected) :]).all()


def test_few_searches_find_a_list_that_lies_deep():
    n_items = 1000
    vectors = np.arange(n_items, 0, -1, dtype=np.float32)[:, None]
    group = np.where(np.arange(n_items) < 900, 0, np.arange(n_items))  # the first 900 items share a value
    index, walk = ItemIndex.build(vectors), Walk([Limit(label_distinct("x", group, np.ones(n_items, bool)), 2)], 5)
    masks = []

    def search(mask):
        masks.append(mask)
        scores, rows = index.search(np.ones((1, 1), np.float32), 20, None, mask)
        return scores[0], rows[0]

    complete(walk, search, np.zeros(n_items, bool))
    rows = np.empty(5, np.int64)
    walk.write(np.empty(5, np.float32), rows)
    assert rows.tolist() == [0, 1, 900, 901, 902]
    assert [int(mask.sum()) for mask in masks] == [0, 900]


@pytest.mark.parametrize("n_values", [1, 7])
def test_items_of_codes(n_values):
    values, labels = draw_labels(53, n_values, np.random.default_rng(n_values))
    for codes in ([], [0], list(range(0, n_values, 2))):
        assert labels.have(codes).tolist() == [bool(set(of) & set(codes)) for of in values]
    for rows in (np.arange(53), np.arange(52, -1, -3), np.array([7, 7], np.int64), np.empty(0, np.int64)):
        assert labels.codes_of(rows) == [values[row] for row in rows]
