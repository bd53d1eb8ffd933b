from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.errors import BundleError
from serve.index import ItemIndex, measure_recall, write_index
from serve.tower import set_search_threads

B, D, N = 3, 7, 11


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def search_naively(vectors, user, k, excluded):
    """Sort all items in Python: score down, row up."""
    scored = []
    for row, vector in enumerate(vectors):
        if row not in excluded:
            score = np.float32(sum(float(a) * float(b) for a, b in zip(user, vector, strict=True)))
            scored.append((-score, row))
    best = sorted(scored)[:k]
    padding = min(k, len(vectors)) - len(best)
    return [-score for score, _ in best] + [-np.inf] * padding, [row for _, row in best] + [-1] * padding


def to_ragged(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    return np.array([row for rows in lists for row in rows], dtype=np.int64), offsets


@st.composite
def searches(draw_from):
    n_items, n_users = draw_from(st.integers(1, 40)), draw_from(st.integers(0, 5))
    rng = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    # small whole numbers: many scores are equal
    vectors = rng.integers(-2, 3, size=(n_items, 2)).astype(np.float32)
    users = rng.integers(-2, 3, size=(n_users, 2)).astype(np.float32)
    excluded = [list(rng.integers(n_items, size=rng.integers(0, n_items + 2))) for _ in range(n_users)]
    return vectors, users, draw_from(st.integers(1, 45)), excluded


@given(searches())
@settings(max_examples=150, deadline=None)
def test_search_equals_a_sort_of_all_items(case):
    vectors, users, k, excluded = case
    scores, rows = ItemIndex.build(vectors).search(users, k, to_ragged(excluded))
    expected = [search_naively(vectors, user, k, set(rows)) for user, rows in zip(users, excluded, strict=True)]
    assert scores.shape == rows.shape == (len(users), min(k, len(vectors)))
    assert scores.tolist() == [score for score, _ in expected]
    assert rows.tolist() == [row for _, row in expected]


@pytest.mark.parametrize("spread", [0.0, 4.0], ids=["plain", "lengths from 1e-4 to 1e4"])
def test_scores_are_those_of_exact_arithmetic(spread):
    vectors, users = draw(1, 601, 67), draw(2, B, 67)
    vectors *= (10 ** np.random.default_rng(3).uniform(-spread, spread, (601, 67))).astype(np.float32)
    scores, rows = ItemIndex.build(vectors).search(users, 13)
    for line, user in enumerate(users):
        exact = (vectors.astype(np.float64) @ user.astype(np.float64)).astype(np.float32)
        assert rows[line].tolist() == np.argsort(-exact, kind="stable")[:13].tolist()
        np.testing.assert_allclose(scores[line], exact[rows[line]], rtol=1e-6)


def test_what_is_left_where_products_cancel_out_is_scored():
    """A product in float32 loses the last bits of its factors: the last two items would be alike."""
    a_little = 2.0**-12
    vectors = np.array([[-1, 1], [1 + a_little, -1 - 2 * a_little], [-1 - a_little, 1 + 2 * a_little]], np.float32)
    scores, rows = ItemIndex.build(vectors).search(np.array([[1 + a_little, 1]], np.float32), 3)
    assert rows.tolist() == [[1, 2, 0]]
    assert scores.tolist() == [[a_little**2, -(a_little**2), -a_little]]


def test_a_batch_answers_bit_for_bit_as_one_by_one():
    index, users = ItemIndex.build(draw(1, 1009, 67)), draw(2, 131, 67)  # 131 users: five tiles
    excluded = [list(range(user % 9)) for user in range(131)]
    scores, rows = index.search(users, 17, to_ragged(excluded))
    for user in range(131):
        alone = index.search(users[user : user + 1], 17, to_ragged(excluded[user : user + 1]))
        assert np.array_equal(alone[0][0], scores[user])
        assert np.array_equal(alone[1][0], rows[user])


def test_equal_items_are_listed_by_row_even_at_the_cut():
    vectors = np.repeat(draw(1, 1, D), 1009, axis=0)
    _, rows = ItemIndex.build(vectors).search(draw(2, B, D), 13, to_ragged([[0, 2], [], [1]]))
    assert rows[0].tolist() == [1, *range(3, 15)]
    assert rows[1].tolist() == list(range(13))
    assert rows[2].tolist() == [0, *range(2, 14)]


def permute_columns(seed: int, entries: np.ndarray, n_items: int) -> np.ndarray:
    """Draw vectors of the same entries in other orders: sums in float32 are rounded otherwise in each."""
    return np.random.default_rng(seed).permuted(np.tile(entries, (n_items, 1)), axis=1).astype(np.float32)


def test_items_whose_scores_are_equal_but_for_rounding_are_listed_by_row():
    entries = np.random.default_rng(1).integers(-(2**12), 2**12, 67)  # products of 24 bits: float64 sums them exactly
    vectors, users = permute_columns(2, entries, 1009), np.full((B, 67), 4093, dtype=np.float32)
    assert len(set(np.cumsum(vectors * users[0], axis=1, dtype=np.float32)[:, -1].tolist())) > 1
    scores, rows = ItemIndex.build(vectors).search(users, 13)
    assert rows.tolist() == [list(range(13))] * B
    assert scores.tolist() == [[np.float32(4093 * int(entries.sum()))] * 13] * B


def test_items_of_one_direction_are_alike_however_their_cosines_are_rounded():
    vectors = draw(1, 1, 67).repeat(1009, axis=0) * np.random.default_rng(2).uniform(0.1, 9, (1009, 1))
    scores, rows = ItemIndex.build(vectors.astype(np.float32)).similar(500, 13, 67)
    assert rows.tolist() == list(range(13))
    assert scores.tolist() == [1] * 13


def test_excluding_everything_leaves_only_filling():
    scores, rows = ItemIndex.build(draw(1, N, D)).search(draw(2, 1, D), 5, to_ragged([range(N)]))
    assert rows.tolist() == [[-1] * 5]
    assert scores.tolist() == [[-np.inf] * 5]


@pytest.mark.parametrize(
    ("users", "k", "excluded", "message"),
    [
        (np.full((1, D), np.nan, dtype=np.float32), 5, None, "user vector 0 is not finite"),
        (np.array([[0] * D, [np.inf] * D], dtype=np.float32), 5, None, "user vector 1 is not finite"),
        (np.full((1, D), 1e38, dtype=np.float32), 5, None, "user vector 0 is too long"),
        (draw(2, B, D + 1), 5, None, r"float32 \(3, 8\); expected float32 \(B, 7\)"),
        (draw(2, B, D).astype(np.float64), 5, None, "float64"),
        (draw(2, 1, D), 0, None, "k is 0"),
        (draw(2, 1, D), 5, to_ragged([[-1]]), "excluded item row is -1"),
        (draw(2, 1, D), 5, to_ragged([[3, N]]), "excluded item row is 11"),
        (draw(2, 1, D), 5, to_ragged([[], []]), "3 offsets and 0 rows; expected 2"),
        (draw(2, 1, D), 5, (np.array([3, 4]), np.array([1, 2])), "2 offsets and 2 rows; expected 2"),
        (draw(2, 1, D), 5, (np.array([3, 4]), np.array([0, 1])), "2 offsets and 2 rows; expected 2"),
    ],
)
def test_search_refuses(users, k, excluded, message):
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(draw(1, N, D)).search(users, k, excluded)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((0, D), dtype=np.float32), r"\(0, 7\)"),
        (np.zeros((N, D)), "float64"),
        (np.zeros((D, N), dtype=np.float32).T, "C order"),
        (np.array([[0.0], [np.nan]], dtype=np.float32), "item vector 1 is not finite"),
    ],
)
def test_build_refuses(vectors, message):
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(vectors)


