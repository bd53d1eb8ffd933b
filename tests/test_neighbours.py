"""What items of a history add to the scores of their neighbours, against dense algebra."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serve.index
from serve import coarse
from serve.bundle import NEIGHBOUR_OFFSETS, NEIGHBOURS, Bundle
from serve.errors import BundleError
from serve.index import (
    ENTRY,
    OFFSET,
    Added,
    ItemIndex,
    Neighbours,
    bound_addition,
    bound_rounding,
)
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, SHOP, N, item_ids, publish_linear
from tests.linear_profiles import known_users, requests_of
from tests.linear_reference import naive_list, naive_scores

SEED = 3


def draw_matrix(seed: int, n_items: int = N) -> np.ndarray:
    """Draw S, (N, N), of which two thirds are 0 and some rows whole."""
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((n_items, n_items)) * (rng.random((n_items, n_items)) < 1 / 3)
    matrix[rng.random(n_items) < 0.2] = 0
    return matrix.astype(np.float32)


def to_neighbours(matrix: np.ndarray) -> Neighbours:
    items, rows = matrix.nonzero()
    return Neighbours(np.searchsorted(items, np.arange(len(matrix) + 1)), rows, matrix[items, rows])


@st.composite
def histories(draw):
    n_items, n_requests = draw(st.integers(1, 15)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = rng.integers(0, n_items + 2, (n_requests, draw(st.integers(1, 6))))  # the last two came after the bundle
    return draw_matrix(int(rng.integers(2**32)), n_items), rows, rng.integers(0, rows.shape[1] + 1, n_requests)


@given(histories(), st.sampled_from([0.0, 0.4]))
@settings(max_examples=150, deadline=None)
def test_histories_add_what_a_matrix_product_does(case, decay):
    matrix, rows, lengths = case
    n_items, n_requests = len(matrix), len(rows)
    expected = np.zeros((n_requests, n_items))
    for request, length in enumerate(lengths):
        counts = np.exp(-decay * np.arange(length))[::-1]
        for count, row in zip(counts, rows[request, :length], strict=True):
            if row < n_items:
                expected[request] += count / counts.sum() ** 0.5 * matrix[row]
    added = replace(to_neighbours(matrix), decay=decay).of_histories(rows, lengths)
    if added is None:
        assert not matrix.any()
        return
    spread = added.spread(slice(0, n_requests), n_items + 2)
    np.testing.assert_allclose(spread[:n_items].T, expected, atol=1e-5)
    assert not spread[n_items:].any()
    requests, items = (grid.ravel() for grid in np.indices(expected.shape))
    shuffled = np.random.default_rng(0).permutation(len(items))
    with patch.object(serve.neighbours, "_MOST_REQUESTS", 2):  # whose sums are laid out at once
        of_pairs = added.of_pairs(requests[shuffled], items[shuffled], n_items + 2)
    assert of_pairs.tolist() == spread[items, requests][shuffled].tolist()  # bit for bit: a score is told two ways
    assert added.of_pairs(requests[:0], items[:0], n_items + 2).shape == (0,)
    kept = np.arange(n_requests) % 2 == 0
    places = np.where(kept, kept.cumsum() - 1, -1)
    taken = added.take(places).spread(slice(0, int(kept.sum())), n_items + 2)
    assert taken.tolist() == spread[:, kept].tolist()
    one = added.spread(slice(n_requests - 1, n_requests), n_items + 2)
    assert one.tolist() == spread[:, -1:].tolist()


def add(matrix: np.ndarray) -> Added:
    """Let each request have one event, of an item of its own that adds a row of the matrix (B, N)."""
    n_requests, n_items = matrix.shape
    square = np.zeros((max(matrix.shape), max(matrix.shape)), np.float32)
    square[:n_requests, :n_items] = matrix
    places = np.arange(n_requests)
    return Added(to_neighbours(square), places, places, np.ones(n_requests, np.float32))


@given(st.integers(0, 2**32), st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_a_search_with_something_added_is_a_sort_of_all_sums(seed, k):
    """Small whole numbers, so that many scores are equal: these order by row."""
    rng = np.random.default_rng(seed)
    n_items, n_requests = int(rng.integers(40, 90)), int(rng.integers(1, 40))  # more than a tile of the search
    vectors = rng.integers(-2, 3, (n_items, 2)).astype(np.float32)
    users = rng.integers(-2, 3, (n_requests, 2)).astype(np.float32)
    matrix = rng.integers(-3, 4, (n_requests, n_items)) * (rng.random((n_requests, n_items)) < 0.2)
    excluded = rng.integers(n_items, size=n_requests), np.arange(n_requests + 1)
    expected = (users @ vectors.T) + matrix.astype(np.float64)
    expected[np.arange(n_requests), excluded[0]] = -np.inf
    scores, found = ItemIndex.build(vectors).search(users, k, excluded, added=add(matrix))
    for request, score in enumerate(expected):
        order = np.lexsort((np.arange(n_items), -score))[: found.shape[1]]
        order = np.where(score[order] > -np.inf, order, -1)
        assert found[request].tolist() == order.tolist()
        assert scores[request].tolist() == [score[row] if row >= 0 else -np.inf for row in order]


@given(st.integers(0, 2**32), st.floats(1e-3, 1e6))
@settings(max_examples=100, deadline=None)
def test_what_is_added_is_rounded_by_less_than_the_bound(seed, size):
    rng = np.random.default_rng(seed)
    added = size * rng.standard_normal((50, 3))
    products = rng.standard_normal((50, 3))
    approximate = products.astype(np.float32)
    approximate += added
    exact = (products + added).astype(np.float32)
    of_products = 2 * bound_rounding(np.abs(products).max(axis=0), 1)
    off = np.abs(approximate.astype(np.float64) - exact).max(axis=0)
    assert (2 * off <= of_products + bound_addition(added)).all()
    assert (bound_addition(added) <= 1e-6 * np.abs(added).max(axis=0)).all()


def test_a_sum_that_is_rounded_two_ways_is_found():
    """Products are 0 but for their rounding in float32, which decides how 2^20 and half a last place are rounded."""
    n_items, rng = 601, np.random.default_rng(6)
    entries = rng.integers(-(2**12), 2**12, 67)
    entries[0] -= entries.sum()
    vectors = rng.permuted(np.tile(entries, (n_items, 1)), axis=1).astype(np.float32) / 2**12
    users = np.full((1, 67), 4093 / 2**12, np.float32)
    products = np.cumsum(vectors * users, axis=1, dtype=np.float32)[:, -1]
    assert (products > 0).any()
    matrix = np.zeros((n_items, n_items), np.float32)
    matrix[0], matrix[1] = 2**20, 2**-4
    added = Added(to_neighbours(matrix), np.zeros(2, np.int64), np.arange(2), np.ones(2, np.float32))
    scores, rows = ItemIndex.build(vectors).search(users, 5, added=added)
    assert rows.tolist() == [[0, 1, 2, 3, 4]]
    assert scores.tolist() == [[2.0**20] * 5]


def test_rounded_vectors_find_what_is_added_too(monkeypatch):
    """An item that only the added term lifts, and the best ones behind it."""
    monkeypatch.setattr(coarse, "FEWEST_ITEMS", 1)
    monkeypatch.setattr(coarse, "is_faster", lambda rounded, vectors: True)
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((3000, 16)).astype(np.float32)
    exact, rounded = ItemIndex(vectors), ItemIndex(vectors, coarse.make_coarse(vectors))
    users = rng.standard_normal((2, 16)).astype(np.float32)
    worst = (users @ vectors.T).argmin(axis=1)
    matrix = np.zeros((2, len(vectors)))
    matrix[np.arange(2), worst] = 100
    plain = exact.search(users, 2)
    for index, n_products in ((exact, 1), (rounded, 0)):
        with patch.object(np, "matmul", wraps=np.matmul) as product:
            scores, rows = index.search(users, 3, added=add(matrix))
        assert product.call_count == n_products  # of whole vectors
        assert rows[:, 0].tolist() == worst.tolist()
        assert rows[:, 1:].tolist() == plain[1].tolist()
        assert scores[:, 1:].tolist() == plain[0].tolist()
    changed = np.concatenate([vectors, 1.5 * vectors[:2]])
    fresh = np.array([2998, 2999, 3000, 3001])  # which rounded vectors do not have as they are
    changed[fresh[:2]] *= -2
    is_hidden = np.arange(len(changed)) == worst[1]
    matrix = np.pad(matrix, ((0, 0), (0, 2)))
    matrix[0, 3001], matrix[1, 2998] = 200, 300
    lists = [index.changed(changed, fresh, is_hidden).search(users, 5, added=add(matrix)) for index in (exact, rounded)]
    for found, expected in zip(*lists, strict=True):  # scores, then rows
        assert found.tolist() == expected.tolist()
    assert lists[0][1][:, 0].tolist() == [3001, 2998]
    assert worst[1] not in lists[1][1][1]


@pytest.fixture(scope="module", params=[("shop", 0.0), ("films", 0.0), ("films", 0.4)], ids=str)
def world(request, tmp_path_factory):
    """Give a schema, S, and what answers from a bundle with it."""
    name, decay = request.param
    schema = {"shop": SHOP, "films": FILMS}[name]
    matrix = 20 * draw_matrix(SEED)
    neighbours = replace(to_neighbours(matrix), decay=decay)
    path = publish_linear(tmp_path_factory.mktemp("neighbours"), schema, SEED, neighbours=neighbours)
    return schema, matrix, Recommender.load(path)


@pytest.mark.parametrize("mode", ["all", "novel", "owned"])
def test_answers_are_those_of_brute_force(world, mode):
    schema, matrix, recommender = world
    row_of = {item_id: row for row, item_id in enumerate(item_ids(schema))}
    requests = [one for one in requests_of(schema) if "user_id" not in one]
    assert any(one.get("history") for one in requests)
    ask = {
        "all": lambda: recommender.recommend(requests, 4, filter_viewed=False),
        "novel": lambda: recommender.recommend(requests, 4, filter_viewed=True),
        "owned": lambda: recommender.rank_owned(requests, 4),
    }
    n_changed = 0
    for request, answer in zip(requests, ask[mode](), strict=True):
        _, scores, owned = naive_scores(schema, SEED, known_users(schema), request)
        history = [row_of[one["item_id"]] for one in request.get("history") or [] if one["item_id"] in row_of]
        last = history[-schema.history_length :]  # what the tower reads
        counts = np.exp(-recommender.bundle.neighbours.decay * np.arange(len(last)))[::-1]
        told = np.asarray(scores) + counts @ matrix[last] / max(counts.sum(), 1) ** 0.5
        rows = {"all": set(range(N)), "novel": set(range(N)) - owned, "owned": owned}[mode]
        rows -= {row_of[item_id] for item_id in request.get("exclude", [])}
        expected = naive_list(told, rows, 4)
        assert [row_of[item_id] for item_id in answer.item_id] == expected
        np.testing.assert_allclose(answer.score, told[expected], rtol=1e-4, atol=1e-4)
        n_changed += expected != naive_list(scores, rows, 4)
    assert n_changed


def test_a_batch_answers_as_one_by_one(world):
    schema, _, recommender = world
    requests = [one for one in requests_of(schema) if "user_id" not in one]
    many = recommender.recommend(requests * 9, 5)
    alone = [recommender.recommend([one], 5) for one in requests] * 9
    assert many.item_row.tolist() == [row for answer in alone for row in answer.item_row.tolist()]
    assert many.score.tolist() == [score for answer in alone for score in answer.score.tolist()]


def test_filters_rank_by_the_same_scores(world):
    """Requests that share filters are taken out of their tile together."""
    schema, _, recommender = world
    requests = [one for one in requests_of(schema) if "user_id" not in one]
    plain = recommender.recommend(requests, N)
    where = {"where": "brand = 'x'"}
    mixed = [request | ({"filters": where} if place % 2 else {}) for place, request in enumerate(requests)]
    brands = dict(zip(item_ids(schema), recommender.catalogue.table.column("brand").to_pylist(), strict=True))
    for place, (answer, whole) in enumerate(zip(recommender.recommend(mixed, N), plain, strict=True)):
        kept = [brands[one] == "x" or place % 2 == 0 for one in whole.item_id.tolist()]
        assert answer.item_id.tolist() == whole.item_id[kept].tolist()
        assert answer.score.tolist() == whole.score[kept].tolist()


def write(entries: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, entries, allow_pickle=False)
    return file.getvalue()


def entries(neighbour: int = 2, weight: float = 0.5) -> np.ndarray:
    return np.array([(1, 0.5), (neighbour, weight)], ENTRY)


OFFSETS = np.array([0, 1, *[2] * (N - 1)], OFFSET)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no array at all", "it begins with no header of an array: "),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': (      ", "it begins with no header of an array: "),
        (
            b"\x93NUMPY\x01\x00\x3a\x00{'descr': ('<f4',), 'fortran_order': False, 'shape': (1,)}  ",
            "no header of an array",
        ),
        (b"\x93NUMPY\x02\x00" + write(entries())[8:], "its version is (2, 0)"),
        (write(np.zeros(3, np.float32)), "it holds float32"),
        (write(entries().reshape(2, 1)), "(2, 1)"),
        (write(entries())[:-4], "it holds 12 bytes; its header says (2,) of 8 each"),
        (write(entries())[:-8], "it holds 8 bytes"),
        (write(entries(neighbour=N)), f"'neighbour' is outside 0 to {N - 1}"),
        (write(entries(neighbour=-1)), f"'neighbour' is outside 0 to {N - 1}"),
        (write(entries(weight=np.nan)), "a weight is not between"),
        (write(entries(weight=3e38)), "a weight is not between"),
        (write(entries(weight=-3e38)), "a weight is not between"),
        (write(entries()[:1]), "do not divide 1 entries"),
    ],
)
def test_other_entries_are_refused(content, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Neighbours.from_bytes(*(np.frombuffer(one, np.uint8) for one in (write(OFFSETS), content)), N, 0.0)


@pytest.mark.parametrize(
    "offsets",
    [
        OFFSETS[:-1],
        OFFSETS[:0],
        OFFSETS + 1,
        OFFSETS // 2,
        [0, 3, *OFFSETS[2:]],
        [0, -1, *OFFSETS[2:]],
        [0, 2**63 - 1, -(2**63), -1, *OFFSETS[4:]],
    ],
    ids=["short", "none", "late", "few", "beyond", "falling", "falling too far to be told by a difference"],
)
def test_offsets_that_do_not_divide_the_entries_are_refused(offsets):
    files = write(np.array(offsets, OFFSET)), write(entries())
    with pytest.raises(ValueError, match="offsets do not divide 2 entries among"):
        Neighbours.from_bytes(*(np.frombuffer(one, np.uint8) for one in files), N, 0.0)


@given(histories())
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(case):
    written = to_neighbours(case[0])
    read = Neighbours.from_bytes(*(np.frombuffer(one, np.uint8) for one in written.to_bytes()), written.n_items, 0.3)
    assert read.decay == 0.3
    for name in ("offsets", "rows", "weights"):
        assert getattr(read, name).tolist() == getattr(written, name).tolist()


def test_a_bundle_may_have_no_neighbours():
    none = Neighbours.none(N)
    read = Neighbours.from_bytes(*(np.frombuffer(one, np.uint8) for one in none.to_bytes()), N, 0.0)
    assert read.n_items == N
    assert read.of_histories(np.array([[1, 2]]), np.array([2])) is None


def test_a_bundle_names_the_file_that_cannot_be_read(tmp_path):
    wrong = Neighbours(np.array([0, *[1] * N]), np.array([N]), np.ones(1, np.float32))
    with pytest.raises(
        BundleError, match=f"{NEIGHBOURS} and {NEIGHBOUR_OFFSETS} cannot be read: a row of 'neighbour' is outside"
    ):
        Bundle.load(publish_linear(tmp_path, FILMS, SEED, neighbours=wrong))
