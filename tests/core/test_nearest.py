"""The search by a coarse index against a sort of all scores, and a coarse index that has become worse."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve import nearest
from serve.index import ItemIndex, Query, measure_items
from serve.nearest import CoarseIndex
from tests.core.test_index import naive_scores

N, W, LISTS = 230, 5, 16
RNG = np.random.default_rng(7)
VECTORS = RNG.integers(-3, 4, (N, W)).astype(np.float32)  # few different values: many scores tie
USERS = RNG.standard_normal((60, W), np.float32)
MANY = RNG.standard_normal((4000, 12), np.float32)
MANY_USERS = RNG.standard_normal((100, 12), np.float32)


def build(vectors, n_lists, n_probes):
    coarse = CoarseIndex.build(vectors, n_lists)
    coarse.n_probes = n_probes
    return coarse


WHOLE = build(VECTORS, LISTS, LISTS)


def draw_query(rng, n_items, n_requests):
    """Draw users, terms of both signs, and items that are left out, and barred for all."""

    def pairs(n):
        return rng.integers(n_requests, size=n), rng.integers(n_items, size=n)

    users = rng.integers(-2, 3, (n_requests, W)).astype(np.float32)
    added = (
        (*pairs(90), rng.integers(-9, 10, 90).astype(np.float32)) if rng.random() < 0.8 else None
    )
    left_out = pairs(70) if rng.random() < 0.8 else None
    only = pairs(80) if rng.random() < 0.2 else None
    barred = rng.random(n_items) < rng.choice([0.05, 0.5, 0.99]) if rng.random() < 0.7 else None
    return Query(users, left_out, added, only), barred


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(1, N + 40),
    st.sampled_from([0, 1, 25]),
    st.sampled_from([0, 8, 10**9]),  # never all passing items, as it is, always
)
@settings(max_examples=150, deadline=None)
def test_with_all_lists_the_answers_are_those_of_a_sort(seed, n_requests, k, n_live, row_work):
    rng = np.random.default_rng(seed)
    live = rng.integers(-3, 4, (n_live, W)).astype(np.float32)  # items behind those of the index
    vectors = np.concatenate([VECTORS, live])
    n_items = len(vectors)
    is_hidden = rng.random(n_items) < 0.1
    query, barred = draw_query(rng, n_items, n_requests)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_ROW_WORK", row_work)
        patch.setattr(nearest, "_FETCHED", N)  # so that no code's rounding decides
        index = ItemIndex(vectors, is_hidden, WHOLE)
        found, rows = index.search(query, k, barred)
    never = is_hidden if barred is None else is_hidden | barred
    scores = naive_scores(query.users, vectors, query.added, query.left_out, query.only, never)
    assert found.shape == rows.shape == (n_requests, min(k, n_items))
    for request, line in enumerate(scores):
        best = -np.sort(-line)[: min(k, n_items)]
        n_listed = int(np.isfinite(best).sum())
        listed = rows[request][:n_listed]
        np.testing.assert_allclose(found[request][:n_listed], best[:n_listed], atol=2e-5)
        np.testing.assert_allclose(found[request][:n_listed], line[listed], atol=2e-5)
        assert len(set(listed.tolist()) - {-1}) == n_listed
        falls = np.lexsort((listed, -found[request][:n_listed]))  # equal scores by row
        assert falls.tolist() == list(range(n_listed))
        assert (rows[request][n_listed:] == -1).all()
        assert (found[request][n_listed:] == -np.inf).all()


@pytest.mark.parametrize("n_probes", [1, 3])
def test_a_list_is_full_however_few_lists_are_read(n_probes):
    index = ItemIndex(VECTORS, None, build(VECTORS, LISTS, n_probes))
    left_out = np.zeros(60, np.int64), np.arange(60)
    for k in (1, 20, 150):
        _, rows = index.search(Query(USERS[:3], left_out), k)
        for row in rows:
            assert len(set(row.tolist()) - {-1}) == k
        assert rows[0].min() >= 60


def test_an_item_with_a_term_is_listed_though_no_list_is_read_for_it():
    index = ItemIndex(VECTORS, None, build(VECTORS, LISTS, 1))
    user = USERS[:1]
    worst = (VECTORS @ user[0]).argsort()[:4]
    added = np.zeros(4, np.int64), worst, np.array([90, 80, 70, 60], np.float32)
    scores, rows = index.search(Query(user, added=added), 6)
    assert rows[0, :4].tolist() == worst.tolist()
    np.testing.assert_allclose(scores[0, :4], VECTORS[worst] @ user[0] + added[2], atol=2e-5)


def test_the_recall_is_the_share_of_the_exact_lists():
    index = ItemIndex(MANY, None, build(MANY, 64, 8))
    query = Query(MANY_USERS)
    _, rows = index.search(query, 100)
    exact = (-(MANY_USERS.astype(np.float64) @ MANY.T)).argsort(axis=1)[:, :100]
    pairs = zip(exact.tolist(), rows.tolist(), strict=True)
    n_found = sum(len({*best} & {*row}) for best, row in pairs)
    assert index.measure_recall(query) == pytest.approx(n_found / exact.size, abs=1e-3)
    assert 0.5 < n_found / exact.size < 0.99


def test_more_lists_are_read_under_a_filter_and_for_a_long_list():
    index = ItemIndex(MANY, None, build(MANY, 64, 8))
    query = Query(MANY_USERS)
    is_barred = RNG.random(4000) < 0.7
    recalls = []
    for k, barred in ((100, None), (100, is_barred), (400, None)):
        _, exact = ItemIndex(MANY).search(query, k, barred)
        _, rows = index.search(query, k, barred)
        pairs = zip(exact.tolist(), rows.tolist(), strict=True)
        recalls.append(np.mean([len({*best} & {*row}) / k for best, row in pairs]))
    assert min(recalls[1:]) > recalls[0]


def test_the_same_vectors_give_the_same_bytes_and_come_back():
    again = build(VECTORS, LISTS, 2)
    assert again.content.tobytes() == WHOLE.content.tobytes()
    read = CoarseIndex.from_bytes(WHOLE.content.copy(), 2)
    assert measure_items(VECTORS, read) == measure_items(VECTORS, again)


@pytest.mark.parametrize(
    "content", [faiss.serialize_index(faiss.IndexFlatIP(W)), np.arange(90, dtype=np.uint8)]
)
def test_another_file_is_refused(content):
    with pytest.raises(ValueError, match="no FAISS index"):
        CoarseIndex.from_bytes(content, 1)


def test_an_index_of_moved_items_or_of_fewer_lists_finds_less():
    recall = measure_items(MANY, build(MANY, 64, 16))
    others = MANY[RNG.permutation(len(MANY))]
    assert measure_items(MANY, build(others, 64, 16)) < recall - 0.1
    assert measure_items(MANY, build(MANY, 64, 8)) < recall - 0.01