@pytest.mark.parametrize("n_dims", [D, 5])
def test_similar_equals_a_sort_of_all_cosines(n_dims):
    vectors = draw(1, N, D)
    part = vectors[:, :n_dims].astype(np.float64)
    for row in range(N):
        cosine = [float(a @ part[row] / np.linalg.norm(a) / np.linalg.norm(part[row])) for a in part]
        expected = sorted((other for other in range(N) if other != row), key=lambda other: -cosine[other])
        scores, rows = ItemIndex.build(vectors).similar(row, N + 4, n_dims)
        assert rows.tolist() == expected
        np.testing.assert_allclose(scores, [cosine[other] for other in expected], atol=1e-6)


def test_similar_gives_an_empty_vector_cosine_0_and_a_scaled_twin_1():
    vectors = np.array([[1, 2], [0, 0], [3, 6], [-2, -4], [2, 4]], dtype=np.float32)
    scores, rows = ItemIndex.build(vectors).similar(0, 5, 2)
    assert rows.tolist() == [2, 4, 1, 3]
    assert scores.tolist() == [1, 1, 0, -1]
    assert ItemIndex.build(vectors).similar(1, 2, 2)[1].tolist() == [0, 2]
    assert ItemIndex.build(vectors[:1]).similar(0, 2, 2)[1].tolist() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((N, 5, D), "item row is 11"),
        ((-1, 5, D), "item row is -1"),
        ((0, 0, D), "k is 0"),
        ((0, 5, 8), "n_dims is 8"),
        ((0, 5, 0), "n_dims is 0"),
    ],
)
def test_similar_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        ItemIndex.build(draw(1, N, D)).similar(*arguments)


def test_a_saved_index_is_read_by_faiss_and_by_load(tmp_path):
    vectors, users, path = draw(1, N, D), draw(2, B, D), tmp_path / "items.faiss"
    write_index(path, vectors)
    scores, rows = ItemIndex.load(path, vectors).search(users, 5)
    expected_scores, expected_rows = faiss.read_index(str(path)).search(users, 5)
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_load_searches_the_vectors_it_is_given_without_a_copy(tmp_path):
    vectors = draw(1, N, D)
    write_index(tmp_path / "items.faiss", vectors)
    assert ItemIndex.load(tmp_path / "items.faiss", vectors).vectors is vectors


def to_file(index, vectors):
    index.add(vectors)
    return faiss.serialize_index(index)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda v: to_file(faiss.IndexFlatL2(D), v), "type IndexFlatL2"),
        (lambda v: to_file(faiss.IndexHNSWFlat(D, 4, faiss.METRIC_INNER_PRODUCT), v), "type IndexHNSWFlat"),
        (lambda v: to_file(faiss.IndexFlatIP(D), v[:5]), re.escape("(5, 7); item_vectors.npy of (11, 7)")),
        (lambda v: to_file(faiss.IndexFlatIP(D), v[::-1].copy()), "other vectors"),
        (lambda v: to_file(faiss.IndexFlatIP(D), v)[:90].copy(), "no FAISS index"),
        (lambda v: np.zeros(90, dtype=np.uint8), "no FAISS index"),
        (lambda v: np.zeros(0, dtype=np.uint8), "no FAISS index"),
    ],
)
def test_another_index_file_is_refused(make, message):
    vectors = draw(1, N, D)
    limit = faiss.get_deserialization_vector_byte_limit()
    with pytest.raises(BundleError, match=rf"items\.faiss.*{message}"):
        ItemIndex.from_bytes(make(vectors), vectors)
    assert faiss.get_deserialization_vector_byte_limit() == limit


def test_indexes_of_unlike_size_are_loaded_at_once(tmp_path):
    sizes, rounds = (3, 900), 60
    vectors = [draw(size, size, D) for size in sizes]
    paths = [tmp_path / str(size) for size in sizes]
    for path, some in zip(paths, vectors, strict=True):
        write_index(path, some)
    with ThreadPoolExecutor(4) as threads:
        loads = [
            threads.submit(ItemIndex.load, path, some)
            for _ in range(rounds)
            for path, some in zip(paths, vectors, strict=True)
        ]
        assert {len(load.result()) for load in loads} == set(sizes)


def test_recall_of_the_index_is_1_and_of_one_that_finds_only_even_rows_less():
    vectors, users = draw(1, 101, D), draw(2, 13, D)
    index = ItemIndex.build(vectors)
    assert measure_recall(index, users, 5) == 1.0
    odd = to_ragged([range(1, 101, 2)] * 13)
    index.search = lambda users, k, search=index.search: search(users, k, odd)
    truth = np.argsort(-(users @ vectors.T), axis=1)[:, :5]
    assert measure_recall(index, users, 5) == pytest.approx((truth % 2 == 0).mean())


def test_search_threads_are_set():
    set_search_threads(2)
    assert faiss.omp_get_max_threads() == 2
    set_search_threads(1)
    assert faiss.omp_get_max_threads() == 1
    with pytest.raises(ValueError, match="threads is 0"):
        set_search_threads(0)
